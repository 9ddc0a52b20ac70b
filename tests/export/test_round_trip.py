"""What is exported of a run answers as the run did: read by plain libraries, in a process that has no Factory."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from exporting import SHORT, exported, files, losses, planned
from safetensors.torch import load_file, save_file
from test_methods import FITTING

from factory.attention.segments import with_masks
from factory.config.refusal import UserError
from factory.data.dataset import IGNORED
from factory.execute.report import as_json, write_report
from factory.export import card
from factory.logits import text_model
from factory.plan.saved import saved
from factory.run.folder import RunFolder
from factory.run.next_commands import next_commands
from factory.steps.export import ends

Execute = Callable[..., Any]
TEXT = "A fox and a dog: what do they say?"
# reads each export, and writes logits and a greedy answer as numbers
READER = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

assert "factory" not in sys.modules
base, text = sys.argv[1:3]
tokenizer = AutoTokenizer.from_pretrained("hf")
ids = tokenizer(text, return_tensors="pt").input_ids
load = AutoModelForCausalLM.from_pretrained
models = {
    "hf": load("hf", dtype="auto"),
    "gguf": load("gguf", gguf_file="model.gguf", dtype=torch.float32),
    "adapter": PeftModel.from_pretrained(load(base), "adapter"),
}
found = {}
for name, model in models.items():
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits[0].float().tolist()
    given = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)
    found[name] = [logits, tokenizer.decode(given[0])]
own = AutoTokenizer.from_pretrained("gguf", gguf_file="model.gguf")
found["ids"] = [ids[0].tolist(), own(text).input_ids]
json.dump(found, open("found.json", "w"))
"""


def test_each_format_gives_the_same_logits_and_the_same_greedy_text(
    execute: Execute, here: Path, tiny_model: Path
) -> None:
    done = execute("method=lora", "method.rank=4", *SHORT)
    write_report(done.run, "finished", done.result, None)
    merged = exported("run=run", "export.dir=hf")
    gguf = exported("run=run", "export.dir=gguf", "export.format=gguf")
    asked = ("run=run", "export.dir=adapter", "export.format=adapter")
    exported(*asked)
    asked = (*asked, "export.overwrite=true")
    (offered,) = next_commands(planned(*asked), RunFolder("adapter_run")).splitlines()[1:]
    said = saved(offered.split("  #")[0].split("run=")[1], None)
    assert (said.base, said.adapter) == (str(tiny_model), "adapter")
    assert merged["checks"].keys() == {"trainable_as_planned", "merge", "written"}
    for folder in ("hf", "gguf", "adapter"):
        assert len({path.stat().st_mode for path in (here / folder).iterdir()}) == 1
    for told in (merged, gguf):
        assert all(check["passed"] for check in told["checks"].values()), told["checks"]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(here)}
    subprocess.run(
        [sys.executable, "-c", READER, str(tiny_model), TEXT], check=True, cwd=here, env=environment, timeout=300
    )
    found = json.loads((here / "found.json").read_text())
    ids, own = found.pop("ids")
    assert ids == own
    with torch.no_grad(), with_masks(text_model(done.model)):
        wanted = done.model.eval()(input_ids=torch.tensor([ids])).logits[0].float()
    base = torch.tensor(found["hf"][0])
    assert (wanted - base).abs().max() < 1e-4
    for name, rounding in (("hf", 1e-4), ("adapter", 1e-4), ("gguf", 0.02)):
        assert (torch.tensor(found[name][0]) - wanted).abs().max() < rounding, name
        assert found[name][1] == found["hf"][1], name
    assert files("hf") >= {
        "README.md",
        "export.json",
        "generation_config.json",
        "chat_template.jinja",
        "tokenizer.json",
    }
    assert files("gguf") == {"README.md", "export.json", "Modelfile", "model.gguf"}
    told = (here / "hf" / "README.md").read_text()
    assert all(word in told for word in ("messages.jsonl", "final_loss", "| method | lora |")) and str(here) not in told


