"""A child of the doctor: imports the named modules and tells of each, as a line of JSON, whether it could.

A library that ends its process while it is imported ends this one. With torch, what it sees of the devices.
"""

import contextlib
import importlib
import io
import json
import sys
from typing import Any

from factory.doctor import first_line


def main(names: list[str]) -> None:
    for name in names:
        _tell({"name": name, "begun": True})
        error = None
        # what libraries print while they are imported is no part of what is told
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                importlib.import_module(name)
            except Exception as problem:  # whatever a broken library raises is what is asked for
                error = f"{type(problem).__name__}: {first_line(problem)}"
        found = _devices() if name == "torch" and error is None else {}
        _tell({"name": name, "error": error, **found})


def _devices() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"build": torch.version.cuda or torch.version.hip, "devices": []}
    devices = [
        {
            "name": torch.cuda.get_device_name(number),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(number))),
            "bf16": torch.cuda.get_device_capability(number) >= (8, 0),
            "free": torch.cuda.mem_get_info(number)[0],
            "total": torch.cuda.mem_get_info(number)[1],
        }
        for number in range(torch.cuda.device_count())
    ]
    return {"build": torch.version.cuda or torch.version.hip, "devices": devices}


def _tell(what: dict[str, Any]) -> None:
    sys.__stdout__.write(json.dumps(what) + "\n")  # pyright: ignore[reportOptionalMemberAccess]
    sys.__stdout__.flush()  # pyright: ignore[reportOptionalMemberAccess]


if __name__ == "__main__":
    main(sys.argv[1:])
