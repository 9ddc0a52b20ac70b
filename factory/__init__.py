"""Factory: fine-tuning as a plan that is compiled, refused or executed."""

import os

__version__ = "0.1.0"

# Libraries report to their makers when they are imported. Ours do not, unless the environment says so.
_TELEMETRY = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
for _name, _value in _TELEMETRY.items():
    os.environ.setdefault(_name, _value)
