"""Sets of the hub: rows as they are kept there, and its library's errors in plain words. No network is used."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import datasets
import pytest
from huggingface_hub import constants
from planned import planned

from factory.config.refusal import UserError
from factory.data import hub
from factory.data.read import source_rows

ROWS = [{"text": f"row {number}", "n": number} for number in range(2500)]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub's me/set, and a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub, "_refuse_no_network", lambda: None)
    load = datasets.load_dataset
    folder = tmp_path / "kept"
    folder.mkdir()

    def local(path: str, *arguments: Any, data_dir: str | None = None, **options: Any) -> Any:
        assert path == "me/set"
        return load(str(folder / (data_dir or "")), *arguments, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", local)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_plain_and_start_anywhere(streaming: bool, kept: Path) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(kept / "train.parquet")
    datasets.Dataset.from_list(ROWS[:7]).to_parquet(kept / "test.parquet")
    for skip in (0, 1, 999, 1000, 2499, 2500, 9999):
        found = hub.rows("me/set", None, "train", None, skip=skip, streaming=streaming)
        assert list(found) == ROWS[skip:]
    assert list(hub.rows("me/set", None, "test", None, streaming=streaming)) == ROWS[:7]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_a_set_is_a_set(streaming: bool, kept: Path) -> None:
    for name, start in (("python", 0), ("rust", 5)):
        (kept / name).mkdir()
        datasets.Dataset.from_list(ROWS[start : start + 5]).to_parquet(kept / name / "train.parquet")
    assert list(hub.rows("me/set/rust", None, "train", None, streaming=streaming)) == ROWS[5:10]


@pytest.mark.parametrize("streaming", [False, True])
def test_images_stay_as_they_are_kept(streaming: bool, kept: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    row = {"text": "a", "image": {"bytes": b"not decoded", "path": "a.png"}}
    datasets.Dataset.from_list([row], features=features).to_parquet(kept / "train.parquet")
    assert list(hub.rows("me/set", None, "train", None, streaming=streaming)) == [row]


@pytest.mark.parametrize("streaming", [False, True])
def test_objects_have_no_keys_of_other_rows(streaming: bool, kept: Path) -> None:
    found = [{"call": {"arguments": {name: 1}}, "n": None} for name in ("city", "symbol")]
    datasets.Dataset.from_list(found).to_parquet(kept / "train.parquet")
    assert list(hub.rows("me/set", None, "train", None, streaming=streaming)) == found


def test_a_slice_of_a_split_is_read(kept: Path) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(kept / "train.parquet")
    assert list(hub.rows("me/set", None, "train[:1%]", None)) == ROWS[:25]


def test_a_planned_set_is_read_as_planned(kept: Path) -> None:
    datasets.Dataset.from_list(ROWS[:4]).to_parquet(kept / "test.parquet")
    source = planned(origin="hub", path="me/set", split="test", format="text")
    assert list(source_rows(source, 1)) == list(source_rows(source, 1, streaming=True)) == ROWS[1:4]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("subset", "split", "said"), [(None, "tset", "train"), ("python", "train", "'python' not found")]
)
def test_a_part_that_is_not_there_is_refused(
    subset: str | None, split: str, said: str, streaming: bool, kept: Path
) -> None:
    datasets.Dataset.from_list(ROWS[:3]).to_parquet(kept / "train.parquet")
    with pytest.raises(UserError) as error:
        list(hub.rows("me/set", subset, split, None, streaming=streaming))
    (refusal,) = error.value.refusals
    assert refusal.rule == "hub-missing"
    assert said in refusal.wrong


@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_do_not_fit_together_are_refused(streaming: bool, kept: Path) -> None:
    (kept / "train-1.jsonl").write_text(json.dumps({"a": 1}) + "\n")
    (kept / "train-2.jsonl").write_text('{"b": ')
    with pytest.raises(UserError, match=r"\[hub-(broken|missing)\] path=me/set"):
        list(hub.rows("me/set", None, "train", None, streaming=streaming))


def raising(error: Exception) -> Callable[..., Any]:
    def load(*_: Any, **__: Any) -> Any:
        raise error

    return load


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'me/set' doesn't exist on the Hub"), "hub-missing"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'me/set' is a gated dataset on the Hub."), "hub-missing"),
        (datasets.exceptions.DataFilesNotFoundError("No data files found in me/set"), "hub-missing"),
        (RuntimeError("Dataset scripts are no longer supported, but found set.py"), "hub-code"),
        (ConnectionError("Couldn't reach 'me/set' on the Hub (OfflineModeIsEnabled)"), "hub-unreachable"),
        (TimeoutError(), "hub-unreachable"),
        (datasets.exceptions.DatasetGenerationError("An error occurred\n\nat length"), "hub-broken"),
    ],
)
def test_the_librarys_errors_are_told_in_plain_words(
    error: Exception, rule: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", raising(error))
    with pytest.raises(UserError) as found:
        list(hub.rows("me/set", None, "train", None))
    (refusal,) = found.value.refusals
    assert (refusal.rule, refusal.setting) == (rule, "path=me/set")
    assert refusal.wrong
    assert "\n" not in refusal.wrong


def test_another_error_is_no_refusal(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        list(hub.rows("me/set", None, "train", None))


def test_without_a_network_it_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(datasets, "load_dataset", raising(AssertionError("it was asked all the same")))
    with pytest.raises(UserError, match=r"\[hub-unreachable\]") as error:
        list(hub.rows("me/set", None, "train", None))
    assert "HF_ENDPOINT" in error.value.refusals[0].fix
    assert "HF_DATASETS_OFFLINE" in error.value.refusals[0].fix
    assert "data=file" in error.value.refusals[0].fix
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # then its cache is asked
    with pytest.raises(AssertionError, match="it was asked"):
        list(hub.rows("me/set", None, "train", None))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The hosts that are asked whether they answer; none does."""
    found: list[str] = []

    def ask(endpoint: str) -> None:
        found.append(endpoint)
        raise URLError("Name or service not known")

    monkeypatch.setattr(hub, "ask", ask)
    hub._silent.cache_clear()
    yield found
    hub._silent.cache_clear()


def test_a_set_of_a_silent_hub_is_unreachable(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the run would find it; the hub is asked once, however many plans there are."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    for path in ("me/set", "me/other", "me/set/folder"):
        assert hub.unreachable(path) == "the hub cannot be reached (Name or service not known)"
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("kept", "known"),
    [
        (None, False),
        ("hub/datasets--Me--AnySet", True),
        ("datasets/Me___any_set", True),
        ("datasets/Me___another_set", False),
        ("hub/models--Me--AnySet", False),
    ],
)
def test_offline_a_set_is_known_by_its_cache(
    kept: str | None, known: bool, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    if kept:
        (tmp_path / kept).mkdir(parents=True)
    assert (hub.unreachable("Me/AnySet/part") is None) is known
    assert asked == []


@pytest.mark.parametrize("path", ["json", "rows.jsonl", "./me/set", "/me/set", "me/set.py/", "hf://datasets/me/set"])
def test_what_is_no_id_of_a_set_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="hub-missing"):
        list(hub.rows(path, None, "train", None))


def test_a_folder_of_the_same_name_is_not_read_instead(here: Path) -> None:
    (here / "me" / "set").mkdir(parents=True)
    with pytest.raises(UserError, match="hub-shadowed"):
        list(hub.rows("me/set", None, "train", None))


@pytest.mark.network
def test_a_set_of_the_real_hub_streams() -> None:
    row = next(iter(hub.rows("openai/gsm8k", "main", "train", None, streaming=True)))
    assert set(row) == {"question", "answer"}
