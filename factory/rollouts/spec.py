"""The keys and rules of the stages that sample answers and learn from their scores."""

from math import prod
from typing import Any

from pydantic import Field

from factory.architecture import Architecture
from factory.config import registry
from factory.config.settings import Stage
from factory.plan import choices, heads
from factory.plan.facts import AdapterFacts, RewardFacts
from factory.plan.plan import BYTES, Dtype
from factory.plan.rule import Broken, Case, rule
from factory.rewards import spec as rewards
from factory.stages.rm.spec import SCORE


class Settings(Stage):
    reward_model: str | None = Field(
        description="scores answers: the folder of a run of stage=rm, its model/ folder, or its MLflow run id"
    )
    reward: str | None = Field(
        description="scores answers without a reward model: module:function, trl:NAME of TRL's, or a server's "
        "http://HOST/PATH"
    )
    reward_timeout: float = Field(description="seconds that a server has for an answer", gt=0)
    reward_retries: int = Field(
        description="how often a server that fails is asked again, after 1, 2, 4 … seconds", ge=0, le=10
    )
    missing_end_penalty: float | None = Field(
        description="taken from the score of an answer that has no end within max_new_tokens; null: nothing", gt=0
    )
    max_new_tokens: int = Field(description="length limit of a sampled answer", ge=1)
    temperature: float = Field(description="the logits are divided by it before an answer is sampled", gt=0)
    top_p: float = Field(
        description="an answer's tokens are drawn among the likeliest that have this share together", gt=0, le=1
    )
    top_k: int | None = Field(
        description="an answer's tokens are drawn among so many of the likeliest; null: all", ge=1
    )
    rollout_batch_size: int = Field(description="answers that are sampled in a step, and then trained", ge=1)
    update_epochs: int = Field(description="how often the answers of a step are trained", ge=1)
    clip: float = Field(
        description="how far the ratio of new to old probabilities is followed (PPO, arXiv 1707.06347, eq. 7)", gt=0
    )


def new_tokens(own: dict[str, Any]) -> int:
    """Tokens that are sampled after a prompt, at most."""
    return own["max_new_tokens"]


def updates(stage: Settings) -> int:
    """Optimizer updates in a step."""
    return stage.update_epochs * stage.rollout_batch_size // (stage.batch_size * stage.gradient_accumulation_steps)


def copies_start(case: Case) -> bool:
    """Whether the reference is an adapter, a frozen copy of the trained one's start, and not the bare base."""
    return case.model.adapter is not None or registry.starts_from_weights(case.method_spec, case.settings.method)


def reads_reference(case: Case) -> bool:
    """Whether the stage measures how far the policy has moved."""
    return case.stage_spec.reads_reference(case.settings.stage.model_dump())


# --- what the plan says


def notes(case: Case) -> tuple[str, ...]:
    stage, reward = case.settings.stage, case.facts.reward
    if reward is None:
        judge = f"rewards: {stage.reward}"
    elif reward.adapter is None:
        judge = f"rewards: the model in {reward.path}, read beside the policy's base: a second set of weights"
    else:
        judge = f"rewards: the adapter and the score head in {reward.path}, frozen on the policy's own base"
    if not reads_reference(case):
        reference = "reference: none, as nothing measures the distance to it"
    elif copies_start(case):
        reference = "reference: the adapter as it starts, frozen, on the policy's own base"
    else:
        reference = "reference: the policy's base with its adapters off"
    return (
        judge,
        reference,
        f"a step: at most {stage.rollout_batch_size} sampled answers, trained in {updates(stage)} updates "
        f"(stage.update_epochs={stage.update_epochs}); the data's own answers are not trained",
    )


def rollout_bytes(own: dict[str, Any], arch: Architecture, dtype: Dtype, prompt: int) -> int:
    """Keys and values of all answers while they are sampled, and a token's logits with the copies that sampling sorts.

    prompt: tokens before the answers.
    """
    answers, length = own["rollout_batch_size"], prompt + own["max_new_tokens"]
    cache = 2 * arch.layers * arch.kv_heads * arch.head_dim * BYTES[dtype] * length
    return answers * (cache + 3 * BYTES["float32"] * arch.vocabulary)


def reward_bytes(case: Case, trained: Dtype, frozen: Dtype) -> int:
    """The frozen tensors beside the base: the reward model's, and of the trained adapter its start."""
    reward, total = case.facts.reward, 0
    if reward is not None:
        kind = frozen if reward.adapter is None else trained
        total += BYTES[kind] * sum(map(prod, reward.shapes.values())) + 4 * sum(map(prod, reward.heads.values()))
    if reads_reference(case) and copies_start(case):
        total += BYTES[trained] * sum(map(prod, case.trained.values()))
    return total


# --- the rules


@rule(
    "reward",
    keys=("stage.reward_model", "stage.reward"),
    reason="only their scores make answers likelier, and one score is followed at a time",
    fix="set one of stage.reward_model=RUN (of stage=rm), stage.reward=module:function, trl:NAME or http://HOST/PATH",
)
def reward(case: Case) -> str | Broken | None:
    text, model = case.settings.stage.reward, case.settings.stage.reward_model
    if text is None:
        return "nothing says how good an answer is" if model is None else None
    if model is not None:
        return Broken(key="stage.reward", message="stage.reward_model scores the answers too")
    if (named := rewards.named(text)) is None:
        return Broken(key="stage.reward", message="it is neither module:function, trl:NAME nor an http address")
    if named.kind != "trl" or named.name in rewards.TRL:
        return None
    return Broken(key="stage.reward", message=f"of TRL's functions {', '.join(rewards.TRL)} can be named")


