"""Losses that stand in for a language model's head and transformers' own loss together, and whose models have which.

``liger`` is transformers' ``use_liger_kernel`` with ``liger_kernel_config: {rope: false, rms_norm: false, swiglu: false}``: the
fused loss alone, as that flag's other kernels are not modelled. ``cce`` is ``cut_cross_entropy.transformers.cce_patch`` with
its defaults. ``chunked`` is torchtune's LinearCrossEntropyLoss with its defaults, on the model's hidden states.
"""

from __future__ import annotations

from typing import Any

from memcalc.errors import InputError, NotModelledError, either
from memcalc.implementations import USUAL
from memcalc.models import Model
from memcalc.play.machine import Machine
from memcalc.play.values import Value

PLAIN = "plain"
LIGER = frozenset(
    ["gemma", "gemma2", "gemma3_text", "llama", "mistral", "mixtral", "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "qwen3_moe"]
)
"""Whose forward liger-kernel replaces (0.8.2 transformers/monkey_patch.py:MODEL_TYPE_TO_APPLY_LIGER_FN), of those where it
gives the fused loss the head's weight and nothing else."""
CCE = frozenset(["gemma2", "llama", "mistral", "phi3", "qwen2"])
"""Whose forward cut-cross-entropy replaces (25.6.4 transformers/patch.py:PATCH_FNS)."""
PATH = "training.cross_entropy"


def check_head(asked: str, model: Model) -> None:
    """That the model has a head this loss stands in for.

    Raises:
        InputError: another head, or a family the library has no patch for.
        NotModelledError: another implementation's model, or a head under an adapter.
    """
    if asked == PLAIN:
        return
    if model.architecture is None or not model.architecture.endswith(("ForCausalLM", "LMHeadModel")):
        name = model.architecture or model.name
        raise InputError(PATH, asked, f"does not apply to {name}, which has no language model's head", "use plain")
    if model.implementation != USUAL:
        raise NotModelledError(PATH, asked, f"is not modelled of {model.implementation}", "use implementation transformers")
    known = {"liger": LIGER, "cce": CCE}.get(asked)
    if known is not None and model.family not in known:
        raise InputError(
            PATH, asked, f"has no patch for {model.family}", f"use plain or chunked; it has {either(sorted(known))}"
        )
    head = next((name for name in getattr(model.adapter, "targets", ()) if name.endswith(("lm_head", "embed_out"))), None)
    if head is not None:
        raise NotModelledError(
            PATH, asked, f"reads the weight of {head}, on which an adapter stands", "leave it out of target_modules"
        )


def in_stead(machine: Machine, name: str, root: Any, hidden: Value, labels: Value) -> Value | None:
    """The loss of hidden states ``(rows, tokens, width)`` by what the job asks for; None where that is transformers' own."""
    asked = machine.policy.cross_entropy
    if asked == PLAIN:
        return None
    from memcalc.play import head_losses

    machine.in_stead = True
    if asked == "liger" and not machine.training:  # transformers/model/llama.py:lce_forward, skip_logits (liger-kernel 0.8.2)
        return None
    head, more = root.part(name), root.part("") if root.has("") else None
    if asked == "chunked":

        def scores(value: Value) -> Value:
            logits: Value = machine.call(name, head.play, machine, value)
            return logits if more is None else more.play(machine, logits)

        return head_losses.chunked(machine, hidden, scores, labels)
    with machine.at(name):
        weight = machine.parameter("weight", (head.out_features, head.in_features), "linear")
    if asked == "liger":
        if hidden.node is None and weight.node is not None:  # ops/fused_linear_cross_entropy.py: input_requires_grad
            raise NotModelledError(
                PATH, asked, "gives a head over a frozen body no gradient", "use plain, or freeze the head too"
            )
        return head_losses.liger(machine, hidden, weight, labels)
    return head_losses.cce(machine, hidden, weight, labels, capped=more is not None)
