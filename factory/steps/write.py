"""Write: the last step of chat and serve: a model that was read, or its folder, as a room that answers."""

from functools import partial
from typing import Any

from factory import saved_adapter
from factory.config.refusal import refuse
from factory.data.encoding import encoding_of
from factory.data.media.processor import frames_of, processor_spec
from factory.inference.prompts import Prompts
from factory.inference.room import OWN, Opening, Room, behind
from factory.steps import source
from factory.steps.feed import autocast


def embedded(run: Opening, tokenizer: Any, processor: Any, model: Any) -> dict[str, Any]:
    from factory.inference.embedded import Embedded, Model, Numbers
    from factory.rollouts.sample import own_ends

    plan, asked = run.plan, run.engine
    model = with_adapters(model, run.adapters)
    made = Embedded(
        Model(model, plan.steps.load.device, partial(autocast, plan)),
        numbers=Numbers(asked.prefill, plan.steps.patch.reach),
        most=asked.batch,
        queue=asked.queue,
        scores=_score if plan.settings.stage.name == "rm" else None,
    )
    room = Room(plan, made, prompts(run, tokenizer, processor, own_ends(made.model.inner)), {}, _capacity(run))
    return {"room": room}


def vllm(run: Opening, tokenizer: Any) -> dict[str, Any]:
    from factory.inference.vllm_engine import Vllm

    plan, known = run.plan, behind(run.adapters)
    adapters = {known[name]: folder for name, folder in run.adapters.items()}
    if plan.steps.load.adapter is not None:
        adapters[OWN] = plan.steps.load.adapter
    made = Vllm(source.folder(run), plan, run.engine, adapters, plan.steps.patch.reach)
    return {"room": Room(plan, made, prompts(run, tokenizer, {}, ()), {}, _capacity(run))}


def _capacity(run: Opening) -> int:
    return run.engine.batch + run.engine.queue


def prompts(run: Opening, tokenizer: Any, processor: Any, stops: Any) -> Prompts:
    kind = run.plan.steps.load.config.get("model_type", "")
    own = processor_spec(kind, processor, tokenizer, frames_of(run.plan))
    return Prompts(tokenizer, encoding_of(run.plan), own, stops)


def with_adapters(model: Any, adapters: dict[str, str]) -> Any:
    """The model with further adapters beside its own. Raises UserError for one that is not of this base."""
    known = behind(adapters)
    for name, folder in adapters.items():
        try:
            model = saved_adapter.read(model, folder, known[name])
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise refuse(
                "serve-adapter",
                f"serve.adapters.{name}={folder}",
                first[:200].rstrip(".: "),
                because="every adapter is put on the one base that is served",
                fix=(
                    "name the folders of adapters that were trained on this base, as serve.adapters={mine: "
                    "outputs/DATE/TIME/model}"
                ),
            ) from error
    return model.requires_grad_(False)


def _score(model: Any, inputs: dict[str, Any], ids: Any) -> float:
    """At the row's last token."""
    import torch

    from factory.data.dataset import IGNORED
    from factory.stages.rm.run import scores

    ids = ids.to(model.device)
    labels = torch.full_like(ids, IGNORED)
    labels[:, -1] = ids[:, -1]
    seen = {name: value.to(model.device) for name, value in inputs.items()}
    with torch.inference_mode():
        return float(scores(model.model, {"input_ids": ids, "labels": labels, **seen})[0])
