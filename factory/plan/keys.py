"""The keys of a plan by the names that a user sets them by, where there is one."""

from factory.config.settings import Compute, Data, Hardware, Model, Source

# where the keys of a plan are set, and the schema that knows which of them are; None: all are
_SET: tuple[tuple[str, str, type | None], ...] = (
    ("options.", "", None),
    ("load.", "model.", Model),
    ("patch.", "compute.", Compute),
    ("align.sources.", "data.sources.", Source),
    ("pack.", "data.", Data),
    ("train.own.", "stage.", None),
    ("train.", "hardware.", Hardware),
)
_NAMED = ("align.sources.",)  # of which each has a name before its keys


def as_set(key: str) -> str:
    """`data.max_length` of `pack.max_length`, a key of plan.yaml without `steps.`; one that is not set as it is."""
    for start, group, kind in _SET:
        own = key.removeprefix(start)
        name = own.rpartition(".")[2] if start in _NAMED else own
        if own != key and (kind is None or name in kind.model_fields):
            return group + own
    return key
