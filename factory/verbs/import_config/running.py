"""What takes more than one key to tell, of how a run goes: its types, processes, warm-up, saves and evaluations."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from factory.verbs.import_config.said import Said, names_of, text_of

_PRECISIONS = ("pure_bf16", "bf16", "fp16")
_STRATEGIES = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
_SHARDED = {"full_shard": "fsdp", "no_shard": "ddp"}
_SHARDED_OTHERWISE = {
    "shard_grad_op": "splits gradients and the optimizer alone; hardware.strategy=zero2 does, by DeepSpeed",
    "hybrid_shard": "splits within a node; hardware.strategy=fsdp splits over all processes",
    "hybrid_shard_zero2": "splits within a node; hardware.strategy=zero2 splits over all processes, by DeepSpeed",
}


def precision(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    name = next((name for name in _PRECISIONS if given.get(name)), None)
    said.set("precision", name or "auto")
    if name is None and said.verb == "train":
        said.noted["bf16"] = (
            "precision=auto is as the machine computes fast; there without bf16 or fp16 in the type "
            "that weights are stored in, those that train in float32 (precision=fp32)"
        )
    yield from _PRECISIONS


def _processes(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    if asked := given.get("deepspeed"):
        level, offload = _zero(asked)
        if level is None:
            said.missing["deepspeed"] = "it tells no stage of ZeRO; set hardware.strategy=zero1, zero2 or zero3"
        else:
            _share(said, "deepspeed", _STRATEGIES[level], offload=offload)
    words = _sharding(given.get("fsdp"))
    strategy = next((_SHARDED[word] for word in words if word in _SHARDED), None)
    if strategy:
        _share(said, "fsdp", strategy, offload="offload" in words)
    elif words:
        why = next((_SHARDED_OTHERWISE[word] for word in words if word in _SHARDED_OTHERWISE), None)
        said.missing["fsdp"] = why or f"{' '.join(words)} does not say what is split; hardware.strategy=fsdp splits all"
    yield from ("deepspeed", "fsdp")


def _zero(asked: Any) -> tuple[int | None, bool]:
    """The stage that a config of DeepSpeed says, or its file's name, and whether what is split moves to the CPU."""
    if isinstance(asked, dict):
        zero = asked.get("zero_optimization")
        zero = zero if isinstance(zero, dict) else {}
        stage = zero.get("stage")
        moved = [zero.get(name) for name in ("offload_optimizer", "offload_param")]
        offload = any(isinstance(each, dict) and each.get("device") == "cpu" for each in moved)
        return (stage if isinstance(stage, int) and stage in _STRATEGIES else None), offload
    name = Path(text_of(asked)).stem
    return next(
        (level for level in _STRATEGIES if f"z{level}" in name or f"zero{level}" in name), None
    ), "offload" in name


def _share(said: Said, name: str, strategy: str, *, offload: bool) -> None:
    said.set("hardware.strategy", strategy)
    if offload:
        said.set("hardware.offload", True)
    moved = " and hardware.offload=true" if offload else ""
    said.noted[name] = f"hardware.strategy={strategy}{moved}; set hardware.num_processes beside it"


def _sharding(asked: Any) -> list[str]:
    """The words of transformers' `fsdp`: a text, a list of them, or a truth value in later versions."""
    if asked is True:
        return ["full_shard"]
    return " ".join(names_of(asked or None)).lower().split()


def _warmup(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    steps, total = given.get("warmup_steps", 0), given.get("max_steps")
    if text_of(given["lr_scheduler_type"]) == "constant":
        said.set("stage.warmup_ratio", 0)
        if steps or given["warmup_ratio"]:
            said.noted["lr_scheduler_type"] = "constant has no warm-up there, whatever is set of one"
    elif isinstance(steps, float) and 0 < steps < 1:
        said.set("stage.warmup_ratio", steps)  # as transformers 5 reads it
    elif isinstance(steps, int) and isinstance(total, int) and 0 < steps <= total:
        said.set("stage.warmup_ratio", round((steps - 0.5) / total, 8))  # a share is rounded up to whole steps
    else:
        yield from ("warmup_steps",) if steps == 0 else ()
        return
    yield from ("warmup_steps", "warmup_ratio")


def _measured(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """When checkpoints are kept and held-out rows are measured."""
    saves = _strategy(given.get("save_strategy", "steps"))
    if saves == "no":
        said.set("stage.save_steps", None)
        yield from ("save_strategy", "save_steps")
    elif saves == "steps":
        yield "save_strategy"
    if saves != "no" and "save_total_limit" not in given:
        said.noted["save_total_limit"] = "of checkpoints, stage.save_total_limit are kept; there all are"
    name = "eval_strategy" if "eval_strategy" in given else "evaluation_strategy"
    measures = _strategy(given.get(name, "no"))
    if measures == "steps":
        said.set("stage.eval_steps", given.get("eval_steps") or given["logging_steps"])
    elif measures != "no":
        said.missing[name] = f"{measures} is no number of steps; set stage.eval_steps"
    elif "eval_steps" in given:
        said.same["eval_steps"] = "without eval_strategy=steps nothing is measured while training, here as there"
    yield from ("eval_strategy", "evaluation_strategy", "eval_steps")


def answers(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """How the answers that are scored are drawn; in ppo the same keys say how those are that are learnt from."""
    if said.overrides["stage"] == "ppo" or not given.get("predict_with_generate"):
        return
    if given.get("do_sample") is False:
        said.set("evaluate.temperature", 0)
    elif "temperature" in given:
        said.set("evaluate.temperature", given["temperature"])
    else:
        said.noted["predict_with_generate"] = "answers are the likeliest (evaluate.temperature=0); there they are drawn"
    said.missing |= {name: "scored answers are drawn from all tokens" for name in ("top_p", "top_k") if name in given}
    yield from ("temperature", "do_sample", "top_p", "top_k")


def _strategy(value: Any) -> str:
    """`no` is a truth value in YAML."""
    return "no" if value is False else text_of(value)


ALL = precision, _processes, _warmup, _measured, answers
