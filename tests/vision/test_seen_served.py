"""Images of requests before models that see: what they answer follows from what they see."""

import base64
import io
from pathlib import Path
from typing import Any

import openai
import pytest
import seers
import torch
from serving import TINY, room_of, serving

from factory.inference.prompts import Conversation


def picture(color: str = "red") -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (12, 12), color).save(out, "PNG")
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
    words = (f"model.path={seers.save(kind, tmp_path / kind)}", "stage=rm", "serve.name=eye", *TINY)
    room, settings = room_of("serve", *words)

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
