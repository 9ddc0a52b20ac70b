"""Opens the page: where it listens, who may come in, what it may touch."""

import atexit
import hmac
import inspect
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from factory.board.children import Children, free_port
from factory.board.planned import Planner
from factory.board.runs import Runs
from factory.board.votes import Votes
from factory.config.redact import without_secrets
from factory.config.refusal import UserError, refusal, refuse
from factory.config.settings import Board
from factory.run.folder import OUTPUTS, SWEEPS, unwritable
from factory.serve.guard import App, Receive, Scope, Send, by_own_name, is_own
from factory.stopping import answer

PASSWORD = "FACTORY_BOARD_PASSWORD"  # noqa: S105  a variable's name
_READING = ("GET", "HEAD", "OPTIONS")  # what changes nothing
_LARGEST = "2gb"  # of a file that is uploaded: what is larger need not be copied, it has a path in board.folders


def check(board: Board) -> str | None:
    """The password. Raises UserError where the address needs one, or a folder is not there."""
    password = board.password or os.environ.get(PASSWORD)
    gone = [folder for folder in board.folders if not Path(folder).is_dir()]
    problems = [
        refusal(
            "board-no-folder",
            f"board.folders=[{folder}]",
            "there is no such folder",
            because="what is given in the page may lie in these folders only, so none of it could be named",
            fix="check the path, or make the folder",
        )
        for folder in gone
    ]
    if password is None and (board.share or not is_own(board.host)):
        what = "board.share=true" if is_own(board.host) else f"board.host={board.host}"
        problems.append(
            refusal(
                "board-password",
                what,
                "it needs a password",
                because="whoever reaches the address could start runs and read files here",
                fix=(
                    "set board.password (or the environment's FACTORY_BOARD_PASSWORD), or leave board.host at 127.0.0.1"
                ),
            )
        )
    if problems:
        raise UserError(*problems)
    return password


class OwnName:
    """Before a page without a password: a page of another site could ask it by a name of its own (`by_own_name`)."""

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and not by_own_name(dict(scope["headers"]).get(b"host", b"").decode("latin-1")):
            app = PlainTextResponse("Set board.password to open the page by another name than localhost.", 403)
        await app(scope, receive, send)


class OwnPage:
    """Before every page: one of another site may not post to this in the name of who looks at both.

    For that site such a request is a plain one, of which no browser asks first, and with it goes what knows a person.
    """

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] not in _READING and _by_another(dict(scope["headers"])):
            wrong = "A page of another address asks. A proxy before the board must pass on the Host of the browser."
            app = PlainTextResponse(wrong, 403)
        await app(scope, receive, send)


def _by_another(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser asks for a page of another address.

    Where it says so itself that holds behind a proxy too; over http it says so of this machine's own addresses alone.
    """
    if (site := headers.get(b"sec-fetch-site")) is not None:
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower()


def serve(board: Board, config_dirs: tuple[str, ...]) -> None:
    """Until it is interrupted. Raises UserError."""
    password = check(board)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with _without_stubs():
        from factory.board import page, shown
    _redact_errors()

    folders = tuple(Path(folder).resolve() for folder in board.folders)
    uploads = (OUTPUTS / ".board" / "uploads").resolve()
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    try:
        uploads.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(OUTPUTS, error) from None
    children, runs = Children(OUTPUTS / ".board" / "aside", config_dirs), Runs(OUTPUTS, SWEEPS, config_dirs)
    atexit.register(children.close)
    if threading.current_thread() is threading.main_thread():
        answer(lambda *_: sys.exit(0), [signal.SIGTERM])  # so that what it serves to talk to ends too
    planner = Planner((*folders, uploads), config_dirs)
    planner(())  # the first composing is the slow one
    runs.keep_going()
    blocks = page.page(planner, runs, children, Votes(OUTPUTS / ".board" / "votes.jsonl"))
    blocks.queue(default_concurrency_limit=8)
    try:
        blocks.launch(
            server_name=board.host,
            server_port=board.port or free_port(board.host),
            share=board.share,
            auth=None if password is None else (lambda _, given: _knows(password, given)),
            app_kwargs={"middleware": [Middleware(OwnPage), *([Middleware(OwnName)] if password is None else [])]},
            max_file_size=_LARGEST,
            inbrowser=board.open,
            css=shown.CSS,
            footer_links=[],
            quiet=True,
            show_error=True,
            ssr_mode=False,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise refuse(
            "board-port",
            f"board.port={board.port}",
            f"nothing can listen there ({error})",
            because="another program, perhaps another board, has this port",
            fix="set board.port to a free one",
        ) from None
    print(f"Factory's page is at {blocks.local_url}  (Ctrl-C stops the page; runs go on)", flush=True)
    blocks.block_thread()


@contextmanager
def _without_stubs() -> Iterator[None]:
    """While it is imported, Gradio parses its sources to write type stubs beside them: 1.6 of 4 CPU seconds.

    It leaves out a component whose file it cannot find.
    """
    real = inspect.getfile

    def found(what: Any) -> str:
        if isinstance(what, type) and what.__module__.startswith("gradio."):
            raise OSError("no stubs")
        return real(what)

    inspect.getfile = found
    try:
        yield
    finally:
        inspect.getfile = real


def _redact_errors() -> None:
    """The page shows what an error says (`show_error`)."""
    from gradio import queueing, utils

    real = utils.error_payload

    def payload(*given: Any) -> Any:
        return without_secrets(real(*given))

    for module in (queueing, utils):
        setattr(module, "error_payload", payload)  # noqa: B010  queueing does not export what it imported


def _knows(password: str, given: str) -> bool:
    return hmac.compare_digest(given.encode(), password.encode())
