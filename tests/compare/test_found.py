"""Whatever state a run is in, it is found, named once and told as it is."""

import fcntl
import json
from pathlib import Path

import pytest
import side_by_side
from forbidden import forbid

from factory.compare import found
from factory.compare.comparison import compared
from factory.compare.labels import labels
from factory.compare.runs import Run
from factory.config.refusal import UserError
from factory.config.words import program
from factory.run.folder import RunFolder
from factory.run.swept import Record, Recorded, SweepFolder

NONE = side_by_side.tracking(None)


def runs(*words: object) -> list[Run]:
    return found.found(found.asked([str(word) for word in words]), NONE)


def without_report(folder: Path) -> Path:
    side_by_side.run(folder)
    RunFolder(folder).report.unlink()
    return folder


def test_a_run_says_what_became_of_it(tmp_path: Path) -> None:
    done = side_by_side.run(tmp_path / "done", evaluate={"perplexity": 9.0})
    error = "[killed] step=train: it was killed.\n  because …"
    failed = side_by_side.run(tmp_path / "failed", status="failed", error=error)
    red = side_by_side.run(tmp_path / "red", checks={"save_reload": {"passed": False, "detail": ""}})
    advice = side_by_side.run(tmp_path / "off", checks={"memory_as_estimated": {"passed": False, "detail": ""}})
    cut, torn = without_report(tmp_path / "cut"), without_report(tmp_path / "torn")
    RunFolder(torn).report.write_text("{")
    (tmp_path / "empty").mkdir()
    names = (done, failed, red, advice, cut, torn, tmp_path / "empty", tmp_path / "nowhere")
    made = {run.name: run for run in runs(*names)}
    assert {name: run.status for name, run in made.items()} == {
        "done": "finished",
        "failed": "failed",
        "red": "red check",
        "off": "finished",
        "cut": "cut short",
        "torn": "failed",
        "empty": "missing",
        "nowhere": "missing",
    }
    assert made["done"].said is None
    assert made["failed"].said == "[killed] step=train: it was killed"
    assert made["red"].said == "save_reload is red"
    assert "step 4 of 4" in str(made["cut"].said)
    assert "report.json cannot be read" in str(made["torn"].said)
    assert made["cut"].report["train"]["final_loss"] == 2.5  # as far as it was logged


def test_a_word_longer_than_a_name_can_be_is_read_as_any_other(tmp_path: Path) -> None:
    text = " and ".join(f"metrics.loss < {number}" for number in range(50))
    assert found.asked([text]).filters == (text,)
    done = side_by_side.run(tmp_path / "done")
    assert [run.status for run in runs(done, "a" * 300)] == ["finished", "missing"]
    with pytest.raises(UserError, match=r"\[compare-what\].*no such folder"):
        found.asked(["a" * 300])


def test_a_run_that_goes_on_is_told_by_its_lock_which_is_left_alone(tmp_path: Path) -> None:
    folder = RunFolder(without_report(tmp_path / "a"))
    with folder.claimed():
        (run,) = runs(folder.path)
    assert (run.status, run.said) == ("running", "it is at step 4 of 4")
    assert runs(folder.path)[0].status == "cut short"
    with folder.lock.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it


def test_a_killed_run_ended_where_it_was_saved_last(tmp_path: Path) -> None:
    """Fewer steps are logged than may be saved."""
    folder = RunFolder(without_report(tmp_path / "a b"))
    step = folder.checkpoints / "step-000006"
    step.mkdir(parents=True)
    assert "step 4 of 4 without a report" in str(runs(folder.path)[0].said)  # that was never whole
    (step / "manifest.json").write_text('{"files": {}}')
    assert str(runs(folder.path)[0].said).endswith(
        f"it ended at step 6 of 4 without a report; to continue: {program('factory')} resume '{folder.path}'"
    )


def test_lines_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    folder = RunFolder(side_by_side.run(tmp_path / "a"))
    folder.metrics.write_text(folder.metrics.read_text() + 'nonsense\n{"loss": 1}\n{"step": 9')
    (run,) = runs(folder.path)
    assert [line["step"] for line in run.lines] == [1, 2, 3, 4]
    assert run.said == "2 lines of metrics.jsonl cannot be read"


