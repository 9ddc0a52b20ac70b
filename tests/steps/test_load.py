"""What a tokenizer's files may name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import compiled

from factory.config.refusal import UserError
from factory.steps.load import read_tokenizer

BASE = ("evaluate.samples=0", "hardware=cpu", "tracking=none", "stage.max_steps=1", "data.max_samples=12")


def test_a_tokenizer_names_no_other_file(tiny_model: Path, tmp_path: Path) -> None:
    """Of some classes transformers opens it, at any place."""
    copy = shutil.copytree(tiny_model, tmp_path / "llama")
    file = copy / "tokenizer_config.json"
    said = json.loads(file.read_bytes()) | {"tokenizer_class": "GPT2Tokenizer", "gguf_file": str(tmp_path / "other")}
    file.write_text(json.dumps(said))
    with pytest.raises(ValueError, match="gguf_file"):
        read_tokenizer(str(copy), None, False, "auto")


@pytest.mark.parametrize("content", ["[1]", "{}", '"text"'])
def test_a_template_file_of_another_form_has_none(content: str, tiny_model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "llama")
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.json").write_text(content)
    assert read_tokenizer(str(copy), None, False, "auto").chat_template is None


@pytest.mark.parametrize("stage", ["sft", "pt"])
def test_a_template_that_nobody_could_look_for_is_missed_before_the_rows(
    stage: str, tmp_path: Path, execute: Callable[..., Any]
) -> None:
    """As of a model on the hub: what is planned says nothing of its tokenizer."""
    copy = tiny.save(tmp_path / "llama")
    plan = compiled(*BASE, f"model.path={copy}", f"stage={stage}")
    (copy / "chat_template.jinja").unlink()
    if stage == "pt":
        execute(plan=plan)
        return
    with pytest.raises(
        UserError, match=r"\[no-chat-template\] model.template=auto: the tokenizer of this model has no"
    ):
        execute(plan=plan)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
