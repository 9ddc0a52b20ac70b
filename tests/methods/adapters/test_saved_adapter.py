"""A saved adapter is read as it was saved, pruned ones over a narrow base too."""

import re
from pathlib import Path

import pytest
import torch
from built import built, saved_pruned
from safetensors.torch import load_file, save_file

from factory import saved_adapter

ADALORA = ("method=adalora", "method.initial_rank=4", "method.rank=3", "precision=bf16")
PATTERNS = {"pruned": [True, False, True, True], "one left": [False, False, True, False], "gone": [False] * 4}


@pytest.mark.parametrize("kept", PATTERNS.values(), ids=PATTERNS)
def test_a_pruned_one_over_a_narrow_base_is_not_rounded(kept: list[bool], tiny_model: Path, tmp_path: Path) -> None:
    """Alone, and beside one that was read before, which stays as it is."""
    made = built(tiny_model, *ADALORA)
    first = saved_pruned(made, tmp_path / "first", PATTERNS["pruned"])
    second = saved_pruned(made, tmp_path / "second", kept)
    model = saved_adapter.read(made.base().bfloat16(), tmp_path / "first")
    model = saved_adapter.read(model, tmp_path / "second", "other")
    found = dict(model.named_parameters())
    for name, wanted in (("default", first), ("other", second)):
        for key, value in wanted.items():
            held = found[f"{key}.{name}"]
            assert held.dtype == torch.float32 and held.equal(value), (key, name)
            assert not value.numel() or not value.equal(value.bfloat16().float())


@pytest.mark.parametrize(("first", "second"), [("default", "a"), ("support_v2", "support"), ("default", "model")])
def test_a_name_that_is_a_part_of_other_tensors_names_is_a_name(
    first: str, second: str, tiny_model: Path, tmp_path: Path
) -> None:
    made = built(tiny_model, "method=lora")
    made.method.export(made.model, made.settings, tmp_path)
    model = saved_adapter.read(made.base(), tmp_path, first)
    model = saved_adapter.read(model, tmp_path, second)
    assert {first, second} == set(model.peft_config)


def test_one_that_lacks_a_tensor_is_refused_beside_another(tiny_model: Path, tmp_path: Path) -> None:
    made = built(tiny_model, "method=lora")
    made.method.export(made.model, made.settings, tmp_path)
    model, file = saved_adapter.read(made.base(), tmp_path), tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    lost = min(tensors)
    save_file({name: value for name, value in tensors.items() if name != lost}, file)
    with pytest.raises(ValueError, match=rf"{re.escape(lost.removesuffix('.weight'))}\.a\."):
        saved_adapter.read(model, tmp_path, "a")


def test_one_that_is_narrow_itself_stays_so(tiny_model: Path, tmp_path: Path) -> None:
    made = built(tiny_model, *ADALORA[:-1], "precision=pure_bf16")
    wanted = saved_pruned(made, tmp_path, PATTERNS["pruned"])
    found = dict(saved_adapter.read(made.base().bfloat16(), tmp_path, wide=False).named_parameters())
    for key, value in wanted.items():
        assert value.dtype == found[f"{key}.default"].dtype == torch.bfloat16 and found[f"{key}.default"].equal(value)
