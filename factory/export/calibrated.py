"""Weights in 4 bits in the layouts of GPTQ and AWQ, their scales set by what the model makes of real text.

The maintained `auto-round` package (SignRound, Cheng et al. 2023, arXiv 2309.05516) sets and packs them, on a CPU too;
vLLM and transformers (with gptqmodel) read both layouts.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from factory.config.refusal import refuse
from factory.config.settings import Export

_export_unfit = partial(refuse, "export-unfit", because="what is written would not answer as the model does")

_LAYOUTS = {"gptq": ("auto_gptq", True), "awq": ("auto_awq", False)}  # auto-round's name, whether scales are symmetric
_BITS, _GROUPS = 4, (128, 64, 32)  # columns that share a scale, as many as divide every layer's
_TEXT = Path(__file__).parents[1] / "demo" / "text.jsonl"
_ROWS, _LENGTH = 128, 512  # sequences, and tokens of each


def rows(asked: Export, tokenizer: Any, context: int) -> list[Any]:
    """Sequences of (1, length) ids, cut from the text end to end. Raises UserError where there is too little of it."""
    if asked.calibration:
        text = Path(asked.calibration).read_text(encoding="utf-8", errors="replace")
    else:
        text = "\n".join(json.loads(line)["text"] for line in _TEXT.read_text(encoding="utf-8").splitlines())
    length = min(_LENGTH, context)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][: _ROWS * length]
    whole = len(ids) // length
    if not whole:
        wrong = f"the text has {len(ids):,} tokens"
        raise _export_unfit(f"export.calibration={asked.calibration}", wrong, fix=f"give {length:,} at least")
    return [torch.tensor([ids[number * length : (number + 1) * length]]) for number in range(whole)]


def _group(quantization: str, model: Any) -> int:
    """Raises UserError where there is none: what is left over at a row's end has no place in the layouts."""
    head = model.get_output_embeddings()
    linear = [each for each in model.modules() if isinstance(each, torch.nn.Linear) and each is not head]
    widths = sorted({each.in_features for each in linear})
    for group in _GROUPS:
        if not any(width % group for width in widths):
            return group
    wrong = (
        f"layers have {', '.join(map(str, widths))} columns, and no group of {', '.join(map(str, _GROUPS))} divides all"
    )
    raise _export_unfit(f"export.quantization={quantization}", wrong, fix="set export.quantization=nf4")


def write(asked: Export, model: Any, tokenizer: Any, folder: Path, device: str, context: int) -> None:
    """`context`: the tokens that the model reads, for which some kinds have another word in their config, or none."""
    from auto_round import AutoRound  # pyright: ignore[reportMissingImports]

    assert asked.quantization is not None
    layout, symmetric = _LAYOUTS[asked.quantization]
    group = _group(asked.quantization, model)
    found = rows(asked, tokenizer, context)
    made = AutoRound(
        model,
        tokenizer,
        bits=_BITS,
        group_size=group,
        sym=symmetric,
        dataset=found,
        seqlen=found[0].shape[1],
        nsamples=len(found),
        device_map=device,
        enable_torch_compile=False,
    )
    made.quantize_and_save(str(folder), format=layout, max_shard_size=asked.shard_size)
    _up(folder)


def _up(folder: Path) -> None:
    """auto-round writes into a folder of its own within."""
    (config,) = folder.rglob("config.json")
    if config.parent != folder:
        for file in list(config.parent.iterdir()):
            file.replace(folder / file.name)
        config.parent.rmdir()
