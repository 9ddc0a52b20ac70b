from typing import Any

from factory.architecture import Architecture
from factory.methods.none.spec import Settings
from factory.plan import Attach


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    return model


def go_on(model: Any, path: str) -> Any:
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(model, path)
    loaded.requires_grad_(False)  # PEFT leaves IA³'s vectors to be trained
    return loaded
