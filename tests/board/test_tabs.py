"""What the page's controls do, without a browser: their functions as the page has them."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

gr = pytest.importorskip("gradio", reason="gradio is not installed")

from factory.board import page, shown, talking  # noqa: E402
from factory.board.children import Ended, Server  # noqa: E402
from factory.board.planned import Planner  # noqa: E402
from factory.board.runs import Runs, Shown  # noqa: E402
from factory.board.said import words  # noqa: E402
from factory.board.tabs import compare, configure, evaluate  # noqa: E402
from factory.board.tabs import train as train_tab  # noqa: E402
from factory.board.talking import Can  # noqa: E402
from factory.board.votes import Votes  # noqa: E402
from factory.plan.plan import to_yaml  # noqa: E402

OUTSIDE = ("data=file", "data.path=/etc/passwd")
CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
SAMPLING = (0, 0.95, 16, "")


class Children:
    """Starts nothing; keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.broken = ""

    def page(self, asked: list[str], key: str) -> tuple[None, str]:
        self.asked.append(asked)
        return None, "printed"

    def lines(self, asked: list[str]) -> Iterator[Ended]:
        self.asked.append(asked)
        yield Ended(0, "printed")

    def served(self, asked: tuple[str, ...]) -> Server:
        self.asked.append([*asked])
        if self.broken:
            raise RuntimeError(self.broken)
        return Server(process=None, address="http://nowhere", printed=Path())  # type: ignore[arg-type]

    def keep(self, wanted: set[tuple[str, ...]]) -> None: ...


