"""Freeze-tuning trains the named layers and modules, by whole names, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 12, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
    "mixtral": {"num_local_experts": 12, "num_experts_per_tok": 2},
}
SHORT = ("method=freeze", "stage.max_steps=4", "stage.learning_rate=1e-2", "stage.warmup_ratio=0", "precision=fp32")


@pytest.fixture(params=EXPERTS)
def experts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers of twelve experts: numbers of layers and experts overlap."""
    folder = tmp_path_factory.mktemp("experts")
    return tiny.save(folder, model_type=request.param, num_hidden_layers=3, **EXPERTS[request.param])


def changed(done: Any) -> set[str]:
    return {name for name, value in done.model.named_parameters() if not value.detach().equal(done.start[name])}


def test_a_layers_number_is_no_experts(experts: Path, execute: Callable[..., Any]) -> None:
    done = execute(*SHORT, f"model.path={experts}", "method.layers=[1]")
    names = {name for name, _ in done.model.named_parameters()}
    assert changed(done) == {name for name in names if name.startswith("model.layers.1.")}
    assert any(".experts." in name for name in changed(done))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("method.layers=[0] method.modules=[mlp]", ["layers.0.mlp."]),
        ("method.num_layers=1 method.modules=[self_attn.q_proj,input_layernorm]", ["1.self_attn.q_proj", "1.input_l"]),
        ("method.layers=[1] method.extra_modules=[embed_tokens,norm]", ["layers.1.", "embed_tokens", "model.norm"]),
        (
            "method.num_layers=1 method.position=first method.modules=[mlp] method.extra_modules=[lm_head]",
            ["0.mlp", "lm_h"],
        ),
    ],
)
def test_only_what_is_named_is_trained(options: str, wanted: list[str], execute: Callable[..., Any]) -> None:
    done = execute(*SHORT, *options.split())
    names = {name for name, _ in done.model.named_parameters()}
    assert changed(done) == {name for name in names if any(part in name for part in wanted)}
    assert done.run.checks["gradients_alive"]["passed"]
