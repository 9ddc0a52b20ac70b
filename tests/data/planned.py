"""Planned sources and packs with everything that a test does not care about, and encoders of the tiny tokenizer."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tiny

from factory.data import read
from factory.data.encoding import EncoderSpec, spec_of
from factory.data.record import Kind
from factory.plan.plan import Align, Pack, PlannedSource


def planned(**changes: Any) -> PlannedSource:
    values: dict[str, Any] = {
        "origin": "file",
        "path": "rows.jsonl",
        "subset": None,
        "split": "train",
        "revision": None,
        "format": "alpaca",
        "columns": {},
        "tags": {},
        "folder": None,
        "max_samples": None,
        "weight": 1.0,
        "bytes": 0,
        "sha256": None,
    }
    return PlannedSource(**{**values, **changes})


def align(sources: dict[str, PlannedSource], **changes: Any) -> Align:
    values: dict[str, Any] = {
        "sources": sources,
        "mixing": "concat",
        "max_samples": None,
        "validation": None,
        "validation_fraction": 0.0,
        "validation_rows": 200,
        "streaming": False,
        "shuffle_buffer": 1000,
    }
    return Align(**{**values, **changes})


def pack(**changes: Any) -> Pack:
    values: dict[str, Any] = {
        "template": "auto",
        "max_length": 64,
        "truncation": "drop",
        "packing": False,
        "isolate_documents": False,
        "padding_free": False,
        "train_on_prompt": False,
        "mask_history": False,
        "reasoning": "template",
        "tools": "auto",
        "frames": None,
    }
    return Pack(**{**values, **changes})


def spec(kind: Kind = "messages", **changes: Any) -> EncoderSpec:
    return spec_of(tiny.tokenizer(), pack(**changes), kind)


def questions(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Short alpaca rows, each another."""
    return [
        {"instruction": f"Count to {number}.", "output": f"It is {number}" + " and so on" * (number % 4) + "."}
        for number in range(first, first + count)
    ]


def written(path: Path, rows: Iterable[dict[str, Any]], **changes: Any) -> PlannedSource:
    """The rows as a jsonl file, and the source that reads it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return planned(path=str(path), sha256=read.digest(path), **changes)
