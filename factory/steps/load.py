"""Load: the model's config and tokenizer. The weights are read once, in `attach`, when all is known about them."""

from typing import Any

from factory import templates
from factory.execute.context import Run
from factory.refusal import refuse
from factory.steps import source
from factory.steps.vocabulary import add_tokens, tokens_of


def load(run: Run) -> dict[str, Any]:
    from transformers import AutoConfig

    plan = run.plan.steps.load
    with source.readable(plan):
        path = source.folder(run)
        config = AutoConfig.from_pretrained(path, revision=plan.revision, trust_remote_code=plan.trust_remote_code)
        tokenizer = read_tokenizer(path, plan.revision, plan.trust_remote_code, run.plan.steps.pack.template)
    patch = run.plan.steps.patch
    add_tokens(tokenizer, patch.new_tokens)
    _check_vocabulary(tokens_of(tokenizer), patch.vocabulary, patch.new_rows, run)
    return {"config": config, "tokenizer": tokenizer}


def read_tokenizer(path: str, revision: str | None, trust_remote_code: bool, template: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    if template != "auto":
        tokenizer.chat_template = templates.read(template)
    if tokenizer.eos_token_id is None:
        raise refuse("no-end-token", f"model.path={path}", "its tokenizer has no end-of-text token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_vocabulary(tokens: int, rows: int, new: tuple[int, int], run: Run) -> None:
    setting = f"model.path={run.plan.steps.load.path}"
    if tokens > rows:
        raise refuse("vocabulary", setting, f"its tokenizer has {tokens:,} tokens, its embedding {rows:,} rows")
    if new[0] < new[1] != tokens:
        raise refuse("vocabulary", setting, f"its tokenizer has {tokens:,} tokens, the plan was made for {new[1]:,}")
