"""The program. What the doctor examines may be what keeps the rest from being imported: then it starts without."""

import sys

from factory.tied import tie


def main() -> int:
    tie()
    try:
        from factory.cli import main as cli
    except Exception as error:  # a broken library may raise anything
        if sys.argv[1:2] == ["doctor"]:
            from factory.doctor import main as doctor

            return doctor(sys.argv[2:])
        print(f"{error}\n`python -m factory doctor` tells what is broken.", file=sys.stderr)
        return 1
    return cli()


if __name__ == "__main__":
    raise SystemExit(main())
