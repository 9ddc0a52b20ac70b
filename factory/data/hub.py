"""Rows of a set on the Hugging Face hub, through `datasets`: downloaded once into its cache, or streamed."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factory.hub import lost
from factory.refusal import UserError, refuse

_ROWS = 1000  # that are Python values at a time
_PATIENCE = 5  # seconds for the hub's first answer
_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(?:/(?P<folder>.+))?")


def check_id(path: str, setting: str) -> None:
    """Raises UserError for what is no id of a set: owner/name, or owner/name/folder for one of its folders."""
    if not _ID.fullmatch(path):
        raise refuse("hub-missing", setting, "it is no id of a set on the hub: owner/name, or owner/name/folder")
    if Path(path).is_dir():
        raise refuse("hub-shadowed", setting, "there is a folder of this name here", path=path)


def rows(
    path: str, subset: str | None, split: str, revision: str | None, *, skip: int = 0, streaming: bool = False
) -> Iterator[dict[str, Any]]:
    """The set's rows from number `skip` on. Images are as the hub keeps them: {bytes, path}. Raises UserError."""
    setting = f"path={path}"
    check_id(path, setting)
    match = _ID.fullmatch(path)
    assert match
    with _explained(setting):
        from datasets import load_dataset

        _refuse_no_network()
        found: Any = load_dataset(
            match["id"], subset, data_dir=match["folder"], split=split, revision=revision, streaming=streaming
        )
        if not streaming and skip >= len(found):  # its own skip allows for less than all
            return
        # as Arrow: `datasets` would decode every image
        for table in found.skip(skip).with_format("arrow").iter(_ROWS):
            yield from table.to_pylist()


def cache_folders() -> tuple[str, ...]:
    """Where sets of the hub, and the files beside them, are downloaded to."""
    from huggingface_hub import constants

    own = os.environ.get("HF_DATASETS_CACHE")  # as `datasets` reads it, whose import takes long
    return tuple(filter(None, (constants.HF_HOME, constants.HF_HUB_CACHE, own)))


def _refuse_no_network() -> None:
    """Raises OSError where the hub's host does not answer: its client would try again for half a minute."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    from datasets import config

    if config.HF_HUB_OFFLINE:
        return
    try:
        urlopen(Request(config.HF_ENDPOINT, method="HEAD"), timeout=_PATIENCE).close()  # noqa: S310  the hub's address
    except HTTPError:
        return  # it answers


@contextmanager
def _explained(setting: str) -> Iterator[None]:
    """The library's errors as refusals."""
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetsError, FileNotFoundDatasetsError
    from pyarrow import ArrowException

    def refusal(rule: str, error: Exception) -> UserError:
        said = str(error).strip().partition("\n")[0].rstrip(".")[:300]
        return refuse(rule, setting, said or type(error).__name__)

    try:
        yield
    except UserError:
        raise
    except (FileNotFoundDatasetsError, EmptyDatasetError) as error:
        raise refusal("hub-missing", error) from None
    except (DatasetsError, ArrowException) as error:
        raise refusal("hub-broken", error) from None
    except (*lost(), OSError) as error:
        raise refusal("hub-unreachable", error) from None
    except ValueError as error:  # of a split or a subset that is not there; it names those that are
        raise refusal("hub-missing", error) from None
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise refusal("hub-code", error) from None
