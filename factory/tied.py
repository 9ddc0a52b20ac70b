"""A command that ends with the program that started it, however that ended: killed, it can tell nobody.

That program holds a pipe to the command's standard input open; what it does not hold any longer reads as its end.
Linux's PR_SET_PDEATHSIG would do it too early: it is sent when the *thread* ends that started the command.
"""

import os
import signal
import threading

ENDS = "FACTORY_ENDS_WITH_STDIN"  # the environment variable; 1: it does


def tie() -> None:
    """Ends this process as SIGTERM does once its standard input is closed, where the environment asks for it."""
    if os.environ.pop(ENDS, None) == "1":  # what this process starts is not told
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    try:
        while os.read(0, 4096):
            pass
    except OSError:  # there is none: nobody holds it
        pass
    os.kill(os.getpid(), signal.SIGTERM)
