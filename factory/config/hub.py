"""The hub and its client, as far as everybody who asks the hub must know them."""

import re

ID = re.compile(r"[\w.-]+/[\w.-]+")  # of a repository: owner/name
COMMIT = re.compile(r"[0-9a-f]{40}")  # what a branch or a tag stands for
_PATIENCE = 10  # seconds for its first answer


def lost() -> tuple[type[Exception], ...]:
    """What it raises, beside OSError, where the hub cannot be reached or goes away in the middle of a file.

    The errors are of whichever HTTP client this version of the library has.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(base for base in HfHubHTTPError.__bases__ if base is not OSError)


def ask(url: str) -> None:
    """Raises OSError at once where nobody answers there: the hub's client would try again for half a minute."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(url, method="HEAD"), timeout=_PATIENCE).close()  # noqa: S310  the hub's address
    except HTTPError:
        return  # it answers; what it says is the client's to read