class Held(Runs):
    """Starts nothing; keeps what would be started."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.spawned: list[list[str]] = []

    def _spawn(self, entry: dict[str, Any]) -> None:
        self.spawned.append(entry["words"])


class Tabs:
    """A page and the functions of its controls."""

    def __init__(self, folder: Path):
        self.folder, self.children, self.planner = folder, Children(), Planner((folder,))
        self.runs, self.votes = Held(folder / "outputs", folder / "sweeps"), Votes(folder / "votes.jsonl")
        self.blocks = page.page(self.planner, self.runs, self.children, self.votes)  # type: ignore[arg-type]

    def of(self, elem_id: str, event: str, outputs: int | None = None) -> Any:
        """The function of an event of a control: where it has several, that of so many outputs."""
        every = [each for each in self.heard(elem_id, event) if each.fn]
        (found,) = (each.fn for each in every if outputs in (None, len(each.outputs)))
        return found

    def heard(self, elem_id: str, event: str) -> list[Any]:
        (control,) = (each for each in self.blocks.blocks.values() if getattr(each, "elem_id", None) == elem_id)
        return [each for each in self.blocks.fns.values() if (control._id, event) in each.targets]

    def run(self, name: str, *overrides: str, verb: Any = "train", **report: Any) -> str:
        """The folder of a run that has ended."""
        folder, plan = self.folder / "outputs" / name, self.planner(overrides).plan or self.planner(()).plan
        assert plan is not None
        (folder / "model").mkdir(parents=True, exist_ok=True)
        (folder / "model" / "config.json").write_text("{}", encoding="utf-8")
        (folder / "plan.yaml").write_text(to_yaml(plan.with_settings(verb=verb, overrides=overrides)), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps({"status": "finished", **report}), encoding="utf-8")
        self.runs._seen = (-1.0, [])
        return str(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tabs:
    return Tabs(tmp_path_factory.mktemp("tabs"))


@pytest.fixture
def tabs(made: Tabs) -> Tabs:
    made.children.asked.clear()
    made.runs.spawned.clear()
    made.children.broken = ""
    return made


# --- what may be read


def test_nothing_reads_outside_of_the_folders(tabs: Tabs) -> None:
    """Of whatever takes the form's settings, or a form's of its own."""
    run = tabs.run("one")
    *_, preview = tabs.of("preview-run", "click")(OUTSIDE, 5, "en")
    sweep, *_ = tabs.of("sweep-run", "click")(["lora", "ia3"], OUTSIDE, "en")
    measured, *_ = tabs.of("evaluate-run", "click")(run, ("evaluate.path=/etc",), "en")
    *_, loaded = tabs.of("chat-load", "click", 8)("base", "", ("model.path=/etc/model",), False, "en")
    *_, exported = tabs.of("export-run", "click")(run, "hf", "/etc/model", "en")
    assert all("board-folder" in each for each in (preview, sweep, measured, loaded[2], exported[1]))
    assert tabs.children.asked == tabs.runs.spawned == []


# --- configure


def test_what_stands_in_the_line_is_started(tabs: Tabs) -> None:
    start = tabs.of("start", "click")
    overrides, formed, *_ = start("factory train stage.max_steps=7", True, (), 0, "en")
    assert (overrides, formed) == (("stage.max_steps=7",), 1)
    assert "stage.max_steps=7" in tabs.runs.spawned[-1]
    overrides, _, message, *_ = start("factory 'a", True, (), 0, "en")
    assert overrides == () and "quote" in message and len(tabs.runs.spawned) == 1
    start("factory train stage.max_steps=7", False, (), 0, "en")  # drawn before the settings that it is of
    assert "stage.max_steps=7" not in tabs.runs.spawned[-1]


def test_options_are_those_of_the_recipe(tabs: Tabs) -> None:
    names = ("recipe", "model", "method", "stage", "data")
    values = configure._values(tabs, dict.fromkeys(names))  # type: ignore[arg-type]
    assert values(("recipe=tool_use", "method=qlora"))[1:] == [
        "smollm2_135m",
        "qlora",
        "sft",
        ["glaive_function_calling_v2"],
    ]
    assert values(("data=[alpaca,dolly]",))[::4] == ["", ["alpaca", "dolly"]]
    assert values(("method=nope",))[2] == "nope"


def test_parts_of_the_memory_are_named_in_the_language(tabs: Tabs) -> None:
    say = words("zh")
    drawn = shown.plan(tabs.planner(()), say)
    assert f'title="{say("memory.weights")}"' in drawn and 'title="weights"' not in drawn


# --- train


def test_going_on_says_what_becomes_of_it(tabs: Tabs) -> None:
    finished, interrupted = tabs.run("whole"), tabs.run("cut", status="interrupted")
    go_on = tabs.of("resume", "click")
    assert "finished" in go_on(finished, "en") and not tabs.runs.spawned
    assert interrupted in go_on(interrupted, "en") and tabs.runs.spawned == [["resume", interrupted]]
    assert go_on(None, "en") == words("en")("no_runs")


def test_what_is_no_training_has_no_settings_for_the_form(tabs: Tabs) -> None:
    trained, measured = tabs.run("trained", "method=ia3"), tabs.run("measured", verb="evaluate")
    use = tabs.of("again", "click")
    assert use(trained, (), 3, "en") == (("method=ia3",), 4, gr.update(selected="configure"), "")
    assert use(measured, (), 3, "en") == ((), 3, gr.update(), words("en")("no_training"))


def test_why_a_run_failed_stands_beside_its_state(tabs: Tabs) -> None:
    failed = tabs.run("failed", status="failed", error="ValueError: no rows")
    assert "ValueError: no rows" in train_tab._state(tabs.runs, failed, words("en"))


# --- compare and evaluate


def test_an_interrupted_run_can_be_compared() -> None:
    run = Shown(folder="one", verb="train", state="interrupted", started=0, overrides=())
    assert compare._can_be_compared(run) and not compare._can_be_compared(replace(run, state="running"))


def test_an_evaluation_is_shown_with_the_values_of_its_run(tabs: Tabs) -> None:
    run = tabs.run("seven", "evaluate.samples=7")
    assert evaluate._tree(tabs, run, ())["evaluate"]["samples"] == 7  # type: ignore[arg-type]
    assert evaluate._tree(tabs, run, ("evaluate.samples=5",))["evaluate"]["samples"] == 5  # type: ignore[arg-type]
    other = tabs.run("unknown", "evaluate.samples=[")
    default = tabs.planner(()).tree
    assert default is not None
    assert evaluate._tree(tabs, other, ())["evaluate"] == default["evaluate"]  # type: ignore[arg-type]
    assert evaluate._tree(tabs, None, ())["evaluate"] == default["evaluate"]  # type: ignore[arg-type]


def test_what_waits_is_not_called_started(tabs: Tabs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabs.runs, "next", lambda: None)
    run = tabs.run("one")
    assert tabs.of("evaluate-run", "click")(run, (), "en")[0].startswith("Queued")
    assert tabs.of("sweep-run", "click")(["lora", "ia3"], (), "en")[0].startswith("Queued")
    tabs.runs._write_queue([])


def test_answers_that_are_left_out_are_counted(tabs: Tabs) -> None:
    run = tabs.run("asked", memory={"peak_bytes": None}, steps=[])
    rows = Path(run) / "evaluation" / "generation.jsonl"
    rows.parent.mkdir(exist_ok=True)
    for count, label in ((200, "<caption>Answers</caption>"), (201, "<caption>Answers: the first 200 of 201<")):
        rows.write_text("".join(f'{{"id": {number}}}\n' for number in range(count)))
        drawn = evaluate._shown(tabs, run, words("en"))[1]  # type: ignore[arg-type]
        assert label in drawn and drawn.count("<td>") == 200


def test_where_no_run_has_a_model_that_is_said(tabs: Tabs) -> None:
    said = words("en")("none_trained")
    assert tabs.of("evaluate-run", "click")(None, (), "en")[0] == said
    assert [said in state for state, _ in tabs.of("export-run", "click")(None, "hf", "x", "en")] == [True]


# --- chat


def _ask(tabs: Tabs, text: str, talk: list[Any], files: Any = None) -> list[Any]:
    return [*tabs.of("chat-say", "submit")(text, files, (("run=x",), None), (talk, []), "", "", *SAMPLING, "en")]


def test_what_is_typed_while_an_answer_grows_stays(tabs: Tabs, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = ({"role": "assistant", "content": text} for text in ("So", "So be it"))
    monkeypatch.setattr(talking, "answers", lambda *_: parts)
    first, *rest = _ask(tabs, "Hi", [], ["a.png"])
    assert first[:2] == ("", None)
    assert rest and all(each[:2] == (gr.update(), gr.update()) for each in rest)
    assert [turn["content"] for turn in rest[-1][2][0]] == ["Hi", "So be it"]


def test_an_answer_that_was_cut_says_so_on_either_side(tabs: Tabs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from what it says: of two that are voted on either may be cut."""
    turn = {"role": "assistant", "content": "So be", "cut": True}
    monkeypatch.setattr(talking, "answers", lambda *_: iter([turn]))
    ask = tabs.of("chat-say", "submit")
    *_, last = ask("Hi", None, (("run=x",), ("run=y",)), ([], []), "", "", *SAMPLING, "en")
    for drawn in last[3:5]:
        assert [each["content"] for each in drawn] == ["Hi", "So be", words("en")("chat_cut")]


