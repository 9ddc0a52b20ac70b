"""What else lies in a saved model's folder."""

from pathlib import Path
from typing import Any

import tiny

from factory.steps.save import save_model


def test_a_processor_is_saved_with_its_tokenizer(execute: Any, here: Path) -> None:
    from transformers import AutoProcessor, AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor

    done = execute("stage=pt", "stage.max_steps=1", "data.max_length=64")
    tokenizer = tiny.tokenizer()
    images: Any = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
    save_model(done.run, done.model, tokenizer, LlavaProcessor(images, tokenizer, patch_size=8))
    read: Any = AutoProcessor.from_pretrained(here / "run/model")
    assert isinstance(read, LlavaProcessor)
    assert (read.patch_size, read.image_processor.size["shortest_edge"]) == (8, 16)
    again = AutoTokenizer.from_pretrained(here / "run/model")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.chat_template, again.eos_token) == (tokenizer.chat_template, tokenizer.eos_token)
    assert (here / "run/model/adapter_config.json").is_file()
