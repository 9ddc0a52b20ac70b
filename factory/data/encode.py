"""Records to token ids with labels: the trained tokens are known from the rendering, never searched for."""

from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from factory.data.formats import BadRow, Message, Record
from factory.plan import Pack
from factory.refusal import refuse

IGNORED = -100  # a label that is not trained, as torch's cross entropy has it
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence. `documents` are the lengths of what is packed, where they must not see each other."""

    ids: list[int]
    labels: list[int]
    documents: tuple[int, ...] = ()

    @property
    def trained(self) -> int:
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(slots=True)
class Encoded:
    """Examples with what became of the rows; `answers` are the first trained texts, for the proof of the loss mask."""

    examples: list[Example] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    answers: list[str] = field(default_factory=list)

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1


def text(records: list[Record], tokenizer: Any, pack: Pack) -> Encoded:
    """Plain documents, each closed by the end-of-text token. Packed ones are cut into full sequences, tails kept."""
    encoded = Encoded()
    documents: list[list[int]] = []
    texts = [record.response[0]["content"] for record in records]
    for ids in tokenizer(texts)["input_ids"] if texts else ():
        ids = [*ids, tokenizer.eos_token_id]
        if pack.packing or _fits(ids, pack, encoded):
            documents.append(ids)
            encoded.rows += 1
    if not pack.packing:
        encoded.examples = [Example(ids, list(ids)) for ids in documents]
    else:
        encoded.examples = _cut(documents, pack)
    return encoded


def _cut(documents: list[list[int]], pack: Pack) -> list[Example]:
    """Concatenates the documents and cuts every `max_length` tokens; the last sequence is as long as what is left."""
    examples, ids, lengths = [], list[int](), list[int]()

    def close() -> None:
        labels, documents = list(ids), tuple(lengths) if pack.isolate_documents else ()
        for start in accumulate((0, *documents[:-1])) if documents else ():
            labels[start] = IGNORED  # predicted by nothing of its own document
        examples.append(Example(list(ids), labels, documents))
        ids.clear()
        lengths.clear()

    for document in documents:
        start = 0
        while start < len(document):
            part = document[start : start + pack.max_length - len(ids)]
            ids += part
            lengths.append(len(part))
            start += len(part)
            if len(ids) == pack.max_length:
                close()
    if len(ids) > 1:  # one token alone predicts nothing
        close()
    return examples


def chat(records: list[Record], tokenizer: Any, pack: Pack) -> Encoded:
    """Conversations through the chat template; loss on the assistant's tokens and its end of turn."""
    encoded = Encoded()
    conversations: list[tuple[str, list[Span]]] = []
    for record in records:
        try:
            conversations.append(render([*record.prompt, *record.response], tokenizer, pack))
        except BadRow as error:
            encoded.drop(str(error))
    if not conversations:
        return encoded
    _needs_offsets(tokenizer)
    # not tokenizer(..., truncation=True): nothing is cut behind the user's back
    tokens = tokenizer([text for text, _ in conversations], add_special_tokens=False, return_offsets_mapping=True)
    for (text, spans), ids, offsets in zip(conversations, tokens["input_ids"], tokens["offset_mapping"], strict=True):
        if any(first < start < last for start, _ in spans for first, last in offsets):
            ids, offsets = _by_pieces(text, [start for start, _ in spans], tokenizer)
        labels = list(ids) if pack.train_on_prompt else _labels(ids, offsets, spans)
        if not _fits(ids, pack, encoded):
            continue
        if all(label == IGNORED for label in labels[1:]):
            encoded.drop("no trained token")
            continue
        encoded.rows += 1
        encoded.examples.append(Example(list(ids), labels))
        encoded.answers.append("".join(text[start:end] for start, end in spans))
    if pack.packing:
        encoded.examples = _best_fit(encoded.examples, pack)
    return encoded


def render(messages: list[Message], tokenizer: Any, pack: Pack) -> tuple[str, list[Span]]:
    """The conversation as text, with the stretches that are trained: each answer with its end-of-turn token.

    Raises BadRow where the template does not render a conversation as an extension of its beginning.
    """
    whole = rendered(tokenizer, messages)
    spans: list[Span] = []
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    for number in turns[-1:] if pack.mask_history else turns:
        before = rendered(tokenizer, messages[:number], add_generation_prompt=True)
        through = whole if number == len(messages) - 1 else rendered(tokenizer, messages[: number + 1])
        if not through.startswith(before) or not whole.startswith(through):
            raise BadRow("the chat template renders a turn differently in its context")
        spans.append((len(before), _end_of_turn(through, len(before), tokenizer.eos_token)))
    return whole, spans


def rendered(tokenizer: Any, messages: list[Message], **options: bool) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except TemplateError as error:
        raise BadRow(f"the chat template refuses it: {error}") from None


def _end_of_turn(text: str, start: int, eos: str) -> int:
    """The end of the answer: after its end-of-turn token; what the template puts between turns is not the answer's."""
    found = text.rfind(eos, start)
    if found >= 0 and not text[found + len(eos) :].strip():
        return found + len(eos)
    return start + len(text[start:].rstrip())


def _by_pieces(text: str, starts: list[int], tokenizer: Any) -> tuple[list[int], list[Span]]:
    """Tokenized anew after each header: an answer's first characters may not melt into a token with it.

    So it is when the model answers, where the header is given as it stands.
    """
    ids, offsets = list[int](), list[Span]()
    for start, end in pairwise([0, *starts, len(text)]):
        piece = tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True)
        ids += piece["input_ids"]
        offsets += [(first + start, last + start) for first, last in piece["offset_mapping"]]
    return ids, offsets


def _labels(ids: list[int], offsets: list[Span], spans: list[Span]) -> list[int]:
    return [
        token if any(start <= first and last <= end and first < last for start, end in spans) else IGNORED
        for token, (first, last) in zip(ids, offsets, strict=True)
    ]


def _fits(ids: list[int], pack: Pack, encoded: Encoded) -> bool:
    if len(ids) <= pack.max_length:
        return True
    if pack.truncation == "error":
        raise refuse("row-too-long", f"data.max_length={pack.max_length}", f"a row has {len(ids):,} tokens")
    encoded.drop("longer than max_length")
    return False


def _best_fit(examples: list[Example], pack: Pack) -> list[Example]:
    """Best-fit decreasing: each example goes where it leaves the least room."""
    from bisect import bisect_left, insort

    bins: list[list[Example]] = []
    room: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for example in sorted(examples, key=lambda example: -len(example.ids)):
        at = bisect_left(room, (len(example.ids), -1))
        left, number = room.pop(at) if at < len(room) else (pack.max_length, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(example)
        insort(room, (left - len(example.ids), number))
    return [_joined(members, pack) for members in bins]


def _joined(members: list[Example], pack: Pack) -> Example:
    ids = [token for member in members for token in member.ids]
    # a document's first token is predicted by nothing of its own
    labels = [label if position else IGNORED for member in members for position, label in enumerate(member.labels)]
    return Example(ids, labels, tuple(len(member.ids) for member in members) if pack.isolate_documents else ())


def _needs_offsets(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise refuse("slow-tokenizer", "model.path", "its tokenizer does not tell where in the text a token is")
