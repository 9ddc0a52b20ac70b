"""Going on from a saved adapter, and being refused where it is another one's."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from built import built
from test_every_adapter import ADAPTERS, FROM_WEIGHTS

from factory.refusal import UserError


@pytest.mark.parametrize("method", [name for name in ADAPTERS if name not in FROM_WEIGHTS])
def test_goes_on_where_it_was(method: str, tiny_model: Path, tmp_path: Path) -> None:
    first = built(tiny_model, f"method={method}", *ADAPTERS[method])
    first.train()
    first.method.export(first.model, first.settings, tmp_path)
    second = built(tiny_model, f"method={method}", *ADAPTERS[method])
    assert not torch.allclose(second.logits(), first.logits(), atol=1e-4)
    second.method.go_on(second.model, str(tmp_path))
    torch.testing.assert_close(second.logits(), first.logits(), rtol=0, atol=1e-6)
    assert {name: value.requires_grad for name, value in second.model.named_parameters()} == {
        name: value.requires_grad for name, value in first.model.named_parameters()
    }
    assert second.train() == set()


def test_an_exported_pissa_goes_on_as_lora(tiny_model: Path, tmp_path: Path) -> None:
    first = built(tiny_model, "method=pissa", "method.rank=4", "method.alpha=6")
    first.train()
    first.method.export(first.model, first.settings, tmp_path)
    second = built(tiny_model, "method=lora", "method.rank=8", "method.alpha=12")
    second.method.go_on(second.model, str(tmp_path))
    torch.testing.assert_close(second.logits(), first.logits(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("method=lora", "method.rank=8"), "r=4, this run r=8"),
        (("method=lora", "method.rank=4", "method.alpha=3"), "lora_alpha=16"),
        (("method=rslora", "method.rank=4"), "use_rslora=False, this run use_rslora=True"),
        (("method=dora", "method.rank=4"), "use_dora=False"),
        (("method=loha", "method.rank=4"), "peft_type=LORA, this run peft_type=LOHA"),
        (("method=lora", "method.rank=4", "method.target_modules=[q_proj]"), "no such tensor here"),
    ],
)
def test_another_adapter_is_refused(other: tuple[str, ...], said: str, tiny_model: Path, tmp_path: Path) -> None:
    first = built(tiny_model, "method=lora", "method.rank=4")
    first.method.export(first.model, first.settings, tmp_path)
    second = built(tiny_model, *other)
    with pytest.raises(UserError, match=said) as found:
        second.method.go_on(second.model, str(tmp_path))
    assert [refusal.rule for refusal in found.value.refusals] == ["adapter-other"]


def test_another_base_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    first = built(tiny_model, "method=lora", "method.rank=4")
    first.method.export(first.model, first.settings, tmp_path / "adapter")
    same_shapes = built(tiny.save(tmp_path / "other"), "method=lora", "method.rank=4")
    with pytest.raises(UserError, match="its base is llama, this run's other"):
        same_shapes.method.go_on(same_shapes.model, str(tmp_path / "adapter"))
    wider = built(tiny.save(tmp_path / "wide" / "llama", hidden_size=64), "method=lora", "method.rank=4")
    with pytest.raises(UserError, match=r"\[32, 4\] there, \[64, 4\] here"):
        wider.method.go_on(wider.model, str(tmp_path / "adapter"))


def test_what_cannot_be_read_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    made = built(tiny_model, "method=lora", "method.rank=4")
    made.method.export(made.model, made.settings, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"short")
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError) as found:
            made.method.go_on(made.model, str(path))
        assert [refusal.rule for refusal in found.value.refusals] == ["adapter-unreadable"]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4}))
    with pytest.raises(UserError) as found:
        made.method.go_on(made.model, str(tmp_path))
    assert [refusal.rule for refusal in found.value.refusals] == ["adapter-unreadable"]