def test_a_result_of_a_call_takes_no_images(tabs: Tabs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talking, "answers", lambda *_: iter(()))
    first, *_ = _ask(tabs, "1", [{"role": "user", "content": "Hi"}, CALL], ["a.png"])
    assert first[:2] == ("", gr.update()) and "paths" not in first[2][0][-1]


def test_nothing_is_no_question(tabs: Tabs) -> None:
    (only,) = _ask(tabs, " ", [])
    assert only[2] == ([], []) and only[-1] == words("en")("chat_say") and not tabs.children.asked


def test_a_question_that_nobody_takes_is_given_back(tabs: Tabs) -> None:
    tabs.children.broken = "no memory"
    *_, last = _ask(tabs, "Hi", [])
    assert last[0] == "Hi" and last[2] == ([], []) and "no memory" in last[-1]


@pytest.mark.parametrize("control", ["chat-clear", "chat-load"])
def test_an_answer_ends_with_its_talk(tabs: Tabs, control: str) -> None:
    (asking,) = tabs.heard("chat-say", "submit")
    assert asking._id in [ended for each in tabs.heard(control, "click") for ended in each.cancels]


def test_tools_that_nobody_can_call_are_not_sent_unseen(tabs: Tabs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talking, "can", lambda _: Can())
    *_, last = tabs.of("chat-load", "click", 8)("base", "", (), False, "en")
    assert last[-1] == gr.update(visible=False, value="")
    monkeypatch.setattr(talking, "can", lambda _: Can(tools=True))
    *_, last = tabs.of("chat-load", "click", 8)("base", "", (), False, "en")
    assert last[-1] == gr.update(visible=True)


