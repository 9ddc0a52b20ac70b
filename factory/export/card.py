"""The model card of an export: what was trained on what, how, and what came of it. No path of this machine is in it."""

from pathlib import Path
from typing import Any

import yaml

from factory.config.own import without_place
from factory.config.values import plain, to_tree
from factory.export import spec
from factory.export.reading import code, reading
from factory.plan.plan import DataSource, Plan, read_plan
from factory.run.folder import RunFolder, read_json
from factory.steps.walk import class_of

_TRAINING = ("learning_rate", "lr_scheduler", "optimizer", "batch_size", "gradient_accumulation_steps")
# by the auto class that reads a model: its task, as the hub names it, and what reads its inputs
_MODELS = {
    "AutoModelForCausalLM": ("text-generation", "AutoTokenizer"),
    "AutoModelForImageTextToText": ("image-text-to-text", "AutoProcessor"),
    "AutoModelForMultimodalLM": ("audio-text-to-text", "AutoProcessor"),  # which hears: it reads no images
}
_FIGURES = ("perplexity_before", "perplexity", "bleu4", "rouge1", "rouge2", "rougeL", "exact_match", "loss", "reward")


def card(plan: Plan, base: str = "") -> str:
    """Of an export's plan; of the run that it names, if any.

    `base`: what is to be known of the base, where it is not the one trained over.
    """
    export = plan.settings.export
    of_run = RunFolder(export.run) if export.run else None
    made = read_plan(of_run.plan) if of_run else None
    report = (read_json(of_run.report) or {}) if of_run else {}
    name = base_name(made or plan)
    parts = [
        f"---\n{yaml.safe_dump(_front(plan, made, name), sort_keys=False, allow_unicode=True)}---\n",
        f"# {title(plan, made)}\n",
        f"{_what(plan, made, name)}\n",
        *([_data(made), _plan(made), _results(report)] if made else []),
        f"## The base\n\n{base}\n" if base else "",
        f"## Reading it\n\n{_reading(plan)}\n",
    ]
    return "\n".join(part for part in parts if part)


def title(plan: Plan, made: Plan | None) -> str:
    model = (made or plan).options.get("model", "model")
    return f"{model} {without_place(made.method)} {without_place(made.settings.stage.name)}" if made else model


def base_name(plan: Plan) -> str:
    """A hub id, or a folder's own name: its place is nobody's business."""
    load = plan.steps.load
    if load.source == "hub":
        return load.path
    return Path(load.path).name if load.source != "package" else plan.options.get("model", Path(load.path).name)


def _front(plan: Plan, made: Plan | None, base: str) -> dict[str, Any]:
    export = plan.settings.export
    sets = made.sources.values() if made else ()
    hub = [source.path for source in sets if source.asked.origin == "hub"]
    front: dict[str, Any] = {
        "library_name": {"hf": "transformers", "adapter": "peft", "gguf": "gguf"}[export.format],
        "pipeline_tag": "text-classification" if plan.exported.scores else _MODELS[class_of(plan.steps.load.config)][0],
        "tags": ["factory", *(map(without_place, (made.method, made.settings.stage.name)) if made else ())],
    }
    if plan.steps.load.source == "hub":
        front["base_model"] = base
    if hub:
        front["datasets"] = hub
    return front


def _what(plan: Plan, made: Plan | None, base: str) -> str:
    export = plan.settings.export
    forms = {
        "hf": "whole weights in the format of transformers",
        "gguf": "one GGUF file for llama.cpp and Ollama",
        "adapter": "an adapter in the format of PEFT",
    }
    types = f", {export.quantization or plan.exported.dtype}" if export.quantization or plan.exported.dtype else ""
    trained = f"{base}, fine-tuned by Factory" if made else base
    return f"{trained}: {forms[export.format]}{types}."


def _data(made: Plan) -> str:
    rows = [_source(name, source) for name, source in made.sources.items()]
    data = made.settings.data
    held = data.validation_fraction if data.validation is None else 0
    beside = f"\n{100 * held:g} % of the rows were held out.\n" if held else ""
    return f"## Data\n\n{_table(('set', 'from', 'format', 'bytes', 'sha256'), rows)}{beside}"


def _source(name: str, source: DataSource) -> tuple[str, ...]:
    place = source.path if source.asked.origin != "file" else Path(source.path).name
    return name, f"{source.asked.origin} {place}", source.format, f"{source.bytes:,}", (source.sha256 or "")[:16]


def _plan(made: Plan) -> str:
    stage, bits = made.settings.stage, made.settings.method.quantization.bits
    counted = made.estimate.parameters
    rows = [
        ("plan", made.digest()),
        ("seed", str(made.settings.seed)),
        ("method", without_place(made.method)),
        ("trained parameters", f"{counted.trainable:,} of {counted.total:,}"),
        ("quantized base", f"{bits} bits" if bits else "no"),
        ("chat template", without_place(made.settings.model.template)),
        ("tokens a sequence", f"{made.steps.pack.max_length:,}"),
        ("stage", without_place(stage.name)),
        *((name.replace("_", " "), plain(getattr(stage, name))) for name in _TRAINING),
        *((f"method.{name}", plain(value)) for name, value in to_tree(made.settings.method).items() if _tells(value)),
    ]
    return f"## Plan\n\n{_table(('', ''), rows)}"


def _tells(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _results(report: dict[str, Any]) -> str:
    train, measured = report.get("train", {}), report.get("evaluate", {})
    rows = [(name, f"{measured[name]:.4g}") for name in _FIGURES if isinstance(measured.get(name), int | float)]
    if train:
        rows += [("steps", f"{train['steps']:,}"), ("tokens", f"{train['tokens']:,}")]
        rows += [(name, f"{train[name]:.4g}") for name in ("first_loss", "final_loss") if train.get(name) is not None]
    for name, each in measured.get("benchmarks", {}).items():
        rows.append((name, f"{each['accuracy']:.2f} %"))
    for name, each in measured.get("harness", {}).items():
        rows += [(f"{name}, {metric}", f"{figure['value']:.4f}") for metric, figure in each["metrics"].items()]
    return f"## Results\n\n{_table(('', ''), rows)}" if rows else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |\n" for line in lines)


def _reading(plan: Plan) -> str:
    """The lines that read the folder."""
    export = plan.settings.export
    if export.format == "gguf":
        lines = [f"llama-cli -m {spec.MODEL_GGUF} --jinja"]
        lines += [f"ollama create mine -f {spec.MODELFILE} && ollama run mine"] if export.modelfile else []
        return "```sh\n" + "\n".join(lines) + "\n```"
    if export.format == "adapter":
        return reading(plan, Path(plan.steps.load.adapter or ""), export.base or "THE_BASE").lstrip()
    if plan.exported.scores:
        lines = [
            "from transformers import AutoModelForSequenceClassification",
            'model = AutoModelForSequenceClassification.from_pretrained("THIS_FOLDER", dtype="auto")',
            "score = model(input_ids=ids).logits[0, 0]  # ids: (1, length), up to the token that ends the answer",
        ]
    else:
        read = class_of(plan.steps.load.config)
        inputs = _MODELS[read][1]
        lines = [
            f"from transformers import {read}, {inputs}",
            f'model = {read}.from_pretrained("THIS_FOLDER", dtype="auto")',
            f'{inputs.removeprefix("Auto").lower()} = {inputs}.from_pretrained("THIS_FOLDER")',
        ]
    return code(lines)
