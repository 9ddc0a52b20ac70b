"""Images of requests: within them, or from hosts that were named, and never from this machine or its network."""

import asyncio
import base64
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import TINY, Serving, room_of, serving

from factory.serve import app, images
from factory.serve.errors import ApiError, bad
from factory.serve.images import Fetcher


def fetched(url: str, *hosts: str, most: int = 1000) -> str:
    """The image, or the code of what is wrong."""
    try:
        return asyncio.run(Fetcher(hosts, most).image(url, "messages.0"))
    except ApiError as error:
        assert error.status == 400 and error.body["error"]["param"] == "messages.0"
        return error.body["error"]["code"]


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Names and what they stand for; addresses that were asked, and what they answer."""
    found: dict[str, Any] = {"names": {}, "asked": [], "answers": {}}

    async def number(host: str) -> list[str]:
        if host not in found["names"]:
            raise OSError
        return found["names"][host]

    def answer(request: httpx.Request) -> httpx.Response:
        found["asked"].append((str(request.url), request.headers["host"]))
        return found["answers"].get(request.headers["host"], httpx.Response(404))

    real = httpx.AsyncClient
    monkeypatch.setattr(images, "_number", number)
    monkeypatch.setattr(images.httpx, "AsyncClient", lambda **more: real(transport=httpx.MockTransport(answer), **more))
    return found


def test_a_named_host_is_asked_by_the_number_that_was_checked(net: dict[str, Any]) -> None:
    net["names"]["pictures.example"] = ["93.184.216.34"]
    net["answers"]["pictures.example"] = httpx.Response(200, content=b"PNG")
    assert fetched("https://pictures.example/a.png", "pictures.example").endswith(base64.b64encode(b"PNG").decode())
    assert net["asked"] == [("https://93.184.216.34/a.png", "pictures.example")]


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/a.png",
        "http://127.0.0.1/a.png",
        "http://pictures.example@other.example/a.png",
        "http://[::1]/a.png",
    ],
)
def test_other_hosts_are_not_asked(url: str, net: dict[str, Any]) -> None:
    assert fetched(url, "pictures.example") == "image_url_not_allowed" and net["asked"] == []


@pytest.mark.parametrize(
    "number",
    ["127.0.0.1", "10.0.0.1", "192.168.0.1", "169.254.169.254", "::1", "fd00::1", "0.0.0.0", "::ffff:127.0.0.1"],
)
def test_a_named_host_at_a_private_address_is_not_asked(number: str, net: dict[str, Any]) -> None:
    net["names"]["pictures.example"] = ["93.184.216.34", number]
    assert fetched("http://pictures.example/a.png", "pictures.example") == "invalid_image_url" and net["asked"] == []


def test_where_a_redirect_leads_is_checked_too(net: dict[str, Any]) -> None:
    net["names"] |= {"pictures.example": ["93.184.216.34"], "inside.example": ["10.0.0.1"]}
    for place, code in (
        ("http://other.example/a.png", "image_url_not_allowed"),
        ("http://inside.example/a.png", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("http://pictures.example/again", "invalid_image_url"),  # for ever
    ):
        net["answers"]["pictures.example"] = httpx.Response(302, headers={"location": place})
        assert fetched("http://pictures.example/a.png", "pictures.example", "inside.example") == code
    assert {host for _, host in net["asked"]} == {"pictures.example"}


def test_what_is_too_large_or_not_there_is_told(net: dict[str, Any]) -> None:
    net["names"]["pictures.example"] = ["93.184.216.34"]
    for answer in (httpx.Response(200, content=b"x" * 2000), httpx.Response(404)):
        net["answers"]["pictures.example"] = answer
        assert fetched("http://pictures.example/a.png", "pictures.example") == "invalid_image_url"


def test_all_images_of_a_request_have_one_limit(net: dict[str, Any]) -> None:
    net["names"]["pictures.example"] = ["93.184.216.34"]
    net["answers"]["pictures.example"] = httpx.Response(200, content=b"x" * 600)
    asked = Fetcher(["pictures.example"], 1000)

    async def fetch(fetcher: Fetcher) -> str:
        return await fetcher.image("http://pictures.example/a.png", "messages.0")

    assert asyncio.run(fetch(asked)).startswith("data:")
    with pytest.raises(ApiError, match="more than 1,000 bytes together"):
        asyncio.run(fetch(asked))
    assert asyncio.run(fetch(Fetcher(["pictures.example"], 1000))).startswith("data:")


def test_a_host_that_sends_byte_by_byte_is_not_waited_for(net: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, and the image does not."""

    async def drops() -> AsyncIterator[bytes]:
        for _ in range(100):
            await asyncio.sleep(0.005)
            yield b"x"

    monkeypatch.setattr(images, "_SECONDS", 0.05)
    net["names"]["pictures.example"] = ["93.184.216.34"]
    net["answers"]["pictures.example"] = httpx.Response(200, content=drops())
    assert fetched("http://pictures.example/a.png", "pictures.example") == "invalid_image_url"


