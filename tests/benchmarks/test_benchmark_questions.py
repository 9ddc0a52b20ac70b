"""Questions from the published layouts and from sets like those of the hub; what is broken is counted or refused."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_questions as made
import pytest

from factory.benchmarks import NAMES, benchmark, questions, read
from factory.config.hub import lost
from factory.config.refusal import UserError


def refused(name: str, source: Path | str | None, shots: int = 5) -> tuple[str, str]:
    with pytest.raises(UserError) as raised:
        read(name, None if source is None else str(source), shots=shots, max_samples=None)
    (refusal,) = raised.value.refusals
    assert "{" not in refusal.fix + refusal.because
    return refusal.rule, f"{refusal.setting}: {refusal.wrong}. {refusal.fix}"


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    content = made.write(tmp_path, name)
    exam = read(name, str(tmp_path), shots=3, max_samples=None)
    found = [(each.subject, each.number, each.text, *each.choices, each.answer) for each in exam.questions]
    assert found == [
        (subject, number, *row) for subject, (_, asked) in content.items() for number, row in enumerate(asked, 1)
    ]
    for subject, (solved, _) in content.items():
        assert [(each.text, *each.choices, each.answer) for each in exam.shots[subject]] == solved[:3]
    assert exam.dropped == {} and exam.not_sampled == 0 and exam.source == str(tmp_path)
    assert set(exam.absent) == set(benchmark(name).subjects) - set(content)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("below", ["", "data", "own"])
def test_the_layout_may_lie_one_folder_deeper(name: str, below: str, tmp_path: Path) -> None:
    made.write(tmp_path / below.replace("own", name), name)
    assert len(read(name, str(tmp_path), shots=5, max_samples=None).questions) == 12


@pytest.mark.parametrize(("asked", "there"), [(a, b) for a in NAMES for b in NAMES if a != b])
def test_another_benchmarks_files_are_told_by_name(asked: str, there: str, tmp_path: Path) -> None:
    made.write(tmp_path, there)
    if "mmlu" in (asked, there):  # what the published folders hold beside what is scored
        made.save(tmp_path / "val/astronomy_val.csv", made.rows(3, 1), None)
    rule, said = refused(asked, tmp_path)
    assert rule == "benchmark-source" and f"it holds {benchmark(there).title}'s files" in said


def test_all_three_may_lie_side_by_side(tmp_path: Path) -> None:
    for name in NAMES:
        made.write(tmp_path / name, name)
    for name in NAMES:
        assert {each.subject for each in read(name, str(tmp_path), shots=5, max_samples=None).questions} == set(
            made.SUBJECTS[name]
        )


def test_without_shots_no_dev_file_is_needed(tmp_path: Path) -> None:
    made.write(tmp_path, "mmlu")
    (tmp_path / "dev/astronomy_dev.csv").unlink()
    assert read("mmlu", str(tmp_path), shots=0, max_samples=None).shots["astronomy"] == ()
    rule, said = refused("mmlu", tmp_path, shots=5)
    assert rule == "benchmark-shots" and "evaluate.shots=5: astronomy has 0 of them" in said


def test_too_few_shots_are_refused(tmp_path: Path) -> None:
    made.write(tmp_path, "cmmlu", shots=4)
    assert len(read("cmmlu", str(tmp_path), shots=4, max_samples=None).shots["arts"]) == 4
    rule, said = refused("cmmlu", tmp_path)
    assert rule == "benchmark-shots" and "has 4 of them" in said and "(4 can be had" in said


BROKEN = {
    "no question": [" ", "1", "2", "3", "4", "A"],
    "its answer is none of A, B, C, D": ["q", "1", "2", "3", "4", "E"],
    "5 columns where 6 are needed": ["q", "1", "2", "3", "A"],
    "7 columns where 6 are needed": ["q", "1", "2", "3", "4", "A", "B"],
}


def test_broken_rows_are_counted_with_their_places(tmp_path: Path) -> None:
    made.write(tmp_path, "mmlu", questions=20)
    rows: list[Any] = list(made.rows(20, 5))
    for at, row in enumerate(BROKEN.values()):
        rows.insert(3 * at, row)
    rows[-1] = BROKEN["no question"]
    made.save(tmp_path / "test/astronomy_test.csv", rows, None)
    exam = read("mmlu", str(tmp_path), shots=5, max_samples=None)
    assert exam.dropped == {
        why: {"count": 1 + (why == "no question"), "first": [f"test/astronomy_test.csv:{3 * at + 1}"]}
        for at, why in enumerate(BROKEN)
    } | {"no question": {"count": 2, "first": ["test/astronomy_test.csv:1", "test/astronomy_test.csv:24"]}}
    numbers = [each.number for each in exam.questions if each.subject == "astronomy"]
    assert numbers == [at for at in range(1, 24) if at not in (1, 4, 7, 10)]  # a question keeps its row's number


def test_an_empty_choice_is_a_choice(tmp_path: Path) -> None:
    made.write(tmp_path, "mmlu")
    made.save(tmp_path / "test/astronomy_test.csv", [["q", "1", "", "3", " 4", " A"]], None)
    (found,) = [each for each in read("mmlu", str(tmp_path), shots=5, max_samples=None).questions if each.text == "q"]
    assert found.choices == ("1", "", "3", " 4") and found.answer == "A"


@pytest.mark.parametrize("row", BROKEN.values())
def test_a_broken_shot_is_refused(row: list[str], tmp_path: Path) -> None:
    made.write(tmp_path, "mmlu")
    made.save(tmp_path / "dev/astronomy_dev.csv", [*made.rows(4, 1), row], None)
    assert read("mmlu", str(tmp_path), shots=4, max_samples=None)
    rule, said = refused("mmlu", tmp_path)
    assert rule == "benchmark-broken" and "dev/astronomy_dev.csv:5" in said


def spoil(folder: Path, text: str | bytes) -> None:
    content = text.encode() if isinstance(text, str) else text
    (folder / "val/law_val.csv").write_bytes(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no column question, a, b, c, d, answer"),
        ("id,question,A,B,C,D\n1,q,1,2,3,4\n", "has no column answer"),
        ("id,question,A,B,C,D,answer\n", "0 of 0 rows of law cannot be used"),
        ("id,question,A,B,C,D,answer\n0,q,1,2,3,4,\n", "1 of 1 rows of law cannot be used, as val/law_val.csv:2"),
        ('id,question,A,B,C,D,answer\n0,"q,1,2,3,4,A\n', "val/law_val.csv, after line"),
        ("id,question,A,B,C,D,answer\n0,问,1,2,3,4,A\n".encode("gbk"), "val/law_val.csv, after line"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(content: str | bytes, said: str, tmp_path: Path) -> None:
    made.write(tmp_path, "ceval")
    spoil(tmp_path, content)
    rule, found = refused("ceval", tmp_path)
    assert rule == "benchmark-broken" and said in found


def test_a_mark_at_the_files_start_and_empty_lines_are_no_rows(tmp_path: Path) -> None:
    made.write(tmp_path, "ceval")
    spoil(tmp_path, "\ufeffid,question,A,B,C,D,answer\r\n\r\n0,q,1,2,3,4,A\r\n\r\n")
    exam = read("ceval", str(tmp_path), shots=5, max_samples=None)
    assert [each.text for each in exam.questions if each.subject == "law"] == ["q"] and not exam.dropped


def test_an_unknown_subject_is_refused_with_the_nearest(tmp_path: Path) -> None:
    made.write(tmp_path, "mmlu")
    made.save(tmp_path / "test/astronmy_test.csv", made.rows(2, 1), None)
    rule, said = refused("mmlu", tmp_path)
    assert rule == "benchmark-subject" and "astronmy is no subject of MMLU. did you mean astronomy?" in said


def test_what_is_no_folder_and_no_set_is_refused(tmp_path: Path) -> None:
    rule, said = refused("mmlu", tmp_path / "nowhere")
    assert rule == "benchmark-source" and "no such folder" in said and "cais/mmlu" in said
    rule, said = refused("mmlu", tmp_path)
    assert rule == "benchmark-source" and "none of its files is a subject's" in said and "SUBJECT_test.csv" in said


@pytest.mark.parametrize(("most", "each"), [(1, (1, 1, 1)), (3, (3, 3, 3)), (99, (4, 4, 4))])
def test_a_sample_is_of_each_subjects_first_questions(most: int, each: tuple[int, ...], tmp_path: Path) -> None:
    content = made.write(tmp_path, "mmlu")
    exam = read("mmlu", str(tmp_path), shots=5, max_samples=most)
    found = tuple(sum(question.subject == subject for question in exam.questions) for subject in content)
    assert found == each and exam.not_sampled == 12 - sum(each)
    assert all(question.number <= most for question in exam.questions)
    assert (exam.digest() == read("mmlu", str(tmp_path), shots=5, max_samples=None).digest()) == (most == 99)
    assert set(exam.shots) == {question.subject for question in exam.questions}


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    made.write(tmp_path, "mmlu")
    script = f"""
