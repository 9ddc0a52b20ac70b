"""How values are written for people."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


def size(count: float | None) -> str:
    """Bytes."""
    if count is None:
        return "-"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB".replace(".0 ", " ")


def counted(count: int, what: str) -> str:
    """`1 step`, `12 steps`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def rate(each_second: float) -> str:
    """Of few it tells two digits: none is told as 0."""
    return f"{each_second:,.0f}" if each_second >= 10 else f"{each_second:.2g}"


_UNITS = ((86_400, "{} days"), (3_600, "{} h"), (60, "{} min"))  # seconds, from twice of which on they are counted so
_Phrase = Callable[[str], str]  # says an English phrase in another language


def duration(seconds: float, phrase: _Phrase = str) -> str:
    """Seconds, to two digits."""
    length, unit = next(((length, unit) for length, unit in _UNITS if seconds >= 2 * length), (1, "{} s"))
    count = float(f"{seconds / length:.1e}")
    return phrase(unit).format(f"{count:.0f}" if count >= 10 or count == round(count) else f"{count:.1f}")


def between(low: str, high: str, phrase: _Phrase = str) -> str:
    """`30 to 50 s`: a unit that both have is said once."""
    (number, _, one), (_, _, other) = low.partition(" "), high.partition(" ")
    return phrase("{} to {}").format(number if one == other else low, high)


def config_dir_flags(folders: Iterable[str]) -> list[str]:
    """As they are typed in the working folder."""
    here = Path.cwd()
    near = (Path(folder).relative_to(here) if Path(folder).is_relative_to(here) else folder for folder in folders)
    return [f"--config-dir {shlex.quote(str(folder))}" for folder in near]


def not_shown(columns: Iterable[str]) -> str:
    return f"Not shown for want of room: {', '.join(columns)}"


def ends(places: Sequence[Path]) -> list[str] | None:
    """The shortest ends that tell the places apart, of as many parts each; None where two are the same."""
    for length in range(1, max(len(place.parts) for place in places) + 1):
        found = [str(Path(*place.parts[-length:])) for place in places]
        if len(set(found)) == len(found):
            return found
    return None


def program(name: str) -> str:
    """How the program is called from here: by its name, or through this Python where it is not on the PATH."""
    return name if shutil.which(name) else f"{os.path.relpath(sys.executable)} -m {name}"


def pasted(verb: str, folder: str | Path) -> str:
    """`factory resume FOLDER`, to be pasted into a shell, whatever the folder is called."""
    return f"{program('factory')} {verb} {shlex.quote(str(folder))}"
