"""What libraries are told as they are imported: that it is true, and that it is found out anew when it may not be."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from factory.execute import told

SCRIPT = """
import json, sys
from factory.execute.told import telling
with telling(alone=sys.argv[1] == "alone"):
    import transformers
    from transformers.utils import import_utils
    import accelerate.utils.imports as accelerate
again = import_utils.define_import_structure.__closure__ is not None  # it remembers
folder = transformers.__path__[0] + "/models"
found = {}
for prefix in (None, "models"):
    here = import_utils.define_import_structure(folder, prefix)
    import_utils.create_import_structure_from_path.cache_clear()
    fresh = import_utils.spread_import_structure(import_utils.create_import_structure_from_path(folder))
    fresh = {needs: {(prefix + "." if prefix else "") + name: of for name, of in each.items()}
             for needs, each in fresh.items()}
    assert here == fresh and len(here) > 3, prefix
names = ("is_torch_distributed_available", "is_torch_flex_attn_available")  # a release may lack one
asked = [getattr(import_utils, name, accelerate.is_torch_distributed_available) for name in names]
there = [ask() for ask in (*asked, accelerate.is_torch_distributed_available)]
print(json.dumps([again, there, transformers.LlamaForCausalLM.__name__]))
"""


def told_of(who: str, cache: Path) -> list[object]:
    environment = {**os.environ, "FACTORY_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, who], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_sources_that_cannot_be_looked_at_are_read_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that an editor leaves may be a link to nothing."""
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))
    models = tmp_path / "models"
    models.mkdir()
    (models / ".#modeling.py").symlink_to("nobody@nowhere")
    module = SimpleNamespace(define_import_structure=lambda path, prefix: (path, prefix))
    told._remember_exported(module)
    assert module.define_import_structure(models, "x") == (models, "x")
    assert not (tmp_path / "cache").exists()


def test_a_pattern_is_compiled_when_it_is_asked_for_something(monkeypatch: pytest.MonkeyPatch) -> None:
    module, compiled = SimpleNamespace(__name__="transformers.core_model_loading", re=re), list[str]()
    monkeypatch.setattr(re, "compile", lambda *given: compiled.append(given[0]) or re._compile(*given, 0))  # type: ignore[attr-defined]
    told._tell(module, alone=False)
    pattern = module.re.compile("(?P<g0>a)|b")
    assert not compiled
    assert pattern.search("xa")["g0"] == "a"
    assert pattern.groupindex["g0"] == 1
    assert set(compiled) == {"(?P<g0>a)|b"}
    assert isinstance(copy.deepcopy(pattern), re.Pattern)
    assert module.re.search("a", "ba")


@pytest.mark.slow
def test_transformers_still_compiles_its_patterns_so() -> None:
    """Else the stand-in is one for nothing."""
    script = """
from factory.execute.told import telling
with telling(alone=True):
    import transformers.modeling_utils
from transformers.core_model_loading import WeightRenaming
print(type(WeightRenaming("a.b", "c").compiled_sources).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["_Pattern"], done.stderr


@pytest.mark.slow
@pytest.mark.slow
def test_what_is_exported_is_remembered_as_it_is(tmp_path: Path) -> None:
    """Found out, and read."""
    assert told_of("alone", tmp_path) == [True, [False] * 3, "LlamaForCausalLM"]
    assert len(list((tmp_path / "transformers").iterdir())) == 1
    assert told_of("rank", tmp_path) == [True, [True] * 3, "LlamaForCausalLM"]


def test_it_is_found_out_again_where_what_was_kept_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, found = tmp_path / "models", list[Path]()
    models.mkdir()
    (models / "one.py").write_text("__all__ = ['One']")
    exported = {frozenset({"torch"}): {"one": {"One", "Other"}}}
    module = SimpleNamespace(define_import_structure=lambda path: found.append(path) or exported)
    told._remember_exported(module)
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))
    assert module.define_import_structure(models) == exported
    (kept,) = (tmp_path / "cache" / "transformers").iterdir()
    whole = kept.read_bytes()
    assert module.define_import_structure(models, "x") == {frozenset({"torch"}): {"x.one": {"One", "Other"}}}
    assert len(found) == 1
    for broken in (whole[:-5], b'["a list of another kind"]', b"7"):
        kept.write_bytes(broken)
        assert module.define_import_structure(models) == exported
        assert kept.read_bytes() == whole
    assert len(found) == 4
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "file"))  # nothing can be kept there
    assert module.define_import_structure(models) == exported
    assert len(found) == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "a" / "one.py").write_text("__all__ = ['Other']"),
        lambda folder: (folder / "a" / "two.py").write_text(""),
        lambda folder: (folder / "a" / "one.py").unlink(),
        lambda folder: (folder / "a" / "one.py").rename(folder / "a" / "three.py"),
        lambda folder: os.utime(folder / "a" / "one.py", ns=(1, 1)),
    ],
)
def test_another_state_of_the_sources_is_another(change: object, tmp_path: Path) -> None:
    (tmp_path / "a" / "__pycache__").mkdir(parents=True)
    (tmp_path / "a" / "one.py").write_text("__all__ = ['One']")
    before = told._state(tmp_path)
    (tmp_path / "a" / "__pycache__" / "one.py").write_text("")
    assert told._state(tmp_path) == before
    assert callable(change)
    change(tmp_path)
    assert told._state(tmp_path) != before