import sys
from factory import benchmarks
benchmarks.read("mmlu", {str(tmp_path)!r}, shots=5, max_samples=None)
assert not {{"torch", "transformers", "datasets"}} & set(sys.modules), "heavy"
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# --- sets as the hub holds them


Content = dict[str, tuple[list[made.Row], list[made.Row]]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Content]:
    """A hub that holds the benchmark's rows in its own set's columns."""

    def hub(name: str) -> Content:
        content = made.write(tmp_path / name, name)
        own, subjects = benchmark(name).hub, benchmark(name).subjects

        def rows(path: str, subset: str | None, split: str, revision: str | None) -> Any:
            assert path in (own.path, "me/mirror") and split in (own.shots, own.scored) and revision is None
            which = 1 if split == own.scored else 0
            if own.subset is not None:
                assert subset == own.subset
                # not sorted by subject
                for at in range(5):
                    for subject, both in content.items():
                        if at < len(both[which]):
                            question, a, b, c, d, answer = both[which][at]
                            choices, place = [a, b, c, d], "ABCD".index(answer)
                            yield {"question": question, "subject": subject, "choices": choices, "answer": place}
                return
            assert subset in subjects
            for number, row in enumerate(content.get(subset, both_of(content))[which]):
                names = made.FILES[name][2]
                assert names is not None
                yield dict(zip(names, [number, *row], strict=True)) | {"explanation": ""}

        monkeypatch.setattr(questions.hub_rows, "rows", rows)
        return content

    return hub


