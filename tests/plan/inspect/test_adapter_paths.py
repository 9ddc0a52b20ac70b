"""What the files of a saved adapter name is looked for in its folder alone."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_opened: list[str] | None = None  # by a case that watches; an audit hook stays for good


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if _opened is not None and event in ("open", "import", "os.listdir"):
        _opened.append(str(given[0]))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    if not hasattr(sys, "_factory_watched"):
        sys.addaudithook(_hook)
        sys._factory_watched = True  # type: ignore[attr-defined]
    found: list[str] = []
    monkeypatch.setattr(sys.modules[__name__], "_opened", found)
    return found


def test_an_adapter_names_nothing_outside(execute: Callable[..., Any], opened: list[str], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    names = ("config.json", "adapter_config.json", "adapter_model.safetensors", "x.safetensors", "x.py")
    for name in names:
        (elsewhere / name).write_text("{}")
    first = execute("stage.max_steps=1", "data.max_samples=8", folder="one")
    adapter = first.run.folder.model
    file = adapter / "adapter_config.json"
    hostile = {
        "base_model_name_or_path": str(elsewhere),
        "auto_mapping": {"base_model_class": "Hostile", "parent_library": "no_such_parent"},
        "revision": "../elsewhere",
        "lora_ga_config": {"path": "../../elsewhere/x.safetensors"},
        "init_lora_weights": True,
    }
    file.write_text(json.dumps(json.loads(file.read_bytes()) | hostile))
    index = {"weight_map": {"a": "../../elsewhere/x.safetensors", "b": str(elsewhere / "x.safetensors")}}
    for name in ("adapter_model.safetensors.index.json", "model.safetensors.index.json"):
        (adapter / name).write_text(json.dumps(index))
    for name in ("adapter_model.bin", "model.safetensors"):
        (adapter / name).symlink_to(elsewhere / "x.safetensors")
    opened.clear()
    again = execute("stage.max_steps=1", "data.max_samples=8", f"model.adapter={adapter}", folder="two")
    assert again.losses and any(str(adapter) in path for path in opened)
    assert not [path for path in opened if "elsewhere" in str(Path(path).resolve()) or "no_such_parent" in path]
