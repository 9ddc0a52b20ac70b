"""LLaMA-Factory's train configs in our keys: what they meant is planned, and nothing goes in silence."""

import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import compiled, refusals

from factory import cli, templates
from factory.config import compose, line, settings
from factory.config.refusal import UserError
from factory.config.values import to_tree
from factory.plan.plan import stage_keys
from factory.verbs import import_config as llamafactory
from factory.verbs import settings_of
from factory.verbs.import_config.said import Said, as_script
from factory.verbs.import_config.table import table as their_table

BASE = {
    "model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "stage": "sft",
    "do_train": True,
    "dataset": "mine",
    "dataset_dir": "data",
    "template": "chatml",
}


def said(here: Path, **given: Any) -> Said:
    file = here / "old.yaml"
    file.write_text(yaml.safe_dump({**BASE, **given}), encoding="utf-8")
    return llamafactory.translate(file)


@pytest.fixture
def catalogue(here: Path) -> Path:
    (here / "data").mkdir()
    rows = [{"instruction": f"Say {number}.", "input": "", "output": f"{number}"} for number in range(20)]
    (here / "data" / "mine.json").write_text(json.dumps(rows))
    pairs = [{"conversations": [{"from": "human", "value": "Hi"}]} for _ in range(20)]
    for each in pairs:
        each |= {"chosen": {"from": "gpt", "value": "Hello."}, "rejected": {"from": "gpt", "value": "No."}}  # type: ignore[dict-item]
    (here / "data" / "pairs.json").write_text(json.dumps(pairs))
    info = {"mine": {"file_name": "mine.json"}}
    info["pairs"] = {"file_name": "pairs.json", "ranking": True, "formatting": "sharegpt"}  # type: ignore[dict-item]
    info["pairs"]["columns"] = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}  # type: ignore[assignment]
    (here / "data" / "dataset_info.json").write_text(json.dumps(info))
    return here


def entries() -> list[tuple[str, Any]]:
    table = their_table()
    return [
        (name, entry)
        for part in (table["keys"], *table["verbs"].values(), table["exam"])
        for name, entry in part.items()
    ]


def test_the_table_names_keys_that_there_are() -> None:
    known = {key.path for key in settings.all_keys()} | {"tracking", "seed", "engine", "precision"}
    for name, entry in entries():
        for key in [entry] if isinstance(entry, str) else [entry[part] for part in ("key", "else") if part in entry]:
            assert key in known or key == "hydra.run.dir", (name, key)


def test_every_entry_of_the_table_is_read_whole() -> None:
    """A reason with a comma in it would end there, unless it is quoted."""
    for name, entry in entries():
        assert isinstance(entry, str) or entry.keys() <= {
            "key",
            "values",
            "others",
            "of",
            "list",
            "else",
            "none",
            "same",
            "strict",
            "lost",
            "note",
        }, name


def test_what_a_verb_says_otherwise_is_known() -> None:
    """A name in `verbs` alone would be a misspelt key, and refused."""
    table = their_table()
    elsewhere = {*table["keys"], *table["code"], *(name for names in table["others"].values() for name in names)}
    assert {name for part in table["verbs"].values() for name in part} <= elsewhere
    assert table["verbs"].keys() | {"evaluate"} == table["reads"].keys()


@pytest.mark.parametrize(("steps", "total"), [(20, 300), (1, 7), (100, 1000), (3, 3)])
def test_warmup_steps_are_a_share_of_steps_that_are_known(here: Path, steps: int, total: int) -> None:
    found = said(here, warmup_steps=steps, max_steps=total, warmup_ratio=0.3)
    assert ceil(total * float(found.overrides["stage.warmup_ratio"])) == steps
    assert "warmup_steps" not in found.missing
    found = said(here, warmup_steps=steps)
    assert "warmup_steps" in found.missing and found.overrides["stage.warmup_ratio"] == "0"


@pytest.mark.parametrize("name", ["save_only_model", "gradient_checkpointing"])
def test_what_every_config_there_says_is_known(here: Path, name: str) -> None:
    found = said(here, **{name: True})
    assert "not known" not in {**found.missing, **found.same}[name]


def test_a_lora_run_is_planned_as_it_was(catalogue: Path) -> None:
    found = said(
        catalogue,
        finetuning_type="lora",
        lora_rank=16,
        lora_dropout=0.05,
        lora_target="q_proj,v_proj",
        learning_rate=2e-4,
        num_train_epochs=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
        bf16=True,
        cutoff_len=512,
        val_size=0.1,
        seed=7,
        optim="adamw_torch",
        flash_attn="sdpa",
        use_cpu=True,
        report_to="none",
    )
    assert found.missing == {} and list(found.same) == ["do_train"]
    plan = compiled(*found.as_overrides())
    train, stage, method = plan.steps.train, plan.settings.stage, plan.settings.method
    assert plan.options["model"] == "smollm2_135m"
    assert (method.rank, method.alpha, method.dropout) == (16, 32, 0.05)
    assert method.target_modules == ("q_proj", "v_proj")
    assert (stage.learning_rate, stage.batch_size, stage.gradient_accumulation_steps) == (2e-4, 2, 4)
    assert (stage.lr_scheduler, stage.warmup_ratio, stage.num_epochs) == ("cosine", 0.1, 2)
    assert (train.autocast, plan.settings.seed, plan.steps.pack.max_length) == ("bfloat16", 7, 512)
    assert plan.steps.patch.attention == "sdpa"
    assert plan.steps.patch.activation_checkpointing is True  # its default, which no line of the file says


