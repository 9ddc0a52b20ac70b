"""Scores by a server: POST {"prompts": […], "responses": […]} → {"rewards": […]}, as JSON."""

import json
import time
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from factory.config.parsed import json_of
from factory.config.refusal import refuse

_reward_server = partial(
    refuse,
    "reward-server",
    because="without scores nothing can be learnt",
    fix=(
        "start or correct the server, then `factory resume` the run; stage.reward_timeout and "
        "reward_retries give it longer"
    ),
)

_BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)  # of the 4xx, worth another try
_MOST = 2**26  # bytes of an answer, which is a list of numbers
_SHOWN = 200  # characters of an answer that is told


def by_server(address: str, own: dict[str, Any]) -> Any:
    timeout, retries = own["reward_timeout"], own["reward_retries"]

    def score(prompts: list[str], answers: list[str], _ids: list[list[int]], _solutions: list[str]) -> Any:
        body = json.dumps({"prompts": prompts, "responses": answers}).encode()
        return _rewards(address, _patiently(address, body, timeout, retries))

    return score


def _patiently(address: str, body: bytes, timeout: float, retries: int) -> bytes:
    """The server's answer. A server that fails is asked again after 1, 2, 4 … seconds. Raises UserError."""
    wrong, tried = "", 0
    for tried in range(retries + 1):
        if tried:
            time.sleep(2 ** (tried - 1))
        try:
            request = Request(address, body, {"Content-Type": "application/json"})  # noqa: S310  http(s), by the spec
            with urlopen(request, timeout=timeout) as answer:  # noqa: S310  http(s), by the spec
                return answer.read(_MOST)
        except HTTPError as error:
            wrong = f"it answered {error.code} {error.reason}{_text(error)}"
            if error.code < HTTPStatus.INTERNAL_SERVER_ERROR and error.code not in _BUSY:
                break
        except (OSError, HTTPException, ValueError) as error:  # refused, timed out, cut off; no address
            wrong = f"it cannot be asked ({getattr(error, 'reason', None) or str(error) or type(error).__name__})"
    raise _reward_server(f"stage.reward={address}", f"{wrong}, at try {tried + 1} of {retries + 1}")


def _text(error: HTTPError) -> str:
    """What the server says of it, as far as that comes."""
    with suppress(OSError, HTTPException):
        if said := error.read(_SHOWN).decode(errors="replace").strip():
            return f": {said}"
    return ""


def _rewards(address: str, answer: bytes) -> Any:
    try:
        return json_of(answer)["rewards"]
    except (ValueError, KeyError, TypeError):
        said = answer[:_SHOWN].decode(errors="replace")
        wrong = f'it answered {said!r}, not {{"rewards": [...]}}'
        raise _reward_server(f"stage.reward={address}", wrong) from None
