"""What a form comes to: a plan, or problems beside their fields with buttons that mend them."""

import threading
import time
from pathlib import Path

import pytest

from factory.board import fields
from factory.board.planned import _PLACES, Planner, difference
from factory.config.keys import describe
from factory.config.line import name_of
from factory.config.settings import all_keys


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    return Planner((tmp_path_factory.mktemp("allowed"),))


def test_the_plan_is_that_of_the_command_line(planner: Planner) -> None:
    planned = planner(("method=qlora", "model=llama3_8b", "hardware=a100_40gb"))
    assert planned.plan is not None and planned.plan.estimate.parameters.total == 8_030_261_248
    assert planned.options["method"] == "qlora" and not planned.problems


@pytest.mark.parametrize(
    ("overrides", "key", "fixes"),
    [
        (("hardware=cpu", "precision=fp16"), "precision.name", {"precision=bf16", "precision=fp32"}),
        (("method.rank=many",), "method.rank", {"leave out method.rank"}),
        (("stage.learning_rte=1",), "stage.learning_rte", {"leave out stage.learning_rte"}),
        (("method=galore", "method.alpha=1"), "method.alpha", {"leave out method.alpha"}),
        (("hydra.run.dir=outputs/mine",), "hydra.run.dir", {"leave out hydra.run.dir"}),
        (("plan.search=true",), "plan.search", {"leave out plan.search"}),  # which `factory train` refuses
        (("preview.rows=10",), "preview.rows", {"leave out preview.rows"}),
        (("run=outputs/one",), "run", {"leave out run"}),
        (("serve.port=8001",), "serve.port", {"leave out serve.port"}),  # of which the value is not shown
    ],
)
def test_a_problem_stands_beside_its_key_and_can_be_mended(
    planner: Planner, overrides: tuple[str, ...], key: str, fixes: set[str]
) -> None:
    planned = planner(overrides)
    assert planned.plan is None
    (problem,) = planned.of(key)
    found = planner.fixes(planned, problem)
    assert fixes <= {difference(overrides, fixed, "leave out") for fixed in found}
    assert all(not planner(fixed).problems for fixed in found)


@pytest.mark.parametrize("last", ["stage.max_steps=many", "tracking.uri=/etc"])  # a place outside is not looked at
def test_all_problems_are_there_at_once(last: str, planner: Planner) -> None:
    """And each can be mended while the others stand."""
    overrides = ("board.password=x", "plan.search=true", "hydra.run.dir=outputs/mine", "method=nosuch", last)
    planned = planner(overrides)
    fixed = [planner.fixes(planned, problem) for problem in planned.problems]
    offered = {difference(overrides, each, "leave out") for those in fixed for each in those}
    assert {f"leave out {name_of(text)}" for text in overrides} <= offered and len(fixed) == len(overrides)


def test_a_place_outside_can_be_left_out_though_it_hides_what_else_is_wrong(planner: Planner) -> None:
    planned = planner(("tracking.uri=/etc", "stage.max_steps=many"))
    (problem,) = planned.problems
    assert problem.rule == "board-folder" and planner.fixes(planned, problem) == [("stage.max_steps=many",)]


def test_two_windows_that_ask_at_once_are_both_answered(planner: Planner) -> None:
    """One plans, the other asks only whether it may run something; both want to know what is by default."""
    begun = threading.Event()

    def plans() -> None:
        with planner._busy:
            begun.set()
            time.sleep(0.5)
            planner.outside(["data.path=/etc/passwd"])

    windows = [threading.Thread(target=plans, daemon=True)]
    windows[0].start()
    begun.wait()
    windows.append(threading.Thread(target=planner.outside, args=(["export.dir=/etc/passwd"],), daemon=True))
    windows[1].start()
    for window in windows:
        window.join(60)
        assert not window.is_alive()


def test_what_would_fit(planner: Planner) -> None:
    planned = planner(("hardware=cpu", "hardware.memory=750MB"))
    found = planner.that_fit(planned)
    assert found
    for overrides, needed, fits in found:
        again = planner(overrides).plan
        assert again is not None and again.estimate.memory.total == needed and again.estimate.memory.fits == fits


def test_a_place_outside_is_refused(planner: Planner, tmp_path: Path) -> None:
    own = str(tmp_path / "x.jsonl")
    for path in ("/etc/passwd", "~/.ssh/id_rsa", "~nobody-of-this-name/x.jsonl", "../../x.jsonl", own):
        planned = planner(("data=file", f"data.path={path}"))
        assert planned.problems[0].rule == "board-folder" and planned.plan is None, path
    inside = planner._folders[0] / "x.jsonl"
    inside.write_text('{"text": "a"}\n', encoding="utf-8")
    assert "board-folder" not in [problem.rule for problem in planner(("data=file", f"data.path={inside}")).problems]
    inside.with_name("link").symlink_to("/etc/passwd")
    problems = planner(("data=file", f"data.path={inside.with_name('link')}")).problems
    assert [problem.rule for problem in problems] == ["board-folder"]


def test_a_form_has_every_key_of_its_group(planner: Planner) -> None:
    """So what a method's or a stage's spec adds is there, with its meaning."""
    tree = planner(("method=galore", "stage=dpo")).tree
    assert tree is not None
    for group in fields.FORMS:
        shown = fields.fields(group, tree)
        assert all(each.doc and each.type() for each in shown)
        assert len({each.path for each in shown}) == len(shown)
    assert {"method.update_interval", "stage.beta"} <= {
        each.path for group in ("method", "stage") for each in fields.fields(group, tree)
    }
    known = {key.path for key in all_keys()}
    assert {each.path for group in fields.FORMS for each in fields.fields(group, tree)} <= known


