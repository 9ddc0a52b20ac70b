"""What a client is told when something cannot be done: OpenAI's shape, by which its clients raise their own classes."""

import json
from typing import Any

from starlette.responses import Response

from factory.config.refusal import did_you_mean

_RETRY = 2  # seconds


class Json(Response):
    """In ASCII: what cannot be encoded is escaped instead of breaking the answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


class ApiError(Exception):
    """`param`: the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Json:
        return Json(self.body, status_code=self.status, headers=self.headers)


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unknown_model(name: str, known: list[str]) -> ApiError:
    return ApiError(
        404,
        f"The model {name[:100]!r} is not served here. Served are: {', '.join(known)}.",
        param="model",
        code="model_not_found",
    )


def no_address(path: str, known: list[str]) -> ApiError:
    hint = did_you_mean(path[:100], known)
    return ApiError(404, f"There is nothing at {path[:100]!r}: {hint}`GET /` lists what there is.", code="not_found")


def no_method(method: str, path: str, allowed: str) -> ApiError:
    wrong = f"{path[:100]!r} takes {allowed}, not {method[:20]}."
    return ApiError(405, wrong, code="method_not_allowed", headers={"Allow": allowed})


def no_json(kind: str) -> ApiError:
    sent = f"as {kind[:100]!r}" if kind else "without a Content-Type"
    wrong = f"The body was sent {sent}, and was not read: send JSON with `Content-Type: application/json`."
    return ApiError(415, wrong, code="unsupported_media_type")


def too_long(tokens: int, context: int, param: str, room: int) -> ApiError:
    """`room`: tokens that an answer needs at least."""
    wrong = f"The prompt has {tokens:,} tokens, and the context of {context:,} needs room for an answer too"
    if not room:
        wrong = f"There are {tokens:,} tokens, more than the context of {context:,}"
    return bad(f"{wrong}: shorten it.", param, "context_length_exceeded")


def overloaded() -> ApiError:
    return ApiError(
        429,
        f"As many requests wait as may wait. Come again in {_RETRY} s.",
        code="rate_limit_exceeded",
        kind="rate_limit_error",
        headers={"Retry-After": str(_RETRY)},
    )


def no_memory() -> ApiError:
    return ApiError(
        503,
        "There was not enough memory for this request: shorten it, or come again when fewer are answered.",
        code="out_of_memory",
        kind="server_error",
    )


def stopping() -> ApiError:
    why = "The server answers no more: it is being stopped, or its engine has failed and its log has the reason."
    return ApiError(503, why, code="stopping", kind="server_error")


def no_key() -> ApiError:
    return ApiError(
        401,
        "The key is missing or wrong: send it as `Authorization: Bearer KEY`.",
        code="invalid_api_key",
        kind="authentication_error",
        headers={"WWW-Authenticate": "Bearer"},
    )


def other_name() -> ApiError:
    return ApiError(
        403,
        "Without a key the server is asked by this machine's number or as localhost, so that no page of another site "
        "can ask it by a name of its own: set serve.api_key to be asked by another name.",
        code="host_not_allowed",
        kind="permission_error",
    )


def too_large(most: int) -> ApiError:
    return ApiError(413, f"The request has more than {most:,} bytes (serve.max_body).", code="request_too_large")


def broken() -> ApiError:
    return ApiError(500, "The server failed; its log has the reason.", code="internal_error", kind="server_error")


def left() -> ApiError:
    """Read by nobody but the metrics; nginx's number for it."""
    return ApiError(499, "The client left.", code="client_left")
