"""Images of requests: within them, or from hosts that were named, and never from this machine or its network."""

import asyncio
import base64
from typing import Any

import httpx
import pytest

from factory.serve import images
from factory.serve.errors import ApiError
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