def test_a_card_has_no_path_of_ones_own_files(execute: Execute, here: Path) -> None:
    full = "from factory.methods.full.spec import *\nfrom factory.methods.full.run import attach, optimizer"
    (here / "norms.py").write_text(full)
    (here / "calm.yaml").write_text("source: us\nlike: chatml")
    execute("method=full", f"method.name={here}/norms.py", f"model.template={here}/calm.yaml", *SHORT)
    told = card.card(planned("run=run", "export.dir=out"))
    assert str(here) not in told and all(f" {name} " in told for name in ("norms.py", "calm.yaml"))


def _apart(method: str, execute: Execute, *words: str) -> float:
    from transformers import AutoModelForCausalLM

    done = execute(f"method={method}", *FITTING[method], *SHORT, *words)
    told = exported("run=run", "export.dir=out", "export.dtype=float32")
    assert told["checks"]["written"]["passed"]
    ids = done.dataset.first.ids[:48]
    read = AutoModelForCausalLM.from_pretrained("out")
    assert read.config.vocab_size == done.model.get_input_embeddings().weight.shape[0]
    return float((losses(read, ids) - losses(done.model, ids)).abs().max())


@pytest.mark.parametrize("method", ["dora", "qlora", pytest.param("full", marks=pytest.mark.slow)])
def test_what_a_method_has_trained_is_what_is_written(method: str, execute: Execute) -> None:
    assert _apart(method, execute) < 2e-3


OTHERS = ("pissa", "olora", "rslora", "lora_plus", "adalora", "oft", "ia3", "vera", "loha", "lokr", "freeze")


@pytest.mark.slow
@pytest.mark.parametrize("method", [*OTHERS, "llama_pro", "galore", "badam"])
def test_the_other_methods(method: str, execute: Execute) -> None:
    assert _apart(method, execute) < 5e-3


def test_new_tokens_are_merged_into_a_larger_embedding(execute: Execute) -> None:
    assert _apart("lora", execute, "model.new_tokens=['<a>','<b>']") < 2e-3


def test_a_reward_model_is_a_classifier_with_its_scores(execute: Execute) -> None:
    from transformers import AutoModelForSequenceClassification

    from factory.plan import heads

    done = execute("method=lora", "method.rank=4", "stage=rm", *SHORT[:-1], "data.max_samples=16")
    told = exported("run=run", "export.dir=out")
    assert told["checks"]["written"]["passed"]
    ids = torch.tensor([done.dataset.first.ids[:40]])
    read = AutoModelForSequenceClassification.from_pretrained("out").eval()
    with torch.no_grad(), with_masks(text_model(done.model)):
        hidden = text_model(done.model).base_model(input_ids=ids).last_hidden_state
        wanted = heads.apply(done.model, "score_head.weight", hidden[0, -1])
        assert torch.allclose(read(input_ids=ids).logits[0], wanted, atol=1e-4)
    assert read.config.num_labels == 1 and "score" not in str(files("out"))


