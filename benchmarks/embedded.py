"""The embedded model as a folder, which other systems and raw loops can read too."""

import subprocess
import sys
import tempfile
from pathlib import Path

from factory import cache

_SHORT = (
    "hardware=cpu tracking=none method=lora stage.max_steps=1 stage.save_steps=null "
    "evaluate.samples=0 evaluate.perplexity=false"
)


def embedded_model() -> Path:
    """What Factory's first run converts it into, by a run of one step where there was none yet."""
    folder = cache.folder() / "SmolLM2-135M-Instruct.Q4_1"
    if not (folder / "config.json").is_file():
        with tempfile.TemporaryDirectory() as run:
            command = [sys.executable, "-m", "factory", *_SHORT.split(), f"hydra.run.dir={run}/run"]
            subprocess.run(command, check=True, stdout=sys.stderr)
    return folder
