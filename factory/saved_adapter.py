"""A saved adapter, read onto its base by PEFT and rounded by nothing."""

from pathlib import Path
from typing import Any


def read(model: Any, folder: str | Path, name: str = "default", *, wide: bool = True) -> Any:
    """The model with the adapter of `folder` under `name`; `wide`: 16-bit weights of it are held in float32.

    Raises what PEFT raises of one that does not fit the model, and ValueError where a tensor has no place in it.
    """
    from peft import PeftConfig, PeftModel

    config: Any = PeftConfig.from_pretrained(str(folder))
    pruned, again = config.peft_type == "ADALORA" and config.rank_pattern, hasattr(model, "peft_config")
    if not again:
        model = PeftModel.from_pretrained(model, folder, adapter_name=name, autocast_adapter_dtype=wide)
    if again or not pruned:  # what PEFT leaves out is told to who reads it beside another, or once more
        _whole(model.load_adapter(str(folder), adapter_name=name, autocast_adapter_dtype=wide), name)
    if pruned:
        _as_saved(model, folder, name)
    return model


def _whole(found: Any, name: str) -> None:
    """Raises ValueError where tensors of the file were left out, or those of the model stayed as they were made.

    PEFT counts another adapter's tensors too where the name is a part of theirs, as `a` is of `lora_A.support.weight`.
    """
    missing = [key for key in found.missing_keys if name in key.split(".")[-2:]]
    if lost := sorted((*found.unexpected_keys, *missing)):
        what = "has no place in this model" if lost[0] in found.unexpected_keys else "is not among its tensors"
        raise ValueError(f"{lost[0]} {what}, and {len(lost) - 1} more")


def _as_saved(model: Any, folder: str | Path, name: str) -> None:
    """The file's values once more: a pruned adapter's matrices PEFT makes anew, in the type of the base."""
    from peft import load_peft_weights

    there = dict(model.named_parameters())
    for key, value in load_peft_weights(str(folder), device="cpu").items():
        there[f"{key}.{name}"].data.copy_(value)
