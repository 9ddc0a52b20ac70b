"""How transformers and PEFT read a saved model: lines for its card, and why they are more than the usual ones."""

from pathlib import Path

from factory.plan import heads
from factory.plan.plan import Plan
from factory.run.folder import base_config
from factory.stages.rm.spec import SCORE
from factory.steps.walk import class_of


def reading(plan: Plan, folder: Path, base: str = "THE_BASE") -> str:
    """Why the usual lines would read another model, where they would, and those that read this one.

    By what lies in the folder, an adapter's or that of whole weights, but for the vocabulary, which the plan says.
    """
    read, why = class_of(plan.steps.load.config), list[str]()
    needs, lines = {f"from transformers import {read}"}, [f'model = {read}.from_pretrained("THIS_FOLDER")']
    if adapter := (folder / "adapter_config.json").is_file():
        needs.add("from peft import PeftModel")
        lines = [f'base = {read}.from_pretrained("{base}")']
        if base_config(folder).is_file():
            why.append("positions: stretched; its base is read with base/config.json")
            needs.add("from transformers import AutoConfig")
            lines = [
                'config = AutoConfig.from_pretrained("THIS_FOLDER/base")',
                f'base = {read}.from_pretrained("{base}", config=config)',
            ]
        patch = plan.steps.patch
        if patch.vocabulary != patch.rows:
            why.append(f"vocabulary: {patch.vocabulary:,} rows; its base is resized to them")
            lines.append(f"base.resize_token_embeddings({patch.vocabulary})")
        lines.append('model = PeftModel.from_pretrained(base, "THIS_FOLDER")')
    file = heads.file_of(SCORE)
    if (folder / file).is_file():
        why.append(
            f"{file}: makes the score of an answer, read at the last token that was trained of it, which ends its "
            "turn; higher is better, among answers to the same prompt"
        )
        needs.add("from safetensors.torch import load_file")
        inner = "model.get_base_model()" if adapter else "model"
        lines += [
            f'head = load_file("THIS_FOLDER/{file}")["weight"]',
            "# ids: (1, length), a conversation as the chat template has it, up to the token that ends its last answer",
            f"hidden = {inner}.base_model(input_ids=ids).last_hidden_state",
            "score = hidden[0, -1].float() @ head[0].float()",
        ]
    return "".join(f"- {text}\n" for text in why) + "\n" + code([*sorted(needs), *lines])


def code(lines: list[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"
