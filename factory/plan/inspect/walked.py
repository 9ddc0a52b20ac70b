"""What only transformers can tell: an architecture without a closed form, and the numbers inside a GGUF file.

Asked of a process of its own (some seconds), so that planning imports no torch; the answer is kept in the cache.
"""

import hashlib
import json
import re
import subprocess
import sys
from contextlib import suppress
from typing import Any

from factory import cache
from factory.architecture import FAMILIES, Architecture
from factory.config.refusal import UserError, did_you_mean, refuse
from factory.plan.facts import ModelFacts
from factory.plan.inspect.machine import installed_version
from factory.run.folder import write_whole

_PATIENCE = 300  # seconds
_ANSWER = 5  # one more whenever an answer says other things: what the cache holds is asked for again
_MOST = 10_000  # layers, experts
# config.json's words for how many there are, as num_hidden_layers; block_size is how long a context is
_COUNTS = re.compile(
    r"(^|_)(num|n)_(\w+_)?(layer|block|expert)|(layers|blocks|experts|depth)$|(layer|block|expert)s?_num$"
)
_SIZES = re.compile(r"size|dim|width|length|capacity")


def walked(model: ModelFacts, *, trust_remote_code: bool) -> Architecture:
    """The architecture as a walk over the model on the meta device gives it. Raises UserError."""
    asked = {
        "config": model.config,
        "path": model.path,
        "revision": model.revision,
        "trust_remote_code": trust_remote_code,
    }
    kind = str(model.config.get("model_type"))
    if many := _too_many(model.config):
        raise _unknown_architecture(f"model_type={kind}", f"{many} is beyond any model", hint="")
    answer = _ask("architecture", asked)
    if answer["problem"] == "code":
        raise refuse(
            "remote-code",
            "model.trust_remote_code=false",
            f"{kind} is code that comes with the model, not transformers'",
            because="somebody else's code would run on this machine",
            fix="read that code, then set model.trust_remote_code=true",
            machine=True,
        )
    if answer["problem"]:
        hint = did_you_mean(kind, FAMILIES)
        raise _unknown_architecture(f"model_type={kind}", answer["problem"], hint=hint)
    return Architecture.from_json(answer["found"])


def _too_many(config: dict[str, Any]) -> str | None:
    """What would be built one by one, more often than memory and patience reach."""
    inner = [value for value in config.values() if isinstance(value, dict)]
    return next(
        (
            f"{name}={value}"
            for each in (config, *inner)
            for name, value in each.items()
            if isinstance(value, int) and value > _MOST and _COUNTS.search(name) and not _SIZES.search(name)
        ),
        None,
    )


def gguf_config(model: ModelFacts) -> dict[str, Any]:
    answer = _ask("gguf", {"path": model.path, "fingerprint": model.fingerprint})
    if answer["problem"]:
        raise refuse(
            "model-broken",
            f"model.path={model.path}",
            answer["problem"],
            because="it would fail, or load as noise, after everything else was done",
            fix="download or copy the file again",
        )
    return answer["found"]


def _ask(what: str, asked: dict[str, Any]) -> dict[str, Any]:
    key = json.dumps([_ANSWER, what, asked, installed_version("transformers")], sort_keys=True, default=str)
    kept = cache.folder() / "architectures" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    with suppress(OSError, ValueError):
        return json.loads(kept.read_text(encoding="utf-8"))
    run = [sys.executable, "-m", "factory.steps.walk", what]
    try:
        done = subprocess.run(  # noqa: S603  this program, no shell
            run, input=json.dumps(asked), capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return {"found": None, "problem": f"transformers did not build it in {_PATIENCE} s"}
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        told = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        return {"found": None, "problem": f"transformers can make nothing of it ({told})"}
    answer = json.loads(lines[-1])
    if not answer["problem"]:
        with suppress(OSError, UserError):  # a cache that cannot be written only costs time
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, lines[-1])
    return answer


def _unknown_architecture(setting: str, wrong: str, hint: str) -> UserError:
    return refuse(
        "unknown-architecture",
        setting,
        wrong,
        because="parameters and memory could not be estimated, nor the model be built",
        fix=f"{hint}use a newer transformers, or another model",
    )