def test_what_is_not_said_is_its_default(catalogue: Path) -> None:
    stage = compiled(*said(catalogue, use_cpu=True).as_overrides()).settings.stage
    assert (stage.learning_rate, stage.num_epochs, stage.batch_size, stage.lr_scheduler) == (5e-5, 3, 8, "linear")
    assert stage.warmup_ratio == 0


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"quantization_bit": 4}, {"method": "qlora"}),
        ({"quantization_bit": 8}, {"method": "lora", "method.quantization.bits": "8"}),
        ({"use_dora": True}, {"method": "dora"}),
        ({"use_rslora": True}, {"method": "rslora"}),
        ({"pissa_init": True}, {"method": "pissa"}),
        ({"loraplus_lr_ratio": 16}, {"method": "lora_plus", "method.b_learning_rate_ratio": "16"}),
        ({"use_rslora": True, "loraplus_lr_ratio": 16}, {"method": "rslora", "method.b_learning_rate_ratio": "16"}),
        ({"use_dora": True, "use_rslora": True}, {"method": "dora", "method.rslora": "true"}),
        ({"max_grad_norm": 0.0}, {"stage.max_grad_norm": "null"}),
        ({"max_grad_norm": 0}, {"stage.max_grad_norm": "null"}),
        ({"max_grad_norm": 0.3}, {"stage.max_grad_norm": "0.3"}),
        ({"template": "phi"}, {"model.template": "phi3"}),
        ({"template": None}, {"model.template": "auto"}),
        ({"fsdp": "full_shard auto_wrap"}, {"hardware.strategy": "fsdp", "hardware.offload": None}),
        ({"fsdp": ["full_shard", "offload"]}, {"hardware.strategy": "fsdp", "hardware.offload": "true"}),
        ({"fsdp": True}, {"hardware.strategy": "fsdp"}),
        ({"fsdp": ""}, {"hardware.strategy": None}),
        ({"deepspeed": "ds_z3_offload_config.json"}, {"hardware.strategy": "zero3", "hardware.offload": "true"}),
        ({"finetuning_type": "full", "use_galore": True, "galore_rank": 64}, {"method": "galore", "method.rank": "64"}),
        ({"finetuning_type": "full", "use_badam": True, "badam_mode": "ratio"}, {"method": "badam_ratio"}),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 2}, {"method": "freeze", "method.num_layers": "2"}),
        ({"neat_packing": True, "packing": True}, {"data.packing": "true", "data.isolate_documents": "true"}),
        ({"max_steps": 9}, {"stage.max_steps": "9"}),
        ({"max_steps": -1}, {"stage.max_steps": "null"}),
        ({"save_strategy": "no"}, {"stage.save_steps": "null"}),
        ({"disable_gradient_checkpointing": True}, {"compute.activation_checkpointing": "false"}),
        ({"shift_attn": True, "flash_attn": "auto"}, {"compute.attention": "s2"}),
        ({"max_new_tokens": 64}, {"evaluate.max_new_tokens": "64"}),
        ({"max_steps": [5]}, {"stage.max_steps": "[5]"}),  # which is refused by name
        ({"deepspeed": "examples/deepspeed/ds_z3_config.json"}, {"hardware.strategy": "zero3"}),
        ({"model_name_or_path": "some/folder"}, {"model.path": "some/folder"}),
    ],
)
def test_a_choice_is_said_in_our_words(given: dict[str, Any], wanted: dict[str, str], catalogue: Path) -> None:
    found = said(catalogue, **given).overrides
    assert {key: found.get(key) for key in wanted} == wanted


def test_tokens_in_brackets_are_texts(catalogue: Path) -> None:
    found = said(catalogue, new_special_tokens="[TOOL],[/TOOL],{x}", add_tokens=["plain", "[TOOL]"])
    tokens = ("plain", "[TOOL]", "[/TOOL]", "{x}")
    assert set(settings_of(found.as_overrides()).model.new_tokens) == set(tokens)
    assert found.missing == {}


@pytest.mark.parametrize(
    ("given", "key", "stays", "told"),
    [
        ({"shift_attn": True, "flash_attn": "fa2"}, "compute.attention", "s2", "flash_attn"),
        ({"shift_attn": False, "flash_attn": "fa2"}, "compute.attention", "flash_attention_2", None),
        ({"use_unsloth": True, "enable_liger_kernel": True}, "compute.kernels", "liger", "use_unsloth"),
        ({"use_unsloth": True, "enable_liger_kernel": False}, "compute.kernels", "unsloth", None),
    ],
)
@pytest.mark.parametrize("order", [list, reversed])
def test_of_two_keys_that_are_one_choice_here_the_other_is_told(
    given: dict[str, Any], key: str, stays: str, told: str | None, order: Any, here: Path
) -> None:
    file = here / "old.yaml"
    file.write_text(yaml.safe_dump({**BASE, **dict(order(list(given.items())))}, sort_keys=False), encoding="utf-8")
    found = llamafactory.translate(file)
    assert found.overrides[key] == stays
    assert list(found.missing) == ([told] if told else [])
    assert told is None or f"{key}={stays}" in found.missing[told]


def test_variants_of_lora_go_together(catalogue: Path) -> None:
    found = said(catalogue, use_rslora=True, use_dora=True, loraplus_lr_ratio=16, use_cpu=True)
    assert found.missing == {}
    attach = compiled(*found.as_overrides()).settings.method
    assert (attach.rslora, attach.dora, attach.b_learning_rate_ratio) == (True, True, 16)


@pytest.mark.parametrize("name", ["default", "intern2"])
def test_a_template_that_is_not_here_is_left_to_the_model(name: str, here: Path) -> None:
    found = said(here, template=name)
    assert "model.template" not in found.overrides
    assert "the model's own is kept" in found.missing["template"]


def test_templates_of_the_table_are_there() -> None:
    table = their_table()
    assert {*table["templates"].values(), *table["written_otherwise"]} <= set(templates.names())


