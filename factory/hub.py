"""The hub's client, as far as everybody who asks the hub must know it."""


def lost() -> tuple[type[Exception], ...]:
    """What it raises, beside OSError, where the hub cannot be reached or goes away in the middle of a file.

    The errors are of whichever HTTP client this version of the library has.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(base for base in HfHubHTTPError.__bases__ if base is not OSError)
