"""Reference: the log-probabilities that the model gives before its first step, for losses that measure its change.

The model as it stands before training is the reference: the base, or the base with the saved adapter that the run goes
on from, or all weights before full tuning. So no second copy of weights is held, and each row is seen once.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any
from zipfile import BadZipFile

import numpy as np

from factory.config.refusal import refuse
from factory.data import batches
from factory.data.dataset import IGNORED, OF_ANSWERS, TRAINED_AT
from factory.execute.context import Run
from factory.run.folder import unwritable
from factory.steps.feed import autocast, collating, feed, total_steps
from factory.steps.kernels import multiplying_as_trained
from factory.steps.pack import Dataset

_KEY_BYTES = 16
# all else is of images
_OF_TEXT = ("input_ids", "labels", TRAINED_AT, OF_ANSWERS, "position_ids", "weights", "desirable")
_OF_ROWS = (*batches.JOINED, batches.STARTS, batches.LENGTHS, *batches.FLASH)


@dataclass(slots=True)
class Reference:
    """Sums of the log-probabilities of rows' trained tokens, by what the rows are."""

    sums: dict[bytes, float] = field(default_factory=dict)

    def of(self, batch: dict[str, Any]) -> Any:
        """The batch's rows in their order: (rows), float32."""
        import torch

        found = [self.sums[key] for key in keys_of(batch)]
        return torch.tensor(found, dtype=torch.float32, device=batch["input_ids"].device)


def reference(run: Run, model: Any, dataset: Dataset) -> dict[str, Any]:
    """None where the stage's loss reads none."""
    if run.plan.steps.train.reference is None:
        return {"reference": None}
    found = Reference(kept(run) if run.resume_from is not None else {})
    if not found.sums:
        run.emit("note", text="measuring the reference …")
        _measure(run, model, dataset, found)
        if run.world.leads:
            _keep(run, found)
    return {"reference": found}


def is_bare_base(run: Run) -> bool:
    """Whether the reference is what the model is with its adapters off."""
    from factory.rollouts import roles

    return run.plan.steps.train.reference == "base" and not roles.starts_off_the_base(run)


def _measure(run: Run, model: Any, dataset: Dataset, found: Reference) -> None:
    import torch

    from factory.losses import sequence_log_probs
    from factory.rollouts import roles

    total = total_steps(run.plan, dataset)
    base = roles.reference(model) if is_bare_base(run) else nullcontext()  # adapters that add nothing yet take time
    multiplying_as_trained(model)
    with torch.no_grad(), autocast(run.plan), base:
        for done, batch in _batches(run, dataset, total):
            run.stop_if_asked()
            keys = keys_of(batch)
            if run.world.any(not found.sums.keys() >= set(keys)):  # ranks call the model together
                parts = [run.way.call(partial(sequence_log_probs, model, part))[0] for part in batches.halves(batch)]
                found.sums |= zip(keys, torch.cat(parts).tolist(), strict=True)
            run.progress("reference", min(done, total), total)
    for other in run.world.gathered(found.sums):
        found.sums |= other


def _batches(run: Run, dataset: Dataset, total: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every batch that this rank will train, and its share of those that are held out, with the steps done."""
    with batches.Prefetcher(feed(run, dataset, 0, total)) as steps:
        for number, step in enumerate(steps, start=1):
            for batch in step.batches:
                yield number, batch
    collate = collating(run, dataset, padding_free=run.plan.steps.pack.padding_free)
    size = run.plan.settings.evaluate.batch_size
    starts, _ = run.world.share(range(0, len(dataset.validation), size))
    for start in starts:
        numbers = range(start, min(start + size, len(dataset.validation)))
        yield total, collate([dataset.validation[number] for number in numbers])


def keys_of(batch: dict[str, Any]) -> list[bytes]:
    """What a row is, whatever it is padded with: its tokens up to the last trained one, and which of them are.

    Which images are which row's, only the model knows: such rows are known by all images of their batch, and by their
    place in it.
    """
    ids, labels = batch["input_ids"].cpu().numpy(), batch["labels"].cpu().numpy()
    images = [batch[name].cpu().numpy().tobytes() for name in sorted(batch) if not _of_text(name)]
    seen = blake2b(b"".join(images), digest_size=_KEY_BYTES).digest() if images else b""
    keys = []
    for number, (row, wanted) in enumerate(zip(ids, labels, strict=True)):
        end = int(np.flatnonzero(wanted != IGNORED)[-1]) + 1
        place = seen + number.to_bytes(8, "little") if seen else b""
        what = row[:end].tobytes() + wanted[:end].tobytes() + place
        keys.append(blake2b(what, digest_size=_KEY_BYTES).digest())
    return keys


def _of_text(name: str) -> bool:
    return name in _OF_TEXT or name.removeprefix(batches.MISMATCHED) in _OF_ROWS


def kept(run: Run) -> dict[bytes, float]:
    """What the run, or the one that it resumes, measured: the model is no longer there once it was trained."""
    if not run.folder.reference.is_file():
        return {}
    try:
        with np.load(run.folder.reference, allow_pickle=False) as found:
            keys, sums = found["keys"].tobytes(), found["sums"].tolist()
    except (ValueError, KeyError, EOFError, BadZipFile) as error:
        wrong = f"it cannot be read ({error})"
        raise refuse(
            "no-checkpoint",
            f"path={run.folder.reference}",
            wrong,
            because="a run cannot be continued from half a state",
            fix="name a folder as outputs/…/checkpoints/step-000020, or set stage.resume=auto",
        ) from None
    cut = range(0, len(keys), _KEY_BYTES)
    return {keys[at : at + _KEY_BYTES]: value for at, value in zip(cut, sums, strict=True)}


def _keep(run: Run, found: Reference) -> None:
    path = run.folder.reference
    aside = path.with_name(f".{path.name}")
    try:
        keys = np.frombuffer(b"".join(found.sums), np.uint8)
        with aside.open("wb") as file:
            np.savez(file, keys=keys, sums=np.array(list(found.sums.values())))
        aside.rename(path)
    except OSError as error:
        raise unwritable(path, error) from None