@pytest.mark.parametrize(
    ("overrides", "base"),
    [
        (("recipe=vision",), ["model=smolvlm_256m"]),
        (("recipe=vision", "method=qlora"), ["model=smolvlm_256m", "method.quantization.bits=4"]),
        (("recipe=long_context_s2", "method.quantization.bits=8"), ["model=llama2_7b", "method.quantization.bits=8"]),
        (("recipe=tool_use", "model=llama3_8b"), ["model=llama3_8b"]),
        (
            ("model=llama3_8b", "model.template=chatml", "stage.max_steps=3"),
            ["model=llama3_8b", "model.template=chatml"],
        ),
        (
            ("model=llama3_8b", "model.revision='1234567'", "model.new_tokens=['<a>']"),
            ["model=llama3_8b", "model.revision='1234567'", "model.new_tokens=['<a>']"],
        ),
    ],
)
def test_a_base_is_that_of_the_run_beside_it(
    overrides: tuple[str, ...], base: list[str], tabs: Tabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever named its model."""
    monkeypatch.setattr(talking, "can", lambda _: Can())
    run = tabs.run("beside", *overrides)
    for form in ((), ("model=qwen3_0.6b",)):
        tabs.children.asked.clear()
        *_, last = tabs.of("chat-load", "click", 8)("base", run, form, False, "en")
        assert tabs.children.asked == [base, [f"run={run}"]] and last[0][0] == tuple(base)
    tabs.children.asked.clear()
    list(tabs.of("chat-load", "click", 8)("base", "", overrides, False, "en"))  # of the form, where there is no run
    assert tabs.children.asked == [base]


@pytest.mark.parametrize("wrong", ["model=nosuch", "recipe=nosuch", "method=nosuch", "model=smollm2_135m,qwen3_0.6b"])
def test_a_base_of_which_something_is_unknown_is_not_another(wrong: str, tabs: Tabs) -> None:
    *_, last = tabs.of("chat-load", "click", 8)("base", "", (wrong,), False, "en")
    assert wrong.split(",")[0] in last[2] and "fix:" in last[2] and not tabs.children.asked


def test_a_form_is_read_where_its_model_is_asked_for(tabs: Tabs, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more of it than that."""
    monkeypatch.setattr(talking, "can", lambda _: Can())
    run = tabs.run("alone")
    load = tabs.of("chat-load", "click", 8)
    asked = [f"run={run}"]
    for one, other, form, words_of in (
        (run, "", ("model=nosuch",), asked),
        ("base", "", ("method.name=foo", "stage.max_steps=many"), ["model=smollm2_135m"]),
        ("base", "", ("~model",), ["model=null"]),  # which `factory serve` refuses
    ):
        tabs.children.asked.clear()
        *_, last = load(one, other, form, False, "en")
        assert tabs.children.asked == [words_of] and last[0][0] == tuple(words_of)


def test_a_base_is_read_and_told_things_as_the_run_beside_it(
    tabs: Tabs, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    """With options and files of the run's own."""
    monkeypatch.setattr(talking, "can", lambda _: Can())
    monkeypatch.chdir(tabs.folder)
    (tabs.folder / "own" / "model").mkdir(parents=True)
    (tabs.folder / "own" / "model" / "mine.yaml").write_text("defaults: [_base]\npath: weights\ntemplate: chatml\n")
    (tabs.folder / "own" / "hardware").mkdir()
    (tabs.folder / "own" / "hardware" / "two.yaml").write_text("defaults: [cpu]\nthreads: 1\nrank_timeout: 1200\n")
    shutil.copytree(tiny_model, "weights")
    said = ("model=mine", "precision=fp32", "hardware=two", "data.reasoning=strip", "seed=3")
    plan = Planner((tabs.folder,), ("own",))(said).plan
    assert plan is not None
    run = tabs.run("own")
    (Path(run) / "plan.yaml").write_text(to_yaml(plan.with_settings(overrides=said)), encoding="utf-8")
    tabs.runs._seen = (-1.0, [])
    (tabs.folder / "elsewhere").mkdir()
    monkeypatch.chdir(tabs.folder / "elsewhere")
    list(tabs.of("chat-load", "click", 8)("base", run, (), False, "en"))
    keys = ["precision.name=fp32", "hardware.device=cpu", "hardware.threads=1", "data.reasoning=strip"]
    place = f"model.path={tabs.folder / 'weights'}"
    base, beside = tabs.children.asked
    assert {place, "model.template=chatml", *keys} <= {*base} and beside == [f"run={run}"]


def test_a_model_that_is_gone_is_not_chosen(tabs: Tabs) -> None:
    there = tabs.run("one")
    (models,) = (each.fn for each in tabs.heard("tab-chat", "select"))
    left, right = models("en", there, there)
    assert left["value"] == right["value"] == there
    left, right = models("en", "outputs/gone", "outputs/gone")
    assert left["value"] in [value for _, value in left["choices"]] and right["value"] == ""


def test_answers_are_voted_on_once(tabs: Tabs) -> None:
    sides, talk = (("run=a",), ("run=b",)), [{"role": "user", "content": "Hi"}]
    vote = tabs.of("vote-left", "click")
    said, voted = vote(sides, (talk, talk), 0, "en")
    assert "run=a" in said and voted == 1
    assert vote(sides, (talk, talk), voted, "en") == (words("en")("vote_again"), 1)
    assert vote(sides, (talk * 2, talk * 2), voted, "en")[1] == 2
    assert tabs.votes.counted(["run=a", "run=b"]) == {"run=a": (2, 2), "run=b": (0, 2)}


# --- runs


def test_a_run_that_goes_on_is_starting_until_it_is_there(tabs: Tabs) -> None:
    run = tabs.run("again", status="interrupted")
    tabs.runs._own.mkdir(parents=True, exist_ok=True)
    tabs.runs._last.write_text(json.dumps({"folder": run, "process": 0}))
    os.utime(Path(run) / "plan.yaml", (1, 1))

    class Child:
        def __init__(self, code: int | None):
            self._code = code

        def poll(self) -> int | None:
            return self._code

    try:
        tabs.runs._children[run] = Child(None)  # type: ignore[assignment]
        assert tabs.runs.state(run) == "starting"
        os.utime(Path(run) / "plan.yaml")
        assert tabs.runs.state(run) == "interrupted"  # as its new report says
        tabs.runs._children[run] = Child(2)  # type: ignore[assignment]
        tabs.runs._printed(run).write_text("[plan-changed] the rows are others")
        assert tabs.runs.state(run) == "interrupted"
        assert "the rows are others" in train_tab._state(tabs.runs, run, words("en"))
    finally:
        del tabs.runs._children[run]


def test_what_waits_to_go_on_is_queued_once(tabs: Tabs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabs.runs, "next", lambda: None)
    run, sweep = tabs.run("waits", status="interrupted"), Path(tabs.run("../sweeps/a day/1", status="failed")).parent
    (sweep / "sweep.json").write_text("{}")
    assert tabs.runs.resume(run) and tabs.runs.state(run) == "queued"
    assert not tabs.runs.resume(run)
    assert tabs.runs.resume(str(sweep)) and not tabs.runs.resume(tabs.run("whole"))
    assert [each["words"][-1] for each in tabs.runs._queue()] == [run, f"sweep.resume={sweep}"]
    assert tabs.runs.stop(run) and tabs.runs.state(run) == "interrupted"
    tabs.runs._write_queue([])


def test_what_never_began_is_cancelled(tabs: Tabs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabs.runs, "next", lambda: None)
    folder = tabs.runs.start(())
    assert tabs.runs.stop(folder) and tabs.runs.state(folder) == "cancelled"
    tabs.runs._printed(folder).write_text("[bad-value] …")
    tabs.runs._asked_file(folder).write_text(json.dumps({"folder": folder, "words": ["train"], "code": 2}))
    assert tabs.runs.state(folder) == "refused" and "bad-value" in train_tab._state(tabs.runs, folder, words("en"))


def test_a_run_that_may_not_be_stopped_from_here_is_told(tabs: Tabs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tabs.run("another's")

    def forbidden(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr("factory.board.runs._Processes.of_run", lambda *_: 7)
    monkeypatch.setattr("os.kill", forbidden)
    assert "[board-stop]" in tabs.of("stop", "click")(run, "en")


def test_an_end_of_a_log_is_marked(tabs: Tabs) -> None:
    run = Path(tabs.run("long"))
    for count in (20_000, 20_001):
        (run / "run.log").write_text("x" * count)
        assert tabs.runs.log(str(run)).startswith("x") == (count == 20_000)


def test_folders_of_options_are_those_of_what_is_started(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "method").mkdir(parents=True)
    (own / "method" / "mine.yaml").write_text("defaults: [lora]\nrank: 3\n")
    runs = Held(tmp_path / "outputs", tmp_path / "sweeps", (str(own),))
    planner = Planner((tmp_path,), (str(own),))
    made = page.Page(planner, runs, Children(), Votes(tmp_path / "votes"), tmp_path)  # type: ignore[arg-type]
    line = made.command(("method=mine",))
    assert configure._pasted(made, line, (), 0) == (("method=mine",), 1, "")
    assert configure._pasted(made, line.replace("/own", "/other"), (), 0)[2]
    with gr.Blocks():
        assert ("mine", "mine") in configure._dropdown(made, "method").choices
    folder = runs.start(("method=mine",))
    assert f"--config-dir={own}" in runs.spawned[-1]
    assert [each.overrides for each in runs.all() if each.folder == folder] == [("method=mine",)]
