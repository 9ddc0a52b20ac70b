"""LLaMA-Factory's train configs, as `factory import-config` reads and plans them."""

import random
from collections.abc import Callable
from pathlib import Path

import yaml
from conftest import composed as composed_of

from factory import cli
from factory.verbs import import_config as llamafactory
from factory.verbs import use
from factory.verbs.import_config.said import as_script
from factory.verbs.import_config.table import table as their_table
from fuzz.mutation import YAML_PIECES, changed, twisted

_SEED = {
    "model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_alpha": 16,
    "lora_target": "q_proj,v_proj",
    "loraplus_lr_ratio": 16.0,
    "use_dora": False,
    "quantization_bit": 4,
    "dataset": "mine,theirs",
    "dataset_dir": "data",
    "eval_dataset": "held",
    "template": "chatml",
    "cutoff_len": 1024,
    "max_samples": 100,
    "val_size": 0.1,
    "output_dir": "saves/x",
    "logging_steps": 10,
    "save_strategy": "no",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1.0e-4,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
    "pref_loss": "sigmoid",
    "deepspeed": "examples/deepspeed/ds_z3_config.json",
    "report_to": "none",
}


def opened(folder: Path) -> Callable[[random.Random], str]:
    file = folder / "train.yaml"
    content = yaml.safe_dump(_SEED)
    table = their_table()
    known = [*table["keys"], *table["code"], *(name for own in table["defaults"].values() for name in own), *_SEED]

    def case(chance: random.Random) -> str:
        if chance.random() < 0.3:
            file.write_bytes(changed(content.encode(), chance, YAML_PIECES))
        else:
            seed = _SEED | {chance.choice(known): chance.choice((True, False, 1, 0.5, "x", None)) for _ in range(3)}
            text = yaml.safe_dump(twisted(seed, chance), allow_unicode=True)
            file.write_bytes(text.encode("utf-8", "replace"))
        said = llamafactory.translate(file)
        "\n".join(as_script(str(file), said, []))
        if chance.random() < 0.98:  # Hydra takes a third of a second
            return "translated"
        if said.verb == "train":
            cli._compiled(composed_of(said.as_overrides()), training=False)
        else:
            use.foreseen(said.verb, said.as_overrides())
        return "planned"

    return case
