"""The README and the docs name verbs, options and keys that there are: each command in them is read as it stands."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Said, refusals

from factory import cli
from factory.config import compose, groups, settings
from factory.execute.report import as_json
from factory.verbs import models

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / "docs", ROOT / "docs" / "guides", ROOT / "docs" / "reference"]
DOCS = [ROOT / "README.md", *(file for folder in FOLDERS for file in sorted(folder.glob("*.md")))]
# what was run once, as it was called then
PAST = {"measurements.md"}
_BLOCK = re.compile(r"^ {4}\$? ?(factory\b.*(?:\\\n.*)*)", re.MULTILINE)
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(factory [^`\n]+)`")
# a key with its value, as `data.packing=true`
_KEY = re.compile(r"(?<![\w./-])([a-z]+(?:\.[a-zA-Z_]+)+)=(?!=)")
_SETTING = re.compile(r"['\"]?[a-z_]+(\.\w+)*=")
FLAGS = {"--help", "--diff", "--from-plan"}
SHOWN = {"stage.learning_rat=1e-4"}  # a mistake, for its refusal
# words for what a reader puts in their place
_PLACE = re.compile(r"\b[A-Z]{3,}[A-Z_0-9]*\b|…|\.\.\.|[<>|{]")
# of these, what no rule says: that the words themselves are wrong
WRONG = {"unknown-key", "unknown-option", "unknown-verb", "bad-value", "key-of-another-verb", "syntax", "not-a-setting"}


def commands(text: str) -> Iterator[str]:
    fenced = "\n".join(found[1] for found in _FENCED.finditer(text))
    for found in (*_BLOCK.finditer(text), *re.finditer(r"^\$? ?(factory\b.*(?:\\\n.*)*)", fenced, re.MULTILINE)):
        yield found[1]
    for found in _INLINE.finditer(text):
        yield found[1]


def test_what_is_looked_for_can_be_found() -> None:
    assert {problem.rule for problem in refusals("method=zzz", "stage.batch_size=x")} <= WRONG


def documents() -> list[Path]:
    return [file for file in DOCS if file.name not in PAST]


@pytest.mark.parametrize("file", documents(), ids=lambda file: file.stem)
def test_a_command_is_read_as_it_stands(file: Path) -> None:
    for command in commands(file.read_text(encoding="utf-8")):
        whole = re.sub(r"\\\n", " ", command).rstrip("\\ ")
        words = shlex.split(whole, comments=True)
        verb = words[1] if len(words) > 1 and "=" not in words[1] and not words[1].startswith("-") else "train"
        assert verb in cli.VERBS or _PLACE.search(verb), command
        if _PLACE.search(" ".join(words)) or verb not in ("train", "plan") or (SHOWN | FLAGS) & set(words):
            continue
        asked = compose.parse([word for word in words[1:] if word != verb])
        if asked.multirun or asked.config_dirs or compose.recipe_of_runs(asked):
            continue
        left = [text for text in asked.overrides if not text.startswith(("plan.", "recipe="))]
        found = {problem.rule for problem in refusals(*left, training=False)}
        assert not found & WRONG, (command, found)


@pytest.mark.parametrize("file", documents(), ids=lambda file: file.stem)
def test_a_setting_is_read_as_it_stands(file: Path) -> None:
    for code in re.findall(r"`([^`\n…]+)`", file.read_text(encoding="utf-8")):
        if not _SETTING.match(code):
            continue
        for word in filter(_SETTING.match, shlex.split(code)):
            problems = compose.checked(compose.parse([word]))[1]
            assert "syntax" not in {problem.rule for problem in problems}, code


@pytest.mark.parametrize("file", ["README.md", "docs/guides/small-memory.md"])
def test_layerwise_steps_are_advised_with_what_they_need(file: str) -> None:
    advised = re.findall(r"`([^`\n]*method\.layerwise=true[^`\n]*)`", (ROOT / file).read_text(encoding="utf-8"))
    assert advised
    for words in advised:
        assert not refusals("method=galore", *shlex.split(words.removeprefix("method=galore ")), training=False)


def test_models_are_filtered_as_it_is_shown(command: Callable[..., Said]) -> None:
    """By words that set nothing, in the README, in the docs, in `--help` and in the refusals."""
    shown = {found for file in documents() for found in commands(file.read_text(encoding="utf-8"))}
    shown |= {f"factory {found}" for found in re.findall(r"models [a-z ]+", cli.models.__doc__ or "")}
    asked = {tuple(shlex.split(each, comments=True)[1:]) for each in shown if each.startswith("factory models")}
    assert {("models", "qwen", "apache"), ("models", "vision"), ("models", "llama", "apache")} <= asked
    for words in asked:
        said = command(*words)
        assert said.code == 0 and " 0 options" not in said.out, (words, said.err)
    vision, all_of_them = (
        json.loads(command("models", *words, "models.format=json").out) for words in (["vision"], [])
    )
    assert vision == [row for row in all_of_them if row["vision"]] != []


@pytest.mark.parametrize("file", documents(), ids=lambda file: file.stem)
def test_a_key_is_one_that_there_is(file: Path) -> None:
    known = [key.path for key in settings.all_keys()]
    patterns = [re.compile(re.escape(path).replace("<name>", r"[\w.-]+")) for path in known]
    groups = {path.partition(".")[0] for path in known}
    for key in {found[1] for found in _KEY.finditer(file.read_text(encoding="utf-8"))}:
        if key.partition(".")[0] in groups and not any(key in each for each in SHOWN):
            assert any(pattern.fullmatch(key) for pattern in patterns), key


def test_the_map_has_every_room() -> None:
    package = ROOT / "factory"
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    named = re.findall(r"`(?:factory/)?(\w+)(?:/[\w/]*|\.py)`", (ROOT / "docs" / "architecture.md").read_text())
    assert rooms - {"__init__", "__main__"} <= set(named)


def test_the_readme_counts_what_can_be_named() -> None:
    """Options that a person chooses from: sets of others', and methods that train."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    counts = re.search(r"(\d+) models and (\d+) data sets by name, .*; (\d+) methods", text)
    files = {group: groups.options(group) for group in ("model", "data", "method")}
    own = {name for name in files["data"] if name.startswith("demo")} | {"file", "function", "llamafactory"}
    of_others = [name for name in files["data"] if name not in own]
    assert counts and [int(each) for each in counts.groups()] == [
        len(models.rows()),
        len(of_others),
        len([name for name in files["method"] if name != "none"]),
    ]
    assert len(models.rows()) == len(files["model"])  # what `--help` says
    assert f"{len(of_others)} sets of the hub" in text