@pytest.mark.parametrize(
    ("name", "told"),
    [("zephyr", "no line breaks"), ("smollm2", "no full stop"), ("chatml", None), ("default", None)],
)
def test_a_template_that_is_written_otherwise_there_is_told(name: str, told: str | None, here: Path) -> None:
    note = said(here, template=name).noted.get("template")
    assert (note is None) if told is None else (note is not None and told in note)


@pytest.mark.parametrize(
    ("name", "stage", "told"), [("glm4", "sft", True), ("falcon", "sft", True), ("glm4", "dpo", False)]
)
def test_a_template_that_closes_no_answer_is_told(name: str, stage: str, told: bool, here: Path) -> None:
    assert ("at the end of each" in said(here, template=name, stage=stage).noted.get("template", "")) is told


def test_shares_of_the_draws_are_weights_of_the_sets(catalogue: Path) -> None:
    info = json.loads((catalogue / "data" / "dataset_info.json").read_text())
    (catalogue / "data" / "dataset_info.json").write_text(json.dumps(info | {"theirs": info["mine"]}))
    drawn = {"dataset": "mine,theirs", "mix_strategy": "interleave_over", "interleave_probs": "0.7,0.3"}
    found = said(catalogue, **drawn, use_cpu=True)
    assert found.missing == {}
    sources = compiled(*found.as_overrides()).sources
    assert {name: source.asked.weight for name, source in sources.items()} == {"mine": 0.7, "theirs": 0.3}
    assert "draws nothing" in said(catalogue, **drawn | {"mix_strategy": "concat"}).missing["interleave_probs"]
    assert "interleave_probs" in said(catalogue, **drawn | {"interleave_probs": "0.7"}).missing
    assert "interleave_probs" in said(catalogue, **drawn | {"dataset": "mine,set v1.5"}).missing


def test_a_text_file_of_the_catalogue_is_told(catalogue: Path) -> None:
    """Each of its lines is a row there."""
    info = json.loads((catalogue / "data" / "dataset_info.json").read_text())
    texts = {"file_name": "texts.txt", "columns": {"prompt": "text"}}
    (catalogue / "data" / "dataset_info.json").write_text(json.dumps(info | {"texts": texts}))
    assert "texts: blank lines" in said(catalogue, dataset="mine,texts", stage="pt").noted["dataset"]
    assert "dataset" not in said(catalogue, stage="pt").noted


def test_sets_that_take_turns_there_are_told(here: Path) -> None:
    drawn = {"dataset": "mine,theirs", "mix_strategy": "interleave_under"}
    assert "take turns there" in said(here, **drawn).noted["mix_strategy"]
    for other in ({"interleave_probs": "0.7,0.3"}, {"dataset": "mine"}, {"mix_strategy": "concat"}):
        assert "mix_strategy" not in said(here, **drawn | other).noted


@pytest.mark.parametrize("asked", ["shard_grad_op", "hybrid_shard auto_wrap", "auto_wrap", "offload"])
def test_what_is_sharded_otherwise_has_no_equal(asked: str, here: Path) -> None:
    found = said(here, fsdp=asked, fsdp_config={"min_num_params": 0})
    assert "hardware.strategy" in found.missing["fsdp"] and "fsdp_config" in found.missing
    assert "hardware.strategy" not in found.overrides


@pytest.mark.parametrize(("loss", "stage"), [("sigmoid", "dpo"), ("simpo", "dpo"), ("orpo", "orpo")])
def test_preferences_are_planned(loss: str, stage: str, catalogue: Path) -> None:
    found = said(catalogue, stage="dpo", pref_loss=loss, pref_beta=0.2, dataset="pairs", use_cpu=True)
    plan = compiled(*found.as_overrides())
    assert (plan.settings.stage.name, stage_keys(plan)["beta"]) == (stage, 0.2)
    assert stage_keys(plan).get("loss", "orpo") == loss


@pytest.mark.parametrize("given", [{"stage": "dpo", "pref_loss": "orpo", "dataset": "pairs"}, {"stage": "kto"}])
def test_a_weight_that_only_dpo_has_here_is_refused(given: dict[str, Any], catalogue: Path) -> None:
    """There kto and orpo add it too, and no stage of them here: they would train without that term."""
    with pytest.raises(UserError, match=r"pref_ftx=0\.1: a term of the loss would be left out, which stage=dpo alone"):
        said(catalogue, pref_ftx=0.1, **given)
    assert "it is off" in said(catalogue, pref_ftx=0.0, **given).same["pref_ftx"]
    assert "neither stage=sft" in said(catalogue, pref_ftx=0.1).missing["pref_ftx"]
    assert said(catalogue, stage="dpo", dataset="pairs", pref_ftx=0.1).overrides["stage.nll_weight"] == "0.1"


