"""A process that ends with the one that started it, however that ended: killed, it can tell nobody.

Who starts a command holds a pipe to its standard input open; what is not held any longer reads as its end.
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


def tie_worker() -> None:
    """Ends this process, one of a pool, once the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent says what stops
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed closes no queue: its workers would wait for ever."""
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
