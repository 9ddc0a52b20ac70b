"""Before a request is read: its key and its size. Plain ASGI, so that a client's leaving is seen behind it."""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from factory.serve import errors

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN = ("/health",)  # what is answered without a key


class Guard:
    """`key`: None lets everybody in. `most`: bytes of a body."""

    def __init__(self, app: App, key: str | None, most: int, count: Callable[[str, int], None]):
        self._app, self._key, self._most, self._count = app, key and key.encode(), most, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        started = False

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._count(scope["path"], message["status"])
            await send(message)

        if not self._allowed(scope["path"], headers):
            await errors.no_key().response()(scope, receive, counted)
            return
        said = headers.get(b"content-length", b"0")
        if not said.isdigit() or int(said) > self._most:
            await errors.too_large(self._most).response()(scope, receive, counted)
            return
        read = 0

        async def limited() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise _TooLarge
            return message

        try:
            await self._app(scope, limited, counted)
        except _TooLarge:
            if not started:
                await errors.too_large(self._most).response()(scope, receive, counted)

    def _allowed(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if self._key is None or path in OPEN:
            return True
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(given.strip(), self._key) and kind.lower() == b"bearer"


class _TooLarge(Exception):
    pass
