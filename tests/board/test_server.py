"""Who may open the page, and what each key of `board` does."""

from typing import Any

import pytest

from factory import compose, schema
from factory.board import server
from factory.refusal import UserError
from factory.typed import Reader


def _board(*overrides: str) -> schema.Board:
    tree = compose.compose(compose.CommandLine(overrides=overrides)).tree["board"]
    reader = Reader()
    found = reader.record(schema.Board, tree, "board")
    assert not reader.problems
    return found


def test_another_address_needs_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(server.PASSWORD, raising=False)
    assert server.check(_board()) is None
    for words in ("board.host=0.0.0.0", "board.share=true", "board.host=192.168.1.2"):
        with pytest.raises(UserError, match="password"):
            server.check(_board(words))
    assert server.check(_board("board.host=0.0.0.0", "board.password=x")) == "x"
    monkeypatch.setenv(server.PASSWORD, "y")
    assert server.check(_board("board.host=0.0.0.0")) == "y"
    assert server._knows("y", "y") and not server._knows("y", "Y")


def test_every_key_reaches_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from factory.board import page

    seen: dict[str, Any] = {}

    class Blocks:
        local_url = "http://here"

        def queue(self, **_: Any) -> None: ...

        def launch(self, **given: Any) -> None:
            seen.update(given)

        def block_thread(self) -> None: ...

    def made(planner: Any, *rest: Any) -> Blocks:
        seen["folders"] = rest[-1]
        return Blocks()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "page", made)
    monkeypatch.setattr(server.Runs, "keep_going", lambda self: None)
    monkeypatch.setattr(server.signal, "signal", lambda *_: None)
    words = ("board.host=0.0.0.0", "board.port=0", "board.password=secret", "board.share=true", "board.open=true")
    server.serve(_board(*words, f"board.folders=[{tmp_path}]"), ())
    assert (seen["server_name"], seen["share"], seen["inbrowser"]) == ("0.0.0.0", True, True)
    assert seen["server_port"] > 0 and seen["folders"] == (tmp_path.resolve(),)
    assert seen["auth"]("anybody", "secret") and not seen["auth"]("anybody", "no")
