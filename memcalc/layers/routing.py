"""How routers score experts and choose them, and how the chosen ones run on a GPU.

Locals stand for the locals of the modules: what they hold lives until the function returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memcalc.arrays import Count
from memcalc.errors import NotModelledError
from memcalc.play.activations import activated
from memcalc.play.grouped import grouped_mm
from memcalc.play.indexing import gather
from memcalc.play.inplace import added_in_place, clamp
from memcalc.play.machine import Machine
from memcalc.play.matmul import linear
from memcalc.play.norms import softmax
from memcalc.play.picking import picked
from memcalc.play.pointwise import add, masked_fill, mul, scaled, shifted, sigmoid, to
from memcalc.play.reduce import sum_last, sum_over
from memcalc.play.reshape import expand, merge_dims, pieces, split_dim, strided, transpose, unsqueeze
from memcalc.play.routing import counted, divided_in_place, greatest, inverse, sorted_with_places, summed_up, topk
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.layers.moe import Experts, Router

Routed = tuple[Value, Value, Value]
"""Scores of all experts, weights of those chosen, their numbers."""


def chosen(router: Router) -> Count:
    """How many experts a token goes to.

    Raises:
        NotModelledError: the config leaves it out.
    """
    if router.top_k is None:
        raise NotModelledError("model.num_experts_per_tok", None, "leaves open how many experts a token goes to", "set it")
    return router.top_k


def matrix(machine: Machine, router: Router) -> Value:
    """What scores the experts."""
    return machine.parameter("weight", (router.experts, router.hidden), "linear")


def by_softmax(machine: Machine, router: Router, hidden: Value) -> Routed:
    """Shares of all experts, of which the chosen ones are brought to a sum of 1.

    source: transformers 5.23.0 models/mixtral/modeling_mixtral.py:MixtralTopKRouter.forward
    """
    logits = linear(machine, hidden, matrix(machine, router))
    shares = softmax(machine, to(machine, logits, "float32"))
    best, places = topk(machine, shares, chosen(router))
    best = divided_in_place(machine, best, sum_last(machine, best, keep=True))
    return logits, best, places


def by_softmax_cast(machine: Machine, router: Router, hidden: Value) -> Routed:
    """The same cast back, brought to a sum of 1 where the config says so.

    source: transformers 5.23.0 models/qwen3_moe/modeling_qwen3_moe.py:Qwen3MoeTopKRouter.forward
    """
    logits = linear(machine, hidden, matrix(machine, router))
    shares = softmax(machine, logits, "float32")
    best, places = topk(machine, shares, chosen(router))
    if router.normalised:
        best = divided_in_place(machine, best, sum_last(machine, best, keep=True))
    best = to(machine, best, logits.dtype)
    return logits, best, places


def by_softmax_of_best(machine: Machine, router: Router, hidden: Value) -> Routed:
    """Shares of the chosen experts alone.

    source: transformers 5.23.0 models/gpt_oss/modeling_gpt_oss.py:GptOssTopKRouter.forward
    """
    bias = machine.parameter("bias", (router.experts,), "linear")
    logits = linear(machine, hidden, matrix(machine, router), bias)
    best, places = topk(machine, logits, chosen(router))
    return logits, softmax(machine, best, best.dtype), places


def _of_best_groups(machine: Machine, router: Router, scores: Value, group_scores: Value) -> Value:
    """Which experts stand in the groups that are considered: true for the others."""
    assert router.groups is not None
    assert router.top_groups is not None
    numbers = topk(machine, group_scores, router.top_groups)[1]
    mask = machine.like(group_scores, "zeros_like")
    shape = (*mask.shape, router.experts // router.groups)
    wide = merge_dims(machine, expand(machine, unsqueeze(machine, mask, 2), shape), 1, 2)
    asked = machine.like(wide, "_to_copy", "bool")
    others = machine.like(asked, "bitwise_not")
    del numbers
    return others


def _by_group(machine: Machine, router: Router, scores: Value) -> Value:
    assert router.groups is not None
    return split_dim(machine, scores, 1, (router.groups, router.experts // router.groups))


def _logits_in_float(machine: Machine, router: Router, hidden: Value) -> Value:
    """Scores in FP32, of operands that are; autocast has its own way."""
    weight = matrix(machine, router)
    return linear(machine, to(machine, hidden, "float32"), to(machine, weight, "float32"))


def by_sigmoid(machine: Machine, router: Router, hidden: Value) -> Routed:
    """Chosen by corrected scores among the best groups, weighed by the plain ones.

    source: transformers 5.23.0 models/deepseek_v3/modeling_deepseek_v3.py:DeepseekV3TopkRouter.forward
    """
    hidden = merge_dims(machine, hidden, 0, 1)
    logits = _logits_in_float(machine, router, hidden)
    scores = sigmoid(machine, logits)
    choice = add(machine, scores, machine.constant((router.experts,), "float32"))
    group_scores = sum_last(machine, topk(machine, _by_group(machine, router, choice), 2)[0])
    choice = masked_fill(machine, choice, _of_best_groups(machine, router, choice, group_scores))
    places = topk(machine, choice, chosen(router))[1]
    weights = gather(machine, scores, places)
    if router.normalised:
        total = shifted(machine, sum_last(machine, weights, keep=True))
        weights = divided_in_place(machine, weights, total)
    weights = scaled(machine, weights)
    return logits, weights, places


def by_softmax_in_float(machine: Machine, router: Router, hidden: Value) -> Routed:
    """Shares in FP32, the best of all or of the best groups.

    source: transformers 5.23.0 models/deepseek_v2/modeling_deepseek_v2.py:DeepseekV2TopkRouter.forward
    """
    hidden = merge_dims(machine, hidden, 0, 1)
    logits = _logits_in_float(machine, router, hidden)
    scores = softmax(machine, logits, "float32")
    if router.grouped:
        group_scores = greatest(machine, _by_group(machine, router, scores), keep=False)[0]
        scores = masked_fill(machine, scores, _of_best_groups(machine, router, scores, group_scores))
    weights, places = topk(machine, scores, chosen(router))
    weights = scaled(machine, weights)
    return logits, weights, places


ROUTES: dict[str, Callable[[Machine, Router, Value], Routed]] = {
    "softmax": by_softmax,
    "softmax_cast": by_softmax_cast,
    "softmax_of_best": by_softmax_of_best,
    "sigmoid": by_sigmoid,
    "softmax_in_float": by_softmax_in_float,
}
"""By a router's ``route``."""


