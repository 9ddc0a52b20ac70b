"""Rows with images in two processes, where a batch of one may have images and that of the other none."""

import json
from pathlib import Path
from typing import Any

import pytest
import seers
import torch
from PIL import Image
from several import Left, alone, planned, together

STRATEGIES = ("ddp", "fsdp", "zero2")


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Of 29 rows every fourth has an image: most micro-batches, and some updates, reach no projector."""
    folder = seers.save("llava", tmp_path_factory.mktemp("seeing") / "llava")
    Image.new("RGB", (8, 8), (200, 0, 90)).save(folder / "red.png")
    rows = list[dict[str, Any]]()
    for number in range(29):
        seen = number % 4 == 0
        asked = f"{'<image>' * seen}Which is number {number}?"
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": "Red."}]
        rows.append({"messages": said, "images": ["red.png"] if seen else []})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ("data=file", f"data.path={folder}/rows.jsonl", "evaluate.perplexity=false")
    return f"model.path={folder}", *data, "stage.batch_size=1", "method=full", "method.parts=[projector]"


@pytest.mark.slow
def test_ranks_whose_batch_reaches_no_trained_tensor_stay_in_step(overrides: tuple[str, ...], tmp_path: Path) -> None:
    wanted = alone(tmp_path / "one", planned("none", 1, *overrides))
    norms = [line["grad_norm"] for line in wanted.metrics]
    assert 0.0 in norms and max(norms) > 0
    together(tmp_path, [{"folder": name, "plan": planned(name, 2, *overrides)} for name in STRATEGIES])
    for strategy in STRATEGIES:
        found = Left(tmp_path / strategy)
        assert all(check["passed"] for check in found.result["checks"].values()), found.result["checks"]
        for ours, theirs in zip(found.metrics, wanted.metrics, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-4, abs=1e-6)
        for name, value in wanted.weights.items():
            torch.testing.assert_close(found.weights[name], value, rtol=0, atol=2e-5)
