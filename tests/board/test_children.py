"""What the page runs for an answer ends with it, even where it was killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from factory.tied import ENDS

WAITS = "import time; from factory.tied import tie; tie(); print('there', flush=True); time.sleep(60)"


@pytest.mark.parametrize(("asked", "ends"), [("1", True), ("", False)])
def test_a_command_ends_with_its_input_where_that_is_asked(asked: str, ends: bool) -> None:
    environment = {**os.environ, ENDS: asked}
    command = [sys.executable, "-c", WAITS]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == b"there\n"
        process.stdin.write(b"what is written ends nothing\n")
        process.stdin.flush()
        time.sleep(0.3)
        assert process.poll() is None
        process.stdin.close()
        if ends:
            assert process.wait(30) == -signal.SIGTERM
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
    finally:
        process.kill()
        process.wait()
