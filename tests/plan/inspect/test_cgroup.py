"""The limits of a container or a job, as version 1 and 2 of Linux's control groups write them."""

from pathlib import Path

import pytest

from factory.plan.inspect import cgroup


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup, "_OWN", tmp_path / "own")
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path / "tree")
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_tightest_limit_around_counts(group: Path) -> None:
    (group / "own").write_text("0::/job/step\n")
    write(group / "tree", memory__max="max\n")
    write(group / "tree" / "job", memory__max="4000\n")
    write(group / "tree" / "job" / "step", memory__max="9000\n", memory__events="low 0\noom 3\noom_kill 2\n")
    assert (cgroup.free(), cgroup.kills()) == (4000, 2)


def test_version_1_has_a_tree_of_its_own(group: Path) -> None:
    (group / "own").write_text("9:cpu:/elsewhere\n4:memory:/job\n0::/\n")
    write(group / "tree" / "memory", memory__limit_in_bytes="9223372036854771712\n")
    write(
        group / "tree" / "memory" / "job",
        memory__limit_in_bytes="5000\n",
        memory__oom_control="under_oom 0\noom_kill 1",
    )
    assert (cgroup.free(), cgroup.kills()) == (5000, 1)


def test_inside_a_container_the_root_is_its_own(group: Path) -> None:
    (group / "own").write_text("0::/../outside\n")
    write(group / "tree", memory__max="7000\n")
    assert cgroup.free() == 7000


def test_where_nothing_is_limited_nothing_is_said(group: Path) -> None:
    assert (cgroup.free(), cgroup.limit(), cgroup.kills()) == (None, None, 0)
    (group / "own").write_text("4:memory:/job\n")
    write(group / "tree" / "memory", memory__limit_in_bytes="9223372036854771712\n")
    assert (cgroup.free(), cgroup.kills()) == (None, 0)


def test_what_others_in_the_group_hold_is_not_free(group: Path) -> None:
    """Files that the kernel keeps are; a tighter group further out counts by what is left of it."""
    (group / "own").write_text("0::/job/step\n")
    write(group / "tree")
    write(
        group / "tree" / "job", memory__max="9000", memory__current="7000", memory__stat="anon 6500\ninactive_file 500"
    )
    write(group / "tree" / "job" / "step", memory__max="4000", memory__current="1000", memory__stat="inactive_file 200")
    assert cgroup.free() == 9000 - 6500
    write(group / "tree" / "job", memory__current="9500", memory__stat="inactive_file 0")
    assert cgroup.free() == 0
    assert cgroup.limit() == 4000  # whoever holds how much of it


def test_version_1_counts_the_groups_below(group: Path) -> None:
    (group / "own").write_text("4:memory:/job\n")
    files = {"memory__limit_in_bytes": "5000", "memory__usage_in_bytes": "3000"}
    write(group / "tree" / "memory" / "job", **files, memory__stat="inactive_file 1\ntotal_inactive_file 1000\n")
    assert cgroup.free() == 3000
