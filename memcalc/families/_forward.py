"""What transformers' models do around their layers: embeddings, positions, masks, rotary tables, lists of layers, losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.arrays import Count
from memcalc.errors import InputError, NotModelledError
from memcalc.layers.attending import Context
from memcalc.layers.base import Stack
from memcalc.play import losses
from memcalc.play.checkpoint import checkpointed
from memcalc.play.machine import Machine
from memcalc.play.pointwise import compare, scaled, shifted, sub, to
from memcalc.play.reshape import cat, contiguous, expand, merge_dims, narrow, unsqueeze
from memcalc.play.values import Value
from memcalc.records import dataclass

WHOLE_SEQUENCES = "each row of the batch is one whole sequence, neither packed nor padded, so that no mask is made for it"


@dataclass
class Batch:
    """What a model reads.

    Attributes:
        rows: samples.
        tokens: of each.
        values: the tensors that are there, by name.
        keys: tokens that a mask lets them look at, where those are others than their own: with a cache's.
    """

    rows: Count
    tokens: Count
    values: dict[str, Value]
    keys: Count | None = None

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    @property
    def is_given(self) -> bool:
        """Whether it comes with a mask, or positions, of its own."""
        return "attention_mask" in self.values or "position_ids" in self.values

    @property
    def looked_at(self) -> Count:
        """Keys of a mask."""
        return self.tokens if self.keys is None else self.keys


LayerPlay = Callable[[Machine, Any, Value, Any], Value]


def run_layers(
    machine: Machine,
    name: str,
    stack: Stack,
    play: LayerPlay,
    hidden: Value,
    context: Any,
    *,
    first: int = 0,
    kept: list[Value] | None = None,
) -> Value:
    """A list of equal layers, each fed with what the one before it gave.

    ``first`` is the index of the first of them, ``kept`` collects what each gave.

    The first and the last are played as they are, those between them once for all.
    """
    box, prefix = [hidden], f"{name}.{stack.prefix}"
    del hidden

    def step(index: object) -> None:
        box[0] = machine.call(f"{prefix}{index}", checkpointed, machine, play, machine, stack.layer, box[0], context)
        if kept is not None:
            kept.append(box[0])

    count = stack.count
    if machine.unrolled or machine.decide(count <= 3):
        place = 0
        while machine.decide(place < count):
            step(first + place if stack.indices is None else stack.indices[place])
            place += 1
        return box.pop()
    step(first)
    machine.repeated(count - 2, lambda: step("*"), box)
    step("last")
    return box.pop()


def positions(machine: Machine, tokens: Count) -> Value:
    """``arange(tokens) + past``, ``(1, tokens)``."""
    counted = machine.new((tokens,), "int64", "arange")
    return unsqueeze(machine, shifted(machine, counted), 0)


def causal_mask(machine: Machine, place: Value | None, batch: Batch, dtype: str, *, eager: bool) -> Value | None:
    """What ``create_causal_mask`` makes without a padding mask: for a kernel nothing, once it has seen that nothing is packed.

    Without ``place`` it does not look.

    source: transformers 5.23.0 masking_utils.py: find_packed_sequence_indices, sdpa_mask, eager_mask
    """
    if machine.flashed:
        no_mask(machine, place, batch)
        return None
    cache = machine.cache
    if cache is not None:  # and nothing is looked at for packed rows (masking_utils.py:_preprocess_mask_arguments)
        keys = cache.reach(machine, batch.tokens)
        if eager:
            return eager_mask(machine, batch, dtype, keys)
        return allowed_mask(machine, batch, keys) if cache.masked(machine, batch.tokens) else None
    if batch.is_given:
        from memcalc.families._given_masks import given_mask

        return given_mask(machine, batch, dtype, None, eager=eager)
    if place is not None:
        find_packed(machine, place, batch)
    return eager_mask(machine, batch, dtype) if eager else None


def no_mask(machine: Machine, place: Value | None, batch: Batch) -> None:
    """What flash-attn's kernels are given, once it is seen whether rows are packed (masking_utils.py:flash_attention_mask).

    Raises:
        InputError: several rows, which transformers would not look for sequences in.
        NotModelledError: rows that are padded, of lengths that nobody knows.
    """
    if "attention_mask" in batch.values:
        rule = "leaves open how many tokens are left, which are all that flash-attn's kernels are given"
        raise NotModelledError("training.batch", "padded", rule, "use full, or attention flash")
    if "position_ids" not in batch.values:
        if place is not None:
            find_packed(machine, place, batch)
        return
    if not machine.decide(batch.rows == 1):
        rule = "are more than the one row in which transformers finds packed sequences for flash-attn (_is_packed_sequence)"
        raise InputError("training.micro_batch_size", batch.rows, rule, "use 1, as DataCollatorWithFlattening does")
    found_packed(machine, batch["position_ids"], batch)


def allowed_mask(machine: Machine, batch: Batch, keys: Count) -> Value:
    """Which keys each query sees, ``(batch, 1, length, keys)``, the same for every row (masking_utils.py:sdpa_mask)."""
    return expand(machine, _allowed(machine, batch, keys), (batch.rows, 1, batch.tokens, keys))


def _allowed(machine: Machine, batch: Batch, keys: Count) -> Value:
    samples = machine.new((batch.rows,), "int64", "arange")
    heads = machine.new((1,), "int64", "arange")
    queries = _counted(machine, batch.tokens)
    reached = _counted(machine, keys)
    allowed = machine.new((1, 1, batch.tokens, keys), "bool", "le.Tensor")
    del samples, heads, queries, reached
    return allowed


def eager_mask(machine: Machine, batch: Batch, dtype: str, keys: Count | None = None) -> Value:
    """An additive mask ``(batch, 1, length, length)`` (masking_utils.py: eager_mask, sdpa_mask)."""
    rows, tokens = batch.rows, batch.tokens
    keys = tokens if keys is None else keys
    allowed = _allowed(machine, batch, keys)
    zero, least = machine.new((), dtype, "zeros"), machine.new((), dtype, "scalar_tensor")
    mask = machine.new((rows, 1, tokens, keys), dtype, "where.self")
    del zero, least, allowed
    return mask


def written_mask(machine: Machine, batch: Batch, dtype: str) -> Value:
    """The same of whole sequences, over all keys that a cache gives; no positions are looked at."""
    return eager_mask(machine, batch, dtype, keys_of(machine, batch))


def keys_of(machine: Machine, batch: Batch) -> Count:
    """Keys that attention reads: the tokens, or what a cache spans with them (get_mask_sizes)."""
    return batch.tokens if machine.cache is None else machine.cache.reach(machine, batch.tokens)


def held_count(machine: Machine, *, updated: bool = False) -> Value | None:
    """``length + past_key_values.get_seq_length()``, where it is a tensor: of a static cache that has been written to.

    ``updated`` says that the layer at work has put its keys there before it asks.

    source: transformers 5.23.0 cache_utils.py:StaticLayer.get_seq_length
    """
    cache = machine.cache
    if cache is None or not cache.static or not (updated or machine.decide(cache.past > 0)):
        return None
    return machine.new((), "int64", "add.Tensor")


def _counted(machine: Machine, tokens: Count) -> Value:
    return shifted(machine, machine.new((tokens,), "int64", "arange"))


def find_packed(machine: Machine, place: Value, batch: Batch) -> None:
    """Positions do not start anew within a row, which is looked at."""
    found_packed(machine, place, batch)
    machine.assumed[WHOLE_SEQUENCES] = None


def found_packed(machine: Machine, place: Value, batch: Batch) -> Value:
    """Which sequence of its row each token is of (masking_utils.py:find_packed_sequence_indices)."""
    first = machine.new((batch.rows, 1), "int64", "sub.Tensor")
    ahead = machine.new((batch.rows, batch.tokens + 1), "int64", "cat")
    steps = machine.new((batch.rows, batch.tokens), "int64", "sub.Tensor")
    del ahead
    packed = machine.new((batch.rows, batch.tokens), "bool", "ne.Scalar")
    packed = machine.new((batch.rows, batch.tokens), "int64", "cumsum")
    zero = machine.new((batch.rows,), "bool", "eq.Scalar")
    every = machine.new((), "bool", "all")
    del zero, every
    del first, steps
    return packed


def rotary(machine: Machine, hidden: Value, place: Value, width: Count, context: Context) -> None:
    """Cosines and sines of every position, in FP32, cast to the hidden states' dtype.

    source: transformers 5.23.0 models/llama/modeling_llama.py:LlamaRotaryEmbedding.forward
    """
    before, machine.recording = machine.recording, False
    cast, machine.autocast = machine.autocast, None
    context.cos, context.sin = machine.call("rotary_emb", _rotary, machine, hidden.dtype, place, width)
    machine.recording, machine.autocast = before, cast


def _rotary(machine: Machine, dtype: str, place: Value, width: Count) -> tuple[Value, Value]:
    tokens = place.shape[1]
    wide = machine.new((1, tokens, 1), "float32", "_to_copy")
    angles = machine.new((1, tokens, width // 2), "float32", "mul.Tensor")
    del wide
    both = machine.new((1, tokens, width), "float32", "cat")
    cos = scaled(machine, machine.like(both, "cos"))
    sin = scaled(machine, machine.like(both, "sin"))
    del angles
    return to(machine, cos, dtype), to(machine, sin, dtype)


def causal_loss(machine: Machine, logits: Value, labels: Value) -> Value:
    """Cross-entropy of each token's successor (transformers 5.23.0 loss/loss_utils.py:ForCausalLMLoss)."""
    logits = to(machine, logits, "float32")
    rows, tokens = labels.shape
    labels = machine.new((rows, tokens + 1), "int64", "constant_pad_nd")
    shifted_labels = contiguous(machine, narrow(machine, labels, 1, tokens))
    logits = merge_dims(machine, logits, 0, 1)
    shifted_labels = merge_dims(machine, shifted_labels, 0, 1)
    return losses.cross_entropy(machine, logits, shifted_labels)


def last_position(machine: Machine, hidden: Value) -> Value:
    """What the head reads where the next token is all that is wanted: a view of the last position.

    source: transformers 5.23.0 modeling_utils.py:slice_logits_to_keep, of ``logits_to_keep=1`` as generate() has it
    """
    return narrow(machine, hidden, 1, 1)


def given_states(machine: Machine, batch: Batch, width: Count) -> Value | None:
    """What an encoder gave before decoding began, and is handed to every step; None where it is still to run.

    source: transformers 5.23.0 generation/utils.py:_prepare_encoder_decoder_kwargs_for_generation
    """
    if machine.cache is None or not machine.decide(machine.cache.past > 0):
        return None
    if machine.encoded is None:
        rows = batch.rows
        source = batch["input_ids"].shape[1] if "input_ids" in batch.values else batch["input_features"].shape[2] // 2
        dtype = machine.policy.dtype
        machine.encoded = machine.before((rows, source, width), dtype, "input", "encoder_outputs")
    return machine.encoded


__all__ = ["Batch", "Context", "cat", "compare", "contiguous", "narrow", "sub"]