def test_nothing_goes_in_silence(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = {"warmup_steps": 10, "no_such_key": 1, "report_to": "swanlab", "use_cpu": True, "top_p": 0.9}
    found = said(catalogue, **strange, val_size=100, stage="dpo", dataset="pairs")
    assert found.missing.keys() >= strange.keys() - {"use_cpu"} | {"val_size"}
    assert cli.main(["import-config", "old.yaml"]) == 0
    out = capsys.readouterr().out
    for key in found.missing:
        assert f"# no equal  {key}: " in out
    (command,) = [part for part in out.split("\n") if part.endswith(" train \\")]
    words = out[out.index(command) :]
    assert dict(text.split("=", 1) for text in line.read(words)) == found.overrides
    compose.parse(list(line.read(words)))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("learning_rat", "learning_rate"),
        ("Learning_Rate", "learning_rate"),
        ("lora_rnk", "lora_rank"),
        ("datset", "dataset"),  # which no entry of the table translates
        ("adam_bata1", "adam_beta1"),
        ("lr", "learning_rate"),
        ("batch_size", "per_device_train_batch_size"),
    ],
)
def test_a_misspelt_key_is_refused(name: str, meant: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a comment it would go in silence where the output is run: at the default of the key that was meant."""
    (here / "old.yaml").write_text(yaml.safe_dump({**BASE, name: 0.5}), encoding="utf-8")
    assert cli.main(["import-config", "old.yaml"]) == cli.REFUSED
    told = capsys.readouterr()
    assert told.out == ""
    assert f"[import-key] {name}=0.5: " in told.err and f"did you mean {meant}? " in told.err


def test_all_misspelt_keys_are_told_at_once(here: Path) -> None:
    with pytest.raises(UserError) as caught:
        said(here, learning_rat=1e-4, lora_rnk=8)
    assert [each.setting for each in caught.value.refusals] == ["learning_rat=0.0001", "lora_rnk=8"]


@pytest.mark.parametrize("name", ["adam_beta1", "vllm_config", "per_gpu_train_batch_size", "use_xyz_loss"])
def test_a_key_without_an_equal_is_a_comment(name: str, here: Path) -> None:
    """Of LLaMA-Factory's own, and of one that is like none: a newer version's."""
    assert said(here, **{name: 1}).missing[name]


def test_a_name_stands_in_one_place_of_the_table() -> None:
    table = their_table()
    listed = [names for part in ("others", "refused") for names in table[part].values()]
    names = [*table["keys"], *table["code"], *(name for names in listed for name in names)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("level", "strategy"), [(2, "zero2"), (3, "zero3")])
def test_a_deepspeed_config_is_translated(level: int, strategy: str, here: Path) -> None:
    found = said(here, deepspeed=f"examples/deepspeed/ds_z{level}_config.json")
    assert "deepspeed" not in found.missing
    assert f"# said as   deepspeed: hardware.strategy={strategy}; " in "\n".join(as_script("x", found, []))
    assert "deepspeed" in said(here, deepspeed="mine.json").missing
    moved = {"zero_optimization": {"stage": level, "offload_optimizer": {"device": "cpu", "pin_memory": True}}}
    inside = said(here, deepspeed=moved).overrides
    assert (inside["hardware.strategy"], inside["hardware.offload"]) == (strategy, "true")
    assert "deepspeed" in said(here, deepspeed={"zero_optimization": "auto"}).missing


def test_what_becomes_of_an_answer_that_is_too_long_is_told(here: Path) -> None:
    """`keep_response` drops its row; LLaMA-Factory cuts it."""
    (line,) = [
        line for line in as_script("x", said(here, cutoff_len=256), []) if line.startswith("# said as   cutoff_len: ")
    ]
    assert "data.truncation=keep_response" in line and "drops a row" in line
    assert "cutoff_len" not in said(here, stage="pt").noted  # where nothing is an answer


def test_a_comment_has_no_second_line_for_a_shell_to_run(here: Path) -> None:
    found = said(here, **{"a key\nrm -rf .": 1, "report_to": "none\ntouch here"})
    lines = "\n".join(as_script("a\nb.yaml", found, [])).split("\n")
    (command,) = (at for at, text in enumerate(lines) if text.endswith(" train \\"))
    assert all(text.startswith("# ") for text in lines[:command])
    assert any("report_to: none touch here is none of" in text for text in lines[:command])


@pytest.mark.parametrize(
    "name", ["lora_alpha", "packing", "loraplus_lr_ratio", "save_total_limit", "val_size", "optim"]
)
def test_a_null_says_what_is_not_said(name: str, here: Path) -> None:
    assert said(here, **{name: None}) == said(here)


def test_a_norm_of_null_cuts_nothing(here: Path) -> None:
    assert said(here, max_grad_norm=None).overrides["stage.max_grad_norm"] == "null"


def test_what_is_refused_here_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(here)
    assert cli.main(["import-config", "old.yaml"]) == 0
    assert "# refused   [catalogue-missing]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", [b"", b"[1, 2]", b"\xff\xfe\x00", b"a: [", b"learning_rate: 1", b"stage: sft\nfinetuning_type: magic\n"]
)
def test_another_file_is_refused(content: bytes, here: Path) -> None:
    (here / "old.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        llamafactory.translate(here / "old.yaml")
    assert [each.rule for each in caught.value.refusals] == ["import-config"]
    assert cli.main(["import-config"]) == cli.REFUSED


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("nowhere.yaml", None, "there is no such file"),
        (".", None, "it is a folder"),
        ("old.yaml", b"\xff\xfe\x00", "it is not text in UTF-8"),
        ("old.yaml", b"# stage: sft\n", "there is nothing in it"),
        ("a" * 300, None, "it cannot be read (File name too long)"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_file_that_is_not_read_is_told_in_words(
    name: str, content: bytes | None, wrong: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (here / name).write_bytes(content)
    assert cli.main(["import-config", name]) == cli.REFUSED
    assert f"[import-config] {name}: {wrong}.\n" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["", "deepspeed:\n  "])
def test_a_key_that_stands_twice_is_refused(where: str, here: Path) -> None:
    """YAML would keep its last value; LLaMA-Factory reads no such file."""
    (here / "old.yaml").write_text(f"stage: sft\n{where}learning_rate: 1\n{'  ' * bool(where)}learning_rate: 2\n")
    with pytest.raises(UserError, match=r"\[import-config\] .*: it has a key twice: 'learning_rate'; take one"):
        llamafactory.translate(here / "old.yaml")


def test_a_rank_that_is_no_number_is_said_as_it_is(catalogue: Path) -> None:
    found = said(catalogue, finetuning_type="lora", lora_rank=["x"])
    assert found.overrides["method.rank"] == "[x]" and "method.alpha" in found.overrides


# --- what LLaMA-Factory 0.9.5 does of itself: its hparams/*.py, and of ppo TRL 0.9's PPOConfig

FULL = {"finetuning_type": "full"}
PAIRS = {"stage": "dpo", "dataset": "pairs"}
DEFAULTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {},
        {
            "learning_rate": 5e-5,
            "num_epochs": 3,
            "batch_size": 8,
            "gradient_accumulation_steps": 1,
            "optimizer": "adamw",
        },
    ),
    ({}, {"lr_scheduler": "linear", "warmup_ratio": 0, "weight_decay": 0, "max_grad_norm": 1, "save_steps": 500}),
    ({}, {"max_length": 2048, "packing": False, "validation_fraction": 0, "eval_steps": None}),
    ({}, {"rank": 8, "alpha": 16, "dropout": 0, "b_learning_rate_ratio": 1, "target_modules": "all-linear"}),
    ({"pissa_init": True}, {"rank": 8, "alpha": 16, "initialization": "pissa", "iterations": 16}),
    ({"pissa_init": True, "pissa_iter": -1}, {"iterations": None}),
    ({"finetuning_type": "oft"}, {"block_size": 32, "neumann_terms": 5, "target_modules": "all-linear"}),
    ({"finetuning_type": "freeze"}, {"num_layers": 2, "position": "last", "modules": "all", "extra_modules": []}),
    (FULL | {"use_galore": True}, {"rank": 16, "scale": 2, "update_interval": 200, "layerwise": False}),
    (FULL | {"use_apollo": True}, {"rank": 16, "scale": 5.656854, "update_interval": 200, "scaling": "channel"}),
    (FULL | {"use_badam": True}, {"order": "ascending", "switch_interval": 50, "embedding": False, "head": False}),
    (
        FULL | {"use_badam": True, "badam_mode": "ratio", "badam_switch_interval": 50},  # which it does not read
        {"ratio": 0.05, "mask": "adjacent", "switch_interval": 100, "embedding": False, "head": False},
    ),
    (PAIRS, {"loss": "sigmoid", "beta": 0.1, "label_smoothing": 0, "nll_weight": 0}),
    (PAIRS | {"pref_loss": "hinge"}, {"beta": 0.1, "nll_weight": 0}),
    (PAIRS | {"pref_loss": "ipo"}, {"beta": 0.1, "nll_weight": 0}),
    (PAIRS | {"pref_loss": "simpo"}, {"beta": 0.1, "gamma": 0.5, "nll_weight": 0}),
    (PAIRS | {"pref_loss": "orpo"}, {"beta": 0.1}),
    ({"stage": "kto", "dataset": "judged"}, {"beta": 0.1, "desirable_weight": 1, "undesirable_weight": 1}),
    ({"stage": "pt", "dataset": "texts"}, {"packing": True, "isolate_documents": False, "max_length": 2048}),
    ({"stage": "pt", "dataset": "texts", "packing": False}, {"packing": False, "truncation": "right"}),
    ({"stage": "ppo"}, {"max_new_tokens": 1024, "temperature": 0.95, "top_p": 0.7, "top_k": 50, "update_epochs": 4}),
    ({"stage": "ppo"}, {"kl_coefficient": 0.2, "kl_target": 6, "kl_horizon": 10000, "gamma": 1, "gae_lambda": 0.95}),
    ({"stage": "ppo"}, {"clip": 0.2, "value_clip": 0.2, "value_coefficient": 0.1, "whiten_rewards": False}),
    ({"stage": "ppo"}, {"gradient_accumulation_steps": 1, "rollout_batch_size": 8}),
    ({"stage": "ppo", "per_device_train_batch_size": 2, "ppo_buffer_size": 3}, {"rollout_batch_size": 6}),
]


@pytest.mark.parametrize(("given", "wanted"), DEFAULTS)
def test_a_default_of_theirs_is_planned(given: dict[str, Any], wanted: dict[str, Any], catalogue: Path) -> None:
    info = json.loads((catalogue / "data" / "dataset_info.json").read_text())
    (catalogue / "data" / "texts.json").write_text(json.dumps([{"text": f"Number {number}."} for number in range(20)]))
    info["texts"] = {"file_name": "texts.json", "columns": {"prompt": "text"}}
    rows = [{"instruction": "Hi", "output": f"{number}", "good": number % 2 == 0} for number in range(20)]
    (catalogue / "data" / "judged.json").write_text(json.dumps(rows))
    columns = {"prompt": "instruction", "response": "output", "kto_tag": "good"}
    info["judged"] = {"file_name": "judged.json", "columns": columns}
    (catalogue / "data" / "dataset_info.json").write_text(json.dumps(info))
    rewarded = ["stage.reward=http://127.0.0.1:9/score"] if given.get("stage") == "ppo" else []
    plan = compiled(*said(catalogue, use_cpu=True, **given).as_overrides(), *rewarded)
    steps, stage, method = plan.steps, to_tree(plan.settings.stage), to_tree(plan.settings.method)
    found = {**to_tree(plan.settings.data), **to_tree(steps.pack), **stage, **stage_keys(plan), **method}
    found["learning_rate"] = plan.settings.stage.learning_rate  # not the method's, which the stage's replaces
    assert {name: found[name] for name in wanted} == wanted


def test_what_is_read_by_another_method_is_told_and_not_set(here: Path) -> None:
    found = said(here, galore_rank=64, freeze_trainable_layers=5, top_p=0.9)
    assert found.overrides["method.rank"] == "8" and "method.num_layers" not in found.overrides
    assert found.missing.keys() == {"galore_rank", "freeze_trainable_layers", "top_p"}
    assert said(here, **FULL, use_galore=True, lora_rank=64).overrides["method.rank"] == "16"


def test_freeze_names_layers_and_modules_as_there(catalogue: Path) -> None:
    named = {"freeze_trainable_modules": "mlp", "freeze_extra_modules": "norm, embed_tokens"}
    found = said(catalogue, finetuning_type="freeze", freeze_trainable_layers=-2, use_cpu=True, **named)
    assert found.missing == {}
    settings = to_tree(compiled(*found.as_overrides()).settings.method)
    assert (settings["num_layers"], settings["position"]) == (2, "first")
    assert (settings["modules"], settings["extra_modules"]) == (["mlp"], ["norm", "embed_tokens"])


def test_max_samples_is_of_each_set(catalogue: Path) -> None:
    found = said(catalogue, dataset="mine", eval_dataset="pairs", max_samples=7)
    assert {key: value for key, value in found.overrides.items() if "max_samples" in key} == {
        "+data.sources.mine.max_samples": "7",
        "+data.sources.pairs.max_samples": "7",
    }
    assert "drawn by seed" in found.noted["max_samples"]
    plan = compiled(*said(catalogue, max_samples=7, use_cpu=True).as_overrides())
    assert (plan.settings.data.max_samples, plan.sources["mine"].asked.max_samples) == (None, 7)
    assert "max_samples" in said(catalogue, dataset="mine,set v1.5", max_samples=7).missing


@pytest.mark.parametrize("names", [None, "", []])
def test_without_a_data_set_nothing_trains(names: Any, catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(catalogue, dataset=names)
    assert "names no data set" in found.missing["dataset"]
    assert [each.rule for each in refusals(*found.as_overrides())] == ["catalogue-names"]
    assert cli.main(["import-config", "old.yaml"]) == 0
    out = capsys.readouterr().out
    assert "# no equal  dataset: " in out and "# refused   [catalogue-names]" in out


def test_a_set_that_is_held_out_does_not_train(here: Path) -> None:
    found = said(here, dataset="one", eval_dataset="two,three")
    assert found.overrides["data.names"] == "[one,two]" and found.overrides["data.validation"] == "two"
    assert "eval_dataset" in found.missing
    both = said(here, dataset="one,two", eval_dataset="two")
    assert both.overrides["data.names"] == "[one,two]" and "data.validation" not in both.overrides
    assert both.overrides["data.validation_fraction"] == "0" and "eval_dataset" in both.missing


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"neat_packing": True}, {"data.packing": "true", "data.isolate_documents": "true"}),
        ({"neat_packing": False}, {"data.packing": None, "data.isolate_documents": None}),
        ({"packing": True, "stage": "dpo"}, {"data.packing": None}),
        ({"neat_packing": True, "stage": "pt"}, {"data.packing": None, "data.isolate_documents": None}),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, {"stage.warmup_ratio": "0"}),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.1}, {"stage.warmup_ratio": "0.1"}),
        ({"warmup_steps": 0.1}, {"stage.warmup_ratio": "0.1"}),
        ({"eval_strategy": "steps", "logging_steps": 7}, {"stage.eval_steps": "7"}),
        ({"eval_strategy": "steps", "eval_steps": 5}, {"stage.eval_steps": "5"}),
        ({"eval_steps": 5}, {"stage.eval_steps": None}),
        ({"eval_strategy": "no", "eval_steps": 5}, {"stage.eval_steps": None}),
        ({"save_strategy": "no", "save_steps": 5}, {"stage.save_steps": "null"}),
        ({"streaming": True, "max_steps": 5}, {"data.shuffle_buffer": "16384"}),
        ({"predict_with_generate": True}, {"evaluate.generation": "true", "evaluate.max_new_tokens": "1024"}),
        ({"early_stopping_steps": 3}, {"stage.early_stopping_patience": "3"}),
        ({"finetuning_type": "oft", "lora_target": "q_proj,v_proj"}, {"method.target_modules": "[q_proj,v_proj]"}),
        ({**FULL, "use_apollo": True, "apollo_scale": 128}, {"method.scale": "11.313708"}),
        ({"adapter_name_or_path": "a"}, {"model.adapter": "a"}),
    ],
)
def test_what_is_meant_otherwise_there_is_said_so(given: dict[str, Any], wanted: dict[str, Any], here: Path) -> None:
    found = said(here, **given).overrides
    assert {key: found.get(key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("size", "wanted", "told"),
    [
        (0.1, "0.1", "noted"),
        (1e-7, "0", ""),  # none there
        (0, "0", ""),
        (1, None, "missing"),  # a row there: train_test_split takes it as it is written
        (100, None, "missing"),
        (100.0, None, "missing"),
        (float("inf"), None, "missing"),
        ("much", None, "missing"),
    ],
)
def test_val_size_is_a_share_or_a_number_of_rows(size: Any, wanted: str | None, told: str, here: Path) -> None:
    found = said(here, val_size=size)
    assert found.overrides.get("data.validation_fraction") == wanted
    assert [name for name in ("noted", "missing") if "val_size" in getattr(found, name)] == [told] * bool(told)
    if isinstance(size, int) and size:
        assert f"validation_fraction to {size} divided" in found.missing["val_size"]


def test_a_sets_own_number_of_rows_comes_before_max_samples(catalogue: Path) -> None:
    file = catalogue / "data" / "dataset_info.json"
    info = json.loads(file.read_text())
    info["mine"]["num_samples"] = 5
    file.write_text(json.dumps(info))
    for most, wanted in ((7, "5"), (3, "3")):
        found = said(catalogue, dataset="mine,pairs", max_samples=most)
        assert found.overrides["+data.sources.mine.max_samples"] == wanted
        assert found.overrides["+data.sources.pairs.max_samples"] == str(most)
    assert found.noted["num_samples"].startswith("mine: ") and "again" in found.noted["num_samples"]
    assert "num_samples" not in said(catalogue, dataset="pairs").noted
    assert "num_samples" in said(catalogue).noted
    file.write_text('{"mine": [')
    assert "num_samples" not in said(catalogue).noted  # `factory plan` says what is wrong with it


def test_what_differs_in_silence_is_told(here: Path) -> None:
    """What no key of ours makes the same."""
    found = said(here, packing=True, val_size=0.1, predict_with_generate=True)
    assert found.noted.keys() >= {"packing", "val_size", "predict_with_generate", "bf16", "save_total_limit"}
    assert "bf16" not in said(here, fp16=True).noted
    assert "eval_strategy" in said(here, eval_strategy="epoch").missing
    assert "reference" in said(here, stage="dpo", adapter_name_or_path="a").noted["adapter_name_or_path"]
    assert "adapter_name_or_path" not in said(here, adapter_name_or_path="a").noted
    assert "adapter_name_or_path" not in said(here, stage="dpo", pref_loss="simpo", adapter_name_or_path="a").noted


FROZEN = {"freeze_vision_tower": True, "freeze_multi_modal_projector": True, "freeze_language_model": False}


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (FULL | {"freeze_vision_tower": False}, "[language,vision]"),
        (FULL | {"freeze_vision_tower": False, "freeze_multi_modal_projector": False}, "[language,vision,projector]"),
        (FULL | {"freeze_language_model": True, "freeze_multi_modal_projector": False}, "[projector]"),
        (FULL | {"train_mm_proj_only": True}, "[projector]"),
        ({"freeze_vision_tower": False}, "[language,vision]"),
        ({"freeze_vision_tower": False, "freeze_multi_modal_projector": False}, "[language,vision]"),
    ],
)
def test_what_trains_beside_the_language_model_is_translated(given: dict[str, Any], parts: str, here: Path) -> None:
    found = said(here, **given)
    assert found.overrides["method.parts"] == parts and not found.missing
    words = ("model=qwen2.5_vl_7b", "data=demo_images", f"method={found.overrides['method']}", f"method.parts={parts}")
    assert compiled(*words, training=False).settings.method.parts == tuple(parts.strip("[]").split(","))


def test_what_their_examples_freeze_is_frozen_here_anyway(here: Path) -> None:
    """Those of models that see say all three keys; each was told of as one without an equal."""
    for kind in ("full", "lora"):
        found = said(here, finetuning_type=kind, **FROZEN)
        assert not found.missing and "method.parts" not in found.overrides
        assert FROZEN.keys() <= found.same.keys()


# what no key of ours says and what trains another model: a comment would be passed over
UNEQUAL: list[tuple[dict[str, Any], set[str]]] = [
    ({"freeze_language_model": True}, {"freeze_language_model=true"}),
    (  # no adapter stands there
        {"freeze_language_model": True, "freeze_multi_modal_projector": False},
        {"freeze_language_model=true", "freeze_multi_modal_projector=false"},
    ),
    ({"finetuning_type": "freeze", "freeze_vision_tower": False}, {"freeze_vision_tower=false"}),
    ({"finetuning_type": "freeze", "use_galore": True}, {"use_galore=true"}),
    ({"stage": "dpo", "dataset": "pairs", "pref_loss": "exo"}, {"pref_loss=exo"}),
    ({"stage": "dpo", "dataset": "pairs", "ref_model": "other"}, {"ref_model=other"}),
    ({"optim": "adagrad"}, {"optim=adagrad"}),
    *(({"lr_scheduler_type": name}, {f"lr_scheduler_type={name}"}) for name in ("polynomial", "cosine_with_min_lr")),
    ({"mix_strategy": "interleave_once"}, {"mix_strategy=interleave_once"}),
    ({"rope_scaling": "longrope"}, {"rope_scaling=longrope"}),
    ({"tool_format": "minimax1"}, {"tool_format=minimax1"}),
    (FULL | {"use_badam": True, "badam_switch_mode": "fixed"}, {"badam_switch_mode=fixed"}),
    (FULL | {"use_badam": True, "badam_mode": "ratio", "badam_mask_mode": "all"}, {"badam_mask_mode=all"}),
    (FULL | {"use_apollo": True, "apollo_scale_type": "row"}, {"apollo_scale_type=row"}),
    ({"default_system": "Be kind."}, {"default_system=Be kind."}),
    ({"stage": "ppo", "reward_model": "http://127.0.0.1:9", "reward_model_type": "api"}, {"reward_model_type=api"}),
    ({"use_dft_loss": True, "use_adam_mini": True}, {"use_dft_loss=true", "use_adam_mini=true"}),
    ({"additional_target": "lm_head"}, {"additional_target=lm_head"}),
    ({"adapter_name_or_path": "a,b"}, {"adapter_name_or_path=a,b"}),
    ({"adapter_name_or_path": "a", "create_new_adapter": True}, {"create_new_adapter=true"}),
    ({"use_llama_pro": True}, {"use_llama_pro=true"}),
    ({"finetuning_type": "freeze", "use_llama_pro": True, "freeze_extra_modules": "norm"}, {"use_llama_pro=true"}),
    ({"finetuning_type": "freeze", "use_llama_pro": True, "model_name_or_path": "my/pro"}, {"use_llama_pro=true"}),
]


@pytest.mark.parametrize(("given", "settings"), UNEQUAL)
def test_what_trains_another_model_is_refused(
    given: dict[str, Any], settings: set[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        said(here, **given)
    assert {(each.rule, each.setting) for each in caught.value.refusals} == {
        ("import-unequal", key) for key in settings
    }
    assert cli.main(["import-config", "old.yaml"]) == cli.REFUSED
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["use_dft_loss", "label_smoothing_factor", "use_llama_pro", "use_muon", "optim"])
def test_what_is_off_is_not_refused(name: str, here: Path) -> None:
    off = {"label_smoothing_factor": 0.0, "optim": "adamw_torch"}.get(name, False)
    assert name not in said(here, **{name: off}).missing
    own = {"ref_model": BASE["model_name_or_path"], "stage": "dpo", "dataset": "pairs"}
    assert "ref_model" in said(here, **own).same


def test_what_only_sft_packs_is_told_of_pt(here: Path) -> None:
    assert "of sft alone" in said(here, neat_packing=True, stage="pt").same["neat_packing"]


def test_a_system_text_is_said_by_nothing_of_pt(here: Path) -> None:
    assert "plain text" in said(here, default_system="Be kind.", stage="pt").same["default_system"]


@pytest.mark.parametrize("name", ["default", "glm4", "llama3", "mistral", "qwen"])
def test_a_format_of_tools_is_planned(name: str, catalogue: Path) -> None:
    found = said(catalogue, tool_format=name, use_cpu=True)
    assert found.missing == {} and "as there" in found.noted["tool_format"]
    assert compiled(*found.as_overrides()).settings.data.tools == name
    assert "data.tools" not in said(catalogue, tool_format=name, stage="pt").overrides


def test_muon_is_an_optimizer_here(catalogue: Path) -> None:
    found = said(catalogue, **FULL, use_muon=True, optim="adamw_torch", use_cpu=True)
    assert found.missing == {} and "optim" in found.same
    assert compiled(*found.as_overrides()).settings.stage.optimizer == "muon"
    galore = said(catalogue, **FULL, use_muon=True, use_galore=True)  # which is asked first there
    assert "stage.optimizer" not in galore.overrides and "use_muon" in galore.same


def test_llama_pro_adds_its_layers_itself(catalogue: Path) -> None:
    """There they are in the model before; what is known by its name in `factory models` has none of them yet."""
    asked = {"finetuning_type": "freeze", "use_llama_pro": True, "freeze_trainable_modules": "all", "use_cpu": True}
    found = said(catalogue, **asked, freeze_trainable_layers=6)
    assert found.missing == {} and "without them" in found.noted["use_llama_pro"]
    plan = compiled(*found.as_overrides())
    assert (plan.settings.method.name, plan.settings.method.num_new_layers) == ("llama_pro", 6)
    assert said(catalogue, **asked).overrides["method.num_new_layers"] == "2"  # their default
    with pytest.raises(UserError, match=r"method=llama_pro method.num_new_layers=6 in the place"):
        said(catalogue, **asked | {"freeze_trainable_layers": 6, "model_name_or_path": "models/pro"})


@pytest.mark.parametrize("method", ["galore", "apollo"])
def test_a_layerwise_optimizer_cuts_by_no_norm_of_all(method: str, catalogue: Path) -> None:
    asked = FULL | {f"use_{method}": True, f"{method}_layerwise": True, "pure_bf16": True, "use_cpu": True}
    for more in ({}, {"max_grad_norm": 1.0}):
        found = said(catalogue, **asked, **more)
        assert "stage.max_grad_norm=null" in found.noted["max_grad_norm"]
        assert compiled(*found.as_overrides()).settings.stage.max_grad_norm is None
    assert "stage.max_grad_norm" not in said(catalogue, **asked | {f"{method}_layerwise": False}).overrides


@pytest.mark.parametrize(("top_k", "wanted"), [(0, None), (7, 7)])
def test_a_top_k_of_none_is_null(top_k: int, wanted: int | None, catalogue: Path) -> None:
    found = said(catalogue, stage="ppo", top_k=top_k, top_p=0.9, use_cpu=True)
    plan = compiled(*found.as_overrides(), "stage.reward=http://127.0.0.1:9/score")
    assert stage_keys(plan)["top_k"] == wanted


def test_paths_of_images_start_where_they_did(catalogue: Path) -> None:
    """At the catalogue, or at media_dir, as image_dir was called before."""
    from PIL import Image

    rows = [
        {
            "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": f"{number}."}],
            "images": ["a.png"],
        }
        for number in range(20)
    ]
    (catalogue / "data" / "seen.json").write_text(json.dumps(rows))
    info = json.loads((catalogue / "data" / "dataset_info.json").read_text())
    columns = {"messages": "messages", "images": "images"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info["seen"] = {"file_name": "seen.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    (catalogue / "data" / "dataset_info.json").write_text(json.dumps(info))
    (catalogue / "shown").mkdir()
    Image.new("RGB", (8, 8)).save(catalogue / "shown" / "a.png")
    for key in ("media_dir", "image_dir"):
        found = said(catalogue, dataset="seen,mine", **{key: "shown"})
        assert key not in found.missing and "data.sources.mine.folder" not in found.overrides
        words = [word for word in found.as_overrides() if not word.startswith("model")]
        sources = compiled("model=llava1.5_7b", *words, training=False).settings.data.sources
        assert (sources["seen"].folder, sources["mine"].folder) == ("shown", None)
    assert "768 x 768" in found.noted["image_max_pixels"]
    assert "image_max_pixels" not in said(catalogue).noted
    assert "media_dir" in said(catalogue, media_dir="shown").missing  # no set that shows anything


@pytest.mark.parametrize("name", ["image_max_pixels", "image_min_pixels", "video_max_pixels", "crop_to_patches"])
def test_where_the_size_of_images_is_said_is_told(name: str, here: Path) -> None:
    assert "preprocessor_config.json" in said(here, **{name: 262144}).missing[name]
