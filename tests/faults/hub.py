"""A hub on this machine that serves one model's folder, and dies in the middle of a file."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REVISION = "0" * 40
ID = "somebody/llama"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *of_server: object, hub: "Hub"):
        self._hub = hub
        super().__init__(*of_server)  # type: ignore[arg-type]

    def log_message(self, format: str, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub = self._hub
        hub.asked.append(self.path)
        if hub.dead:
            self.close_connection = True
            return
        if self.path == f"/api/models/{ID}" or self.path.startswith(f"/api/models/{ID}/revision/"):
            names = ", ".join(f'{{"rfilename": "{path.name}"}}' for path in sorted(hub.folder.iterdir()))
            self._send(f'{{"id": "{ID}", "sha": "{REVISION}", "siblings": [{names}]}}'.encode(), body)
            return
        file = hub.folder / self.path.rpartition("/")[2]
        if not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        cut = len(content) // 2 if body and hub.dies_in is not None and file.name == hub.dies_in else None
        self._send(content, body, cut, first=int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0]))
        if cut is not None:
            hub.dead, self.close_connection = True, True

    def _send(self, content: bytes, body: bool, cut: int | None = None, first: int = 0) -> None:
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.wfile.write(content[first:cut])


class Hub:
    """`dies_in` names the file in whose middle it dies: from then on it closes every connection unanswered."""

    def __init__(self, folder: Path):
        self.folder, self.dies_in, self.dead, self.asked = folder, None, False, list[str]()
        self.dies_in: str | None
        self.url = ""


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Answers, hub=hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
