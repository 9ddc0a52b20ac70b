"""Before a request is read: its address, key and size. Plain ASGI, so that a client's leaving is seen behind it."""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from factory.serve import errors

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN = ("/health",)  # what is answered without a key
_OWN = (".localhost", ".internal")  # ends of names that nobody can register


class Guard:
    """`key`: None lets everybody in. `most`: bytes of a body."""

    def __init__(self, app: App, key: str | None, most: int, count: Callable[[str, int], None]):
        self._app, self._most, self._count = app, most, count
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._count(scope["path"], message["status"])
            await send(message)

        if refused := self._refused(scope["path"], headers):
            await refused.response()(scope, receive, counted)
            return
        said = headers.get(b"content-length", b"0")
        body = await self._body(receive) if said.isdigit() and int(said) <= self._most else None
        if body is None:
            await errors.too_large(self._most).response()(scope, receive, counted)
            return
        given = False

        async def replayed() -> MutableMapping[str, Any]:
            nonlocal given
            if given:
                return await receive()  # the client's leaving
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replayed, counted)

    async def _body(self, receive: Receive) -> bytes | None:
        """All of it; None where it is too large: what its sender said of its size is no proof."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._most:
                return None
            if message["type"] != "http.request" or not message.get("more_body", False):
                return bytes(body)

    def _refused(self, path: str, headers: dict[bytes, bytes]) -> errors.ApiError | None:
        if self._key is None:
            return None if by_own_name(headers.get(b"host", b"").decode("latin-1")) else errors.other_name()
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        known = hmac.compare_digest(given.strip(), self._key) and kind.lower() == b"bearer"
        return None if known or path in OPEN else errors.no_key()


def is_own(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def by_own_name(host: str) -> bool:
    """Whether a Host header is a number, or a name of this machine.

    A page of a site whose name is made to stand for 127.0.0.1 sends that name, and could read answers (DNS rebinding).
    """
    try:
        name = urlsplit(f"//{host}").hostname or "localhost"  # of HTTP/1.0, which no browser speaks
        return f".{name}".endswith(_OWN) or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