def run_experts(machine: Machine, experts: Experts, hidden: Value, places: Value, weights: Value) -> Value:
    """Tokens sorted by expert, two grouped products around the gate, and back in order, weighed and summed.

    source: transformers 5.23.0 integrations/moe.py:grouped_mm_experts_forward
    """
    top_k = places.shape[-1]
    weights, numbers = merge_dims(machine, weights, 0, 1), merge_dims(machine, places, 0, 1)
    sorted_numbers, order = sorted_with_places(machine, numbers)
    rows = picked(machine, hidden, 0, machine.like(order, "floor_divide"))
    weights_by_expert = picked(machine, weights, 0, order)
    low = to(machine, sorted_numbers, "int32")
    counts = counted(machine, low, experts.experts)
    offsets = summed_up(machine, counts, "int32")
    matrices, biases = _matrices(machine, experts, "gate_up_proj", sorted_numbers)
    out = _grouped(machine, experts, rows, matrices, biases, offsets)
    out = _gated(machine, experts, out)
    matrices, biases = _matrices(machine, experts, "down_proj", sorted_numbers)
    out = _grouped(machine, experts, out, matrices, biases, offsets)
    weighed = mul(machine, out, unsqueeze(machine, weights_by_expert, 1))
    back = inverse(machine, order)
    weighed = picked(machine, weighed, 0, back)
    total = sum_over(machine, split_dim(machine, weighed, 0, (hidden.shape[0], top_k)), (1,))
    made = to(machine, total, hidden.dtype)
    del low, counts, back
    return made


def _matrices(machine: Machine, experts: Experts, name: str, numbers: Value) -> tuple[Value, Value | None]:
    """One of the stacked parameters, and each token's bias."""
    width = 2 * experts.intermediate if name == "gate_up_proj" else experts.hidden
    narrow = experts.hidden if name == "gate_up_proj" else experts.intermediate
    shape = (narrow, width) if experts.transposed else (width, narrow)
    found = machine.parameter(name, (experts.experts, *shape), "expert")
    if not experts.bias:
        return found, None
    return found, picked(machine, machine.parameter(f"{name}_bias", (experts.experts, width), "expert"), 0, numbers)


def _grouped(machine: Machine, experts: Experts, rows: Value, matrices: Value, biases: Value | None, offsets: Value) -> Value:
    """source: transformers 5.23.0 integrations/moe.py:_grouped_linear"""
    if not experts.transposed:
        matrices = transpose(machine, matrices, 1, 2)
    out = grouped_mm(machine, to(machine, rows, matrices.dtype), matrices, offsets)
    return out if biases is None else added_in_place(machine, out, biases)


def _gated(machine: Machine, experts: Experts, value: Value) -> Value:
    """source: transformers 5.23.0 integrations/moe.py:_default_apply_gate"""
    if experts.activation == "swiglu_clamped":
        return _clamped_swiglu(machine, experts, value)
    gate, up = pieces(machine, value, -1, (experts.intermediate, experts.intermediate))
    return mul(machine, activated(machine, experts.activation, gate), up)


def _clamped_swiglu(machine: Machine, experts: Experts, value: Value) -> Value:
    """source: transformers 5.23.0 models/gpt_oss/modeling_gpt_oss.py:GptOssExperts._apply_gate"""
    gate, up = strided(machine, value, experts.intermediate), strided(machine, value, experts.intermediate)
    gate = clamp(machine, gate, least=False)
    up = clamp(machine, up)
    glu = mul(machine, gate, sigmoid(machine, scaled(machine, gate)))
    return mul(machine, shifted(machine, up), glu)
