"""The proofs of a run, by the names that report.json has them under: where each is red, and where it is absent."""

LEVELS = {  # of the key `checks`
    "fast": "saved tensors are compared one at a time; no second copy of the model, no pass over frozen weights",
    "full": "the saved model is read again, and frozen weights are summed up before and after",
    "none": "nothing that takes a pass over a model",
}
CHECKS: dict[str, str] = {
    "template": "the text of rows is not what the tokenizer's own chat template makes; absent of plain text",
    "loss_mask": "the trained tokens do not spell the answers; absent of plain text, and of media where prompts train",
    "media_as_processor": "tokens of a row with media are not the model's processor's; absent where there are none",
    "tokens_accounted": "rows or tokens were lost, or trained twice, between the files and the optimizer",
    "trainable_as_planned": "as many parameters require a gradient as the plan does not say",
    "logits_as_model": "the losses are not those of the model's own logits; absent where they do not read the head, "
    "and with checks=none",
    "packing_isolation": "documents, rows or answers that share a row see each other; absent where none share one, "
    "and with checks=none",
    "ratio_is_one": "before its first update the policy is not the one that answered; absent where nothing is sampled, "
    "and with checks=none",
    "gradients_alive": "a trained tensor had no gradient, or no update was applied",
    "frozen_unchanged": "a frozen tensor moved; absent where all are trained, unless checks=full, "
    "and unless hardware.strategy is none",
    "reference_unchanged": "what the policy's change is measured from has moved; absent where nothing measures it, "
    "with checks=none, and unless hardware.strategy is none",
    "ranks_agree": "processes that hold the same weights hold others; absent unless hardware.strategy is ddp",
    "resume_point": "the last checkpoint does not open, or is of another step; absent with checks=none, "
    "and unless hardware.strategy is none",
    "saved": "a saved tensor is not the trained one; absent unless checks=fast, of files that name all tensors "
    "otherwise, and unless hardware.strategy is none",
    "save_reload": "the saved model, read again, is not the trained one; absent unless checks=full, "
    "and unless hardware.strategy is none",
    "merge": "the merged weights do not answer as the adapter on its base; absent of quantized bases, where an adapter "
    "stands in no language model, and of training unless checks=full, and unless hardware.strategy is none",
    "as_trained": "an export answers otherwise than its run; absent but where an adapter has a base to itself",
    "written": "what an export wrote, read anew, answers otherwise; absent of adapters, gptq and awq",
    "memory_as_estimated": "the peak is more than a tenth off the estimate: advice, no run fails by it",
}
