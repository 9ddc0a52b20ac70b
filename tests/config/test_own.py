"""A method, a stage or a template in a file of the user's: what it must have, and that its content is planned."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Said, compiled, refusals

from factory import methods, stages, templates
from factory.config import compose
from factory.config.refusal import UserError
from factory.execute.verify import verify
from factory.inference import asked
from factory.verbs.use import to_write

METHOD = """
from factory.methods.full.spec import Settings, optimizer_bytes, trainable
from factory.methods.marking import marks
attach = optimizer = marks(trainable)
"""
STAGE = """
from factory.stages.sft.spec import KIND, Settings
def loss(model, batch, own): ...
"""
ASKED = ("method=full", "method.name=mine.py")


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("method", None, "there is no such file"),
        ("method", "1 / 0", r"importing it raised ZeroDivisionError: division by zero \(mine.py, line 1\)"),
        ("method", "\ndef broken(:", r"importing it raised SyntaxError: invalid syntax \(mine.py, line 2\)"),
        ("method", "a = 1\0", r"source code [a-z ]* null bytes(?! \(own.py)"),
        ("method", "\neval('(')", r"importing it raised SyntaxError: '\(' was never closed \(mine.py, line 2\)"),
        ("method", "import nowhere", "importing it raised ModuleNotFoundError: No module named 'nowhere'"),
        ("method", METHOD.replace("attach = ", ""), "it has no attach"),
        ("method", STAGE, "it has no trainable, optimizer_bytes, attach, optimizer"),
        ("stage", STAGE.replace("def loss", "def lost"), "it has no loss"),
        ("stage", f"{STAGE}KIND = 'songs'", "its KIND is songs, none of text, messages, pairs, labelled"),
    ],
)
def test_a_file_that_cannot_be_one_is_refused(name: str, text: str | None, wrong: str, here: Path) -> None:
    if text is not None:
        (here / "mine.py").write_text(text)
    (found,) = refusals(f"{name}.name=mine.py")
    assert (found.rule, found.setting) == ("own-module", f"{name}.name=mine.py")
    assert re.search(wrong, found.wrong), found.wrong


@pytest.mark.parametrize("name", ["method", "stage"])
def test_a_name_that_no_file_can_have_is_refused(name: str, here: Path) -> None:
    (found,) = refusals(f"{name}.name={'a' * 300}.py")
    assert (found.rule, found.wrong) == ("own-module", "there is no such file")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (None, "it cannot be read (No such file or directory)"),
        ("[]", "it is not a mapping of keys"),
        ("like: nobody", "like: there is no template nobody"),
        ("like: chatml\nusr: x", "mine.usr=x: there is no such key"),
        ("like: chatml\nuser: no place", "one place for the content is needed: 'no place'"),
        ("like: chatml\ntools: odd", "tools: the formats are default, "),
    ],
)
def test_a_template_that_cannot_be_one_is_refused(text: str | None, wrong: str, here: Path) -> None:
    if text is not None:
        (here / "mine.yaml").write_text(text)
    (found,) = refusals("model.template=mine.yaml")
    assert found.rule == "own-template" and wrong in found.wrong, found.wrong


def test_a_template_may_be_jinja_as_tokenizers_have_it(here: Path) -> None:
    (found,) = refusals("model.template=mine.jinja")
    assert found.rule == "own-template" and "it cannot be read (No such file" in found.wrong
    (here / "mine.jinja").write_bytes(b"\xff")
    (found,) = refusals("model.template=mine.jinja")
    assert found.rule == "own-template" and "it is no text" in found.wrong
    for name in (f"{'a' * 300}.jinja", f"{'a' * 300}.yaml"):
        (found,) = refusals(f"model.template={name}")
        assert found.rule == "own-template" and "it cannot be read (File name too long)" in found.wrong
    (here / "mine.jinja").write_text("{{ messages[0]['content'] }}")
    made = compiled("model.template=mine.jinja", training=False)
    assert set(made.own) == {"mine.jinja"} and templates.read("mine.jinja") == "{{ messages[0]['content'] }}"


def test_one_that_trains_nothing_is_refused(here: Path) -> None:
    (here / "mine.py").write_text(f"{METHOD}def trainable(method, arch): return {{}}\n")
    (found,) = refusals(*ASKED)
    assert found.rule == "nothing-trains"
    assert compiled(*ASKED, "stage=rm").estimate.parameters.trainable > 0  # its head


def test_its_rules_speak_in_its_words(here: Path, command: Callable[..., Said]) -> None:
    (here / "mine.py").write_text(
        f"""{METHOD}
from factory.plan.rule import rule

