"""A conversation without a terminal: what is kept of it, and what its commands do."""

import json
from pathlib import Path
from typing import Any

import pytest

from factory.chat.talk import Talk, Wrong
from factory.config.settings import Generation

GENERATION = Generation(temperature=0.7, top_p=0.9, top_k=None, max_tokens=8, seed=3, stop=())


@pytest.fixture
def talk() -> Talk:
    made = Talk(GENERATION, "Be brief.", 2)
    made.ask("One?")
    made.answered(0, "1")
    made.answered(1, "uno")
    return made


def said(talk: Talk, side: int = 0) -> list[str]:
    return [message["content"] for message in talk.conversation(side).messages]


def test_each_model_sees_its_own_answers(talk: Talk) -> None:
    talk.ask("Two?")
    assert said(talk, 0) == ["Be brief.", "One?", "1", "Two?"]
    assert said(talk, 1) == ["Be brief.", "One?", "uno", "Two?"]
    assert talk.waits(0) and talk.waits(1)


def test_once_more_and_back(talk: Talk) -> None:
    before = talk.sampling().seed
    talk.undo(question=False)
    assert said(talk) == ["Be brief.", "One?"] and talk.waits(0)
    assert talk.sampling().seed != before  # or it would be the same answer
    talk.answered(0, "I")
    talk.undo(question=True)
    assert said(talk) == ["Be brief."] and not talk.waits(0)
    with pytest.raises(Wrong):
        Talk(GENERATION, None).undo(question=True)


def test_to_clear_keeps_the_system_message(talk: Talk) -> None:
    talk.clear()
    assert said(talk) == ["Be brief."]


def test_settings_are_checked_as_those_of_the_command_line(talk: Talk) -> None:
    assert "top_k=5" in talk.set("top_k=5 generation.temperature=0 seed=null stop=END")
    sampling = talk.sampling()
    assert (sampling.top_k, sampling.temperature, sampling.seed) == (5, 0.0, None)
    assert talk.generation.stop == ("END",)
    for wrong in ("top_p=2", "temprature=1", "seed", "max_tokens=0"):
        with pytest.raises(Wrong):
            talk.set(wrong)
    assert "top_k=5" in talk.set("")


def test_calls_and_their_results(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([{"type": "function", "function": {"name": "look_up"}}, {"name": "add"}]))
    assert talk.read_tools(str(file)) == 2
    calls: Any = [{"name": "look_up", "arguments": {"a": 1}}, {"name": "add", "arguments": {}}]
    talk.ask("What?")
    talk.answered(0, "", calls)
    talk.answered(1, "It is so.")
    assert not talk.waits(0) and not talk.waits(1)
    talk.result("first")
    assert not talk.waits(0)  # one call has no result yet
    talk.result("second")
    assert talk.waits(0) and not talk.waits(1)
    messages = talk.conversation(0).messages
    assert [(message.get("name"), message["content"]) for message in messages[-2:]] == [
        ("look_up", "first"),
        ("add", "second"),
    ]
    with pytest.raises(Wrong, match="no tool was called"):
        talk.result("third")
    file.write_text("{}{")
    with pytest.raises(Wrong, match="no JSON list"):
        talk.read_tools(str(file))
    assert len(talk.tools) == 2
    assert talk.read_tools("") == 0


def test_what_is_saved_can_be_trained_on(talk: Talk, tmp_path: Path) -> None:
    from conftest import refusals

    file = tmp_path / "talk.jsonl"
    talk.save(str(file), ["base", "run"])
    talk.save(str(file), ["base", "run"])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["model"] for row in rows] == ["base", "run"] * 2
    assert rows[1]["messages"][-1] == {"role": "assistant", "content": "uno"}
    assert not refusals("data=file", f"data.path={file}", "hardware=cpu", "tracking=none", training=False)
    other = tmp_path / "talk.json"
    talk.save(str(other), ["base", "run"])
    for wrong in (str(other), "", str(tmp_path / "no" / "folder.jsonl")):
        with pytest.raises(Wrong):
            talk.save(wrong, ["base", "run"])


def test_a_path_may_begin_at_home(talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tools.json").write_text('[{"name": "look_up"}]', encoding="utf-8")
    assert talk.read_tools("~/tools.json") == 1
    assert talk.save("~/talk.jsonl", ["one", "other"]) == str(tmp_path / "talk.jsonl")
    with pytest.raises(Wrong, match="cannot be written"):
        talk.save("~nobody-of-this-name/talk.jsonl", ["one", "other"])
