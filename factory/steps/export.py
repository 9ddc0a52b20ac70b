"""Export: a trained model in the form that others read. Merged in float32, cast once, written aside, renamed."""

import json
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from factory import own_base
from factory.config.refusal import refuse
from factory.execute.checkpoint import save_tokenizer
from factory.execute.context import Run
from factory.export import card, hub, modelfile
from factory.export.folder import forget_the_dead, in_place
from factory.export.tokens import tokens
from factory.plan import heads
from factory.run.folder import base_config
from factory.stages.rm.spec import SCORE
from factory.steps import apart as far
from factory.steps.evaluate import TOKEN_ROUNDING
from factory.steps.load import PROCESSOR_FILES
from factory.steps.proofs import UNMERGEABLE, moved, said, token_losses
from factory.steps.written import Merged, Ready, as_gguf, as_hf, cast, classifier_class

_merge_differs = partial(
    refuse,
    "merge-differs",
    because=("the merged weights must answer as the adapter on its base does, and nothing is written that does not"),
    fix="set export.format=adapter, which is exact, and report the method and the model",
)

_MARK = "Qanswer0"
_ANSWERS = (_MARK, [{"type": "text", "text": _MARK}])  # some templates of models that see take parts alone


def ready(run: Run, config: Any, tokenizer: Any) -> dict[str, Any]:
    """Raises UserError for what cannot be written."""
    asked = run.plan.settings.export
    forget_the_dead(asked.folder)
    hub.check(asked)
    if run.plan.exported.scores:
        classifier_class(config)
    stops = ends(tokenizer)
    known = tokens(tokenizer, run.plan.steps.patch.vocabulary, stops) if asked.format == "gguf" else None
    words = None
    if asked.modelfile and asked.format == "gguf":
        words = modelfile.text_of(tokenizer, tokenizer.convert_ids_to_tokens(stops))
    return {"ready": Ready(known, words, stops)}


def ends(tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the end of text, and the special token that the chat template ends a turn with.

    White space may stand before that.
    """
    text = next(filter(None, map(partial(_turn, tokenizer), _ANSWERS)), "") if tokenizer.chat_template else ""
    after = tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
    first = next((token for token in after if tokenizer.decode([token]).strip()), tokenizer.eos_token_id)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return sorted({tokenizer.eos_token_id, *({first} & special)})


def _turn(tokenizer: Any, answer: Any) -> str:
    """A conversation that ends with the answer; nothing where the template takes none, or does not write it."""
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    with suppress(TemplateError, ValueError, TypeError):
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        return text if _MARK in text else ""
    return ""


def merge(run: Run, model: Any, tokenizer: Any) -> dict[str, Any]:
    """The adapter in the weights, in float32, held against that beside them. Raises UserError where they differ."""
    ids = own_base.ids(tokenizer)
    if not hasattr(model, "peft_config"):
        return {"merged": Merged(model, ids)}
    setting = f"model.adapter={run.plan.steps.load.adapter}"
    before = token_losses(run, model, ids, mixed=False)
    head = dict(model.named_children()).get(heads.module_of(SCORE))  # of the wrapper, which goes
    try:
        whole = model.merge_and_unload(safe_merge=True)
    except UNMERGEABLE as error:
        raise _merge_differs(setting, f"it cannot be merged ({said(error).rstrip('.')})") from error
    differ = moved(token_losses(run, whole, ids, mixed=False), before)["most_nats"]
    detail = f"merged in float32, losses of single tokens differ by {differ:.2g} nats at most"
    if not differ <= TOKEN_ROUNDING["float32"]:
        raise _merge_differs(setting, detail)
    if head is not None:
        whole.add_module(heads.module_of(SCORE), head)
    run.check("merge", True, detail)
    return {"merged": Merged(whole, ids, far.merged(run, whole))}


def write(run: Run, merged: Merged, tokenizer: Any, processor: dict[str, bytes], ready: Ready) -> dict[str, Any]:
    model = merged.model
    expected = token_losses(run, model, merged.ids, mixed=False)
    told: dict[str, Any] = {}

    def written(aside: Path) -> None:
        if run.plan.settings.export.format == "gguf":
            told.update(as_gguf(run, merged, tokenizer, ready, aside, expected))
        else:
            told.update(as_hf(run, merged, tokenizer, processor, ready, aside, expected))

    in_place(run.plan, written)
    return {"written": told}


def copy(run: Run, tokenizer: Any, apart: dict[str, Any] | None = None) -> dict[str, Any]:
    """The adapter as PEFT reads it, with the files that its base must be read with.

    `apart` is what was found of one that has a base to itself on the published one.
    """
    from safetensors.torch import load_file, save_file

    base, dtype, adapter = (
        run.plan.settings.export.base,
        run.plan.exported.dtype,
        Path(run.plan.steps.load.adapter or ""),
    )

    def written(aside: Path) -> None:
        aside.mkdir(parents=True)
        save_tokenizer(tokenizer, aside)
        for file in sorted(adapter.iterdir()):
            if file.name in PROCESSOR_FILES or file.suffix == ".safetensors":
                shutil.copyfile(file, aside / file.name)
        if (own := base_config(adapter)).is_file():
            shutil.copytree(own.parent, base_config(aside).parent)
        said = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        if base is not None:
            said["base_model_name_or_path"] = base
        (aside / "adapter_config.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        weights = aside / "adapter_model.safetensors"
        if dtype is not None:
            values = {name: cast(value, dtype, name) for name, value in load_file(weights).items()}
            save_file(values, weights, metadata={"format": "pt"})
        (aside / "README.md").write_text(card.card(run.plan, apart["card"] if apart else ""), encoding="utf-8")

    in_place(run.plan, written)
    return {"written": {"apart": apart["figures"]} if apart else {}}


def publish(run: Run, written: dict[str, Any]) -> dict[str, Any]:
    """To the hub and to MLflow, where asked; what the report says."""
    asked = run.plan.settings.export
    folder = asked.folder
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    told = {
        "dir": str(folder),
        "format": asked.format,
        "dtype": run.plan.exported.dtype,
        "quantization": asked.quantization,
        "files": {str(path.relative_to(folder)): path.stat().st_size for path in files},
        **written,
    }
    if asked.register:
        from factory.export import registered

        told["registered"] = registered.register(run.plan, folder)
    if asked.push:
        told["push"] = hub.push(asked, folder)
    return {"result": {"export": told}}