@rule("mine-batch", keys=("stage.batch_size",), reason="it was never tried", fix="lower it")
def large(case): return "it is large" if case.settings.stage.batch_size > 8 else None
"""
    )
    assert compiled(*ASKED, training=False)
    said = command("plan", *ASKED, "stage.batch_size=9")
    assert "[mine-batch] stage.batch_size=9: it is large.\n  because it was never tried\n  fix: lower it" in said.err


def test_a_plan_knows_the_files_by_their_content(here: Path) -> None:
    (here / "mine.py").write_text(METHOD)
    (here / "mine.yaml").write_text("source: me\nlike: chatml")
    asked = (*ASKED, "model.template=mine.yaml")
    made = compiled(*asked)
    verify(made)
    assert set(made.own) == {"mine.py", "mine.yaml"} and compiled(*asked).digest() == made.digest()
    for name in made.own:
        path = here / name
        before = path.read_text()
        path.write_text(f"{before}\n# another\n")
        assert compiled(*asked).digest() != made.digest()
        with pytest.raises(UserError, match=rf"\[facts-changed\] {name}: the file has changed"):
            verify(made)
        path.write_text(before)
    verify(made)


def test_a_plan_knows_functions_by_the_files_that_they_are_in(here: Path) -> None:
    """None of which is imported by that, nor a package that they are in."""
    files = {
        "graded.deep.scoring:score": here / "graded/deep/scoring.py",
        "scored_by:Mine.brevity": here / "scored_by.py",
    }
    files["graded:whole"] = here / "graded/__init__.py"
    (here / "graded/deep").mkdir(parents=True)
    for path in files.values():
        path.write_text("raise SystemExit\n")
    more = ("stage=grpo", "stage.reward=graded.deep.scoring:score", "evaluate.generation=true")
    asked = (*more, "evaluate.metrics=[exact_match,'scored_by:Mine.brevity','graded:whole','gone_by_now:score']")
    made = compiled(*asked, training=False)
    assert set(made.own) == {*files, "gone_by_now:score"} and compiled(*asked, training=False).digest() == made.digest()
    for name, path in files.items():
        path.write_text("raise SystemExit(1)\n")
        assert compiled(*asked, training=False).digest() != made.digest()
        with pytest.raises(UserError, match=rf"\[facts-changed\] {name}: the file has changed"):
            verify(made)
        path.write_text("raise SystemExit\n")
    verify(made)
    assert not compiled("stage=grpo", "stage.reward=http://localhost/score", training=False).own


def test_a_stage_of_plain_text_is_packed_as_pretraining_is(here: Path) -> None:
    (here / "mine.py").write_text("from factory.stages.pt.spec import *\ndef loss(model, batch, own): ...")
    words = ("stage=pt", "data.max_length=64")
    pack = compiled(*words, training=False).steps.pack
    assert pack.packing and not pack.isolate_documents
    assert compiled(*words, "stage.name=mine.py", training=False).steps.pack == pack


def test_a_method_that_goes_by_the_step_has_one_update_in_it(here: Path) -> None:
    (here / "mine.py").write_text(
        "from factory.methods.adalora.spec import *\n"
        "def attach(*_): ...\ndef optimizer(*_): ...\ndef scored(answers): ..."
    )
    words = ("stage=grpo", "stage.reward=mine:scored", "stage.max_new_tokens=16", "method=adalora")
    theirs, ours = (refusals(*words, *more, training=False) for more in ((), ("method.name=mine.py",)))
    assert [found.rule for found in ours] == [found.rule for found in theirs] == ["rollout-method"]
    assert "it chooses ranks by the step" in ours[0].wrong


def test_what_scores_is_served_so_whatever_its_stage_is_called(execute: Callable[..., Any], here: Path) -> None:
    """And no card tells where the files of one's own lie."""
    (here / "judge.py").write_text(
        "from factory.stages.rm.spec import *\nfrom factory.stages.rm.run import loss, scores"
    )
    full = "from factory.methods.full.spec import *\nfrom factory.methods.full.run import attach, optimizer"
    (here / "norms.py").write_text(full)
    (here / "conf" / "stage").mkdir(parents=True)
    (here / "conf/stage/judge.yaml").write_text(f"defaults: [rm]\nname: {here}/judge.py")
    own = ("--config-dir", str(here / "conf"), "stage=judge", "method=full", f"method.name={here}/norms.py")
    done = execute(
        *own, "stage.max_steps=1", "data.max_samples=8", "stage.save_steps=null", "evaluate.perplexity=false"
    )
    side = asked.Side("judge", "run")
    line = compose.parse(["run=run", "tracking=none"])
    plan, _ = to_write("serve", line, asked.Line(("tracking=none",), None), side)
    assert plan.settings.stage.name == "rm"
    card = (done.run.folder.model / "README.md").read_text()
    assert str(here) not in card and card.startswith("# ") and "norms.py, judge.py\n" in card


def test_a_file_is_read_again_when_it_has_changed(here: Path) -> None:
    (here / "mine.py").write_text(METHOD)
    whole = compiled(*ASKED, training=False).estimate.parameters.trainable
    few = "every = trainable\ndef trainable(*given): return dict(list(every(*given).items())[:2])"
    (here / "mine.py").write_text(METHOD.replace("attach", f"{few}\nattach"))
    assert compiled(*ASKED, training=False).estimate.parameters.trainable < whole


def test_all_that_a_method_or_a_stage_may_have_is_listed() -> None:
    package = Path(methods.__file__).parents[1]
    asked = {name for file in package.rglob("*.py") for name in re.findall(r'hook\(.*?, "(\w+)"', file.read_text())}
    listed = set(re.findall(r"`(\w+)", f"{methods.__doc__}{stages.__doc__}"))
    assert len(asked) > 30 and asked <= listed
