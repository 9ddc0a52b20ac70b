"""A rule as data: which keys it reads, when it fires, why, and what to do."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

from pydantic import BaseModel

from factory.architecture import Architecture, Shape, Traits, traits_of
from factory.config import registry
from factory.config.line import name_of
from factory.config.refusal import Refusal, catalogue, refusal
from factory.config.settings import OF_TRAINING, Settings
from factory.config.values import plain, to_tree
from factory.plan import heads
from factory.plan.facts import Facts, ModelFacts
from factory.plan.vocabulary import Vocabulary, grown


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a rule sees. A rule that reads model.* runs only where the model is known."""

    settings: Settings
    facts: Facts
    read: Architecture | None  # as the model's files have it
    rows: Vocabulary | None  # what its vocabulary grows to

    @property
    def known(self) -> bool:
        """Whether the model's architecture is."""
        return self.read is not None

    @cached_property
    def arch(self) -> Architecture:
        """The architecture that is trained: the vocabulary has grown, and what the stage never reaches is fixed."""
        assert self.read is not None
        arch, stage = grown(self.read, self.vocabulary), self.settings.stage
        return heads.reached(stage.name, arch)

    @cached_property
    def expanded(self) -> Architecture:
        """With the layers that the method adds."""
        return registry.expanded(self.method_spec, self.settings.method, self.arch)

    @property
    def traits(self) -> Traits:
        """What the model's class can do."""
        return self.arch.traits or traits_of(self.arch.kind)

    @property
    def vocabulary(self) -> Vocabulary:
        assert self.rows is not None
        return self.rows

    @property
    def model(self) -> ModelFacts:
        assert self.facts.model is not None
        return self.facts.model

    @property
    def stage_spec(self) -> ModuleType:
        return registry.spec("stages", self.settings.stage.name)

    @property
    def method_spec(self) -> ModuleType:
        return registry.spec("methods", self.settings.method.name)

    @property
    def trained(self) -> dict[str, Shape]:
        """The tensors that the method trains."""
        return self.method_spec.trainable(self.settings.method, self.arch)

    @property
    def heads(self) -> dict[str, Shape]:
        """Those that the stage trains beside them."""
        return heads.heads(self.settings.stage.name, self.arch)

    def asked(self, key: str) -> bool:
        """Whether somebody set the key: its default is no wish."""
        return key in map(name_of, self.settings.overrides)

    def idle(self, key: str) -> bool:
        """Whether the key says how one trains and nothing trains: a run that is measured was made with it."""
        return self.settings.verb != "train" and key in OF_TRAINING

    @property
    def device(self) -> str:
        """Where the run would train: a named card and `single_gpu` mean a GPU, `auto` what is here."""
        asked = self.settings.hardware.device
        return ("cuda" if self.facts.machine.gpus else "cpu") if asked == "auto" else asked


@dataclass(frozen=True, slots=True)
class Rule:
    """`wrong` returns what is wrong with a case, or None. Its words, and the keys that it reads, are in refusals.yaml.

    The first of `reads` is shown as what was set, unless `wrong` names another as (key, what is wrong). Of what is idle
    nothing is wrong.
    """

    id: str
    wrong: Callable[[Case], str | tuple[str, str] | None]
    gaps: Callable[[Case], dict[str, str]] | None = None  # what fills those of its words

    @property
    def reads(self) -> tuple[str, ...]:
        return catalogue()[self.id].reads

    def applies(self, case: Case) -> bool:
        """Whether the model is known, where the rule reads it."""
        return case.known or not any(key.startswith("model.") for key in self.reads)

    def check(self, case: Case) -> Refusal | None:
        found = self.wrong(case)
        if found is None:
            return None
        key, wrong = found if isinstance(found, tuple) else (self.reads[0], found)
        if case.idle(key):
            return None
        gaps = self.gaps(case) if self.gaps else {}
        return refusal(self.id, f"{key}={value_of(case.settings, key)}", wrong, **gaps)  # pyright: ignore[reportArgumentType]


def value_of(settings: Settings, path: str) -> str:
    """A key's value as a user would write it; of data.sources, their names."""
    value: object = settings
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    if isinstance(value, BaseModel):
        value = {name: each for name, each in to_tree(value).items() if each is not None}
        return f"{{{', '.join(f'{name}: {plain(each)}' for name, each in value.items())}}}"
    if isinstance(value, dict):
        return ",".join(value)
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return plain(value)
