"""The lines of a card, run as they stand there, read the model that was trained: an exported adapter's and a run's."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import SHORT, exported

from factory.attention.segments import with_masks
from factory.execute.report import write_report
from factory.logits import text_model
from factory.stages.rm.run import scores

LONG = 300  # tokens: beyond the model's own positions
CASES: dict[str, tuple[str, ...]] = {
    "new tokens": ("model.new_tokens=['<call>','</call>']",),
    "stretched positions": ("model.rope_scaling=linear", "data.max_length=384"),
    "a reward": ("stage=rm",),
}


@pytest.mark.parametrize("case", CASES)
def test_its_lines_read_the_trained_model(case: str, execute: Callable[..., Any], tiny_model: Path) -> None:
    done = execute("method=lora", "method.rank=4", *SHORT, "stage.max_steps=1", "data.max_samples=8", *CASES[case])
    write_report(done.run, "finished", done.result, None)
    exported("run=run", "export.dir=out", "export.format=adapter")
    rows = done.model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(rows - LONG, rows)[None]
    known: dict[str, Any] = {"ids": ids}
    for folder in ("run/model", "out"):
        (code,) = re.findall(r"```python\n(.*?)```", Path(folder, "README.md").read_text(), re.DOTALL)
        with torch.no_grad(), with_masks(text_model(done.model)):
            exec(code.replace("THIS_FOLDER", folder).replace("THE_BASE", str(tiny_model)), known)
            theirs, ours = (
                model.eval()(input_ids=ids, use_cache=False).logits for model in (known["model"], done.model)
            )
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
        if case == "a reward":
            row = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
            assert known.pop("score").item() == pytest.approx(scores(done.model, row).item(), abs=1e-5)
