"""A run stopped in the middle of whatever a method does goes on to the very same weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from grids import diagonal

from factory.execute.context import Interrupted
from factory.run.folder import RunFolder
from factory.steps import train

STEPS, STOPPED = 7, 4
SHORT = (
    f"stage.max_steps={STEPS}",
    "data.max_samples=22",
    "stage.logging_steps=1",
    "stage.learning_rate=1e-2",
    "stage.save_steps=null",
    "stage.batch_size=2",
    "stage.weight_decay=0.1",
    "data.max_length=200",
    "evaluate.perplexity=false",
)
LAYERWISE = ("method.layerwise=true", "stage.max_grad_norm=null")
METHODS = {
    "full layerwise": ("method=full", *LAYERWISE),
    "muon": ("method=full", "stage.optimizer=muon"),
    "adafactor": ("method=full", "stage.optimizer=adafactor"),
    "galore in 8 bits": ("method=galore", "method.rank=8", "method.update_interval=3", "stage.optimizer=adamw_8bit"),
    "galore layerwise": ("method=galore", "method.rank=8", "method.update_interval=3", *LAYERWISE),
    "apollo": ("method=apollo", "method.rank=8", "method.update_interval=3"),
    "apollo layerwise": ("method=apollo_mini", "method.update_interval=3", *LAYERWISE),
    "badam": ("method=badam", "method.switch_interval=3", "method.embedding=true", "method.head=true"),
    "badam at a change": ("method=badam", "method.switch_interval=2", "method.order=descending"),
    "badam_ratio": ("method=badam_ratio", "method.switch_interval=3", "method.ratio=0.3", "method.mask=scattered"),
    "llama_pro": ("method=llama_pro",),
    "freeze": ("method=freeze", "method.num_layers=1", "method.modules=[mlp]", "method.extra_modules=[lm_head]"),
    "noise": ("method=lora", "stage.neftune_alpha=5"),
}


def same(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens")
    return [{name: line[name] for name in names} for line in metrics]


@pytest.mark.parametrize(("method", "precision"), diagonal(METHODS, ("fp32", "bf16", "pure_bf16")))
def test_an_interrupted_run_is_the_uninterrupted_one(
    method: str, precision: str, execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*SHORT, *METHODS[method], f"precision={precision}")
    whole = execute(*options, folder="whole")
    original, done = train._updates, iter(range(1, 100))

    def updates(run: Any, *values: Any) -> Any:
        run.stopping = run.stopping or next(done) == STOPPED
        return original(run, *values)

    with monkeypatch.context() as patched:
        patched.setattr(train, "_updates", updates)
        with pytest.raises(Interrupted):
            execute(*options)
    saved = RunFolder("run").checkpoint()
    assert saved is not None and saved.name == f"step-{STOPPED:06d}"
    resumed = execute(*options, resume_from=saved)
    assert same(resumed.metrics) == same(whole.metrics)
    assert resumed.run.checks["gradients_alive"] == whole.run.checks["gradients_alive"]
    wanted = dict(whole.model.named_parameters())
    for name, value in resumed.model.named_parameters():
        assert torch.equal(value, wanted[name]), name
