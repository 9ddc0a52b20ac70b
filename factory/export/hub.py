"""The hub: whether a repository can be written, and the upload of a folder."""

from pathlib import Path
from typing import Any

from factory.config.hub import lost
from factory.config.refusal import UserError, refuse
from factory.config.values import plain
from factory.plan.plan import Export

_OF_NEW = {".gitattributes", "README.md"}  # what a repository may hold that nobody has uploaded to


def check(plan: Export) -> None:
    """Before any weight is read. Raises UserError where the hub cannot be asked or the repository is in use."""
    from huggingface_hub import HfApi

    if plan.push is None or plan.dry_run:
        return
    api = HfApi()
    try:
        if not api.repo_exists(plan.push):
            return
        there, private = api.list_repo_files(plan.push), bool(api.repo_info(plan.push).private)
    except _asking() as error:
        raise _unreachable(plan, error) from None
    if set(there) - _OF_NEW and not plan.overwrite:
        raise refuse(
            "push-there",
            f"export.push={plan.push}",
            f"there are {len(there):,} files in it",
            because="nothing is overwritten unasked",
            fix="set export.overwrite=true, or name another repository",
        )
    _hold(plan, private)


def _hold(plan: Export, private: bool) -> None:
    """Raises UserError where the repository is seen otherwise than the plan says."""
    if private != plan.private:
        wrong = f"there is a {'private' if private else 'public'} repository of this name"
        raise refuse(
            "push-visibility",
            f"export.push={plan.push}",
            wrong,
            because="the hub leaves a repository as visible as it is",
            fix=f"set export.private={plain(private)}, or name another repository",
        )


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
        _hold(plan, bool(api.repo_info(plan.push).private))  # another may have made it since
        gone = "*" if plan.overwrite else None  # weights or an adapter_config.json of before would be read instead
        found = api.upload_folder(
            repo_id=plan.push, folder_path=folder, commit_message="Export by Factory", delete_patterns=gone
        )
    except UserError:
        raise
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
    wrong = f"{type(error).__name__}: {first[:200].rstrip('.')}"
    return refuse(
        "push-unreachable",
        f"export.push={plan.push}",
        wrong,
        because="the upload would fail after all the work",
        fix=(
            "try again later, or without export.push; the folder can be uploaded by "
            f"`hf upload{' --private' if plan.private else ''}`"
        ),
    )
