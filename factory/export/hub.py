"""The hub: whether a repository can be written, and the upload of a folder."""

from pathlib import Path
from typing import Any

from factory.hub import lost
from factory.plan import Export
from factory.refusal import refuse

_OF_NEW = {".gitattributes", "README.md"}  # what a repository may hold that nobody has uploaded to


def check(plan: Export) -> None:
    """Before any weight is read. Raises UserError where the hub cannot be asked or the repository is in use."""
    from huggingface_hub import HfApi

    if plan.push is None or plan.dry_run:
        return
    api = HfApi()
    try:
        there = api.list_repo_files(plan.push) if api.repo_exists(plan.push) else []
    except _asking() as error:
        raise _unreachable(plan, error) from None
    if set(there) - _OF_NEW and not plan.overwrite:
        raise refuse("push-there", f"export.push={plan.push}", f"there are {len(there):,} files in it")


def push(plan: Export, folder: Path) -> dict[str, Any]:
    """Uploads the folder; of a dry run says what would be."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    told = {"repository": plan.push, "private": plan.private, "dry_run": plan.dry_run, "files": files}
    if plan.dry_run:
        return told
    from huggingface_hub import HfApi

    assert plan.push is not None
    api = HfApi()
    try:
        api.create_repo(plan.push, private=plan.private, exist_ok=True)
        gone = "*" if plan.overwrite else None  # weights or an adapter_config.json of before would be read instead
        found = api.upload_folder(
            repo_id=plan.push, folder_path=folder, commit_message="Export by Factory", delete_patterns=gone
        )
    except (*_asking(), RuntimeError) as error:  # the last of a file, with what went wrong as its cause
        cause = error if isinstance(error, _asking()) else error.__cause__
        if not isinstance(cause, _asking()):
            raise
        raise _unreachable(plan, cause) from None
    return told | {"commit": getattr(found, "oid", None)}


def _asking() -> tuple[type[Exception], ...]:
    """What asking the hub raises where it cannot be reached, or says no."""
    return (*lost(), OSError, ValueError)


def _unreachable(plan: Export, error: BaseException) -> Exception:
    first = next((line for line in str(error).splitlines() if line.strip()), "no reason is given")
    return refuse("push-unreachable", f"export.push={plan.push}", f"{type(error).__name__}: {first[:200].rstrip('.')}")