def test_a_value_stands_as_it_is_typed(planner: Planner) -> None:
    """Typing what is shown changes nothing."""
    tree = planner(()).tree
    assert tree is not None
    typed = tuple(f"{each.path}={each.value}" for group in fields.FORMS for each in fields.fields(group, tree))
    assert planner(typed).tree == tree


@pytest.mark.parametrize(
    "override",
    [
        "data.names=[a,/etc/passwd]",
        "data.sources.demo.columns={a: /etc/passwd}",
        "data.path=${oc.env:HOME}/x.jsonl",
        "data.path=${oc.env:HOME}",
        "data.path='${oc.env:HOME}'",
        "data.path=$\\{oc.env:HOME\\}",
        "data.path=str(/etc/passwd)",
        "data.path=str(value=/etc/passwd)",
        "data.names=extend_list(a, '/etc/passwd')",
        "evaluate.harness=[http://a.b/c,/etc/passwd]",
        "evaluate.harness=['http://a.b/c','/etc/passwd']",
        "tracking.uri=sqlite:////etc/x.db",
        "tracking.uri=file:///etc/x",
        "hydra.searchpath=[own]",
    ],
)
def test_a_place_outside_is_found_wherever_it_stands(planner: Planner, override: str) -> None:
    assert "board-folder" in [problem.rule for problem in planner((override,)).problems]


@pytest.mark.parametrize(
    "override",
    [
        "data.path=private/rows.jsonl",
        "data.path='private/my rows.jsonl'",
        "data.path=str(private/rows.jsonl)",
        "data={path: private/rows.jsonl}",
        "++data={sources: {demo: {path: 'private/my rows.jsonl'}}}",
        "data.sources.demo={folder: private}",
        "model={path: private}",
        "model.hub=private",  # which model.path is by default
        "evaluate={path: private}",
        "evaluate.metrics=[rouge1,private:scored]",
        "stage.reward=mine.py:scored",
        "export.dir=link/new",  # which would be made elsewhere
        "data.path=allowed/../private/rows.jsonl",
        "data.path=allowed/link",
    ],
)
def test_what_lies_in_the_working_folder_is_no_more_allowed(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where board.folders names others."""
    work, rows = tmp_path / "work", ("private/rows.jsonl", "private/my rows.jsonl", "allowed/rows.jsonl", "mine.py")
    for name in (*rows, "lora/x"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("x", encoding="utf-8")
    (tmp_path / "other").mkdir()
    (work / "link").symlink_to(tmp_path / "other")
    (work / "allowed" / "link").symlink_to(work / "private" / "rows.jsonl")
    monkeypatch.chdir(work)
    planner = Planner((work / "allowed",))
    assert [problem.rule for problem in planner.outside([override])] == ["board-folder"]
    legal = ("data.path=allowed/rows.jsonl", "export.dir=exports/new", "method=lora", "data.path=no/such")
    texts = ("tracking.experiment=lora", "data.sources.demo.split=lora", "data.sources.demo.columns={lora: private}")
    texts += ("evaluate.harness=[private]", "generation.system=private", "tracking={experiment: private}")
    by_default = ("tracking.uri=sqlite:///mlflow.db",)
    (work / "mlflow.db").touch()
    assert planner.outside((*legal, *texts, *by_default)) == []
    everywhere = Planner((work,)).outside([override])
    assert [problem.setting for problem in everywhere] == [override] * ("=link" in override)


@pytest.mark.parametrize(
    "override",
    [
        "generation.system='Say (in one word) what it is... or (if not) why, as in a/b: {}'",
        "generation.system='" + "long " * 2000 + "'",
        "stage.learning_rate=float(1e-4)",
        "method=choice(lora,ia3)",
        "seed=range(1,4)",
        "data.path=rows(1).jsonl",
        "model.path=owner/name",
        "evaluate.harness=[http://a.b/c/d,'mmlu']",
    ],
)
def test_what_is_no_path_is_allowed(override: str, planner: Planner) -> None:
    assert planner.outside([override]) == []


NO_PLACES = {
    *("architecture", "card", "columns", "experiment", "extra_modules", "family", "harness", "license", "modules"),
    *("names", "new_tokens", "parent_run", "push", "ranks", "register", "revision", "scaled_inputs", "split", "stop"),
    *("subset", "tags", "target_modules", "validation"),
}


def test_of_every_text_it_is_known_whether_it_names_a_place() -> None:
    """But for those that the page has no use for."""
    kinds = ("a text", "a mapping")
    every = (key for key in all_keys() if not key.path.startswith(("chat.", "serve.", "board.")))
    texts = {key.path.rpartition(".")[2] for key in every if any(kind in describe(key) for kind in kinds)}
    assert texts == _PLACES | NO_PLACES and not _PLACES & NO_PLACES


@pytest.mark.parametrize("override", ["tracking.uri=sqlite:///mlflow.db", "tracking.uri=http://127.0.0.1:5000/a/b"])
def test_an_address_is_no_place_outside(planner: Planner, override: str) -> None:
    assert "board-folder" not in [problem.rule for problem in planner((override,)).problems]
