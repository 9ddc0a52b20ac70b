from typing import Any

from factory.architecture import Architecture
from factory.methods.none.spec import Settings
from factory.plan import Attach


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    return model


def go_on(model: Any, path: str) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, path)
