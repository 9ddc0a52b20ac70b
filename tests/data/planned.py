"""Planned sources and packs with everything that a test does not care about, and encoders of the tiny tokenizer."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tiny

from factory.config.settings import Data, Source
from factory.data import read
from factory.data.encoding import EncoderSpec, Encoding, spec_of
from factory.data.record import Kind
from factory.plan.plan import DataSource


def planned(**changes: Any) -> DataSource:
    asked: dict[str, Any] = {
        "origin": "file",
        "subset": None,
        "split": "train",
        "revision": None,
        "columns": {},
        "tags": {},
        "folder": None,
        "max_samples": None,
        "weight": 1.0,
    }
    found: dict[str, Any] = {"path": "rows.jsonl", "format": "alpaca", "bytes": 0, "sha256": None}
    own = {name: value for name, value in changes.items() if name in asked}
    found |= {name: value for name, value in changes.items() if name not in asked}
    return DataSource(**found, asked=Source.model_construct(**{**asked, **own}))


def settings(sources: dict[str, DataSource], **changes: Any) -> Data:
    values: dict[str, Any] = {
        "mixing": "concat",
        "max_samples": None,
        "validation": None,
        "validation_fraction": 0.0,
        "streaming": False,
        "shuffle_buffer": 1000,
    }
    asked = {name: source.asked for name, source in sources.items()}
    return Data.model_construct(sources=asked, **{**values, **changes})


def pack(**changes: Any) -> Encoding:
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
        "videos": False,
    }
    return Encoding(**{**values, **changes})


def spec(kind: Kind = "messages", **changes: Any) -> EncoderSpec:
    return spec_of(tiny.tokenizer(), pack(**changes), kind)


def questions(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Short alpaca rows, each another."""
    return [
        {"instruction": f"Count to {number}.", "output": f"It is {number}" + " and so on" * (number % 4) + "."}
        for number in range(first, first + count)
    ]


def written(path: Path, rows: Iterable[dict[str, Any]], **changes: Any) -> DataSource:
    """The rows as a jsonl file, and the source that reads it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return planned(path=str(path), sha256=read.digest(path), **changes)
