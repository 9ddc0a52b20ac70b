"""Large blocks of memory lie apart: where the estimate has them, each whole, and in processes that ask for it."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from factory.estimate.heap import Apart
from factory.native import LARGE, UNIT, build, preload

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="there is no C compiler")

CALLS = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None)
for name in ("free", "realloc", "malloc_usable_size", "malloc_trim"):
    getattr(libc, name).argtypes = [ctypes.c_void_p, *([ctypes.c_size_t] if name == "realloc" else [])]
libc.realloc.restype = ctypes.c_void_p
libc.malloc_usable_size.restype = ctypes.c_size_t

def take(size, alignment=64):
    block = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(alignment), ctypes.c_size_t(size)) == 0
    return block.value
"""


def told(script: str, *given: Any, limit: str = "", preloaded: str | None = None) -> Any:
    """What the script prints as JSON, where its large blocks lie apart. `limit` is the shell's, before it."""
    command = f'{limit} exec "$0" -c "$1" "$2"'
    done = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, CALLS + script, json.dumps(given)],
        env={**os.environ, **({"LD_PRELOAD": preloaded} if preloaded else preload.apart())},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def changes(count: int, seed: int) -> list[list[int]]:
    """[1, size], or [0, which of those that are there]."""
    draw, there, found = random.Random(seed), 0, list[list[int]]()
    sizes = [LARGE, LARGE + 1, 3 * 2**20, 3 * 2**20 - UNIT, *(draw.randrange(LARGE, 2**22) for _ in range(6))]
    for _ in range(count):
        if there and draw.random() < 0.48:
            found.append([0, draw.randrange(there)])
            there -= 1
        else:
            found.append([1, draw.choice(sizes)])
            there += 1
    return found


@pytest.mark.parametrize("seed", range(4))
def test_blocks_lie_where_the_estimate_has_them(seed: int) -> None:
    asked = changes(3000, seed)
    script = """
there, places = [], []
for kind, value in json.loads(sys.argv[1])[0]:
    if kind:
        there.append(take(value)); places.append(there[-1])
    else:
        libc.free(there.pop(value))
print(json.dumps(places))
"""
    heap, there, expected = Apart(), list[tuple[int, int]](), list[int]()
    for kind, value in asked:
        if kind:
            there.append(heap.take(value))
            expected.append(there[-1][0])
        else:
            heap.give(*there.pop(value))
    places = told(script, asked)
    assert [place - places[0] for place in places] == [place - expected[0] for place in expected]
    assert all(place % UNIT == 0 for place in places)


def test_each_is_whole_whoever_takes_and_gives() -> None:
    """Threads at once, a process that forks and trims meanwhile, and small ones and other alignments among them."""
    script = """
import random, threading
wrong = []

def work(number):
    draw, there = random.Random(number), []
    for _ in range(1500):
        if there and draw.random() < 0.48:
            block, size, mark = there.pop(draw.randrange(len(there)))
            if ctypes.string_at(block, size) != bytes([mark]) * size:
                wrong.append((number, size))
            libc.free(block)
        else:
            size, mark = draw.choice([100, 4096, 5000, 70000, 300000]), draw.randrange(256)
            block = take(size, draw.choice([64, 64, 64, 4096]))
            if draw.random() < 0.2:
                size += 3000
                block = libc.realloc(block, size)
            if libc.malloc_usable_size(block) < size:
                wrong.append("size")
            ctypes.memset(block, mark, size)
            there.append((block, size, mark))
        if draw.random() < 0.02:
            libc.malloc_trim(None)

threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
for _ in range(5):
    if os.fork() == 0:
        work(99)
        os._exit(1 if wrong else 0)
codes = [os.wait()[1] for _ in range(5)]
[thread.join() for thread in threads]
print(json.dumps([wrong, codes]))
"""
    assert told(script) == [[], [0] * 5]


def test_what_is_made_larger_keeps_what_it_holds() -> None:
    script = """
block = take(5000)
ctypes.memset(block, 7, 5000)
larger = libc.realloc(block, 50000)
again = take(5000)
print(json.dumps([ctypes.string_at(larger, 5000) == bytes([7]) * 5000, again == block]))
"""
    assert told(script) == [True, True]


def test_what_is_made_empty_is_freed_and_no_alignment_is_made_up() -> None:
    """As glibc has it."""
    script = """
block = take(5000)
emptied = libc.realloc(block, 0)
again, made = take(5000), ctypes.c_void_p()
codes = [
    libc.posix_memalign(ctypes.byref(made), ctypes.c_size_t(alignment), ctypes.c_size_t(5000))
    for alignment in (0, 3, 4, 24, 96)
]
print(json.dumps([emptied, again == block, made.value, codes]))
"""
    assert told(script) == [None, True, None, [22] * 5]  # EINVAL