def both_of(content: Content) -> tuple[list[made.Row], list[made.Row]]:
    return next(iter(content.values()))


def test_one_set_of_all_subjects_is_parted(hub: Callable[[str], Content]) -> None:
    content = hub("mmlu")
    exam = read("mmlu", None, shots=5, max_samples=None)
    assert exam.source == "cais/mmlu"
    for subject, (solved, asked) in content.items():
        found = [(each.text, *each.choices, each.answer) for each in exam.questions if each.subject == subject]
        assert found == asked
        assert [(each.text, *each.choices, each.answer) for each in exam.shots[subject]] == solved
    assert len(exam.absent) == 54


@pytest.mark.parametrize(("name", "source"), [("ceval", None), ("cmmlu", "me/mirror")])
def test_a_subset_for_each_subject_is_read(name: str, source: str | None, hub: Callable[[str], Content]) -> None:
    content = hub(name)
    exam = read(name, source, shots=5, max_samples=None)
    for subject, (_, asked) in content.items():
        found = [(each.text, *each.choices, each.answer) for each in exam.questions if each.subject == subject]
        assert found == asked
    assert exam.absent == () and len({each.subject for each in exam.questions}) == len(benchmark(name).subjects)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"question": "q", "choices": ["1", "2", "3"], "answer": 0}, "3 choices where 4 are needed"),
        ({"question": "q", "choices": ["1", "2", "3", "4"], "answer": 4}, "its answer is none of A, B, C, D"),
        ({"question": "q", "choices": ["1", "2", "3", "4"]}, "no answer"),
        ({"question": None, "choices": ["1", "2", "3", "4"], "answer": 1}, "no question"),
    ],
)
def test_a_sets_broken_row_is_told(row: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"question": "q", "choices": ["1", "2", "3", "4"], "answer": 1}
    rows = [each | {"subject": "astronomy"} for each in (good, row, good)]
    monkeypatch.setattr(questions.hub_rows, "rows", lambda *_: iter(rows))
    exam = read("mmlu", None, shots=0, max_samples=None)
    assert exam.dropped == {why: {"count": 1, "first": ["test, astronomy, row 2"]}}


