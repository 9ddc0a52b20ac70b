"""A whole model written as transformers or llama.cpp read it.

What is written is read anew before it takes its place: a folder that an export has finished is one that answers as the
model did.
"""

import copy
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from factory.config.refusal import refuse
from factory.config.settings import Quantization
from factory.execute.checkpoint import save_tokenizer
from factory.execute.context import Run
from factory.export import card, gguf, spec
from factory.export.tokens import Tokens
from factory.stages.rm.spec import SCORE
from factory.steps.evaluate import TOKEN_ROUNDING
from factory.steps.proofs import judged, moved, token_losses
from factory.steps.quantize import held, keep_gradients
from factory.steps.save import say_dtype
from factory.steps.walk import model_class, multimodal, outside_linears

_export_unfit = partial(refuse, "export-unfit", because="what is written would not answer as the model does")

# mean nats a token that a type of so many bits may move the losses by; a guard against files that are wrong, not a
# measure of how good a type is (docs/measurements.md has that)
_ALLOWED = {"q8_0": 0.1, "int8": 0.3, "q5_1": 0.5, "q5_0": 0.5}
_ALLOWED_4_BITS = 1.5
_REPORT = "report it with the plan: nothing was put in its place"


@dataclass(frozen=True, slots=True)
class Ready:
    """What of an export is known before the weights are read: GGUF's tokenizer, the Modelfile, what ends an answer."""

    tokens: Tokens | None
    modelfile: str | None
    stops: list[int]


@dataclass(frozen=True, slots=True)
class Merged:
    """A whole model in float32, the ids that what is written of it is compared on, what the card says of its base."""

    model: Any
    ids: list[int]
    base: str = ""


# --- transformers


def as_hf(
    run: Run,
    merged: Merged,
    tokenizer: Any,
    processor: dict[str, bytes],
    ready: Ready,
    aside: Path,
    expected: list[float],
) -> dict[str, Any]:
    plan, asked, model = run.plan.exported, run.plan.settings.export, merged.model
    dtype = plan.dtype or "bfloat16"
    model.config.use_cache = True
    _say_stops(run, model, ready.stops)
    if plan.scores:
        tokenizer = _padding_apart(tokenizer, ready.stops)
        model = _classifier(model, tokenizer)
    _cast_all(model, dtype)
    aside.mkdir(parents=True)
    if asked.quantization in spec.CALIBRATED:
        from factory.attention.segments import with_masks
        from factory.export import calibrated

        steps = run.plan.steps
        with with_masks(model):
            calibrated.write(asked, model, tokenizer, aside, steps.load.device, steps.patch.reach)
        ours = None
    else:
        if asked.quantization is not None:
            model = _in_bits(run, model, dtype)
        ours = _outputs(run, model, merged.ids)
        model.save_pretrained(aside, max_shard_size=asked.shard_size)
        say_dtype(aside / "config.json", dtype)
    save_tokenizer(tokenizer, aside)
    for name, content in processor.items():
        (aside / name).write_bytes(content)
    (aside / "README.md").write_text(card.card(run.plan, merged.base), encoding="utf-8")
    if asked.check and ours is not None:
        _let_go(model)
        _check_written(run, ours, _outputs(run, _read(run, aside), merged.ids), dtype)
    if plan.scores or ours is None:
        return {}
    told = moved(ours, expected)
    if not isfinite(told["mean_nats"]):
        run.emit("note", text=f"In {dtype} the model's losses are no numbers: it was written without being compared.")
        return {}
    return told


def _let_go(model: Any) -> None:
    """Frees the weights: two models are never in memory together."""
    for module in model.modules():
        for name in module._parameters:
            module._parameters[name] = None


def _outputs(run: Run, model: Any, ids: list[int]) -> list[float]:
    """Losses of the ids, of a reward model the score of them."""
    if not run.plan.exported.scores:
        return token_losses(run, model, ids, mixed=False)
    import torch

    from factory.attention.segments import with_masks

    with torch.no_grad(), with_masks(model):
        given = model.eval()(input_ids=torch.tensor([ids], device=run.plan.steps.load.device))
    return given.logits[0].float().tolist()


def _read(run: Run, folder: Path) -> Any:
    """As plain transformers reads it."""
    from transformers import AutoConfig

    trust = run.plan.settings.model.trust_remote_code
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    config.use_cache, config._attn_implementation = False, run.plan.steps.patch.attention
    kind = classifier_class(config) if run.plan.exported.scores else model_class(config)
    model, info = kind.from_pretrained(
        folder, config=config, dtype="auto", trust_remote_code=trust, output_loading_info=True
    )
    if info["missing_keys"]:
        raise _export_unfit(
            f"export.dir={run.plan.settings.export.dir}", f"it lacks {min(info['missing_keys'])}", fix=_REPORT
        )
    keep_gradients(model)
    return model if run.plan.settings.export.quantization else model.to(run.plan.steps.load.device)


def _check_written(run: Run, ours: list[float], theirs: list[float], dtype: str) -> None:
    apart = moved(ours, theirs)
    if run.plan.exported.scores:
        found, allowed = apart["most_nats"], TOKEN_ROUNDING[dtype] * max(1.0, *map(abs, ours))
        detail = f"read anew, scores differ by {found:.2g} at most"
    else:
        found, allowed = judged(apart, dtype)
        detail = (
            f"read anew, losses of single tokens differ by {apart['mean_nats']:.2g} nats on average, "
            f"{apart['most_nats']:.2g} at most"
        )
    if not found <= allowed:
        raise _export_unfit(f"export.format={run.plan.settings.export.format}", detail, fix=_REPORT)
    run.check("written", True, detail)