@pytest.mark.parametrize("padding", ["<|endoftext|>", "<|im_end|>"])
def test_a_classifier_scores_where_the_answer_ends(padding: str, execute: Execute, here: Path) -> None:
    """Also of a tokenizer that pads with what ends an answer: that is the token which is read, and is no padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from factory.data.batches import collate
    from factory.stages.rm.run import scores

    base = tiny.save(here / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = padding
    tokenizer.save_pretrained(base)
    words = (f"model.path={base}", "method=lora", "method.rank=4", "stage=rm", *SHORT[:-1], "data.max_samples=16")
    done = execute(*words)
    assert (done.dataset.pad == 2) == (padding == "<|im_end|>")
    exported("run=run", "export.dir=out")
    rows = [done.dataset.train[number].chosen for number in range(3)]
    answered = [row.ids[: max(at for at, label in enumerate(row.labels) if label != IGNORED) + 1] for row in rows]
    assert {ids[-1] for ids in answered} == {2} and len({*map(len, answered)}) > 1
    model = AutoModelForSequenceClassification.from_pretrained("out").eval()
    given = AutoTokenizer.from_pretrained("out").pad({"input_ids": answered}, return_tensors="pt")
    with torch.no_grad():
        wanted = scores(done.model, collate(rows, done.dataset.pad, "cpu"))
        assert torch.allclose(model(**given).logits[:, 0], wanted, atol=1e-4)
        assert torch.allclose(model(input_ids=torch.tensor(answered[:1])).logits[0, 0], wanted[0], atol=1e-4)


@pytest.mark.parametrize(("kind", "bits"), [("nf4", 4), pytest.param("int8", 8, marks=pytest.mark.slow)])
def test_a_model_in_bits_is_read_in_bits(kind: str, bits: int, here: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    told = exported(f"model.path={tiny_model}", "export.dir=out", f"export.quantization={kind}")
    assert told["checks"]["written"]["passed"]
    read = AutoModelForCausalLM.from_pretrained("out")
    assert getattr(read, f"is_loaded_in_{bits}bit")
    assert "4bit" in type(read.model.layers[0].mlp.up_proj).__name__ or bits == 8


@pytest.mark.parametrize(("form", "dtype"), [("hf", "float32"), ("hf", "bfloat16"), ("gguf", "float32")])
def test_a_file_that_is_not_what_was_written_leaves_nothing(
    form: str, dtype: str, here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that is read anew for the check `written` has another last norm."""
    from factory.steps import written

    reading = {"hf": "_read", "gguf": "_read_gguf"}[form]
    original = getattr(written, reading)

    def other(*given: Any) -> Any:
        model = original(*given)
        with torch.no_grad():
            model.get_decoder().norm.weight.mul_(30)
        return model

    monkeypatch.setattr(written, reading, other)
    with pytest.raises(UserError, match="export-unfit"):
        exported(f"model.path={tiny_model}", "export.dir=out", f"export.format={form}", f"export.dtype={dtype}")
    assert [path.name for path in here.iterdir()] == ["export-run"]


def test_shards_are_as_large_as_is_said(here: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    exported(f"model.path={tiny_model}", "export.dir=out", "export.shard_size=100kB", "export.dtype=bfloat16")
    shards = sorted(Path("out").glob("model-*.safetensors"))
    assert len(shards) > 1 and all(shard.stat().st_size < 110_000 for shard in shards)
    assert AutoModelForCausalLM.from_pretrained("out", dtype="auto").dtype == torch.bfloat16


def test_a_model_that_its_type_is_too_narrow_for_is_written_unchecked_and_told(execute: Execute, here: Path) -> None:
    """The weights have a place in float16, the logits have none: there is no figure, and the report is whole."""
    done = execute("method=full", *SHORT)
    write_report(done.run, "finished", done.result, None)
    file = here / "run" / "model" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] *= 3e4
    save_file(weights, file, metadata={"format": "pt"})
    asked = ("run=run", "export.dir=hf", "export.dtype=float16")
    with pytest.raises(UserError, match=r"\[export-unfit\].*differ by nan"):
        exported(*asked)
    told = exported(*asked, "export.check=false")
    assert "mean_nats" not in told and (here / "hf" / "model.safetensors").is_file()
    assert json.loads(as_json(told)) == told
    assert "no numbers" in RunFolder("export-run").events.read_text()


def test_white_space_may_stand_before_what_ends_an_answer() -> None:
    """As in the template of DeepSeek Coder; what follows any other text is a part of the answer, and no end of it."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.eos_token = "<|endoftext|>"
    for between, stops in (("", [0, 2]), ("\n", [0, 2]), (" \n\n", [0, 2]), ("\nDone.", [0])):
        turn = "### {{ message.role }}\n{{ message.content }}" + between + "<|im_end|>\n"
        tokenizer.chat_template = "{% for message in messages %}" + turn + "{% endfor %}"
        assert ends(tokenizer) == stops, between


def test_an_answer_in_parts_ends_as_one_in_a_text() -> None:
    """A template of parts alone writes nothing of a text: the conversation's first token would be taken for its end."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    parts = "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    turn = "<|im_start|>{{ message.role }}\n" + parts + "<|im_end|>\n"
    tokenizer.eos_token = "<|endoftext|>"
    assert ends(tokenizer) == [0, 2]
    tokenizer.chat_template = "{% for message in messages %}" + turn + "{% endfor %}"
    assert ends(tokenizer) == [0, 2]
    tokenizer.chat_template = None
    assert ends(tokenizer) == [0]
