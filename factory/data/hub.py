"""Rows of a set on the Hugging Face hub, through `datasets`: downloaded once into its cache, or streamed."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from factory.config.hub import ask, lost
from factory.config.refusal import UserError, refuse
from factory.data.read.columnar import values

_ROWS = 1000  # that are Python values at a time
_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(?:/(?P<folder>.+))?")

UNREACHABLE = (
    "check the network, set HF_ENDPOINT to a mirror, or HF_DATASETS_OFFLINE=1 where the set was downloaded before; or "
    "name a file with data=file data.path=FILE"
)
_hub_missing = partial(
    refuse,
    "hub-missing",
    because="the hub has no such set, or not for this user",
    fix="check the set's page for its id, subsets and splits; for a gated set accept its terms there and set HF_TOKEN",
)


def check_id(path: str, setting: str) -> None:
    """Raises UserError for what is no id of a set: owner/name, or owner/name/folder for one of its folders."""
    if not _ID.fullmatch(path):
        raise _hub_missing(setting, "it is no id of a set on the hub: owner/name, or owner/name/folder")
    if Path(path).is_dir():
        raise refuse(
            "hub-shadowed",
            setting,
            "there is a folder of this name here",
            because="the folder would be read in the hub's place",
            fix=f"use data=file data.path={path} for the folder, or run in another folder",
        )


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
            yield from values(table)


def unreachable(path: str) -> str | None:
    """Why a run could not read the set now, or None. The hub is asked whether it answers, where it may be asked."""
    if _offline():
        forbidden = "it is not in the cache, and HF_DATASETS_OFFLINE or HF_HUB_OFFLINE forbids to ask the hub"
        return None if _cached(path) else forbidden
    from huggingface_hub import constants

    silent = _silent(constants.ENDPOINT)
    return silent and f"the hub cannot be reached ({silent})"


def _offline() -> bool:
    """As `datasets` reads it, whose import takes long."""
    from huggingface_hub import constants

    own = os.environ.get("HF_DATASETS_OFFLINE")
    return constants.HF_HUB_OFFLINE if own is None else own.upper() in constants.ENV_VARS_TRUE_VALUES


def _cached(path: str) -> bool:
    """Whether anything of the set was downloaded: its files, or the table that `datasets` made of them."""
    from huggingface_hub import constants

    match = _ID.fullmatch(path)
    assert match
    owner, _, name = match["id"].partition("/")
    tables = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    made = (folder.name.partition("___")[2] for folder in tables.glob(f"{owner}___*"))
    files = Path(constants.HF_HUB_CACHE, f"datasets--{owner}--{name}")
    return files.is_dir() or _letters(name) in map(_letters, made)


def _letters(name: str) -> str:
    """Those that a name keeps: `datasets` writes AlpacaCleaned as alpaca_cleaned."""
    return re.sub(r"[\W_]", "", name).lower()


@cache
def _silent(endpoint: str) -> str | None:
    """Why the host does not answer, or None. Asked once: the plans of a sweep, of a search or of the board are many."""
    try:
        ask(endpoint)
    except OSError as error:
        return str(getattr(error, "reason", None) or error) or type(error).__name__
    return None


def cache_folders() -> tuple[str, ...]:
    """Where sets of the hub, and the files beside them, are downloaded to."""
    from huggingface_hub import constants

    own = os.environ.get("HF_DATASETS_CACHE")  # as `datasets` reads it, whose import takes long
    return tuple(filter(None, (constants.HF_HOME, constants.HF_HUB_CACHE, own)))


def _refuse_no_network() -> None:
    """Raises OSError where the hub's host does not answer."""
    from datasets import config

    if not config.HF_HUB_OFFLINE:
        ask(config.HF_ENDPOINT)


@contextmanager
def _explained(setting: str) -> Iterator[None]:
    """The library's errors as refusals."""
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetsError, FileNotFoundDatasetsError
    from pyarrow import ArrowException

    def shown(error: Exception) -> str:
        return str(error).strip().partition("\n")[0].rstrip(".")[:300] or type(error).__name__

    try:
        yield
    except UserError:
        raise
    except (FileNotFoundDatasetsError, EmptyDatasetError) as error:
        raise _hub_missing(setting, shown(error)) from None
    except (DatasetsError, ArrowException) as error:
        raise refuse(
            "hub-broken",
            setting,
            shown(error),
            because="half a set would be trained as if it were the whole",
            fix="name another revision of it, or download its files and use data=file",
        ) from None
    except (*lost(), OSError) as error:
        raise refuse(
            "hub-unreachable",
            setting,
            shown(error),
            because="its rows are not on this machine",
            fix=UNREACHABLE,
            machine=True,
        ) from None
    except ValueError as error:  # of a split or a subset that is not there; it names those that are
        raise _hub_missing(setting, shown(error)) from None
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise refuse(
            "hub-code",
            setting,
            shown(error),
            because=(
                "such a set is built by Python code from the hub, which the datasets library does not run any more"
            ),
            fix=(
                "set data.sources.NAME.revision=refs/convert/parquet, where the hub keeps a copy as files, or "
                "write that code as a function of your own for data=function"
            ),
        ) from None
