"""Scores from functions, TRL and servers: what they are called with, and what is said where they fail."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import pytest
import tiny
import torch
from rolling import LORA, SHORT, STAGES, repeats
from safetensors.torch import save_file

from factory.config.refusal import UserError
from factory.data import batches
from factory.data.dataset import IGNORED, Example
from factory.plan import heads
from factory.rewards import server
from factory.rewards.checked import scores
from factory.rewards.function import by_function, by_trl
from factory.rewards.server import by_server
from factory.rewards.source import _of_texts
from factory.rewards.spec import Named, named
from factory.rollouts.sample import Answer
from factory.run.folder import RunFolder
from factory.stages.rm.spec import SCORE
from factory.steps.walk import model_class

ASKED = (["a?", "b?"], ["yes", "no!"], [[5], [6, 7]], ["Yes.", "No."])
OWN = {"reward_timeout": 2, "reward_retries": 2}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("mine:score", Named("function", "mine:score")),
        ("pack.mine:Rewards.score", Named("function", "pack.mine:Rewards.score")),
        ("trl:think_format_reward", Named("trl", "think_format_reward")),
        ("http://127.0.0.1:8000/score", Named("server", "http://127.0.0.1:8000/score")),
        ("https://a.b/c?d=e", Named("server", "https://a.b/c?d=e")),
        ("mine", None),
        ("mine:", None),
        ("ftp://a/b", None),
        ("http://a b", None),
        ("1x:score", None),
    ],
)
def test_what_is_named(text: str, found: Named | None) -> None:
    assert named(text) == found


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ([1.0], "it gave 1 scores for 2 answers"),
        (3.0, "it gave float, not a list of numbers"),
        ({"a": 1, "b": 2}, "it gave dict, not a list of numbers"),
        ([1.0, float("nan")], "the score of answer 2 of 2 is nan"),
        ([None, 1.0], "the score of answer 1 of 2 is None"),
        (["1", 1.0], "the score of answer 1 of 2 is '1'"),
        ([-1e300, 1.0], "the score of answer 1 of 2 is -1e+300, which in float32 is infinite"),
        ([1.0, 10**40], f"the score of answer 2 of 2 is 1{'0' * 40}, which in float32 is infinite"),
        ([1.0, 10**400], f"the score of answer 2 of 2 is 1{'0' * 400}"),
    ],
)
def test_scores_that_are_none(given: Any, wrong: str) -> None:
    with pytest.raises(UserError, match="reward-values") as raised:
        scores(given, 2, "stage.reward=x:y")
    assert raised.value.refusals[0].wrong == wrong


def test_the_widest_scores_stay_numbers_in_float32() -> None:
    widest = float(torch.finfo(torch.float32).max)
    assert torch.tensor(scores([widest, -widest], 2, "")).isfinite().all()


def test_none_may_be_a_score() -> None:
    first, second = scores([None, 1], 2, "", unscored=True)
    assert isnan(first) and second == 1.0
    with pytest.raises(UserError, match="is nan"):
        scores([float("nan"), 1], 2, "", unscored=True)


def test_a_reward_model_whose_score_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be an answer without a score."""
    from factory.rewards import model

    monkeypatch.setattr(model, "scores", lambda _judge, batch: batch)
    with pytest.raises(UserError, match="the score of answer 2 of 3 is nan") as raised:
        model._scores(None, [torch.tensor([1.0, float("nan")]), torch.tensor([2.0])], Path("judge"))  # type: ignore[arg-type]
    assert raised.value.refusals[0].rule == "reward-values"


@pytest.mark.parametrize("kind", ["llama", "llava"])
def test_a_whole_reward_model_is_read_by_the_class_of_its_config(kind: str, tmp_path: Path) -> None:
    """One that sees, and was trained on pairs of text, too."""
    from transformers import AutoConfig

    from factory.rewards.model import by_model

    text = tiny.config(vocab_size=len(tiny.tokenizer()))
    seeing = families.seeing(text.to_dict(), families.CLIP)
    config = AutoConfig.for_model("llava", **seeing) if kind == "llava" else text
    torch.manual_seed(0)
    saved = model_class(config).from_config(config).eval()
    saved.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    head = torch.randn(1, text.hidden_size)
    save_file({"weight": head}, tmp_path / heads.file_of(SCORE))
    load = SimpleNamespace(reward=str(tmp_path), dtype="float32", device="cpu")
    settings = SimpleNamespace(model=SimpleNamespace(trust_remote_code=False))
    plan: Any = SimpleNamespace(settings=settings, steps=SimpleNamespace(load=load))
    batch = batches.collate([Example([5, 6, 7], [IGNORED, 6, 7])], 0, "cpu")
    (found,) = by_model(plan, tiny.tokenizer())(None, [], [], [batch])
    with torch.no_grad():
        states = saved(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[-1]
    assert found == pytest.approx(float(head[0] @ states[0, 2]), rel=1e-5)


def test_arrays_and_tensors_are_scores() -> None:
    import numpy as np

    for given in (np.array([1, 2]), torch.tensor([1.0, 2.0]), (True, 2), range(1, 3)):
        assert scores(given, 2, "") == [1.0, 2.0]


# --- functions


@pytest.fixture
def written(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """A module beside the run; its function's import path."""
    monkeypatch.syspath_prepend(str(here))

    def written(module: str, code: str) -> str:
        (here / f"{module}.py").write_text(code)
        return f"{module}:score"

    return written


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ("completions", {"completions"}),
        ("prompts, completions", {"prompts", "completions"}),
        ("completions, **others", {"prompts", "completions", "completion_ids", "solution"}),
        ("completion_ids, solution, scale=2", {"completion_ids", "solution"}),
    ],
)
def test_a_function_gets_what_it_takes(parameters: str, names: set[str], written: Callable[..., str]) -> None:
    module = "taking_" + "".join(filter(str.isalpha, parameters))
    path = written(module, f"def score({parameters}):\n    return locals()\n")
    found = by_function(path, {})(*ASKED)
    found |= found.pop("others", {})
    given: dict[str, Any] = dict(zip(("prompts", "completions", "completion_ids", "solution"), ASKED, strict=True))
    assert {name: found[name] for name in names} == {name: given[name] for name in names}
    assert found.keys() - {"scale"} == names


