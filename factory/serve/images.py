"""Images of a request: within it, or fetched from a host that was allowed by name, and from no private address."""

import asyncio
import base64
import ipaddress
import re
import socket
from collections.abc import Sequence
from urllib.parse import urljoin, urlsplit

import httpx

from factory.serve.errors import ApiError, bad

# beside the kind there may be more, as in data:image/jpeg;charset=utf-8;base64, (RFC 2397)
_DATA = re.compile(r"data:image/(?:png|jpeg|jpg|webp|gif|bmp)(?:;[^,;]+)*;base64,[A-Za-z0-9+/=\s]*", re.IGNORECASE)
_NO_IMAGE = "A data: URL must be of a PNG, JPEG, WebP, GIF or BMP image, in base64: data:image/png;base64,…"
_REDIRECTS, _SECONDS = 3, 10.0


class Fetcher:
    """Of one request. `hosts`: those that are allowed. `most`: bytes of all images that it fetches."""

    def __init__(self, hosts: Sequence[str], most: int):
        self._hosts, self._most, self._left = frozenset(host.lower() for host in hosts), most, most

    async def image(self, url: str, param: str) -> str:
        """As a data: URL. Raises ApiError."""
        if url[:5].lower() == "data:":
            if not _DATA.fullmatch(url):
                raise _invalid(_NO_IMAGE, param)
            return url
        try:
            async with asyncio.timeout(_SECONDS):
                return await self._fetched(url, param)
        except TimeoutError:
            raise _invalid(f"The image was not there within {_SECONDS:.0f} s.", param) from None

    async def _fetched(self, url: str, param: str) -> str:
        for _ in range(_REDIRECTS + 1):
            found = await self._once(url, param)
            if not isinstance(found, httpx.URL):
                return found
            url = str(found)
        raise _invalid("The image's address leads on too often.", param)

    async def _once(self, url: str, param: str) -> "str | httpx.URL":
        """The image, or where it is instead."""
        host, named, pinned = await self._checked(url, param)
        try:
            async with (
                httpx.AsyncClient(timeout=_SECONDS, follow_redirects=False, trust_env=False) as client,
                client.stream(
                    "GET", pinned, headers={"Host": named, "Accept": "image/*"}, extensions={"sni_hostname": host}
                ) as response,
            ):
                if response.is_redirect:
                    return httpx.URL(urljoin(url, response.headers.get("location", "")))
                if response.status_code != 200:
                    raise _invalid(f"The image's host answered {response.status_code}.", param)
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    self._left -= len(chunk)
                    if self._left < 0:
                        raise _invalid(f"The images have more than {self._most:,} bytes together.", param)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            raise _invalid("The image could not be fetched.", param) from None
        return "data:image/png;base64," + base64.b64encode(bytes(body)).decode()

    async def _checked(self, url: str, param: str) -> tuple[str, str, str]:
        """The host, how a server is told of it, and the address with the number that it was when it was looked at.

        So what the name stands for cannot change in between.
        """
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise _invalid("The image's address cannot be read.", param) from None
        if parts.scheme not in ("http", "https") or not host:
            raise _invalid("An image is a data: URL, or at an http(s) address.", param)
        if host not in self._hosts:
            raise bad(
                f"Images are not fetched from {host[:100]}: send data: URLs, or allow the host by serve.image_hosts.",
                param,
                "image_url_not_allowed",
            )
        try:
            number = await _number(host)
        except (OSError, UnicodeError):
            raise _invalid(f"The host {host[:100]} cannot be found.", param) from None
        if not all(_public(ipaddress.ip_address(each)) for each in number):
            raise _invalid("The image's host is at a private address.", param)
        return host, _netloc(host, port), parts._replace(netloc=_netloc(number[0], port)).geturl()


def _netloc(host: str, port: int | None) -> str:
    """As an address and the header Host have it (RFC 9110, 7.2): a signature may be of both."""
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def _invalid(message: str, param: str) -> ApiError:
    return bad(message, param, "invalid_image_url")


def _public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    inner = getattr(address, "ipv4_mapped", None)
    return address.is_global and not address.is_multicast and (inner is None or _public(inner))


async def _number(host: str) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(each[4][0]) for each in found]
