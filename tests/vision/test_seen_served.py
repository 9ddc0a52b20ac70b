"""Images of requests before models that see: what they answer follows from what they see."""

import base64
import contextlib
import io
from pathlib import Path
from typing import Any

import openai
import pytest
import seers
import sights
import torch
from safetensors.torch import save_file
from serving import TINY, room_of, serving
from test_seen import pack
from transformers import AutoConfig

from factory.inference.embedded import Embedded, Model, Numbers
from factory.inference.prompts import Conversation, Prompts
from factory.inference.types import Request, Sampling, Token
from factory.inference.vllm_engine import Vllm
from factory.plan import heads
from factory.stages.rm.spec import SCORE


def picture(color: str = "red", size: tuple[int, int] = (12, 12)) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_a_model_that_sees_answers_by_what_it_sees(kind: str, tmp_path: Path) -> None:
    """As it does alone, where the tokens and pixels are those of the data worker; and another image, another answer."""
    room, settings = room_of("serve", f"model.path={seers.save(kind, tmp_path / kind)}", "serve.name=eye", *TINY)

    def messages(url: str) -> list[Any]:
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What <image> is it?"}]
        return [{"role": "user", "content": parts}]

    with serving(room, settings) as found:
        client = found.client()
        logs = [
            client.chat.completions.create(
                model="eye", messages=messages(picture(color)), max_tokens=4, logprobs=True, top_logprobs=0
            )
            for color in ("red", "blue", "red")
        ]
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="eye", messages=messages("data:image/png;base64,AAAA"))
    first, other, again = ([each.logprob for each in log.choices[0].logprobs.content] for log in logs)
    assert first == pytest.approx(again, abs=1e-5) and first != pytest.approx(other, abs=1e-7)
    asked = Conversation(
        messages=({"role": "user", "content": "<image>What <image> is it?"},),
        images=(picture(),),
        places=frozenset({(0, 0)}),
    )
    ids = room.prompts.chat(asked)
    model = room.engine.model.inner  # type: ignore[attr-defined]
    inputs = room.prompts.inputs(ids, asked.images)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), **inputs).logits[0, -1].log_softmax(-1)
    assert first[0] == pytest.approx(float(logits.max()), abs=1e-4)
    room.engine.stop(0)


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_a_score_is_of_what_is_seen(kind: str, tmp_path: Path) -> None:
    """Another image gives another score, one that is none is refused."""
    base = seers.save(kind, tmp_path / kind)
    width = AutoConfig.from_pretrained(base).get_text_config().hidden_size
    save_file({"weight": torch.randn(1, width)}, base / heads.file_of(SCORE))
    room, settings = room_of("serve", f"model.path={base}", "stage=rm", "serve.name=eye", *TINY)

    def scored(*urls: str) -> Any:
        parts = [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": "What?"}]
        said = [{"role": "user", "content": parts}, {"role": "assistant", "content": "It is one."}]
        return http.post("/v1/score", json={"model": "eye", "messages": said})

    with serving(room, settings) as found, found.http() as http:
        shown = ([picture("red")], [picture("blue")], [picture("red")], [])
        red, blue, again, none = (scored(*urls).json()["data"][0]["score"] for urls in shown)
        assert red == again and abs(red - blue) > 1e-6 and none not in (red, blue)
        broken = scored("data:image/png;base64,AAAA")
        assert broken.status_code == 400 and broken.json()["error"]["param"] == "messages"
    room.engine.stop(0)


def alone(folder: Path, room: Any, conversation: Conversation, most: int) -> list[float]:
    """The log-probabilities of what transformers' own generate writes."""
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    ids = room.prompts.chat(conversation)
    given = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        **room.prompts.inputs(ids, conversation.images),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return [float(logits.log_softmax(-1).max()) for logits in given.logits]


def asked(room: Any, conversation: Conversation, most: int, adapter: str | None = None) -> Request:
    ids = room.prompts.chat(conversation)
    sampling = Sampling(max_tokens=most, top_logprobs=0)
    inputs = room.prompts.inputs(ids, conversation.images)
    return Request(ids=tuple(ids), sampling=sampling, stops=frozenset(), adapter=adapter, inputs=inputs)


def seeing(text: str, *images: str) -> Conversation:
    places = frozenset((0, 7 * at) for at in range(len(images)))
    return Conversation(
        messages=({"role": "user", "content": f"{'<image>' * len(images)}{text}"},), images=images, places=places
    )


def told(found: list[tuple[list[Token], Any]]) -> list[list[float]]:
    return [[token.logprob for token in tokens] for tokens, _ in found]


TALKS = (seeing("What is it?", picture(size=(40, 24))), seeing("What is red?"), seeing("And it?", picture(size=(8, 8))))


@pytest.mark.parametrize("kind", seers.SEERS)
def test_an_answer_is_that_of_generate_whoever_was_answered_before(kind: str, tmp_path: Path) -> None:
    """A model may keep the positions of the last images to itself, and read the next text by them."""
    folder = seers.save(kind, tmp_path / kind)
    room, _ = room_of("serve", f"model.path={folder}", *TINY)
    found = told(room.engine.batch([asked(room, each, 5) for each in TALKS]))
    for talk, written in zip(TALKS, found, strict=True):
        assert written == pytest.approx(alone(folder, room, talk, 5), abs=1e-4)
    room.engine.stop(0)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_answers_of_two_adapters_keep_their_own_positions(kind: str, tmp_path: Path) -> None:
    """They are written in turns, token by token, and what is scored or embedded meanwhile is read between two."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    folder = seers.save(kind, tmp_path / kind)
    room, _ = room_of("serve", f"model.path={folder}", *TINY)
    base: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(target_modules="all-linear", r=2), adapter_name="one")  # adds nothing yet
    engine = Embedded(Model(adapted, "cpu", contextlib.nullcontext), Numbers(64, 512), most=4, queue=4)
    requests = [asked(room, TALKS[0], 5, adapter) for adapter in (None, "one")]
    requests.append(asked(room, TALKS[2], 5, "one"))
    first, second, third = told(engine.batch([requests[0], requests[2], requests[1]]))
    for talk, written in ((TALKS[0], first), (TALKS[2], second), (TALKS[0], third)):
        assert written == pytest.approx(alone(folder, room, talk, 5), abs=1e-4)
    room.engine.stop(0)
    engine.stop(0)


def test_a_model_that_keeps_positions_to_itself_is_known_by_it() -> None:
    """Of a kind without a closed form too: beside others its images would lose their positions."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {**sights.TURNED, "rope_parameters": {**sights.TURNED["rope_parameters"], "partial_rotary_factor": 1.0}}
    eyes = {"hidden_size": 16, "intermediate_size": 24, "depth": 1, "num_heads": 2, "patch_size": 2, "image_size": 8}
    config = AutoConfig.for_model("glm4v", text_config=text, vision_config={**eyes, "out_hidden_size": 32})
    model = Model(AutoModelForImageTextToText.from_config(config), "cpu", contextlib.nullcontext)
    assert not model.side_by_side


def test_what_transformers_cannot_show_a_model_is_not_taken(tmp_path: Path) -> None:
    """Its class that sees cannot be called: a client was told of it, and an image ended in an error."""
    from factory.data.media import ProcessorSpec

    spec = ProcessorSpec(kind="llama4", files={}, tokenizer={}, frames=None)
    assert not Prompts(seers.tokenizer("llava"), pack(), spec).sees


def test_an_engine_that_shows_no_images_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the model, which sees: with engine=vllm it was said of that."""
    room, settings = room_of("serve", f"model.path={seers.save('llava', tmp_path / 'eye')}", "serve.name=eye", *TINY)
    monkeypatch.setattr(Embedded, "sees", Vllm.sees)
    parts = [{"type": "image_url", "image_url": {"url": picture()}}, {"type": "text", "text": "What?"}]
    with serving(room, settings) as found, found.http() as http:
        asked = {"model": "eye", "messages": [{"role": "user", "content": parts}]}
        answer = http.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 400 and "engine=transformers" in answer.json()["error"]["message"]
    room.engine.stop(0)
