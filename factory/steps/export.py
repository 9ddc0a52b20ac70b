"""Export: a trained model in the form that others read. Merged in float32 and cast once; written aside, then renamed.

What is written is read anew before it takes its place: a folder that an export has finished is one that answers as the
model did.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import factory
from factory import own_base
from factory.execute.checkpoint import save_tokenizer
from factory.execute.context import Run
from factory.export import card, gguf, hub, modelfile, spec
from factory.export.tokens import Tokens, tokens
from factory.plan import Export
from factory.refusal import refuse
from factory.run.folder import base_config, open_as, unwritable
from factory.steps import apart as far
from factory.steps.attach import attach
from factory.steps.evaluate import HEAD_ROUNDING
from factory.steps.load import PROCESSOR_FILES
from factory.steps.proofs import UNMERGEABLE, token_losses
from factory.steps.quantize import keep_gradients
from factory.steps.walk import model_class, sees

_MARK = "Qanswer0"
_SCORE = "score_head"
# mean nats a token that a type of so many bits may move the losses by; a guard against files that are wrong, not a
# measure of how good a type is (docs/measurements.md has that)
_ALLOWED = {"q8_0": 0.1, "int8": 0.3, "q5_1": 0.5, "q5_0": 0.5}
_ALLOWED_4_BITS = 1.5


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


def export_of(run: Run) -> Export:
    assert run.plan.export is not None
    return run.plan.export


def ready(run: Run, config: Any, tokenizer: Any) -> dict[str, Any]:
    """Raises UserError for what cannot be written."""
    plan = export_of(run)
    _forget_the_dead(Path(plan.dir))
    hub.check(plan)
    if plan.scores:
        _classifier_class(config)
    stops = ends(tokenizer)
    known = tokens(tokenizer, run.plan.steps.patch.vocabulary) if plan.format == "gguf" else None
    words = None
    if plan.modelfile:
        words = modelfile.text_of(tokenizer, tokenizer.convert_ids_to_tokens(stops))
    return {"ready": Ready(known, words, stops)}


def ends(tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the end of text, and the special token that the chat template ends a turn with."""
    from jinja2 import TemplateError

    found = {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        with suppress(TemplateError, ValueError, TypeError):  # a template that takes no such conversation ends no turn
            text = str(tokenizer.apply_chat_template(messages, tokenize=False))
            after = tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
            special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
            found |= set(after[:1]) & special
    return sorted(found)


def attached(run: Run, patched: Any, quantization: Any, ready: Ready) -> dict[str, Any]:
    """The model as it was trained: the base made whole, the adapter over it. Takes what is ready only to come after."""
    return attach(run, patched, quantization, None)


def merge(run: Run, model: Any, tokenizer: Any) -> dict[str, Any]:
    """The adapter in the weights, in float32, held against that beside them. Raises UserError where they differ."""
    ids = own_base.ids(tokenizer)
    if not hasattr(model, "peft_config"):
        return {"merged": Merged(model, ids)}
    setting = f"model.adapter={run.plan.steps.load.adapter}"
    before = token_losses(run, model, ids, mixed=False)
    head = dict(model.named_children()).get(_SCORE)  # of the wrapper, which goes
    try:
        whole = model.merge_and_unload(safe_merge=True)
    except UNMERGEABLE as error:
        raise refuse(
            "merge-differs", setting, f"it cannot be merged ({type(error).__name__}: {_first(error)})"
        ) from error
    differ = far.most(token_losses(run, whole, ids, mixed=False), before)
    detail = f"merged in float32, losses of single tokens differ by {differ:.2g} nats at most"
    if not differ <= HEAD_ROUNDING["float32"]:
        raise refuse("merge-differs", setting, detail)
    if head is not None:
        whole.add_module(_SCORE, head)
    run.check("merge", True, detail)
    return {"merged": Merged(whole, ids, far.merged(run, whole))}


def write(run: Run, merged: Merged, tokenizer: Any, processor: dict[str, bytes], ready: Ready) -> dict[str, Any]:
    plan, model = export_of(run), merged.model
    expected = token_losses(run, model, merged.ids, mixed=False)
    told: dict[str, Any] = {}

    def written(aside: Path) -> None:
        if plan.format == "gguf":
            told.update(_write_gguf(run, merged, tokenizer, ready, aside, expected))
        else:
            told.update(_write_hf(run, merged, tokenizer, processor, ready, aside, expected))

    _in_place(run, written)
    return {"written": told}


def copy_measured(run: Run, tokenizer: Any, ready: Ready, apart: dict[str, Any]) -> dict[str, Any]:
    """An adapter that has a base to itself, with what was found of it on the published one."""
    return copy(run, tokenizer, ready, apart)


def copy(run: Run, tokenizer: Any, ready: Ready, apart: dict[str, Any] | None = None) -> dict[str, Any]:
    """The adapter as PEFT reads it, with the files that its base must be read with."""
    from safetensors.torch import load_file, save_file

    plan, adapter = export_of(run), Path(run.plan.steps.load.adapter or "")

    def written(aside: Path) -> None:
        aside.mkdir(parents=True)
        save_tokenizer(tokenizer, aside)
        for file in sorted(adapter.iterdir()):
            if file.name in PROCESSOR_FILES or file.suffix == ".safetensors":
                shutil.copyfile(file, aside / file.name)
        if (own := base_config(adapter)).is_file():
            shutil.copytree(own.parent, base_config(aside).parent)
        said = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        if plan.base is not None:
            said["base_model_name_or_path"] = plan.base
        (aside / "adapter_config.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        weights = aside / "adapter_model.safetensors"
        if plan.dtype is not None:
            cast = {name: _cast(value, plan.dtype, name) for name, value in load_file(weights).items()}
            save_file(cast, weights, metadata={"format": "pt"})
        (aside / "README.md").write_text(
            card.card(run.plan, _reading(plan, said), apart["card"] if apart else ""), encoding="utf-8"
        )

    _in_place(run, written)
    return {"written": {"apart": apart["figures"]} if apart else {}}


def publish(run: Run, written: dict[str, Any]) -> dict[str, Any]:
    """To the hub and to MLflow, where asked; what the report says."""
    plan, folder = export_of(run), Path(export_of(run).dir)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    told = {
        "dir": str(folder),
        "format": plan.format,
        "dtype": plan.dtype,
        "quantization": plan.quantization,
        "files": {str(path.relative_to(folder)): path.stat().st_size for path in files},
        **written,
    }
    if plan.register:
        from factory.export import registered

        told["registered"] = registered.register(run.plan, folder)
    if plan.push:
        told["push"] = hub.push(plan, folder)
    return {"result": {"export": told}}


# --- a folder that is whole or not there


def _in_place(run: Run, written: Callable[[Path], None]) -> None:
    """`written` fills a folder beside the wanted one, which then takes its place. Raises UserError; leaves no half."""
    plan = export_of(run)
    from safetensors import SafetensorError

    folder = Path(plan.dir).absolute()
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        written(aside)
        _mark(run, aside)
        open_as(aside / spec.MARKER)
        if folder.exists() and any(folder.iterdir()):
            if not (plan.overwrite and spec.is_export(folder)):  # since the plan was made
                raise refuse("export-there", f"export.dir={plan.dir}", "there is something in it")
            folder.rename(old)
        aside.rename(folder)
    except OverflowError as error:
        fix = "set export.dtype=bfloat16 or float32"
        wrong = f"{error} has numbers that float16 has not"
        raise refuse("export-unfit", f"export.dtype={plan.dtype}", wrong, fix=fix) from None
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not folder.exists():  # whatever came between the two renames
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def _mark(run: Run, aside: Path) -> None:
    plan = export_of(run)
    said = {
        "written_by": "factory export",
        "version": factory.__version__,
        "plan_digest": run.plan.digest(),
        "format": plan.format,
        "dtype": plan.dtype,
        "quantization": plan.quantization,
    }
    (aside / spec.MARKER).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _forget_the_dead(folder: Path) -> None:
    """Removes what exports to this folder have left that were killed."""
    folder = folder.absolute()
    for found in folder.parent.glob(f".{folder.name}.*"):
        pid = re.fullmatch(re.escape(f".{folder.name}.") + r"(\d+)(\.old)?", found.name)
        if pid is None or Path(f"/proc/{pid[1]}").exists():
            continue
        if pid[2] and not folder.exists():  # killed between two renames
            found.rename(folder)
        else:
            shutil.rmtree(found, ignore_errors=True)


# --- transformers


def _write_hf(
    run: Run,
    merged: Merged,
    tokenizer: Any,
    processor: dict[str, bytes],
    ready: Ready,
    aside: Path,
    expected: list[float],
) -> dict[str, Any]:
    plan, model = export_of(run), merged.model
    model.config.use_cache = True
    _say_stops(run, model, ready.stops)
    if plan.scores:
        model = _classifier(model, tokenizer)
    _cast_all(model, plan.dtype or "bfloat16")
    aside.mkdir(parents=True)
    if plan.quantization in spec.CALIBRATED:
        from factory.export import calibrated

        calibrated.write(plan, model, tokenizer, aside, run.plan.steps.load.device)
        ours = None
    else:
        if plan.quantization is not None:
            model = _in_bits(run, model)
        ours = _outputs(run, model, merged.ids)
        model.save_pretrained(aside, max_shard_size=plan.shard_size)
        _say_dtype(aside / "config.json", plan.dtype or "bfloat16")
    save_tokenizer(tokenizer, aside)
    for name, content in processor.items():
        (aside / name).write_bytes(content)
    (aside / "README.md").write_text(card.card(run.plan, _reading(plan, {}), merged.base), encoding="utf-8")
    if plan.check and ours is not None:
        _let_go(model)
        _check_written(run, ours, _outputs(run, _read(run, aside), merged.ids), plan.dtype or "bfloat16")
    return {} if plan.scores or ours is None else far.moved(ours, expected)


def _let_go(model: Any) -> None:
    """Frees the weights: two models are never in memory together."""
    for module in model.modules():
        for name in module._parameters:
            module._parameters[name] = None


def _outputs(run: Run, model: Any, ids: list[int]) -> list[float]:
    """Losses of the ids, of a reward model the score of them."""
    if not export_of(run).scores:
        return token_losses(run, model, ids, mixed=False)
    import torch

    with torch.no_grad():
        given = model.eval()(input_ids=torch.tensor([ids], device=run.plan.steps.load.device))
    return given.logits[0].float().tolist()


def _read(run: Run, folder: Path) -> Any:
    """As plain transformers reads it."""
    from transformers import AutoConfig

    trust = run.plan.steps.load.trust_remote_code
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    config.use_cache, config._attn_implementation = False, run.plan.steps.patch.attention
    kind = _classifier_class(config) if export_of(run).scores else model_class(config)
    model, info = kind.from_pretrained(
        folder, config=config, dtype="auto", trust_remote_code=trust, output_loading_info=True
    )
    if info["missing_keys"]:
        raise refuse(
            "export-unfit", f"export.dir={export_of(run).dir}", f"it lacks {min(info['missing_keys'])}", fix=_REPORT
        )
    keep_gradients(model)
    return model if export_of(run).quantization else model.to(run.plan.steps.load.device)


_REPORT = "report it with the plan: nothing was put in its place"


def _check_written(run: Run, ours: list[float], theirs: list[float], dtype: str) -> None:
    differ = far.most(ours, theirs)
    what = "scores" if export_of(run).scores else "losses of single tokens"
    detail = f"read anew, {what} differ by {differ:.2g} at most"
    if not differ <= HEAD_ROUNDING[dtype]:
        raise refuse("export-unfit", f"export.format={export_of(run).format}", detail, fix=_REPORT)
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
        value.data = _cast(value.data, dtype, name)


def _cast(value: Any, dtype: str, name: str) -> Any:
    """Raises OverflowError for a number that the type has not."""
    import torch

    made = value.to(getattr(torch, dtype))
    if dtype == "float16" and not torch.isfinite(made).all() and torch.isfinite(value).all():
        raise OverflowError(name)
    return made


def _say_dtype(file: Path, dtype: str) -> None:
    config = json.loads(file.read_text(encoding="utf-8")) | {"dtype": dtype}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _in_bits(run: Run, model: Any) -> Any:
    """The model with its decoder's linear layers quantized by bitsandbytes."""
    import torch

    from factory.schema import Quantization
    from factory.steps.quantize import held
    from factory.steps.walk import outside_linears

    plan = export_of(run)
    bits = 8 if plan.quantization == "int8" else 4
    asked = Quantization(
        method="bitsandbytes",
        bits=bits,
        type="fp4" if plan.quantization == "fp4" else "nf4",
        double_quantization=False,
    )
    dtype = getattr(torch, plan.dtype or "bfloat16")
    how = held(asked, dtype)
    how.llm_int8_skip_modules = outside_linears(model.config, trust_remote_code=run.plan.steps.load.trust_remote_code)
    device = run.plan.steps.load.device
    made = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=model.state_dict(),
        dtype=dtype,
        quantization_config=how,
        device_map={"": device},
    )
    made.generation_config = model.generation_config
    keep_gradients(made)
    return made


# --- reward models


def _classifier_class(config: Any) -> Any:
    """Raises UserError for a kind that transformers has no classifier of."""
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or sees(config):
        wrong = f"transformers has no sequence classifier of {config.model_type}"
        fix = "set export.format=adapter, or read the run's own model/ as its card says"
        raise refuse("export-unfit", "export.format=hf", wrong, fix=fix)
    return AutoModelForSequenceClassification


def _classifier(model: Any, tokenizer: Any) -> Any:
    """The same decoder with the head of scores in the place of the language model's."""
    import copy

    import torch

    config = copy.deepcopy(model.config)
    config.num_labels, config.id2label, config.label2id = 1, {0: "SCORE"}, {"SCORE": 0}
    config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        made = _classifier_class(config).from_config(config)
    inner = getattr(model, model.base_model_prefix)
    setattr(made, made.base_model_prefix, inner)
    made.score.weight = torch.nn.Parameter(model.get_parameter(f"{_SCORE}.weight").detach())
    made.config.architectures = [type(made).__name__]
    left = [name for name, value in made.named_parameters() if value.is_meta]
    assert not left, left
    return made


# --- GGUF


def _write_gguf(
    run: Run, merged: Merged, tokenizer: Any, ready: Ready, aside: Path, expected: list[float]
) -> dict[str, Any]:
    plan = export_of(run)
    assert ready.tokens is not None
    aside.mkdir(parents=True)
    file = aside / spec.MODEL_GGUF
    gguf.write(file, merged.model, ready.tokens, tokenizer.chat_template, plan, name=card.base_name(run.plan))
    if ready.modelfile is not None:
        (aside / spec.MODELFILE).write_text(ready.modelfile, encoding="utf-8")
    (aside / "README.md").write_text(card.card(run.plan, _reading(plan, {}), merged.base), encoding="utf-8")
    if not plan.check:
        return {}
    config = merged.model.config
    _let_go(merged.model)
    again = _read_gguf(run, file, config)
    told = far.moved(token_losses(run, again, merged.ids, mixed=False), expected)
    if plan.quantization is None:
        allowed, found = HEAD_ROUNDING[plan.dtype or "float16"], told["most_nats"]
    else:
        allowed, found = _ALLOWED.get(plan.quantization, _ALLOWED_4_BITS), told["mean_nats"]
    detail = f"read anew, losses of single tokens differ by {told['mean_nats']:.2g} nats on average"
    if not found <= allowed:
        raise refuse("export-unfit", "export.format=gguf", detail, fix=_REPORT)
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


# --- what is told


def _first(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), "no reason is given")


def _reading(plan: Export, adapter: dict[str, Any]) -> str:
    """The lines that read the folder, for the card."""
    if plan.format == "gguf":
        lines = [f"llama-cli -m {spec.MODEL_GGUF} --jinja"]
        lines += [f"ollama create mine -f {spec.MODELFILE} && ollama run mine"] if plan.modelfile else []
        return "```sh\n" + "\n".join(lines) + "\n```"
    if plan.format == "adapter":
        base = plan.base or "THE_BASE"
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            f'base = AutoModelForCausalLM.from_pretrained("{base}")',
            'model = PeftModel.from_pretrained(base, "THIS_FOLDER")',
        ]
    elif plan.scores:
        lines = [
            "from transformers import AutoModelForSequenceClassification",
            'model = AutoModelForSequenceClassification.from_pretrained("THIS_FOLDER", dtype="auto")',
            "score = model(input_ids=ids).logits[0, 0]  # ids: (1, length), up to the token that ends the answer",
        ]
    else:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="auto")',
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        ]
    return "```python\n" + "\n".join(lines) + "\n```"
