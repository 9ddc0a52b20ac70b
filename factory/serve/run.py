"""Listening, and the end of it: whoever is being answered when the server is stopped gets an end that can be read."""

import logging
import os
import signal
import socket
import threading
from types import FrameType

import uvicorn

from factory.config.refusal import UserError, refusal, refuse
from factory.config.settings import Generation, Serve
from factory.inference.room import Room, to_stderr
from factory.serve.app import app
from factory.serve.guard import is_own
from factory.stopping import answer

KEY = "FACTORY_API_KEY"  # the environment variable
_BACKLOG = 1024  # connections that wait to be taken
_AFTER = 5  # seconds for the last events to be sent, once the engine has ended
_IDLE = 75  # seconds; clients let go of an idle connection after 5: who closes first does so under no request


def key(said: str | None) -> str | None:
    return said or os.environ.get(KEY) or None


def unusable(serve: Serve, secret: str | None) -> None:
    """Raises UserError for an address that is open to others without a key, or that cannot be listened on."""
    problems = []
    if secret is None and not is_own(serve.host):
        wrong = "other machines can reach it, and serve.api_key is not set"
        problems.append(
            refusal(
                "serve-open",
                f"serve.host={serve.host}",
                wrong,
                because="whoever reaches it could use the model, and read what it was trained on",
                fix=f"set serve.api_key or the environment variable {KEY}, or leave serve.host at 127.0.0.1",
            )
        )
    if secret is not None and (not secret.isascii() or not secret.isprintable() or " " in secret):
        problems.append(
            refusal(
                "serve-key",
                "serve.api_key=…",
                "a header cannot carry it",
                because="clients send it in a header",
                fix="use printable ASCII without spaces",
            )
        )
    if problems:
        raise UserError(*problems)


def listening(serve: Serve) -> socket.socket:
    """Bound before the weights are read: a port that is taken costs nothing then. Raises UserError."""
    family = socket.AF_INET6 if ":" in serve.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((serve.host, serve.port))
    except OSError as error:
        found.close()
        raise _taken(serve, error) from None
    return found


def _taken(serve: Serve, error: OSError) -> UserError:
    setting = f"serve.host={serve.host} serve.port={serve.port}"
    return refuse(
        "serve-address",
        setting,
        f"it cannot be listened on ({error.strerror or error})",
        because="clients would not reach it",
        fix="another serve.port (0 takes any free one), or an address of this machine",
    )


class Server(uvicorn.Server):
    """Ends the engine first: streams get their last events from it, and then there is nobody to wait for."""

    def __init__(self, config: uvicorn.Config, room: Room, grace: float):
        super().__init__(config)
        self._room, self._grace, self._asked = room, grace, 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._asked += sig != signal.SIGHUP  # whoever ends the session of a lost terminal sends SIGTERM beside it
        grace = 0.0 if self._asked > 1 else self._grace  # a second time: at once
        threading.Thread(target=self._room.engine.stop, args=(grace,), daemon=True).start()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says where it serves once a signal ends it as it should."""
        await super().startup(sockets=sockets)
        assert sockets, "it was bound before the weights were read"
        host, port = sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        to_stderr(f"Serving {', '.join(self._room.names)} at http://{shown}:{port}/v1 (Ctrl-C ends it)")


def server(room: Room, generation: Generation, serve: Serve, secret: str | None) -> Server:
    logging.getLogger("httpx").setLevel(logging.WARNING)  # which tells whole addresses
    config = uvicorn.Config(
        app(room, generation, serve, secret),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=round(serve.grace) + _AFTER,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return Server(config, room, serve.grace)


def run(room: Room, generation: Generation, serve: Serve, secret: str | None, at: socket.socket) -> int:
    """Serves until a signal ends it."""
    try:
        at.listen(_BACKLOG)
    except OSError as error:
        raise _taken(serve, error) from None
    made = server(room, generation, serve, secret)
    answer(made.handle_exit)  # uvicorn raises the one that ended it again, once it has ended
    made.run(sockets=[at])
    room.engine.stop(0)
    return 0
