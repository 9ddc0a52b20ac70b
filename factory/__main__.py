"""The program. What the doctor examines may be what keeps the rest from being imported: then it starts without."""

import signal
import sys

from factory.tied import tie


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until a verb says otherwise it ends as Ctrl-C does
    try:
        tie()
        return _run()
    except KeyboardInterrupt:  # while the verbs were still being imported
        print("Interrupted.", file=sys.stderr)
        return 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # all is done: no traceback out of the interpreter's own end
            signal.signal(number, signal.SIG_DFL)


def _run() -> int:
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
