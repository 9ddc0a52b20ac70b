"""A folder of task files for lm-evaluation-harness: questions from files beside them, no network."""

import json
from pathlib import Path

QUESTIONS = [
    (f"What is {a} plus {b}?", [f" {a + b}", f" {a + b + 1} at least", f" {a * b + 20}"], number % 3)
    for number, (a, b) in enumerate([(2, 3), (4, 1), (7, 2), (5, 5), (6, 9), (8, 0), (3, 3), (1, 9), (2, 8), (4, 7)])
]
SHOTS = QUESTIONS[:4]
ASKED = QUESTIONS[4:]

SUMS = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{train: {folder}/shots.jsonl, test: {folder}/asked.jsonl}}
fewshot_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
num_fewshot: {shots}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
WRITTEN = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/asked.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: {length}, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
TOGETHER = """\
group: sums_all
task: [sums, sums_bare]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
metadata: {version: 1.0}
"""


def own_tasks(folder: Path) -> Path:
    """sums (2 shots), sums_bare (none, by its file), both as sums_all, and written, which is answered in words."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("shots", SHOTS), ("asked", ASKED)):
        said = [{"question": each[0], "choices": each[1], "answer": each[2]} for each in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, said)))
    where = folder.absolute()
    (folder / "sums.yaml").write_text(SUMS.format(name="sums", folder=where, shots=2))
    (folder / "sums_bare.yaml").write_text(SUMS.format(name="sums_bare", folder=where, shots=0))
    (folder / "sums_all.yaml").write_text(TOGETHER)
    (folder / "written.yaml").write_text(WRITTEN.format(name="written", folder=where, length=6))
    return folder