def test_an_unreachable_hub_is_told_in_a_benchmarks_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def unreachable() -> None:
        raise URLError("no route")

    monkeypatch.setattr(questions.hub_rows, "_refuse_no_network", unreachable)
    for name in NAMES:
        rule, said = refused(name, None)
        assert rule == "benchmark-unreachable" and "no route" in said and "evaluate.path" in said


def test_an_archive_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    made.write(tmp_path / "content", "cmmlu")
    file = tmp_path / "hub" / "revision" / "cmmlu_v1_0_1.zip"
    file.parent.mkdir(parents=True)
    with zipfile.ZipFile(file, "w") as archive:
        for path in (tmp_path / "content").rglob("*.csv"):
            archive.write(path, path.relative_to(tmp_path / "content"))
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))
    asked = list[tuple[str, str]]()

    def download(path: str, name: str, repo_type: str) -> str:
        assert repo_type == "dataset"
        asked.append((path, name))
        return str(file)

    monkeypatch.setattr(questions.hub_rows, "_refuse_no_network", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for _ in range(2):
        exam = read("cmmlu", None, shots=5, max_samples=None)
        assert len(exam.questions) == 12 and exam.source == "haonan-li/cmmlu"
    assert asked == [("haonan-li/cmmlu", "cmmlu_v1_0_1.zip")] * 2
    assert [path.name for path in (tmp_path / "cache/benchmarks").iterdir()] == ["cmmlu_v1_0_1-revision"]


def test_an_archive_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    (tmp_path / "cmmlu_v1_0_1.zip").write_bytes(b"no zip")
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(questions.hub_rows, "_refuse_no_network", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "cmmlu_v1_0_1.zip"))
    assert refused("cmmlu", None)[0] == "benchmark-broken"
    assert list((tmp_path / "cache/benchmarks").iterdir()) == []


@pytest.mark.parametrize("error", [OSError, *lost()])
def test_a_hub_that_goes_away_is_told(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors of its client's HTTP library are no OSErrors."""
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> str:
        raise error("no route")

    monkeypatch.setattr(questions.hub_rows, "_refuse_no_network", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    rule, said = refused("cmmlu", None)
    assert rule == "benchmark-unreachable" and "no route" in said


@pytest.mark.network
@pytest.mark.parametrize(("name", "count"), [("mmlu", 14042), ("cmmlu", 11582), ("ceval", 1346)])
def test_the_hubs_own_sets_are_read(name: str, count: int) -> None:
    exam = read(name, None, shots=5, max_samples=None)
    assert exam.absent == () and len(exam.questions) == count


def test_an_archive_leaves_no_folder_and_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    file = tmp_path / "hub" / "revision" / "cmmlu_v1_0_1.zip"
    file.parent.mkdir(parents=True)
    made.write(tmp_path / "content", "cmmlu")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../../../outside.csv", "x")
        archive.writestr(str(tmp_path / "absolute.csv"), "x")
        for path in (tmp_path / "content").rglob("*.csv"):
            archive.write(path, path.relative_to(tmp_path / "content"))
    monkeypatch.setattr(questions.hub_rows, "_refuse_no_network", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(file))
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "small"))
    monkeypatch.setattr(questions, "_MOST_UNPACKED", 10)
    assert refused("cmmlu", None)[0] == "benchmark-broken"
    monkeypatch.undo()
    monkeypatch.setattr(questions.hub_rows, "_refuse_no_network", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(file))
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))
    assert len(read("cmmlu", None, shots=5, max_samples=None).questions) == 12
    outside = [path for path in tmp_path.rglob("*side.csv") if not path.is_relative_to(tmp_path / "cache")]
    assert not outside and not (tmp_path / "absolute.csv").exists()