ANOTHER = r"""
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

static char room[1 << 28] __attribute__((aligned(4096)));
static size_t used;

static int known(void *block) { return (char *)block >= room && (char *)block < room + sizeof room; }

void free(void *block) {
    if (block && !known(block)) _exit(99);
}
int posix_memalign(void **block, size_t alignment, size_t size) {
    size_t start = (__atomic_fetch_add(&used, size + alignment + 32, __ATOMIC_SEQ_CST) + alignment + 16) & -alignment;
    if (start + size > sizeof room) return ENOMEM;
    *block = room + start;
    ((size_t *)*block)[-1] = size;
    return 0;
}
void *memalign(size_t alignment, size_t size) {
    void *block;
    return posix_memalign(&block, alignment, size) ? NULL : block;
}
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
void *malloc(size_t size) { return memalign(16, size); }
void *calloc(size_t count, size_t size) { return malloc(count * size); }
size_t malloc_usable_size(void *block) { return block ? ((size_t *)block)[-1] : 0; }
void *realloc(void *block, size_t size) {
    if (block && !known(block)) _exit(98);
    size_t had = malloc_usable_size(block);
    void *made = malloc(size);
    if (made && block) memcpy(made, block, had < size ? had : size);
    return made;
}
"""


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An allocator that ends the process where a block is not its own."""
    source = tmp_path_factory.mktemp("another") / "another.c"
    source.write_text(ANOTHER)
    made = source.with_suffix(".so")
    command = [*(build.compiler() or ()), "-O1", "-fno-builtin", "-fPIC", "-shared", str(source), "-o", str(made)]
    subprocess.run(command, check=True)
    return str(made)


@pytest.mark.parametrize("order", ["theirs:ours", "ours:theirs"])
def test_blocks_of_another_allocator_are_its_own(another: str, order: str) -> None:
    """A user's comes before ours, and has all; /etc/ld.so.preload's comes behind it."""
    script = """
block = take(2**20)
libc.free(block)
again = take(2**20)
larger = libc.realloc(again, 2**21)
usable = [libc.malloc_usable_size(each) for each in (larger, take(100), take(5000, 4096))]
libc.free(larger)
libc.malloc_trim(None)
print(json.dumps([again == block, usable]))
"""
    preloaded = order.replace("theirs", another).replace("ours", str(build.heap()))
    assert told(script, preloaded=preloaded) == [order == "ours:theirs", [2**21, 100, 5000]]


def test_what_is_free_goes_back_when_it_is_asked_for() -> None:
    script = """
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
first, other = take(2**26), take(2**26)
ctypes.memset(first, 1, 2**26)
ctypes.memset(other, 1, 2**26)
seen = [resident()]
libc.free(first)
seen.append(resident())
libc.malloc_trim(None)
seen.append(resident())
print(json.dumps([ctypes.string_at(other, 2**26) == bytes([1]) * 2**26, *seen]))
"""
    whole, before, kept, after = told(script)
    assert whole
    assert before - kept < 2**22
    assert kept - after > 2**26 - 2**22


@pytest.mark.parametrize("limit", ["ulimit -v 4000000;", ""])
def test_glibc_has_them_where_addresses_are_few_and_what_no_machine_holds(limit: str) -> None:
    script = """
block, usual = take(2**20), take(2**20, 4096)
mapped = [[int(end, 16) for end in line.split()[0].split("-")] for line in open("/proc/self/maps")]
last = next(end for start, end in mapped if start <= block < end)
for start, end in mapped:
    last = end if start == last else last
room = last - block
refused = libc.posix_memalign(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(64), ctypes.c_size_t(2**62))
libc.free(block)
libc.free(usual)
print(json.dumps([room, refused]))
"""
    room, refused = told(script, limit=limit)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    assert (room < memory // 2) if limit else (room > memory - 2**20)
    assert refused == 12  # ENOMEM


@pytest.mark.parametrize("theirs", [None, "", "/usr/lib/heapwatch.so", "one.so two.so", "/usr/lib/theirs.so:"])
def test_a_process_forgets_that_it_preloads_and_nothing_else(
    theirs: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    if theirs is not None:
        monkeypatch.setenv("LD_PRELOAD", theirs)
        preload.forget()
        assert os.environ["LD_PRELOAD"] == theirs
    monkeypatch.setenv("LD_PRELOAD", preload.apart()["LD_PRELOAD"])
    preload.forget()
    assert os.environ.get("LD_PRELOAD", "") == (theirs or "")


def test_a_users_own_library_and_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libresolv.so.2")
    script = """
block = take(2**20)
libc.free(block)
mapped = open("/proc/self/maps").read()
print(json.dumps([take(2**19) == block, "libresolv.so.2" in mapped]))
"""
    assert told(script) == [True, True]


@pytest.mark.parametrize("name", ["with a space", "with:colon", "with$dollar"])
def test_a_cache_whose_name_would_part_libraries(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / name))
    with pytest.raises(build.NotBuiltError, match="set FACTORY_CACHE to another folder"):
        build.heap()
    assert preload.apart() == {}