@rule(
    "reward-model",
    keys=(
        "stage.reward_model",
        "model.path",
        "model.new_tokens",
        "method.name",
        "method.initialization",
        "method.target_experts",
    ),
    reason="one set of base weights serves both adapters, and PEFT switches between adapters of one type",
    fix=(
        "train the reward model on this model with the same kind of method, and not loftq or pissa over few "
        "bits, or name one of method=full"
    ),
)
def reward_model(case: Case) -> str | Broken | None:
    reward = case.facts.reward
    if reward is None:
        return None
    if (wrong := _misfit(case, reward)) is not None:
        reason = "a score is the head's product with the last hidden state of the same tokens"
        fix = "name the folder of a run of stage=rm on this model"
        return Broken(message=wrong, reason=reason, fix=fix)
    return _wrong_base(case, reward, reward.adapter) if reward.adapter is not None else None


def _misfit(case: Case, reward: RewardFacts) -> str | None:
    score = reward.heads.get(SCORE)
    if score is None:
        return f"there is no {heads.file_of(SCORE)} in it"
    if reward.adapter is not None and score != (1, heads.width(case.arch)):
        return f"its score head reads {score[-1]} numbers of a token, this model has {heads.width(case.arch)}"
    rows = None if reward.config is None else reward.config.get("vocab_size")
    if rows is not None and rows < case.arch.vocabulary:
        return f"it has {rows:,} tokens, this model {case.arch.vocabulary:,}"
    return None


def _wrong_base(case: Case, reward: RewardFacts, adapter: AdapterFacts) -> str | None:
    """Return why a reward adapter cannot stand on the very base that the policy does."""
    peft = registry.hook(case.method_spec, "peft")
    if peft is None:
        return f"it is an adapter, and method={case.settings.method.name} trains the weights that it stands on"
    if adapter.started:
        return "it stands on a base of its own, quantized without its start, and the policy on another"
    ours, theirs = peft(case.settings.method, case.arch), adapter.config
    if ours["peft_type"] != (kind := theirs.get("peft_type")):
        return f"its adapter is of PEFT's type {kind}, the trained one {ours['peft_type']}: one base cannot carry both"
    words = "trainable_token_indices"
    if (ours.get(words) or None) != (theirs.get(words) or None):
        return "it was trained with other new tokens"
    if registry.starts_from_weights(case.method_spec, case.settings.method):
        return f"method={case.settings.options.get('method')} starts from the base's weights, and leaves it another"
    if getattr(case.settings.method, "target_experts", False) or theirs.get("target_parameters"):
        return "PEFT cannot hold two adapters of stacked experts"
    if reward.base is not None and not _same_model(reward.base, case.model.fingerprint):
        return f"it was trained on another model ({reward.base}, here is {case.model.fingerprint})"
    if adapter.base is not None and adapter.base != case.model.config:
        return "its base has stretched positions (base/config.json), this run's has not"
    return None


def _same_model(one: str, other: str) -> bool:
    """By fingerprints; of the hub's models a plan may know the branch, another the commit."""
    return one == other or ("@" in one and one.partition("@")[0] == other.partition("@")[0])


@rule(
    "reference-needs-adapter",
    keys=("method.name", "stage.name"),
    reason="the distance to the model before training would need a second copy of all weights",
    fix=(
        "set a method with an adapter (method=lora), or no pull to the reference: stage.kl_coefficient=0 "
        "stage.kl_target=null of ppo, stage.beta=0 of grpo"
    ),
)
def reference_needs_adapter(case: Case) -> str | None:
    if case.settings.verb != "train":
        return None
    whole = registry.hook(case.method_spec, "peft") is None and reads_reference(case)
    return f"method={case.settings.method.name} moves the base itself, and no copy of it is kept" if whole else None


@rule(
    "rollout-method",
    keys=("method.name", "method.dropout", "stage.name"),
    reason="old and new probabilities of a token must differ only by what was learnt",
    fix="set method=lora",
)
def rollout_method(case: Case) -> str | Broken | None:
    if does := registry.hook(case.method_spec, "BY_STEP"):
        reason = "its schedule of ranks is made for one update per step"
        return Broken(message=f"{does} by the step, of which each has several updates here", reason=reason)
    if getattr(case.settings.method, "dropout", 0):
        return Broken(key="method.dropout", message="dropout is off here", fix="set method.dropout=0")
    return None


@rule(
    "rollout-batches",
    keys=("stage.rollout_batch_size", "stage.batch_size", "stage.gradient_accumulation_steps"),
    reason="all answers of a step are trained equally often",
    fix="set it to a multiple of stage.batch_size x stage.gradient_accumulation_steps",
)
def rollout_batches(case: Case) -> str | None:
    stage = case.settings.stage
    update = stage.batch_size * stage.gradient_accumulation_steps
    if stage.rollout_batch_size % update == 0:
        return None
    return f"updates of {stage.batch_size} x {stage.gradient_accumulation_steps} answers do not divide it"


@rule(
    "rollout-room",
    keys=("stage.max_new_tokens", "data.max_length", "model.context_length", "model.path"),
    reason="an answer follows its prompt, and positions that the model never saw come out as noise",
    fix="lower stage.max_new_tokens or data.max_length (which holds the prompts, with the data's own answers)",
)
def rollout_room(case: Case) -> str | None:
    context = choices.context_length(case)
    if context is None:
        return None
    new, length = case.settings.stage.max_new_tokens, choices.max_length(case, context)
    if context <= new:
        return f"the model's context is {context:,} tokens"
    return (
        f"with prompts of up to {length:,} tokens it is beyond the context of {context:,}"
        if length + new > context
        else None
    )
