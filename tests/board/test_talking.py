"""What the chat sends to `factory serve` and shows of it: streams, and tools with their results."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from serving import TINY, Serving, room_of, says, serving

from factory.board import talking
from factory.board.children import Server, free_port
from factory.board.talking import Can, Talk
from factory.data.tools import FORMATS
from factory.inference.calls import open_call
from factory.inference.types import Done, Request, Ticket, Token

TOOLS = '[{"name": "f"}]'


def _at(found: Serving) -> Server:
    return Server(process=None, address=found.url, printed=Path())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    model = tiny.save(tmp_path_factory.mktemp("long"), max_position_embeddings=512)
    room, settings = room_of("serve", f"model.path={model}", "serve.name=tiny", *TINY)
    with serving(room, settings) as found:
        yield found
    room.engine.stop(0)


def _answer(served: Serving, talk: Talk, system: str = "", **settings: Any) -> Talk:
    *_, turn = talking.answers(_at(served), talk, system, settings)
    return [*talk, turn]


def test_an_answer_grows(served: Serving) -> None:
    assert talking.can(_at(served)) == Can(images=False, tools=True)
    talk = talking.told([], "Hi", [])
    parts = [turn["content"] for turn in talking.answers(_at(served), talk, "Be kind.", {"max_tokens": 6})]
    assert len(parts) > 2 and all(new.startswith(old) for old, new in itertools.pairwise(parts))


def test_an_answer_that_is_cut_by_its_tokens_is_marked_and_sent_without_the_mark(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = _answer(served, talking.told([], "Hi", []), max_tokens=2, temperature=0)
    assert talk[-1]["cut"] is True
    sent: list[Any] = []
    monkeypatch.setattr(talking, "_streamed", lambda _, asked: iter([sent.append(asked["messages"])]))
    list(talking.answers(_at(served), talking.told(talk, "And?", []), "", {}))
    assert [set(message) for message in sent[0]] == [{"role", "content"}] * 3
    monkeypatch.undo()
    says(served.room, "Ho", monkeypatch)
    assert "cut" not in _answer(served, talk)[-1]


def test_what_is_refused_is_the_answer_and_not_told_to_the_model(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = _answer(served, talking.told([], "Hi", []), seed="many")
    assert refused[-1]["content"].startswith("seed: ")
    seen = says(served.room, "Ho", monkeypatch)
    answered = _answer(served, talking.told(refused, "Who?", []))
    assert [turn["content"] for turn in answered][0::3] == ["Hi", "Ho"]
    asked = served.room.prompts.tokenizer.decode(seen[0].ids)
    assert "Who?" in asked and "seed" not in asked and "Hi" not in asked


def test_an_answer_that_fails_in_the_middle_says_so(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = served.room.prompts.tokenizer("T")["input_ids"][0]

    def submit(_: Any, asked: Request, tell: Callable[[Any], None]) -> Ticket:
        for event in (Token(begun), Done("error", "it broke")):
            tell(event)
        return Ticket(asked, tell)

    monkeypatch.setattr(type(served.room.engine), "submit", submit)
    *_, whole = talking.answers(_at(served), talking.told([], "Hi", []), "", {})
    assert whole["content"] == "T\n\nThe server failed; its log has the reason."


def test_a_called_tool_waits_for_its_result(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [{"name": "f", "arguments": {"of": each}} for each in "xy"]
    seen = says(served.room, FORMATS["default"].calls(calls), monkeypatch)  # type: ignore[arg-type]
    talk = _answer(served, talking.told([], "Hi", []), tools=talking.tools_of(TOOLS))
    for each in "xy":
        call = open_call(talk)
        assert call is not None and each in call["function"]["arguments"]
        talk = talking.told(talk, "1", ["unseen.png"])
        assert talk[-1]["role"] == "tool" and talk[-1]["tool_call_id"] == call["id"]
    assert open_call(talk) is None
    says(served.room, "2", monkeypatch)
    assert _answer(served, talk, tools=talking.tools_of(TOOLS))[-1] == {"role": "assistant", "content": "2"}
    assert "Action" in served.room.prompts.tokenizer.decode(seen[0].ids)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"name": 1}]', '{"name": "x"}', "[{}]"])
def test_other_tools_are_refused(text: str) -> None:
    with pytest.raises(talking.Wrong):
        talking.tools_of(text)
    assert talking.tools_of("  ") == []


def test_a_server_that_is_gone_is_said_to_be() -> None:
    gone = Server(process=None, address=f"http://127.0.0.1:{free_port('127.0.0.1')}", printed=Path())  # type: ignore[arg-type]
    (turn,) = talking.answers(gone, talking.told([], "Hi", []), "", {})
    assert turn["role"] == "assistant" and turn["content"]