@pytest.mark.parametrize(
    ("module", "code", "wrong"),
    [
        ("scorer_raises", "def score(completions):\n    return [1 / 0]\n", "it raised ZeroDivisionError"),
        ("scorer_without", "def other(): ...\n", "scorer_without has no score"),
        ("scorer_asks", "def score(completions, rubric): ...\n", "it raised TypeError"),
        ("scorer_broken", "def score(:\n", "importing it raised SyntaxError"),
    ],
)
def test_a_function_that_fails(module: str, code: str, wrong: str, written: Callable[..., str]) -> None:
    path = written(module, code)
    with pytest.raises(UserError, match=wrong) as raised:
        by_function(path, {})(*ASKED)
    (refusal,) = raised.value.refusals
    assert (refusal.rule, refusal.setting) == ("reward-function", f"stage.reward={path}")


def test_a_module_that_is_not_there(here: Path) -> None:
    with pytest.raises(UserError, match="there is no module nowhere_at_all"):
        by_function("nowhere_at_all:score", {})


def test_texts_are_the_answers_without_marks() -> None:
    tokenizer, seen = tiny.tokenizer(), list[Any]()
    prompt = tokenizer("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n").input_ids
    said, data = tokenizer(" Well.<|im_end|>").input_ids, tokenizer("Hello!<|im_end|>\n").input_ids

    def source(*given: Any) -> list[float]:
        seen.extend(given)
        return [1.0]

    assert _of_texts(source, tokenizer, "", unscored=False)(None, [Answer(prompt, said, True)], [data], []) == [1.0]
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert seen == [[text], [" Well."], [said], ["Hello!"]]