def _say_stops(run: Run, model: Any, stops: list[int]) -> None:
    """An answer ends where the chat template ends it; what a generation_config.json contradicts itself in is mended."""
    found = model.generation_config
    known = found.eos_token_id
    before = [known] if isinstance(known, int) else list(known or [])
    both = list(dict.fromkeys([*before, *stops]))
    found.eos_token_id = both[0] if len(both) == 1 else both
    try:
        found.validate(strict=True)
    except ValueError:  # as Llama 2's, which names a temperature and draws nothing: transformers would not save it
        found.do_sample = True
        run.emit("note", text="generation_config.json set a temperature without do_sample=true: it is set.")


def _cast_all(model: Any, dtype: str) -> None:
    """Once, tensor after tensor. Buffers that are computed from the config stay as they are."""
    for name, value in model.named_parameters():  # tied tensors are one, and come once
        value.data = cast(value.data, dtype, name)


def cast(value: Any, dtype: str, name: str) -> Any:
    """Raises OverflowError for a number that the type has not."""
    import torch

    from factory.rounding import rounded

    made = rounded(value, getattr(torch, dtype))
    if dtype == "float16" and not torch.isfinite(made).all() and torch.isfinite(value).all():
        raise OverflowError(name)
    return made


def _in_bits(run: Run, model: Any, dtype: str) -> Any:
    """The model with its decoder's linear layers quantized by bitsandbytes."""
    import torch

    load, name = run.plan.steps.load, run.plan.settings.export.quantization
    asked = Quantization(
        method="bitsandbytes",
        bits=8 if name == "int8" else 4,
        type="fp4" if name == "fp4" else "nf4",
        double_quantization=False,
    )
    how = held(asked, getattr(torch, dtype))
    how.llm_int8_skip_modules = outside_linears(
        model.config, trust_remote_code=run.plan.settings.model.trust_remote_code
    )
    made = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=model.state_dict(),
        dtype=getattr(torch, dtype),
        quantization_config=how,
        device_map={"": load.device},
    )
    made.generation_config = model.generation_config
    keep_gradients(made)
    return made


# --- reward models


def classifier_class(config: Any) -> Any:
    """Raises UserError for a kind that transformers has no classifier of."""
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or multimodal(type(config)):
        wrong = f"transformers has no sequence classifier of {config.model_type}"
        fix = "set export.format=adapter, or read the run's own model/ as its card says"
        raise _export_unfit("export.format=hf", wrong, fix=fix)
    return AutoModelForSequenceClassification


def _padding_apart(tokenizer: Any, stops: list[int]) -> Any:
    """With a padding that ends no answer: transformers' classifiers take the last token that is none for the score.

    Without one where all special tokens end an answer: they refuse to be given several rows then.
    """
    if tokenizer.pad_token_id not in stops:
        return tokenizer
    made = copy.deepcopy(tokenizer)
    special = {place: str(token) for place, token in made.added_tokens_decoder.items() if token.special}
    made.pad_token = next((token for place, token in sorted(special.items()) if place not in stops), None)
    return made


def _classifier(model: Any, tokenizer: Any) -> Any:
    """The same decoder with the head of scores in the place of the language model's."""
    import torch

    config = copy.deepcopy(model.config)
    config.num_labels, config.id2label, config.label2id = 1, {0: "SCORE"}, {"SCORE": 0}
    config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        made = classifier_class(config).from_config(config)
    inner = getattr(model, model.base_model_prefix)
    setattr(made, made.base_model_prefix, inner)
    made.score.weight = torch.nn.Parameter(model.get_parameter(SCORE).detach())
    made.config.architectures = [type(made).__name__]
    left = [name for name, value in made.named_parameters() if value.is_meta]
    assert not left, left
    return made


# --- GGUF


def as_gguf(
    run: Run, merged: Merged, tokenizer: Any, ready: Ready, aside: Path, expected: list[float]
) -> dict[str, Any]:
    asked = run.plan.settings.export
    assert ready.tokens is not None
    aside.mkdir(parents=True)
    file = aside / spec.MODEL_GGUF
    gguf.write(file, merged.model, ready.tokens, tokenizer.chat_template, run.plan, name=card.base_name(run.plan))
    if ready.modelfile is not None:
        (aside / spec.MODELFILE).write_text(ready.modelfile, encoding="utf-8")
    (aside / "README.md").write_text(card.card(run.plan, merged.base), encoding="utf-8")
    if not asked.check:
        return {}
    config = merged.model.config
    _let_go(merged.model)
    again = _read_gguf(run, file, config)
    told = moved(token_losses(run, again, merged.ids, mixed=False), expected)
    if asked.quantization is None:
        allowed, found = TOKEN_ROUNDING[run.plan.exported.dtype or "float16"], told["most_nats"]
    else:
        allowed, found = _ALLOWED.get(asked.quantization, _ALLOWED_4_BITS), told["mean_nats"]
    detail = f"read anew, losses of single tokens differ by {told['mean_nats']:.2g} nats on average"
    if not found <= allowed:
        raise _export_unfit("export.format=gguf", detail, fix=_REPORT)
    run.check("written", True, detail)
    return told


def _read_gguf(run: Run, file: Path, config: Any) -> Any:
    """By transformers' own reader of GGUF; what it does not read of a config (scaled positions) is the model's own."""
    import torch
    from transformers import AutoConfig

    kind, device = spec.GGUF[config.model_type].name, run.plan.steps.load.device
    said = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "sliding_window")}
    if kind != config.model_type:  # the same mathematics by another name
        config = AutoConfig.for_model(kind, **said)
        config._attn_implementation = run.plan.steps.patch.attention
    kept = {"gguf_file": file.name, "config": config, "dtype": torch.float32}
    return model_class(config).from_pretrained(file.parent, **kept).to(device)
