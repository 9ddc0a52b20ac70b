"""A saved adapter, read onto its base by PEFT and rounded by nothing."""

from pathlib import Path
from typing import Any


def read(model: Any, folder: str | Path, name: str = "default", *, wide: bool = True) -> Any:
    """The model with the adapter of `folder` under `name`; `wide`: 16-bit weights of it are held in float32.

    Raises what PEFT raises of one that does not fit the model.
    """
    from peft import PeftModel

    if hasattr(model, "peft_config"):
        model.load_adapter(str(folder), adapter_name=name, autocast_adapter_dtype=wide)
    else:
        model = PeftModel.from_pretrained(model, folder, adapter_name=name, autocast_adapter_dtype=wide)
    config = model.peft_config[name]
    if config.peft_type == "ADALORA" and config.rank_pattern:
        _as_saved(model, folder, name)
    return model


def _as_saved(model: Any, folder: str | Path, name: str) -> None:
    """The file's values once more: a pruned adapter's matrices PEFT makes anew, in the type of the base."""
    from peft import load_peft_weights

    there = dict(model.named_parameters())
    for key, value in load_peft_weights(str(folder), device="cpu").items():
        there[f"{key}.{name}"].data.copy_(value)