def test_an_answers_end_is_no_part_of_its_text_where_a_decoder_would_show_it() -> None:
    """As of a token that `model.new_tokens` adds, which is not special."""
    tokenizer, seen = deepcopy(tiny.tokenizer()), list[Any]()
    tokenizer.add_tokens(["<end>"])
    ids = tokenizer(" Well.<end>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).endswith("<end>")
    scored = _of_texts(lambda *given: seen.append(given[1]) or [1.0, 1.0], tokenizer, "", unscored=False)
    scored(None, [Answer([1], ids, True), Answer([1], ids[:-1], False)], [[], []], [])
    assert seen == [[" Well.", " Well."]]


@pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed: pip install '.[dev]'")
def test_trls_functions_read_what_they_are_used_to() -> None:
    answers = ["<think>why</think>so", "so"]
    assert by_trl("think_format_reward", {})(["a", "b"], answers, [[1], [2]], ["", ""]) == [1.0, 0.0]


# --- servers

Reply = Callable[[dict[str, Any]], tuple[int, bytes]]


@pytest.fixture
def serving() -> Iterator[Callable[..., tuple[str, list[Any]]]]:
    """A server that gives the replies one after another, the last one again and again; what it was asked."""
    running: list[ThreadingHTTPServer] = []

    def serving(*replies: Reply) -> tuple[str, list[Any]]:
        asked: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append(body)
                code, answer = replies[min(len(asked), len(replies)) - 1](body)
                self.send_response(code)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None: ...

        made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        running.append(made)
        return f"http://127.0.0.1:{made.server_port}/score", asked

    yield serving
    for made in running:
        made.shutdown()
        made.server_close()


def lengths(body: dict[str, Any]) -> tuple[int, bytes]:
    return 200, json.dumps({"rewards": [len(text) for text in body["responses"]]}).encode()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(server.time, "sleep", found.append)
    return found


def test_a_server_is_asked_for_all_at_once(serving: Callable[..., Any], waits: list[float]) -> None:
    address, asked = serving(lengths)
    assert by_server(address, OWN)(*ASKED) == [3, 3]
    assert asked == [{"prompts": ASKED[0], "responses": ASKED[1]}]
    assert waits == []


@pytest.mark.parametrize("code", [500, 503, 429, 408])
def test_a_server_that_fails_is_asked_again(code: int, serving: Callable[..., Any], waits: list[float]) -> None:
    address, asked = serving(lambda _: (code, b"busy"), lambda _: (code, b"busy"), lengths)
    assert by_server(address, OWN)(*ASKED) == [3, 3]
    assert len(asked) == 3 and waits == [1, 2]


@pytest.mark.parametrize(
    ("reply", "tries", "wrong"),
    [
        ((500, b"no memory"), 3, "it answered 500 Internal Server Error: no memory, at try 3 of 3"),
        ((404, b""), 1, "it answered 404 Not Found, at try 1 of 3"),
        ((422, b"what?"), 1, f"it answered 422 {HTTPStatus(422).phrase}: what?, at try 1 of 3"),
        ((200, b"hello"), 1, "it answered 'hello', not {\"rewards\": [...]}"),
        ((200, b'{"scores": [1]}'), 1, 'it answered \'{"scores": [1]}\', not {"rewards": [...]}'),
    ],
)
def test_what_a_server_is_refused_for(
    reply: tuple[int, bytes], tries: int, wrong: str, serving: Callable[..., Any], waits: list[float]
) -> None:
    address, asked = serving(lambda _: reply)
    with pytest.raises(UserError) as raised:
        by_server(address, OWN)(*ASKED)
    (refusal,) = raised.value.refusals
    assert (refusal.rule, refusal.wrong, len(asked)) == ("reward-server", wrong, tries)


def test_a_server_that_is_not_there(waits: list[float]) -> None:
    with pytest.raises(UserError, match=r"cannot be asked \(.*refused\), at try 3 of 3"):
        by_server("http://127.0.0.1:9/score", OWN)(*ASKED)
    assert waits == [1, 2]


def test_a_server_that_does_not_answer_in_time(serving: Callable[..., Any], waits: list[float]) -> None:
    def late(_body: dict[str, Any]) -> tuple[int, bytes]:
        threading.Event().wait(1)
        return lengths(_body)

    address, _ = serving(late)
    start = time.monotonic()
    with pytest.raises(UserError, match="timed out"):
        by_server(address, {"reward_timeout": 0.2, "reward_retries": 1})(*ASKED)
    assert time.monotonic() - start < 5


def test_a_server_that_fails_and_does_not_say_why_in_time(waits: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held = list[socket.socket]()

        def refuses() -> None:
            for _ in range(2):
                held.append(listening.accept()[0])
                held[-1].recv(2**16)
                held[-1].sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\n")

        threading.Thread(target=refuses, daemon=True).start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/score"
        with pytest.raises(UserError, match="it answered 503 Busy, at try 2 of 2"):
            by_server(address, {"reward_timeout": 0.2, "reward_retries": 1})(*ASKED)
        for each in held:
            each.close()


@pytest.mark.parametrize("address", ["http://a..b/score", "http://127.0.0.1/\u00e9", "http://[1/score"])
def test_an_address_that_is_none(address: str, waits: list[float]) -> None:
    with pytest.raises(UserError, match=r"it cannot be asked \(.*, at try 3 of 3"):
        by_server(address, OWN)(*ASKED)


def test_a_run_by_a_server(serving: Callable[..., Any], execute: Callable[..., Any]) -> None:
    address, asked = serving(lengths)
    done = execute(*STAGES["ppo"], *LORA, *SHORT, f"stage.reward={address}")
    assert all(len(body["prompts"]) == len(body["responses"]) for body in asked)
    rolled = [body for body in asked if len(body["prompts"]) == 8]
    assert len(rolled) == 3
    for line, body in zip(done.metrics, rolled, strict=True):
        assert line["reward"] == pytest.approx(sum(map(len, body["responses"])) / 8, rel=1e-5)
    assert all(text.startswith("<|im_start|>") and text.endswith("assistant\n") for text in rolled[0]["prompts"])


def test_a_run_whose_server_goes_away_loses_no_step(serving: Callable[..., Any], execute: Callable[..., Any]) -> None:
    """It goes on bit for bit, whether the server went in a step or in the evaluation after one."""
    options = (*STAGES["grpo"], *LORA, *SHORT, "stage.eval_steps=2", "stage.reward_retries=0")
    address, asked = serving(lengths)
    whole = execute(*options, f"stage.reward={address}", folder="whole")
    sizes = [len(body["prompts"]) for body in asked]
    assert sizes[:7] == [3, 1, 8, 8, 3, 1, 8]
    for answered in (4, 6):  # of the evaluation after the second step, of the third step
        gone, _ = serving(*[lengths] * answered, lambda _: (500, b""))
        with pytest.raises(UserError, match="reward-server"):
            execute(*options, f"stage.reward={gone}")
        saved = RunFolder("run").checkpoint()
        assert saved is not None and saved.name == "step-000002"
        done = execute(*options, f"stage.reward={address}", resume_from=saved)
        assert repeats(done.metrics) == repeats(whole.metrics)
        wanted = dict(whole.model.named_parameters())
        assert all(torch.equal(value, wanted[name]) for name, value in done.model.named_parameters())
        shutil.rmtree("run")
