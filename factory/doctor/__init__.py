"""The doctor verb: the machine and the installation, a line each: ok, missing (nothing breaks) or wrong (mend it).

It examines what may be broken, so it imports nothing but the standard library until a check asks for more, and what a
check raises becomes a line of it.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Literal

Status = Literal["ok", "missing", "wrong"]
_KEYS = {"doctor.format": ("text", "json"), "doctor.imports": ("quick", "all")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """`fix` says what to do; empty where nothing is to be done. `part` is its check's."""

    part: str = ""
    name: str
    status: Status
    says: str
    fix: str = ""


Check = Callable[[], Iterable[Line]]


def main(arguments: list[str]) -> int:
    """Prints the lines. 0: nothing is wrong; 1: something is. Raises UserError for an argument that nothing reads."""
    asked = _asked(arguments)
    from factory.doctor.checks import checks

    found = examine(checks(thorough=asked["doctor.imports"] == "all"))
    print(_json(found) if asked["doctor.format"] == "json" else _text(found))
    return int(any(line.status == "wrong" for line in found))


def examine(checks: dict[str, Check]) -> list[Line]:
    """All lines of all checks. One that fails is a line too: whatever is broken, the others are still told."""
    found: list[Line] = []
    for part, check in checks.items():
        try:
            for line in check():
                found.append(replace(line, part=part))  # those before a failure are kept
        except Exception as error:
            says = f"it could not be looked at ({type(error).__name__}: {first_line(error)})"
            found.append(Line(part=part, name=part, status="wrong", says=says, fix="see the lines that are wrong"))
    return found


def first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason is given")


def _asked(arguments: list[str]) -> dict[str, str]:
    asked = {key: values[0] for key, values in _KEYS.items()}
    for word in arguments:
        key, _, value = word.partition("=")
        if value not in _KEYS.get(key, ()):
            from factory.config.refusal import refuse

            raise refuse(
                "doctor-key",
                word,
                "this verb does not read it",
                because="an answer to another question would look like one to this",
                fix="as in: factory doctor doctor.format=json doctor.imports=all",
            )
        asked[key] = value
    return asked


def _json(found: list[Line]) -> str:
    healthy = all(line.status != "wrong" for line in found)
    return json.dumps({"healthy": healthy, "lines": [asdict(line) for line in found]}, ensure_ascii=False)


_COLOURS: dict[Status, str] = {"ok": "32", "missing": "33", "wrong": "31"}


def _text(found: list[Line]) -> str:
    width, lines = max(len(line.name) for line in found), list[str]()
    for number, line in enumerate(found):
        if number == 0 or found[number - 1].part != line.part:
            lines.append(f"{line.part}")
        lines.append(f"  {_coloured(line.status):<7}  {line.name:<{width}}  {line.says}")
        lines += [f"  {'':<7}  {'':<{width}}  -> {line.fix}"] if line.fix else []
    wrong = sum(line.status == "wrong" for line in found)
    return "\n".join([*lines, f"{wrong} to mend" if wrong else "nothing to mend"])


def _coloured(status: Status) -> str:
    padded = f"{status:<7}"
    return f"\033[{_COLOURS[status]}m{padded}\033[0m" if sys.stdout.isatty() else padded
