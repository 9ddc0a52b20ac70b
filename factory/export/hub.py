"""The hub: whether a repository can be written, and the upload of a folder."""

from pathlib import Path
from typing import Any

from factory.config.hub import lost
from factory.config.refusal import UserError, refuse
from factory.config.settings import Export
from factory.config.values import plain

_OF_NEW = {".gitattributes", "README.md"}  # what a repository may hold that nobody has uploaded to


def check(asked: Export) -> None:
    """Before any weight is read. Raises UserError where the hub cannot be asked or the repository is in use."""
    from huggingface_hub import HfApi

    if asked.push is None or asked.dry_run:
        return
    api = HfApi()
    try:
        if not api.repo_exists(asked.push):
            return
        there, private = api.list_repo_files(asked.push), bool(api.repo_info(asked.push).private)
    except _asking() as error:
        raise _unreachable(asked, error) from None
    if set(there) - _OF_NEW and not asked.overwrite:
        raise refuse(
            "push-there",
            f"export.push={asked.push}",
            f"there are {len(there):,} files in it",
            because="nothing is overwritten unasked",
            fix="set export.overwrite=true, or name another repository",
        )
    _hold(asked, private)


def _hold(asked: Export, private: bool) -> None:
    """Raises UserError where the repository is seen otherwise than the plan says."""
    if private != asked.private:
        wrong = f"there is a {'private' if private else 'public'} repository of this name"
        raise refuse(
            "push-visibility",
            f"export.push={asked.push}",
            wrong,
            because="the hub leaves a repository as visible as it is",
            fix=f"set export.private={plain(private)}, or name another repository",
        )


def push(asked: Export, folder: Path) -> dict[str, Any]:
    """Uploads the folder; of a dry run says what would be."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    told = {"repository": asked.push, "private": asked.private, "dry_run": asked.dry_run, "files": files}
    if asked.dry_run:
        return told
    from huggingface_hub import HfApi

    assert asked.push is not None
    api = HfApi()
    try:
        api.create_repo(asked.push, private=asked.private, exist_ok=True)
        _hold(asked, bool(api.repo_info(asked.push).private))  # another may have made it since
        gone = "*" if asked.overwrite else None  # weights or an adapter_config.json of before would be read instead
        found = api.upload_folder(
            repo_id=asked.push, folder_path=folder, commit_message="Export by Factory", delete_patterns=gone
        )
    except UserError:
        raise
    except (*_asking(), RuntimeError) as error:  # the last of a file, with what went wrong as its cause
        cause = error if isinstance(error, _asking()) else error.__cause__
        if not isinstance(cause, _asking()):
            raise
        raise _unreachable(asked, cause) from None
    return told | {"commit": getattr(found, "oid", None)}


def _asking() -> tuple[type[Exception], ...]:
    """What asking the hub raises where it cannot be reached, or says no."""
    return (*lost(), OSError, ValueError)


def _unreachable(asked: Export, error: BaseException) -> Exception:
    first = next((line for line in str(error).splitlines() if line.strip()), "no reason is given")
    wrong = f"{type(error).__name__}: {first[:200].rstrip('.')}"
    return refuse(
        "push-unreachable",
        f"export.push={asked.push}",
        wrong,
        because="the upload would fail after all the work",
        fix=(
            "try again later, or without export.push; the folder can be uploaded by "
            f"`hf upload{' --private' if asked.private else ''}`"
        ),
    )
