"""The keys of a plan by the names that a user sets them by, where there is one."""

from dataclasses import fields

from factory.config import schema

# where the keys of a plan are set, and the schema that knows which of them are; None: all are
_SET: tuple[tuple[str, str, type | None], ...] = (
    ("options.", "", None),
    ("load.", "model.", schema.Model),
    ("patch.", "compute.", schema.Compute),
    ("patch.", "model.", schema.Model),
    ("quantize.", "method.quantization.", schema.Quantization),
    ("attach.settings.", "method.", None),
    ("align.sources.", "data.sources.", schema.Source),
    ("align.", "data.", schema.Data),
    ("pack.", "data.", schema.Data),
    ("pack.", "model.", schema.Model),
    ("train.own.", "stage.", None),
    ("train.ranks.", "hardware.", schema.Hardware),
    ("train.", "stage.", schema.Stage),
    ("train.", "hardware.", schema.Hardware),
)
_NAMED = ("align.sources.",)  # of which each has a name before its keys


def as_set(key: str) -> str:
    """`data.max_length` of `pack.max_length`, a key of plan.yaml without `steps.`; one that is not set as it is."""
    for start, group, kind in _SET:
        own = key.removeprefix(start)
        name = own.rpartition(".")[2] if start in _NAMED else own
        if own != key and (kind is None or name in {field.name for field in fields(kind)}):
            return group + own
    return key
