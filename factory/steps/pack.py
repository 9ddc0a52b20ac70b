"""Pack: records to the sequences that are trained, with the count of every row and token."""

from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

from factory import registry
from factory.data.encode import IGNORED, Encoded, Example
from factory.execute.context import Run
from factory.refusal import refuse
from factory.steps.align import Records

_PROVEN_ROWS = 50


@dataclass(frozen=True, slots=True)
class Dataset:
    """`counts` is the report's `data`; `prompts` are of held-out rows: what a person reads, and its ids."""

    train: list[Example]
    validation: list[Example]
    prompts: list[tuple[str, list[int]]]
    pad: int
    stops: list[int]  # tokens that end an answer: the end of text, and the template's end of turn
    counts: dict[str, Any]


def pack(run: Run, records: Records, tokenizer: Any) -> dict[str, Any]:
    plan, stage = run.plan.steps.pack, registry.run("stages", run.plan.steps.train.stage)
    train: Encoded = stage.examples(records.train, tokenizer, plan)
    validation: Encoded = stage.examples(records.validation, tokenizer, plan)
    dropped = dict(records.dropped)
    for encoded in (train, validation):
        for reason, count in encoded.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    if not train.examples:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in dropped.items())
        raise refuse("nothing-to-train", "data", f"no row is left of {records.rows:,}", reasons=reasons)
    tokens = sum(len(example.ids) for example in train.examples)
    full = len(train.examples) * plan.max_length
    counts: dict[str, Any] = {
        "rows": records.rows,
        "used": train.rows,
        "validation": validation.rows,
        "not_sampled": records.not_sampled,
        "dropped": dropped,
        "truncated": 0,
        "tokens": tokens,
        "trained_tokens": sum(example.trained for example in train.examples),
        "packing_efficiency": round(tokens / full, 4) if plan.packing else None,
    }
    _prove(run, train, tokenizer, counts)
    count = run.plan.steps.evaluate.samples
    return {
        "dataset": Dataset(
            train=train.examples,
            validation=validation.examples,
            prompts=stage.prompts(records.validation[:count], tokenizer, plan),
            pad=tokenizer.pad_token_id,
            stops=_stops(train.examples[0], tokenizer),
            counts=counts,
        )
    }


def _stops(example: Example, tokenizer: Any) -> list[int]:
    """An answer's last trained token ends it where it is a special one, or a whole word of the template's."""
    last = next((label for label in reversed(example.labels) if label != IGNORED), tokenizer.eos_token_id)
    special = last in tokenizer.all_special_ids or last in tokenizer.added_tokens_decoder
    return sorted({tokenizer.eos_token_id, *([last] if special else [])})


def _prove(run: Run, train: Encoded, tokenizer: Any, counts: dict[str, Any]) -> None:
    total = counts["used"] + counts["validation"] + counts["not_sampled"] + sum(counts["dropped"].values())
    run.check("rows_accounted", total == counts["rows"], f"{total:,} of {counts['rows']:,} rows")
    plan = run.plan.steps.pack
    if not train.answers or plan.packing or plan.train_on_prompt:
        return
    pairs = list(zip(train.examples, train.answers, strict=True))[:_PROVEN_ROWS]
    wrong = sum(_trained_text(example, tokenizer) != normalize("NFC", answer) for example, answer in pairs)
    run.check(
        "loss_mask",
        wrong == 0,
        f"in {len(pairs) - wrong} of {len(pairs)} rows the trained tokens spell exactly the answer",
    )


def _trained_text(example: Example, tokenizer: Any) -> str:
    ids = [label for label in example.labels if label != IGNORED]
    # some tokenizers compose accents before they split: the same text in another spelling
    return normalize("NFC", tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
