"""Clients at once before any OpenAI server: tokens a second, the time to the first token, and the worst of them.

    python benchmarks/serve.py                                     starts `factory serve` with what follows `--`
    python benchmarks/serve.py --base-url http://127.0.0.1:8000/v1 --model NAME
    python benchmarks/serve.py --clients 1,16 --tokens 64 -- engine.batch=16 precision=fp32

Each client sends one request after the other, for a while that is as long for every number of clients. Prompts differ,
so that nothing is read only once for all, and `ignore` no stop: how many tokens came is counted.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

_TOPICS = ("rivers", "bread", "clocks", "glaciers", "chess", "bees", "tides", "paper")
_READY = 600  # seconds


@dataclass(slots=True)
class Seen:
    """Of one request: seconds to its first token and to its last, and how many tokens there were."""

    first: float
    whole: float
    tokens: int


@dataclass(slots=True)
class Client:
    """One after the other, up to `count` requests."""

    url: str
    model: str
    number: int
    tokens: int
    count: int
    key: str
    seen: list[Seen] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def run(self, begin: threading.Barrier) -> None:
        with httpx.Client(timeout=600, headers={"Authorization": f"Bearer {self.key}"}) as client:
            begin.wait()
            for turn in range(self.count):
                try:
                    self.seen.append(self._one(client, turn))
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self.failed.append(f"{type(error).__name__}: {error}")

    def _one(self, client: httpx.Client, turn: int) -> Seen:
        topic = _TOPICS[(self.number + turn) % len(_TOPICS)]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": f"Client {self.number}, question {turn}: tell me about {topic}."}],
            "max_tokens": self.tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start, first, tokens, pieces = time.perf_counter(), 0.0, 0, 0
        with client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise ValueError(event["error"]["message"])
                first = first or time.perf_counter() - start
                pieces += any((choice.get("delta") or {}).get("content") for choice in event.get("choices") or [])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        # a server that tells no usage in its stream sends about a piece a token
        return Seen(first, time.perf_counter() - start, tokens or pieces)


def measured(url: str, model: str, clients: int, tokens: int, count: int, key: str, server: Any) -> dict[str, Any]:
    made = [Client(url, model, number, tokens, count, key) for number in range(clients)]
    begin = threading.Barrier(clients + 1)
    threads = [threading.Thread(target=each.run, args=(begin,)) for each in made]
    for thread in threads:
        thread.start()
    begin.wait()
    start, spent = time.perf_counter(), _cpu(server)
    for thread in threads:
        thread.join()
    seconds, spent = time.perf_counter() - start, _cpu(server) - spent
    seen = [one for each in made for one in each.seen]
    failed = [one for each in made for one in each.failed]
    if not seen:
        raise SystemExit(f"no request was answered: {failed[:1]}")
    written = sum(one.tokens for one in seen)
    first = [one.first for one in seen]
    each = [(one.whole - one.first) / max(1, one.tokens - 1) for one in seen]
    return {
        "clients": clients,
        "requests": len(seen),
        "failed": len(failed),
        "tokens": written,
        "tokens_per_second": round(written / seconds, 1),
        "tokens_per_cpu_second": round(written / spent, 1) if spent else None,
        "first_token_ms": {"median": _ms(statistics.median(first)), "p99": _ms(_p99(first))},
        "answer_ms_p99": _ms(_p99([one.whole for one in seen])),
        "token_ms_median": _ms(statistics.median(each)),
    }


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(0.99 * len(seconds)))]


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


def _cpu(server: Any) -> float:
    """CPU seconds that the server has spent, where it is ours: on a busy machine they tell more than a clock."""
    return sum(server.cpu_times()[:2]) if server else 0.0


def started(words: list[str]) -> tuple[subprocess.Popen[str], str]:
    """`factory serve` on a free port, once it listens, and its address."""
    command = [sys.executable, "-m", "factory", "serve", "serve.port=0", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        print(line, end="", file=sys.stderr)
        if line.startswith("Serving "):
            return process, line.split(" at ")[1].split(" ")[0]
    raise SystemExit(f"the server ended with {process.wait()}")


def main() -> None:
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base-url", help="a server that runs, with its /v1")
    parser.add_argument("--model", help="by default the first that the server lists")
    parser.add_argument("--clients", default="1,16")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--key", default=os.environ.get("OPENAI_API_KEY", "none"))
    asked = parser.parse_args(words[:at])
    process, url = (None, asked.base_url.rstrip("/")) if asked.base_url else started(words[at + 1 :])
    server = psutil.Process(process.pid) if process else None
    try:
        headers = {"Authorization": f"Bearer {asked.key}"}
        listed = httpx.get(f"{url}/models", headers=headers, timeout=60).raise_for_status().json()
        model = asked.model or listed["data"][0]["id"]
        measured(url, model, 1, 8, 1, asked.key, server)  # the first request of all warms up
        for clients in map(int, asked.clients.split(",")):
            print(
                json.dumps(measured(url, model, clients, asked.tokens, asked.requests, asked.key, server)), flush=True
            )
    finally:
        if process:
            process.send_signal(signal.SIGINT)
            process.wait(60)


if __name__ == "__main__":
    main()
