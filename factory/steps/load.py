"""Load: the model's config, tokenizer and processor. The weights are read once, in `attach`, when all is known."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from factory import templates
from factory.config import registry
from factory.config.parsed import json_of
from factory.config.refusal import UserError, refuse
from factory.execute.context import Run
from factory.plan.plan import Load, Plan
from factory.run.folder import base_config
from factory.steps import source
from factory.steps.vocabulary import add_tokens, tokens_of
from factory.steps.walk import multimodal

_vocabulary = partial(
    refuse,
    "vocabulary",
    because="the tokens beyond have no embedding",
    fix="use the tokenizer that belongs to the model",
)

# what the processor of a model that sees or hears is made of beside its tokenizer, as transformers names it
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_PROCESSOR_TEMPLATE = "chat_template.json"  # of models that were published before tokenizers carried it


def load(run: Run) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig

    plan, model = run.plan.steps.load, run.plan.settings.model
    torch.set_float32_matmul_precision(plan.float32_matmul)
    with source.readable(plan, allow_pickle=model.allow_pickle):
        if run.plan.export is None or run.plan.settings.export.format != "adapter":  # which is written without its base
            source.check_hub(plan, allow_pickle=model.allow_pickle)
        path = source.folder(run)
        config = AutoConfig.from_pretrained(
            _config_folder(plan, path), revision=plan.revision, trust_remote_code=model.trust_remote_code
        )
        tokenizer = read_tokenizer(path, plan.revision, model.trust_remote_code, model.template)
    check_template(run.plan, tokenizer)
    patch = run.plan.steps.patch
    add_tokens(tokenizer, model.new_tokens)
    _check_vocabulary(tokens_of(tokenizer), patch.vocabulary, patch.new_rows, run)
    more = multimodal(type(config))
    processor = read_processor(path, plan.revision) if more else {}
    if more and not processor:
        run.emit("note", text="No processor of this model was found: only its tokenizer is saved with it.")
    return {"config": config, "tokenizer": tokenizer, "processor": processor}


def check_template(plan: Plan, tokenizer: Any) -> None:
    """Of a model on the hub nobody knows before it is here whether its tokenizer has one."""
    kind = registry.spec("stages", plan.settings.stage.name).KIND
    if templates.needed(plan.verb, kind) and not tokenizer.chat_template:
        raise refuse(
            "no-chat-template",
            f"model.template={plan.settings.model.template}",
            templates.MISSING,
            because="conversations need one to become text",
            fix="name one: model.template=chatml, llama3 or alpaca",
        )


def _config_folder(plan: Load, path: str) -> str:
    """The base's, or where a saved adapter says with which config it must be read."""
    own = None if plan.adapter is None else base_config(plan.adapter)
    return str(own.parent) if own is not None and own.is_file() else path


def read_tokenizer(path: str, revision: str | None, trust_remote_code: bool, template: str) -> Any:
    from transformers import AutoTokenizer

    said = _files(path, revision, ("tokenizer_config.json",))
    if any("gguf_file" in _tree(content) for content in said.values()):  # which transformers opens, wherever it lies
        raise ValueError("its tokenizer_config.json names another file to read (gguf_file)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (UserError, OSError, ValueError):
        raise
    except BaseException as error:  # of files of another form tokenizers raises bare exceptions, and panics of Rust
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"its tokenizer cannot be read ({error or type(error).__name__})") from error
    if not isinstance(tokenizer.model_max_length, int | float):
        raise ValueError(f"its tokenizer's model_max_length is {str(tokenizer.model_max_length)[:60]!r}, not a number")
    if template != "auto":
        tokenizer.chat_template = templates.read(template)
    elif not tokenizer.chat_template and (found := _files(path, revision, (_PROCESSOR_TEMPLATE,))):
        tokenizer.chat_template = _tree(found[_PROCESSOR_TEMPLATE]).get("chat_template")
    if tokenizer.eos_token_id is None:
        raise refuse(
            "no-end-token",
            f"model.path={path}",
            "its tokenizer has no end-of-text token",
            because="documents could not be told apart and answers would never stop",
            fix="set eos_token in its tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tree(content: bytes) -> dict[str, Any]:
    found = json_of(content)
    return found if isinstance(found, dict) else {}


def read_processor(path: str, revision: str | None) -> dict[str, bytes]:
    """The processor's files by name, as the source has them: to write them again needs none of its libraries.

    Its chat template is not among them: the tokenizer's, that is trained with, is saved.
    """
    return _files(path, revision, PROCESSOR_FILES)


def _files(path: str, revision: str | None, names: Sequence[str]) -> dict[str, bytes]:
    """Those of these files that are there, in a folder or on the hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    folder = Path(path)
    if folder.is_dir():
        return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    found: dict[str, bytes] = {}
    for name in names:
        try:
            found[name] = Path(hf_hub_download(path, name, revision=revision)).read_bytes()
        except LocalEntryNotFoundError:  # not in the cache, and the hub cannot be reached
            break
        except EntryNotFoundError:
            continue
    return found


def _check_vocabulary(tokens: int, rows: int, new: tuple[int, int], run: Run) -> None:
    setting = f"model.path={run.plan.steps.load.path}"
    if tokens > rows:
        raise _vocabulary(setting, f"its tokenizer has {tokens:,} tokens, its embedding {rows:,} rows")
    if new[0] < new[1] != tokens:
        raise _vocabulary(setting, f"its tokenizer has {tokens:,} tokens, the plan was made for {new[1]:,}")
