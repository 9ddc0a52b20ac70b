"""The processes of a run, and what they tell each other: small values over gloo, whatever the device.

torchrun's words: a rank is a process by its number, the world is all of them, the local rank its number on its node.
Every call below but the properties is made by all ranks, at the same place.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from factory.config.settings import Hardware

Item = TypeVar("Item")
# what torchrun gives its processes; Slurm and Ray set-ups give the same
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(days=1)  # others may prepare data or write weights meanwhile; a rank that is gone is seen at once
WATCHDOG = "watchdog caught collective operation timeout"  # NCCL, mostly in the log alone
_LATE = ("timed out", WATCHDOG)  # gloo and torch's store first
_GONE = ("connection closed by peer", "connection reset by peer", "connection refused", "broken pipe", "pair closure")


class Followed(Exception):
    """Another rank failed or was stopped in what it did for all; it tells of it itself."""


@dataclass(slots=True)
class World:
    """One process, or one of several. `join` makes the connection."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    _group: Any = None
    _prompt: Any = None  # the same ranks, who do not wait long
    _long: bool = True
    _apart: bool = False  # within `node_leader_first`

    @property
    def follows(self) -> bool:
        """Whether it reads what its node's first rank has made: to end here is to leave the others alone."""
        return self._apart and self.local_rank > 0

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes the run's files."""
        return self.rank == 0

    def join(self, device: str, hardware: Hardware) -> None:
        """One process alone joins too where it has a strategy, whose library asks for a group."""
        if hardware.strategy == "none" or self._group is not None:
            return
        import torch
        import torch.distributed as dist

        if device == "cuda":
            own = self.local_rank % torch.cuda.device_count()  # each may be shown its own card alone
            torch.cuda.set_device(own)
            os.environ["LOCAL_RANK"] = str(own)  # transformers and DeepSpeed take it for the number of the card
        most = timedelta(seconds=hardware.rank_timeout)
        alone: dict[str, Any] = {}  # a launcher tells the others where they meet
        if self.size == 1:
            alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1}  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=most, **alone)
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._prompt = dist.new_group(backend="gloo", timeout=most)

    def leave(self) -> None:
        """At an orderly end, which all ranks reach together unless one has failed."""
        if self._group is None:
            return
        import torch.distributed as dist

        try:
            self.wait()
        except RuntimeError as error:
            if not lost_another(error):
                raise
            return
        dist.destroy_process_group()
        self._group = self._prompt = None

    def sums(self, *values: float) -> tuple[float, ...]:
        """Of each value the sum over the ranks, in float64."""
        return self._reduced(values, "SUM")

    def most(self, value: int) -> int:
        return int(self._reduced((value,), "MAX")[0])

    def any(self, flag: bool) -> bool:
        return bool(self._reduced((float(flag),), "MAX")[0])

    def wait(self) -> None:
        self._reduced((0.0,), "SUM")

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, by rank; values of plain types."""
        if self._group is None:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._talk)
        return found

    def leaders(self, value: Item) -> Item:
        """Rank 0's value."""
        return self.gathered(value)[0]

    def share(self, items: Sequence[Item]) -> tuple[list[Item], int]:
        """Every size-th of the items, and how many of them are only there for company.

        Ranks that split weights must call the model equally often: who has an item less gets the first once more, and
        counts it for nothing.
        """
        if self.size == 1:
            return list(items), 0
        own = list(items[self.rank :: self.size])
        idle = -(-len(items) // self.size) - len(own)
        return own + list(items[:1]) * idle, idle

    @contextmanager
    def waiting(self, *, long: bool) -> Iterator[None]:
        """How long ranks wait for each other in the body: long where one may have work of its own.

        Where all do alike, one that does not come within the limit hangs.
        """
        before, self._long = self._long, long
        try:
            yield
        finally:
            self._long = before

    @property
    def _talk(self) -> Any:
        return self._group if self._long else self._prompt

    @contextmanager
    def node_leader_first(self) -> Iterator[None]:
        """The body runs on each node's first rank, and on the others once it is done: what it caches is made once."""
        if self._group is None:
            yield
            return
        leads = self.local_rank == 0
        if not leads and self.any(False):
            raise Followed
        self._apart, failed = True, True
        try:
            yield
            failed = False
        finally:
            self._apart = False
            if leads and self.any(failed) and not failed:
                raise Followed

    def _reduced(self, values: Sequence[float], how: str) -> tuple[float, ...]:
        if self._group is None or self._apart:
            return tuple(values)
        import torch
        import torch.distributed as dist

        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, op=getattr(dist.ReduceOp, how), group=self._talk)
        return tuple(found.tolist())


def from_environment() -> World:
    """As the launcher says; one process where none says anything."""
    if not launched():
        return World()
    rank, size, local = (int(os.environ[name]) for name in VARIABLES[:3])
    return World(rank=rank, size=size, local_rank=local)


def launched() -> bool:
    """Whether a launcher has started this process as one of its ranks."""
    return all(name in os.environ for name in VARIABLES)


def lost_another(error: BaseException | str) -> bool:
    """Whether an error only says that another rank is gone, or did not come."""
    return late(error) or any(sign in str(error).lower() for sign in _GONE)


def late(error: BaseException | str) -> bool:
    """Whether an error says that another rank did not come in time."""
    return any(sign in str(error).lower() for sign in _LATE)