def test_a_file_that_is_named_is_there() -> None:
    texts = [file.read_text() for file in (*DOCS, *(ROOT / "docs" / "decisions").glob("*.md")) if file.name not in PAST]
    named = {found for text in texts for found in re.findall(r"`((?:factory|tests|benchmarks)/[\w/]+\.\w+)", text)}
    there = [path for path in sorted(named) if not _PLACE.search(path)]
    assert len(there) > 40 and not [path for path in there if not (ROOT / path).is_file()]


def test_what_the_readme_shows_of_a_mistake_is_what_is_said() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^    \$ factory (.*)\n((?:    .*\n)+)", text, re.MULTILINE)
    assert found
    said = "\n".join(map(str, refusals(*found[1].split(), training=False)))
    assert [line.strip() for line in found[2].splitlines()] == [line.strip() for line in said.splitlines()]


@pytest.mark.parametrize(
    ("status", "state", "requeued"),
    [
        ("interrupted", "RUNNING", True),
        ("interrupted", "COMPLETING", False),  # cancelled, or preempted
        ("finished", "RUNNING", False),
        ("failed", "RUNNING", False),
    ],
)
def test_slurms_script_puts_a_run_whose_time_is_up_into_the_queue_again(
    status: str, state: str, requeued: bool, tmp_path: Path
) -> None:
    """Its own --requeue does not, at the time limit. The programs of Slurm are pretended."""
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    script = next(each for each in _FENCED.findall(text) if "#SBATCH" in each)
    report, asked = tmp_path / "report.json", tmp_path / "asked"
    report.write_text(as_json({"status": status}))
    pretended = {"srun": "exit 7", "squeue": f"echo {state}", "scontrol": f'[ $1 = show ] || echo "$@" >> {asked}'}
    for name, does in pretended.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", script.replace("/shared/runs/llama", str(tmp_path))],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "12", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "a"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (7, "")
    assert (asked.read_text() if asked.exists() else "") == ("requeue 12\n" if requeued else "")
