"""Whether a model's files are what its config.json and the settings say: rules about what lies on the disk."""

from collections.abc import Mapping
from typing import Any

from factory.architecture.fit import other_layers, other_shape, places_of, times
from factory.plan import heads
from factory.plan.rule import Broken, Case, rule


@rule(
    "weights-fit",
    keys=("model.path",),
    reason="the weights are of another model than the config.json beside them",
    fix="restore both from the model's source",
)
def weights_fit(case: Case) -> str | None:
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


@rule(
    "new-tokens",
    keys=("model.new_tokens", "model.path"),
    reason="each is one new row of the embedding",
    fix="name each new token once",
)
def new_tokens(case: Case) -> str | Broken | None:
    assert case.read is not None
    tokens = case.settings.model.new_tokens
    twice = [token for token in tokens if tokens.count(token) > 1]
    if twice or "" in tokens:
        return f"{twice[0]!r} is there twice" if twice else "a token cannot be empty"
    # Llama 3.2's vision models have rows of images in their embedding that their head does not have
    weights = (case.read.outside.get(f"{name}.weight") for name in (case.read.embedding, case.read.head))
    if tokens and len({shape[0] for shape in weights if shape}) > 1:
        reason = "new tokens need a row in both, under one number"
        return Broken(
            message="the model's embedding and its head differ in rows",
            reason=reason,
            fix="leave model.new_tokens out for this model",
        )
    return None


@rule(
    "adapter-tokens",
    keys=("model.new_tokens", "model.adapter", "model.path"),
    reason="each new row of the adapter would become another token's",
    fix="set model.new_tokens to those that the adapter was trained with, in their order",
)
def adapter_tokens(case: Case) -> str | None:
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


@rule(
    "head-fits",
    keys=("model.adapter", "model.path", "stage.name"),
    reason="a saved model to train further starts from the head in the file beside its adapter or weights",
    fix="remove that file, and the head starts from scratch",
)
def head_fits(case: Case) -> Broken | None:
    for name, wanted in case.heads.items():
        found = heads.goes_on(name, case.model)
        if found is not None and found[1] != wanted:
            wrong = f"its {heads.module_of(name)} is {times(found[1])}, {times(wanted)} is needed"
            return Broken(key=found[0], message=wrong)
        if found is None and case.settings.verb == "serve":
            return Broken(
                key="stage.name",
                message=f"{heads.file_of(name)} is neither in model.adapter nor in model.path",
                reason="a head that was not trained starts at random, and so would its scores be",
                fix="run=FOLDER of a reward model's run, or its saved model as model.adapter or model.path",
            )
    return None
