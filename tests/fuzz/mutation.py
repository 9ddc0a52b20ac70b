"""Bytes and trees, changed by chance."""

import copy
import json
import random
from itertools import pairwise
from typing import Any

PIECES = [bytes([byte]) for byte in b'[]{}"\\,:-3\n\r\t \x00\x1c\xff\xc3']
PIECES += [
    b"\xef\xbb\xbf",
    b"\\ud800",
    b"null",
    b"NaN",
    b"true",
    b"1" * 4400,
    b"[" * 2000,
    b'{"a":' * 200,
    b"[]",
    b"{}",
]
CODE = "__import__('os').system('touch fuzz_canary')"
_LAUGHS = pairwise([b"", *(f"l{level}".encode() for level in range(9))])  # a billion of them, in a few lines
YAML_PIECES = [
    b"!!python/object/apply:os.system ['touch fuzz_canary']",
    b"!!python/name:os.system",
    b"!!python/module:fuzz_canary",
    b"!!binary ====",
    b"!!timestamp x",
    b"2001-99-99",
    b"2001-12-14t21:59:43.10-99:99",
    b"!!int ''",
    b"!!float x",
    b"!!set {a, b}",
    b"!!omap [a: 1]",
    b"&a [*a]",
    b"".join(b"\n%s: &%s [%s]" % (b, b, b",".join([b"*" + a if a else b"x"] * 9)) for a, b in _LAUGHS) + b"\n",
    b"*a",
    b"? [a, b]\n: c\n",
    b"<<: x\n",
    b"<<: *a\n",
    b"- ",
    b": ",
    b"\n  ",
    b"---\n",
    b"%YAML 9.9\n---\n",
    b"0x" + b"f" * 5000,
    b"1:" * 300 + b"1",
    b".inf",
    b"${oc.env:HOME}",
    b"${x.y}",
    b"${" * 50,
    b"_target_: os.system",
]


def _nested(depth: int, wide: bool) -> Any:
    tree: Any = 1
    for _ in range(depth):
        tree = {"a": tree} if wide else [tree]
    return tree


EXTREMES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400),
    *(0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "\n", "\0", "\ud800", "a" * 5000, "é" * 99, "null", "true", "1e3", "-1", "auto", "none", "[1,2]"),
    *(
        "../../x",
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/mem",
        "~nobody/x",
        "file:///etc/passwd",
        "http://127.0.0.1:9/x",
    ),
    *("a/b", "-", ".", "..", "package:../../x", "x:y", "fuzz_canary:run", "fuzz_canary", "data:,x", CODE),
    *("${oc.env:HOME}", "${a}", "{{7*7}}", "{}", "{0}", "{x}", "%s", "$(touch fuzz_canary)", "`touch fuzz_canary`"),
    *([], {}, [[]], [None], {"": None}, [0] * 1000, ["a", 1, None], {"a": {"b": [1]}}, _nested(60, False)),
    *(_nested(60, True), {"__class__": "os.system"}, {"_target_": "os.system"}),
]
Place = tuple[Any, Any]  # a container, and the key or index in it


def changed(content: bytes, chance: random.Random, pieces: list[bytes] = PIECES) -> bytes:
    """Bits flipped, bytes cut off, put in, doubled or taken out."""
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        start = chance.randrange(len(found) + 1)
        end = min(len(found), start + chance.choice((1, 1, 2, 5, 40)))
        match chance.randrange(6):
            case 0 if start < len(found):
                found[start] ^= 1 << chance.randrange(8)
            case 1 if chance.random() < 0.5:
                del found[start:]
            case 2:
                found[start:start] = chance.randbytes(2)
            case 3:
                found[start:start] = found[start:end]
            case 4:
                found[start:start] = chance.choice(pieces)
            case _:
                del found[start:end]
    return bytes(found)


def twisted(tree: Any, chance: random.Random) -> Any:
    """A copy of the tree of plain values, with some of its values, keys or branches changed."""
    whole = {"": copy.deepcopy(tree)}
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        holder, at = chance.choice(_places(whole))
        match chance.randrange(9):
            case 0 | 1 | 2 | 3:
                holder[at] = copy.deepcopy(chance.choice(EXTREMES))
            case 4 | 5:
                holder[at] = _near(holder[at], chance)
            case 6:
                holder[at] = copy.deepcopy(_value(chance.choice(_places(whole))))
            case 7 if holder is not whole:
                del holder[at]
            case _ if isinstance(holder, dict) and holder is not whole:
                holder[str(chance.choice(EXTREMES))[:60]] = copy.deepcopy(holder[at])
            case _:
                holder[at] = [holder[at], holder[at]]
    return whole[""]


def _value(place: Place) -> Any:
    return place[0][place[1]]


def _places(tree: Any) -> list[Place]:
    found, left = list[Place](), [tree]
    while left:
        holder = left.pop()
        for at in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, at))
            if isinstance(holder[at], dict | list):
                left.append(holder[at])
    return found


def _near(value: Any, chance: random.Random) -> Any:
    """Another value of the type that is wanted there, or the same one in another type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        third = value / 3 if abs(value) < 2**64 else 3
        return chance.choice((-value, value + 1, value - 1, value * 1000, third, str(value), [value], 10**9, 0))
    if isinstance(value, str):
        return chance.choice((value + "x", value[:-1], value * 50, [value], {value: value}, value.upper(), "x" + value))
    if isinstance(value, list):
        return chance.choice((value * 2, value[:1], value[::-1], {str(at): each for at, each in enumerate(value)}))
    if isinstance(value, dict):
        return chance.choice((list(value), list(value.values()), str(value)[:200]))
    return chance.choice(EXTREMES)


def as_json(tree: Any, chance: random.Random) -> bytes:
    """The tree as JSON, broken once in a while."""
    content = json.dumps(tree, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    return changed(content, chance) if chance.random() < 0.15 else content
