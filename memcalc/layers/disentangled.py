"""How DeBERTa's attention runs: scores of content and of distances, gathered by where two tokens stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.layers.attending import Context
from memcalc.layers.basic import Linear
from memcalc.play.indexing import gather, repeat
from memcalc.play.inplace import added_in_place
from memcalc.play.machine import Machine
from memcalc.play.matmul import bmm
from memcalc.play.norms import softmax
from memcalc.play.pointwise import add, dropout, masked_fill, scaled, shifted
from memcalc.play.reshape import clone, contiguous, expand, merge_dims, permute, split_dim, transpose, unsqueeze
from memcalc.play.values import Value
from memcalc.records import dataclass

if TYPE_CHECKING:
    from memcalc.layers.encoder import DisentangledAttention


@dataclass
class Distances(Context):
    """What DeBERTa hands to each of its layers.

    Attributes:
        relative: for each pair of tokens its row of the table, ``(1, length, length)``; None where attention is not relative.
        table: the table's rows.
    """

    relative: Value | None = None
    table: Value | None = None


def relative_positions(machine: Machine, tokens: Count, *, buckets: bool) -> Value:
    """How far each token is from each, in buckets that grow where those are asked for.

    source: transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py: build_relative_position, make_log_bucket_position
    """
    q_ids, k_ids = machine.new((tokens,), "int64", "arange"), machine.new((tokens,), "int64", "arange")
    rel_pos_ids = machine.new((tokens, tokens), "int64", "sub.Tensor")
    if buckets:
        rel_pos_ids = _bucketed(machine, rel_pos_ids)
        rel_pos_ids = machine.like(rel_pos_ids, "_to_copy", "int64")
    del q_ids, k_ids
    return unsqueeze(machine, rel_pos_ids, 0)


def _bucketed(machine: Machine, relative_pos: Value) -> Value:
    sign = machine.like(relative_pos, "sign")
    near = [machine.like(relative_pos, name, "bool") for name in ("lt.Scalar", "gt.Scalar")]
    both = machine.like(relative_pos, "bitwise_and.Tensor", "bool")
    near.clear()
    middle = machine.new((), "int64", "_to_copy")
    absolute = machine.like(relative_pos, "abs")
    abs_pos = machine.like(relative_pos, "where.self")
    del both, middle, absolute
    log_pos = machine.like(abs_pos, "div.Tensor", "float32")
    for operator in ("log", "div.Tensor", "mul.Tensor", "ceil", "add.Tensor"):
        log_pos = machine.like(log_pos, operator)
    within, same = machine.like(abs_pos, "le.Scalar", "bool"), machine.like(relative_pos, "_to_copy", "float32")
    signed = machine.like(log_pos, "mul.Tensor")
    bucket_pos = machine.like(log_pos, "where.self")
    del within, same, signed, sign
    return bucket_pos


def disentangled(machine: Machine, layer: DisentangledAttention, hidden: Value, context: Distances) -> Value:
    """Attention without its output matrix.

    source: transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py:DisentangledSelfAttention.forward
    """
    assert context.mask is not None
    rows = hidden.shape[0]
    matrix, heads = layer.matrix(), layer.heads
    query = _by_head(machine, heads, _projected(machine, "query_proj", matrix, hidden))
    key = _by_head(machine, heads, _projected(machine, "key_proj", matrix, hidden))
    value = _by_head(machine, heads, _projected(machine, "value_proj", matrix, hidden))
    scores = bmm(machine, query, scaled(machine, transpose(machine, key, 1, 2), "div.Tensor"))
    table = bias = None
    if context.table is not None:
        table = dropout(machine, context.table, layer.position_dropout)
        bias = _bias(machine, layer, query, key, table, context)
    if bias is not None:
        scores = add(machine, scores, bias)
    scores = split_dim(machine, scores, 0, (rows, heads))
    mask = machine.like(context.mask, "_to_copy", "bool")
    scores = masked_fill(machine, scores, machine.like(mask, "bitwise_not"))
    weights = softmax(machine, scores)
    weights = dropout(machine, weights, layer.dropout)
    out = bmm(machine, *_low(machine, merge_dims(machine, weights, 0, 1), value))
    out = clone(machine, permute(machine, split_dim(machine, out, 0, (rows, heads)), (0, 2, 1, 3)))
    out = merge_dims(machine, out, 2, 3)
    del mask
    return out


def _low(machine: Machine, first: Value, second: Value) -> tuple[Value, Value]:
    """Operands of a product, as autocast casts them."""
    second = machine.low(second)
    return machine.low(first), second


def _projected(machine: Machine, name: str, matrix: Linear, hidden: Value) -> Value:
    return machine.call(name, matrix.play, machine, hidden)  # type: ignore[no-any-return]


def _by_head(machine: Machine, heads: Count, value: Value) -> Value:
    """``(batch, length, heads · d)`` as ``(batch · heads, length, d)`` (transpose_for_scores)."""
    width = value.shape[-1]
    value = split_dim(machine, value, 2, (heads, width // heads))
    return merge_dims(machine, contiguous(machine, permute(machine, value, (0, 2, 1, 3))), 0, 1)


def _bias(
    machine: Machine, layer: DisentangledAttention, query: Value, key: Value, table: Value, context: Distances
) -> Value | None:
    """Scores of content against distances, and of distances against content (disentangled_attention_bias).

    None where neither is asked for.
    """
    assert context.relative is not None
    relative = unsqueeze(machine, context.relative, 1)
    rows = query.shape[0] // layer.heads
    table = unsqueeze(machine, table, 0)
    matrix = layer.matrix()
    names = ("query_proj", "key_proj") if layer.share else ("pos_query_proj", "pos_key_proj")
    positions: dict[str, Any] = {}
    order = (("query", 0), ("key", 1)) if layer.share else (("key", 1), ("query", 0))
    for kind, place in order:
        if layer.share or (layer.to_position if kind == "key" else layer.from_position):
            made = _by_head(machine, layer.heads, _projected(machine, names[place], matrix, table))
            positions[kind] = repeat(machine, made, rows)
            del made
    score = content = None
    if layer.to_position:
        content = _gathered(machine, query, positions["key"], _clamped(machine, shifted(machine, relative)))
        score = shifted(machine, scaled(machine, content, "div.Tensor"))
    if layer.from_position:
        turned = shifted(machine, machine.like(relative, "neg"))
        other = transpose(machine, _gathered(machine, key, positions["query"], _clamped(machine, turned)), 1, 2)
        part = scaled(machine, other, "div.Tensor")
        score = shifted(machine, part) if score is None else added_in_place(machine, score, part)
        del part
    del content
    return score


def _clamped(machine: Machine, index: Value) -> Value:
    return machine.like(index, "clamp")


def _gathered(machine: Machine, content: Value, positions: Value, index: Value) -> Value:
    """Of each token's scores against every distance those of the distances it is at."""
    scores = bmm(machine, content, transpose(machine, positions, 1, 2))
    tokens = content.shape[1]
    index = Value(index.storage, (1, tokens, tokens), index.dtype)
    return gather(machine, scores, expand(machine, index, (content.shape[0], tokens, tokens)))