@pytest.mark.parametrize("in_a_sweep", [False, True])
def test_a_run_that_may_not_be_read_is_a_row_beside_the_others(
    in_a_sweep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, shut = side_by_side.run(tmp_path / "done"), side_by_side.run(tmp_path / "shut")
    if in_a_sweep:
        planned = [Recorded(name=name, overrides=(), digest=None) for name in ("done", "shut")]
        SweepFolder(tmp_path).write(Record(overrides=(), config_dirs=(), parent_run=None, jobs=tuple(planned)))
    forbid(shut, monkeypatch)
    forbid(done / "metrics.jsonl", monkeypatch)
    made = runs(tmp_path) if in_a_sweep else runs(done, shut)
    assert [(run.name, run.status) for run in made] == [("done", "finished"), ("shut", "missing")]
    assert made[0].said == "metrics.jsonl cannot be read (Permission denied)"
    assert made[1].said == f"{shut / 'plan.yaml'} cannot be read (Permission denied)"


def test_a_sweep_is_its_jobs(tmp_path: Path) -> None:
    side_by_side.run(tmp_path / "sweep" / "0", evaluate={"perplexity": 9.0})
    other = side_by_side.run(tmp_path / "other", "method=full", evaluate={"perplexity": 8.0})
    sweep = SweepFolder(tmp_path / "sweep")
    planned = [
        Recorded(name=str(at), overrides=(f"method={method}",), digest=None, refused=refused)
        for at, (method, refused) in enumerate(
            [("lora", None), ("galore", "[projection-rank] x"), ("full", None), ("oft", None)]
        )
    ]
    sweep.write(Record(overrides=("method=…",), config_dirs=(), parent_run=None, jobs=tuple(planned)))
    outcomes = [{"job": "0", "code": 1}, {"job": "0", "code": 0}, {"job": "1", "code": 2}]
    outcomes.append({"job": "2", "code": 0, "reused": str(other)})
    sweep.outcomes.write_text("".join(f"{json.dumps(line)}\n" for line in outcomes))
    made = runs(sweep.path)
    assert [(run.name, run.status) for run in made] == [
        ("0", "finished"),
        ("1", "refused"),
        ("2", "finished"),
        ("3", "not run"),
    ]
    assert made[1].said == "[projection-rank] x"
    assert made[2].report["evaluate"] == {"perplexity": 8.0} and str(other) in str(made[2].said)
    assert sweep.ended()["0"].code == 0  # the last one counts


@pytest.mark.parametrize(("words", "label"), [("recipe=table4", ""), ("method=lora,full", "method=lora")])
def test_what_differs_is_told_of_a_sweep_whatever_its_jobs_are_called(words: str, label: str, tmp_path: Path) -> None:
    """A recipe's names say what its runs are."""
    for name, method in (("job_0", "method=lora"), ("job_1", "method=full")):
        side_by_side.run(tmp_path / name, method)
    SweepFolder(tmp_path).write(Record(overrides=(words,), config_dirs=(), parent_run=None))
    assert compared(runs(tmp_path)).labels[0] == label


def test_a_sweeps_table_goes_by_how_the_jobs_ended(tmp_path: Path) -> None:
    """Whatever an older attempt left in a job's folder."""
    for job in ("0", "1"):
        side_by_side.run(tmp_path / job)
    (tmp_path / "jobs.jsonl").write_text('{"job": "0", "code": 2}\n{"job": "1", "code": 1}\n')
    made = runs(tmp_path)
    assert [(run.status, run.said) for run in made] == [
        ("refused", f"see {tmp_path / '0' / 'run.log'}"),
        ("failed", f"see {tmp_path / '1' / 'run.log'}"),
    ]


def test_runs_are_named_by_the_ends_of_their_places_and_come_once(tmp_path: Path) -> None:
    places = [side_by_side.run(tmp_path / day / "12-00") for day in ("monday", "tuesday")]
    assert [run.name for run in runs(*places, places[0])] == ["monday/12-00", "tuesday/12-00"]


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ((), "compare-what"),
        (("nowhere",), "compare-what"),
        (("method=lora",), "compare-what"),
        (("experiment=",), "compare-what"),
        (("experiment=x",), "compare-tracking"),
        (("metrics.perplexity<3",), "compare-tracking"),
        (("0" * 32,), "compare-tracking"),
    ],
    ids=str,
)
def test_words_that_name_nothing_are_refused(words: tuple[str, ...], rule: str, here: Path) -> None:
    with pytest.raises(UserError) as caught:
        runs(*words)
    assert [refusal.rule for refusal in caught.value.refusals] == [rule]


@pytest.mark.parametrize(
    ("options", "overrides", "wanted"),
    [
        (
            [{"method": "lora", "model": "a"}, {"method": "full", "model": "a"}],
            [[], ["method=full"]],
            ["method=lora", "method=full"],
        ),
        ([{"method": "lora"}] * 2, [["a.b=1", "c.d=2"], ["a.b=1", "c.d=3"]], ["c.d=2", "c.d=3"]),
        ([{"method": "lora"}, {}], [["method=lora"], ["method=galore"]], ["method=lora", "method=galore"]),
        ([{"method": "lora"}] * 2 + [{}], [["a.b=1", "c.d=2"], ["a.b=1"], []], ["c.d=2", "", ""]),
        ([{"method": "lora"}] * 2, [["hydra.run.dir=a", "tracking.uri=b"], []], ["", ""]),
    ],
)
def test_a_label_is_what_was_asked_of_one_alone(
    options: list[dict[str, str]], overrides: list[list[str]], wanted: list[str]
) -> None:
    assert list(labels(options, overrides)) == wanted
