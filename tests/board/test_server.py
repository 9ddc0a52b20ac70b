"""Who may open the page, and what each key of `board` does."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from factory.board import server
from factory.config import compose
from factory.config.refusal import UserError
from factory.config.settings import Board

NAMES = ("evil.example", "localhost:7860", "127.0.0.1:7860")


def _board(*overrides: str) -> Board:
    tree = compose.compose(compose.CommandLine(overrides=overrides, verb="board")).tree["board"]
    return Board.model_validate(tree)


def test_another_address_needs_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(server.PASSWORD, raising=False)
    assert server.check(_board()) is server.check(_board("board.host=127.0.0.2")) is None
    for words in ("board.host=0.0.0.0", "board.share=true", "board.host=192.168.1.2"):
        with pytest.raises(UserError, match="password"):
            server.check(_board(words))
    assert server.check(_board("board.host=0.0.0.0", "board.password=x")) == "x"
    monkeypatch.setenv(server.PASSWORD, "y")
    assert server.check(_board("board.host=0.0.0.0")) == "y"
    assert server._knows("y", "y") and not server._knows("y", "Y")


def test_a_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With what else is wrong."""
    monkeypatch.delenv(server.PASSWORD, raising=False)
    with pytest.raises(UserError) as raised:
        server.check(_board(f"board.folders=[{tmp_path},{tmp_path}/gone]", "board.share=true"))
    found = [(each.rule, each.setting) for each in raised.value.refusals]
    assert found == [("board-no-folder", f"board.folders=[{tmp_path}/gone]"), ("board-password", "board.share=true")]
    assert server.check(_board(f"board.folders=[{tmp_path}]")) is None


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
        seen["folders"] = planner._folders
        return Blocks()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "page", made)
    monkeypatch.setattr(server.Runs, "keep_going", lambda self: None)
    monkeypatch.setattr(server.signal, "signal", lambda *_: None)
    words = ("board.host=0.0.0.0", "board.port=0", "board.password=secret", "board.share=true", "board.open=true")
    server.serve(_board(*words, f"board.folders=[{tmp_path}]"), ())
    assert (seen["server_name"], seen["share"], seen["inbrowser"]) == ("0.0.0.0", True, True)
    assert seen["server_port"] > 0 and seen["folders"][0] == tmp_path.resolve()
    assert seen["auth"]("anybody", "secret") and not seen["auth"]("anybody", "no")


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """A page that does nothing, behind what guards that of `factory board` with these words."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from factory.board import page

    seen: list[dict[str, Any]] = []
    blocks = SimpleNamespace(
        queue=lambda **_: None, launch=lambda **given: seen.append(given), local_url="", block_thread=int
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "page", lambda *_: blocks)
    monkeypatch.setattr(server.Runs, "keep_going", lambda self: None)
    monkeypatch.setattr(server.signal, "signal", lambda *_: None)
    routes = [Route("/", lambda _: PlainTextResponse("the page"), methods=["GET", "POST", "DELETE"])]

    def guarded(*words: str) -> Starlette:
        server.serve(_board("board.port=1", *words), ())
        return Starlette(routes=routes, **seen[-1]["app_kwargs"])

    return guarded


def test_without_a_password_it_is_not_opened_by_the_name_of_another_site(guarded: Callable[..., Any]) -> None:
    """Which could be made to stand for this machine, and its page then trains by what it says (DNS rebinding)."""
    from starlette.testclient import TestClient

    for words, status in (((), 403), (("board.password=secret",), 200)):
        app = guarded(*words)
        asked = {name: TestClient(app, base_url=f"http://{name}").get("/").status_code for name in NAMES}
        assert asked == {"evil.example": status, "localhost:7860": 200, "127.0.0.1:7860": 200}


def test_a_page_of_another_address_changes_nothing(guarded: Callable[..., Any]) -> None:
    """With a password too: what a browser knows a person by goes with what it posts, whoever's page asks."""
    from starlette.testclient import TestClient

    own, proxied = "http://localhost:7860", {"Origin": "https://board.example"}
    for words in ((), ("board.password=secret",)):
        client = TestClient(guarded(*words), base_url=own)
        for said, status in (
            ({}, 200),  # no browser
            ({"Origin": own}, 200),
            ({"Origin": "http://LOCALHOST:7860"}, 200),
            ({"Origin": "http://localhost:3000"}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({**proxied}, 403),
            ({**proxied, "Sec-Fetch-Site": "same-origin"}, 200),  # a proxy that changes Host
            ({**proxied, "Sec-Fetch-Site": "same-site"}, 403),
            ({"Origin": own, "Sec-Fetch-Site": "cross-site"}, 403),
        ):
            assert client.post("/", headers=said).status_code == status, said
            assert client.delete("/", headers=said).status_code == status, said
            assert client.get("/", headers=said).status_code == 200, said


def test_what_an_error_shows_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradio import queueing, utils

    for module in (queueing, utils):
        monkeypatch.setattr(module, "error_payload", module.error_payload)  # and put back
    server._redact_errors()
    for module in (queueing, utils):
        assert module.error_payload(RuntimeError("https://me:hunter2@host"), True)["error"] == "https://[redacted]@host"


def test_the_page_gives_what_was_uploaded_and_no_other_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import gradio
    import gradio.routes
    import gradio.utils
    from starlette.testclient import TestClient

    from factory.board import page

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # undone after the test; `serve` sets it
    held: list[Any] = []

    def launch(blocks: Any, *, max_file_size: str | None = None, **_: Any) -> None:
        blocks.max_file_size = gradio.utils._parse_file_size(max_file_size)  # as `launch` itself
        held.append(gradio.routes.App.create_app(blocks))
        blocks.local_url = "http://here"

    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda _: None)
    monkeypatch.setattr(server, "_redact_errors", lambda: None)
    monkeypatch.setattr(server.Runs, "keep_going", lambda self: None)
    monkeypatch.setattr(server.signal, "signal", lambda *_: None)
    monkeypatch.setattr(page, "_TABS", {"configure": page._TABS["configure"]})
    monkeypatch.setattr(server, "_LARGEST", "10b")
    (tmp_path / "secret.txt").write_text("a secret")
    server.serve(_board("board.port=1"), ())
    uploads = tmp_path / "outputs" / ".board" / "uploads"
    (uploads / "mine").mkdir()
    (uploads / "mine" / "rows.txt").write_text("a row")
    up = f"{uploads}/mine/../../../.."
    outside = ["secret.txt", tmp_path / "secret.txt", "/etc/passwd", "%2e%2e/%2e%2e/etc/passwd", f"{up}/secret.txt"]
    outside += [f"{up.replace('..', '%2e%2e')}/secret.txt", "file:///etc/passwd", "/proc/self/environ", uploads]
    (client,) = (TestClient(app) for app in held)
    assert client.get(f"/gradio_api/file={uploads}/mine/rows.txt").text == "a row"
    for path in outside:
        for before in ("/gradio_api/file=", "/file=", "/gradio_api/file/"):
            assert client.get(f"{before}{path}").status_code in (403, 404), path
    for size, status in ((10, 200), (11, 413)):
        posted = client.post("/gradio_api/upload", files={"files": ("rows.jsonl", size * b"x")})
        assert posted.status_code == status, posted.text
