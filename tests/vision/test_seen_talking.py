"""What the board's chat sends of images, to a model that sees."""

import base64
from pathlib import Path

import seers
from serving import TINY, room_of, serving

from factory.board import talking
from factory.board.children import Server


def test_a_model_that_sees_is_sent_images(tmp_path: Path) -> None:
    from PIL import Image

    for color in ("red", "blue"):
        Image.new("RGB", (12, 12), color).save(tmp_path / f"{color}.png")
    room, settings = room_of("serve", f"model.path={seers.save('llava', tmp_path / 'eye')}", "serve.name=eye", *TINY)
    with serving(room, settings) as found:
        server = Server(process=None, address=found.url, printed=tmp_path)  # type: ignore[arg-type]
        assert talking.can(server).images
        talk = talking.told([], "What is it?", [str(tmp_path / "red.png")])
        *_, answer = talking.answers(server, talk, "", {"max_tokens": 3})
        assert answer["role"] == "assistant" and "image" not in answer["content"]
        (first, _) = talking._sent(talk[0])["content"]
    head, _, data = first["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == (tmp_path / "red.png").read_bytes()
    room.engine.stop(0)