def shown(*texts: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": f"https://pictures.example/{each}.png"}} for each in texts]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": "A sea."}]


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[Serving]:
    room, settings = room_of("serve", f"model.path={tiny_model}", "serve.name=tiny", *TINY)
    room.prompts.__dict__["sees"] = True
    with serving(room, settings) as found:
        yield found
    room.engine.stop(0)


@pytest.mark.parametrize(
    ("path", "messages"),
    [("chat/completions", shown("a", "b")), ("score", shown("a", "b")), ("score", [shown("a"), shown("b")])],
)
def test_a_request_has_one_fetcher(
    path: str, messages: list[Any], served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose limit is of all that it fetches; the next one has its own."""
    seen = list[Fetcher]()

    async def image(self: Fetcher, url: str, param: str) -> str:
        seen.append(self)
        if url.endswith("b.png"):
            raise bad("No more.", param)
        return url

    def rendered(*_: Any) -> list[int]:
        return [5]

    monkeypatch.setattr(Fetcher, "image", image)
    monkeypatch.setattr(app, "rendered", rendered)
    monkeypatch.setattr(type(served.room.prompts), "inputs", lambda *_: {})
    with served.http() as http:
        for _ in range(2):
            told = http.post(f"/v1/{path}", json={"model": "tiny", "messages": messages}).json()
            assert told["error"]["message"] == "No more."
    first, second, third, fourth = seen
    assert first is second is not third and third is fourth


@pytest.mark.parametrize("path", ["chat/completions", "score"])
def test_nothing_is_fetched_for_a_client_that_left(path: str, served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def image(self: Fetcher, url: str, param: str) -> str:
        begun.set()
        try:
            await asyncio.sleep(10)
        finally:
            ended.set()
        return url

    monkeypatch.setattr(Fetcher, "image", image)
    with served.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post(f"/v1/{path}", json={"model": "tiny", "messages": shown("a")}, timeout=0.3)
    assert begun.is_set() and ended.wait(2)


@pytest.mark.parametrize(
    "url",
    [
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "file:///etc/passwd",
        "/etc/passwd",
        "ftp://pictures.example/a.png",
        "http://",
        "http://pictures.example:port/a.png",
    ],
)
def test_other_places_are_refused(url: str, net: dict[str, Any]) -> None:
    assert fetched(url, "pictures.example") == "invalid_image_url" and net["asked"] == []


@pytest.mark.parametrize("url", ["data:image/jpeg;charset=utf-8;base64,AAAA", "data:image/png;base64,AA\nAA"])
def test_a_data_url_may_say_more_and_have_lines(url: str, net: dict[str, Any]) -> None:
    assert fetched(url) == url and net["asked"] == []


def test_a_host_is_told_its_port(net: dict[str, Any]) -> None:
    """What is signed of an address, as a bucket's, is signed with it."""
    net["names"]["pictures.example"] = ["93.184.216.34"]
    net["answers"]["pictures.example:9000"] = httpx.Response(200, content=b"PNG")
    assert fetched("http://pictures.example:9000/a.png", "pictures.example").startswith("data:")
    assert net["asked"] == [("http://93.184.216.34:9000/a.png", "pictures.example:9000")]
