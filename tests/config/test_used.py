"""LLaMA-Factory's configs that train nothing: a prediction, an export, a conversation, each as its verb here."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory import cli
from factory.config.refusal import UserError
from factory.verbs import import_config as llamafactory
from factory.verbs import use
from factory.verbs.import_config.said import Said
from factory.verbs.import_config.table import table

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TALK = {"model_name_or_path": MODEL, "template": "chatml", "trust_remote_code": True}
PREDICT = TALK | {
    "stage": "sft",
    "do_predict": True,
    "predict_with_generate": True,
    "finetuning_type": "lora",
    "eval_dataset": "asked",
    "cutoff_len": 256,
    "max_samples": 4,
    "output_dir": "saves/predict",
    "per_device_eval_batch_size": 2,
}
EXPORT = TALK | {"export_dir": "out/merged", "export_size": 5, "export_device": "cpu", "export_legacy_format": False}


def said(here: Path, given: dict[str, Any], **more: Any) -> Said:
    file = here / "old.yaml"
    file.write_text(yaml.safe_dump({**given, **more}), encoding="utf-8")
    return llamafactory.translate(file)


@pytest.fixture
def catalogue(here: Path) -> Path:
    (here / "data").mkdir()
    rows = [{"instruction": f"Say {number}.", "output": f"{number}"} for number in range(20)]
    (here / "data" / "rows.json").write_text(json.dumps(rows))
    info = {name: {"file_name": "rows.json"} for name in ("asked", "other")}
    (here / "data" / "dataset_info.json").write_text(json.dumps(info))
    return here


@pytest.mark.parametrize(
    ("given", "verb"),
    [
        (TALK, "chat"),
        (TALK | {"infer_backend": "vllm", "vllm_maxlen": 4096, "adapter_name_or_path": "a"}, "chat"),
        (TALK | {"infer_backend": "huggingface", "finetuning_type": "lora", "quantization_bit": 4}, "chat"),
        (TALK | {"infer_backend": "huggingface", "use_kt": True, "enable_liger_kernel": True}, "chat"),
        *(
            (TALK | given, "chat")
            for given in ({"quantization_bit": 8}, {"flash_attn": "fa2"}, {"rope_scaling": "yarn"})
        ),
        (TALK | {"seed": 1, "tool_format": "qwen", "default_system": "Be kind."}, "chat"),
        (TALK | {"infer_backend": "huggingface", "output_dir": "saves"}, "train"),
        (TALK | {"learning_rate": 1e-4}, "train"),
        (TALK | {"task": "mmlu_test"}, "evaluate"),
        (EXPORT, "export"),
        (EXPORT | {"do_train": True}, "export"),  # which `llamafactory-cli export` does not read
        (PREDICT, "evaluate"),
        (PREDICT | {"do_predict": False, "do_train": False}, "evaluate"),
        (TALK | {"do_eval": True, "dataset": "asked", "val_size": 0.5}, "evaluate"),
        (PREDICT | {"do_train": True}, "train"),
        (TALK | {"stage": "sft", "dataset": "asked"}, "train"),
    ],
)
def test_a_config_is_the_verb_that_it_is_of(given: dict[str, Any], verb: str, here: Path) -> None:
    assert said(here, given).verb == verb


def test_a_prediction_is_an_evaluation_of_its_set(catalogue: Path) -> None:
    found = said(catalogue, PREDICT, temperature=0.5, max_new_tokens=8, top_p=0.9)
    assert found.missing.keys() == {"top_p"} and "evaluate.rows=train" in found.noted["eval_dataset"]
    plan = use.foreseen(found.verb, found.as_overrides())
    assert plan.verb == "evaluate" and plan.sources["asked"].asked.max_samples == 4
    assert (plan.steps.pack.max_length, found.overrides["hydra.run.dir"]) == (256, "saves/predict")
    asked = plan.settings.evaluate
    assert (asked.rows, asked.perplexity, asked.batch_size) == ("train", False, 2)
    assert (asked.generation, asked.temperature, asked.max_new_tokens) == (True, 0.5, 8)


def test_what_answers_are_by_default_is_said(here: Path) -> None:
    drawn = said(here, PREDICT)
    assert drawn.overrides["evaluate.max_new_tokens"] == "1024" and "there they are drawn" in str(drawn.noted)
    likeliest = said(here, PREDICT, do_sample=False, temperature=0.5)
    assert likeliest.overrides["evaluate.temperature"] == "0" and "predict_with_generate" not in likeliest.noted
    trained = said(here, PREDICT, do_train=True, dataset="other", temperature=0.5)
    assert trained.overrides["evaluate.temperature"] == "0.5"


def test_a_set_that_is_not_apart_is_measured_by_its_share(here: Path) -> None:
    evaluated = TALK | {"do_eval": True, "dataset": "asked"}
    part = said(here, evaluated, val_size=0.2).overrides
    assert (part["data.validation_fraction"], part["data.names"]) == ("0.2", "[asked]")
    assert "evaluate.rows" not in part and "evaluate.generation" not in part
    assert said(here, evaluated).overrides["evaluate.rows"] == "train"
    assert "dataset" in said(here, PREDICT, dataset="other").same
    assert "eval_dataset" in said(here, TALK | {"do_predict": True}).missing


def test_an_export_is_planned(here: Path) -> None:
    found = said(here, EXPORT, lora_rank=8, cutoff_len=256, infer_dtype="bfloat16", export_hub_model_id="me/it")
    assert found.missing == {} and found.same.keys() == {"export_legacy_format", "lora_rank", "cutoff_len"}
    plan = use.foreseen(found.verb, found.as_overrides())
    export = plan.settings.export
    assert (export.dir, export.shard_size, export.push) == ("out/merged", 5 * 10**9, "me/it")
    assert found.overrides["hardware.device"] == "cpu" and found.overrides["export.dtype"] == "bfloat16"


def test_an_exports_bits_are_those_of_gptq_here(here: Path) -> None:
    found = said(here, EXPORT, export_quantization_bit=4, export_quantization_dataset="c4.json")
    assert found.overrides["export.quantization"] == "gptq"
    assert "export.calibration" in found.missing["export_quantization_dataset"]
    with pytest.raises(UserError, match="export_quantization_bit=8"):
        said(here, EXPORT, export_quantization_bit=8)


def test_a_conversation_is_one_here(here: Path) -> None:
    found = said(here, TALK, infer_backend="huggingface", temperature=0.3, top_k=0, finetuning_type="lora")
    words = ("engine", "generation.temperature", "generation.top_p", "generation.top_k", "generation.max_tokens")
    assert [found.overrides[key] for key in words] == ["transformers", "0.3", "0.7", "null", "1024"]
    assert found.missing == {} and use.foreseen(found.verb, found.as_overrides()).verb == "chat"
    assert said(here, TALK, do_sample=False).overrides["generation.temperature"] == "0"
    assert "infer_backend" in said(here, TALK, infer_backend="sglang").missing


def test_what_a_conversation_is_quantized_to_is_planned(here: Path) -> None:
    found = said(here, TALK, infer_backend="huggingface", quantization_bit=4, flash_attn="sdpa")
    plan = use.foreseen(found.verb, found.as_overrides())
    assert plan.settings.method.quantization is not None and plan.settings.method.quantization.bits == 4
    assert plan.steps.patch.attention == "sdpa"


EXAM = TALK | {"task": "mmlu_test", "lang": "en", "n_shot": 3, "batch_size": 4, "save_dir": "saves/eval", "seed": 1}


def test_a_benchmark_is_asked_here(here: Path) -> None:
    found = said(here, EXAM, template="fewshot", download_mode="reuse_dataset_if_exists")
    assert found.missing.keys() == {"download_mode"} and found.same.keys() == {"lang", "template"}
    assert "drawn at random" in found.noted["task"]
    plan = use.foreseen(found.verb, found.as_overrides())
    assert list(plan.steps.evaluate.benchmarks) == ["mmlu"]
    asked = plan.settings.evaluate
    assert (asked.shots, asked.batch_size, asked.chat, asked.perplexity, plan.steps.evaluate.samples) == (
        3,
        4,
        False,
        False,
        0,
    )
    assert (found.overrides["hydra.run.dir"], found.overrides["seed"]) == ("saves/eval", "1")
    assert "data" not in found.overrides and "data.max_length" not in found.overrides


def test_a_benchmark_is_asked_by_the_template(here: Path) -> None:
    found = said(here, EXAM, task="ceval_validation", task_dir="evaluation")
    assert (found.overrides["evaluate.chat"], found.overrides["model.template"]) == ("true", "chatml")
    assert found.overrides["evaluate.path"] == "evaluation" and "ceval.zip" in found.noted["task_dir"]
    assert "own language here (zh)" in found.missing["lang"]
    assert "lang" in said(here, TALK, task="cmmlu_test").missing  # en where it is not said
    assert "lang" in said(here, TALK, task="cmmlu_test", lang="zh").same


@pytest.mark.parametrize("task", ["ceval_test", "gsm8k", "mmlu"])
def test_a_benchmark_that_is_not_here_is_refused(task: str, here: Path) -> None:
    with pytest.raises(UserError, match=rf"task={task}: .* mmlu_test, ceval_validation, cmmlu_test"):
        said(here, EXAM, task=task)


def test_keys_of_a_benchmark_are_of_it_alone(here: Path) -> None:
    with pytest.raises(UserError, match="did you mean per_device_train_batch_size"):
        said(here, PREDICT, batch_size=4)
    with pytest.raises(UserError, match="did you mean learning_rate"):
        said(here, EXAM, learning_rat=4)


def test_a_system_text_changes_what_is_answered(here: Path) -> None:
    with pytest.raises(UserError, match="default_system=Be kind"):
        said(here, PREDICT, default_system="Be kind.")
    assert said(here, TALK, default_system="Be kind.").overrides["chat.system"] == "Be kind."
    assert "default_system" in said(here, EXPORT, default_system="Be kind.").same


@pytest.mark.parametrize("value", [1, "x"])
@pytest.mark.parametrize("given", [PREDICT, EXPORT, TALK | {"infer_backend": "huggingface"}, EXAM])
def test_no_key_of_theirs_breaks_a_translation(given: dict[str, Any], value: Any, here: Path) -> None:
    """Where nothing is trained, keys of training are told of; max_steps and buffer_size ended in a traceback."""
    verb = said(here, given).verb
    of_another = {"dataset", "eval_dataset", "stage", "output_dir", "do_train", "do_predict", "do_eval"}
    names = {*table()["keys"], *table()["code"], *table()["exam"]} - given.keys() - of_another
    for name in sorted(names - {"export_dir", "predict_with_generate"}):
        try:
            assert said(here, given, **{name: value}).verb == verb, name
        except UserError as error:
            assert {each.rule for each in error.refusals} <= {"import-unequal", "import-key"}, name


def test_pickled_weights_are_not_written(here: Path) -> None:
    assert ".bin" in said(here, EXPORT, export_legacy_format=True).missing["export_legacy_format"]


@pytest.mark.parametrize("given", [PREDICT, EXPORT, TALK])
def test_several_adapters_are_no_one(given: dict[str, Any], here: Path) -> None:
    with pytest.raises(UserError, match="not several"):
        said(here, given, adapter_name_or_path="a,b")


@pytest.mark.parametrize("given", [PREDICT, EXPORT, TALK])
def test_an_adapter_is_what_its_own_folder_says(
    given: dict[str, Any], catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of other modules and another rank than lora has by default; as training it was refused (adapter-fits)."""
    (catalogue / "old.yaml").write_text(yaml.safe_dump(given | {"adapter_name_or_path": "adapter"}))
    assert cli.main(["import-config", "old.yaml"]) == 0
    assert "# refused   [adapter-missing]" in capsys.readouterr().out  # so the verb's own plan is what was asked
    save_adapter(catalogue / "adapter")
    assert cli.main(["import-config", "old.yaml"]) == 0
    out = capsys.readouterr().out
    assert "# refused" not in out
    assert f"factory {said(catalogue, given).verb} \\\n" in out


def save_adapter(folder: Path) -> None:
    """Of q_proj alone, rank 4, of every layer of the embedded model, as PEFT names them."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": MODEL,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    place = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    tensors = {place.format(layer, "A"): torch.zeros(4, 576) for layer in range(30)}
    tensors |= {place.format(layer, "B"): torch.zeros(576, 4) for layer in range(30)}
    save_file(tensors, folder / "adapter_model.safetensors")
