"""Whether a model's files are what its config.json and the settings say: rules about what lies on the disk."""

from collections.abc import Callable, Mapping
from typing import Any

from factory.architecture.fit import other_layers, other_shape, places_of, times
from factory.methods.parts import parts_of
from factory.plan import heads
from factory.plan.rule import Case, Rule


def head_fits(name: str) -> Callable[[Case], tuple[str, str] | None]:
    """What is wrong with the file that the stage's head of this name goes on from, if there is one."""

    def wrong(case: Case) -> tuple[str, str] | None:
        found, wanted = heads.goes_on(name, case.model), case.heads[name]
        if found is None or found[1] == wanted:
            return None
        return found[0], f"its {heads.module_of(name)} is {times(found[1])}, {times(wanted)} is needed"

    return wrong


def _weights_fit(case: Case) -> str | None:
    """Tensors that the files and the config name alike have one shape; no layer is left over, no tensor is lacking.

    A quantized tensor lies in another shape, and some checkpoints name theirs as an older version of the model did.
    """
    assert case.read is not None
    there, planned = case.model.shapes, dict(case.read.tensors())
    if not there or case.model.config.get("quantization_config"):
        return None
    for name, shape in there.items():
        if planned.get(name, shape) != shape:
            return other_shape(name, shape, planned[name])
    by_ending = places_of(there, case.read)
    if (wrong := other_layers(by_ending, case.read, case.model.config)) is not None:
        return wrong
    for ending, places in by_ending.items():  # where no layer has it, the checkpoint names it as an older class did
        for index, block in enumerate(case.read.blocks):
            if ending in block.tensors and index not in places:
                return f"its files lack {case.read.layers_at}.{index}.{ending}"
    return None


def _revision_unread(case: Case) -> str | None:
    model, source = case.settings.model, case.model.source
    return f"the model is a {source}, which has none" if model.revision is not None and source != "hub" else None


def _new_tokens(case: Case) -> str | None:
    tokens = case.settings.model.new_tokens
    twice = [token for token in tokens if tokens.count(token) > 1]
    if twice or "" in tokens:
        return f"{twice[0]!r} is there twice" if twice else "a token cannot be empty"
    return None


def _rows_apart(case: Case) -> str | None:
    """Llama 3.2's vision models have rows of images in their embedding that their head does not have."""
    assert case.read is not None
    weights = (case.read.outside.get(f"{name}.weight") for name in (case.read.embedding, case.read.head))
    apart = len({shape[0] for shape in weights if shape}) > 1
    return "its embedding and its head differ in rows" if apart and case.settings.model.new_tokens else None


def _adapter_tokens(case: Case) -> str | None:
    """An adapter's new rows are of the tokens that it was trained with, in their order."""
    adapter, tokens = case.model.adapter, case.settings.model.new_tokens
    if adapter is None or not adapter.tokens:
        return None
    for place, token in enumerate(tokens, case.vocabulary.new.stop - len(tokens)):
        if adapter.tokens.get(token) != place:
            return f"{token!r} would be token {place}; of the adapter's tokenizer it is {adapter.tokens.get(token)}"
    assert case.read is not None
    known, trained = (case.model.tokens or case.read.vocabulary) + len(tokens), _trained_rows(adapter.config)
    lacking = [repr(token) for token, place in adapter.tokens.items() if place >= known and place in trained]
    return f"the adapter has trained {', '.join(lacking)} too" if lacking else None


def _trained_rows(config: Mapping[str, Any]) -> set[int]:
    """Ids of tokens whose rows an adapter replaces, of one list or of one for each module; of another form none."""
    said = config.get("trainable_token_indices")
    lists = said.values() if isinstance(said, Mapping) else [said]
    return {row for rows in lists if isinstance(rows, list) for row in rows if isinstance(row, int)}


def _parts_absent(case: Case) -> str | None:
    chosen = case.settings.method.parts
    if set(chosen) == {"language"}:
        return None
    there = parts_of(case.arch)
    absent = [part for part in chosen if part not in there]
    beside = there & set(chosen)  # else nothing trains, which another rule says
    return f"the model has no {absent[0]}" if absent and beside else None


RULES = (
    Rule("weights-fit", _weights_fit),
    Rule("revision-unread", _revision_unread),
    Rule("new-tokens", _new_tokens),
    Rule("rows-apart", _rows_apart),
    Rule("adapter-tokens", _adapter_tokens),
    Rule("parts-absent", _parts_absent),
)
