"""Align: every data set to encoded rows in the cache. A stream's rows are read while training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from factory.config import registry
from factory.data.encoding import EncoderSpec, encoding_of, spec_of
from factory.data.media.processor import frames_of, processor_spec
from factory.data.prepare import Prepared, Progress, prepare
from factory.execute.context import Run
from factory.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class Aligned:
    """The prepared sets by name; of a stream, the validation set alone."""

    sources: dict[str, Prepared]
    spec: EncoderSpec


def align(run: Run, tokenizer: Any, processor: dict[str, bytes]) -> dict[str, Any]:
    def progress(done: int) -> None:
        run.progress("align", done, done)

    with run.world.node_leader_first():  # the others find the rows in the cache
        return {"aligned": aligned(run.plan, tokenizer, progress, run.stop_if_asked, processor)}


def aligned(
    plan: Plan,
    tokenizer: Any,
    progress: Progress,
    stop: Callable[[], None],
    processor: Mapping[str, bytes],
) -> Aligned:
    """`processor`: the files of the model's. Raises UserError where a set cannot be read or does not fit."""
    steps = plan.steps
    kind = registry.spec("stages", plan.settings.stage.name).KIND
    own = processor_spec(steps.load.config.get("model_type", ""), processor, tokenizer, frames_of(plan))
    spec = spec_of(tokenizer, encoding_of(plan), kind, own)
    data, seed = plan.settings.data, plan.settings.seed
    # a stream's rows are read while training
    sources = {name: found for name, found in plan.sources.items() if not data.streaming or name == data.validation}
    return Aligned(prepare(data, sources, spec, seed, steps.train.threads, progress, stop), spec)
