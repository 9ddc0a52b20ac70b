"""What a tokenizer's files may name."""

import json
import shutil
from pathlib import Path

import pytest

from factory.steps.load import read_tokenizer


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
