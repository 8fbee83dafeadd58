"""Rotary positions as decoders compute them: once for all layers, or for each kind of layer."""

from __future__ import annotations

from typing import Any

from memcalc.arrays import Count
from memcalc.layers.attending import Context
from memcalc.play.machine import Machine
from memcalc.play.pointwise import scaled, to
from memcalc.play.values import Value
from memcalc.records import dataclass


@dataclass(frozen=True, slots=True)
class Rotary:
    """How cosines and sines come about.

    Attributes:
        width: dimensions of a head that are rotated.
        wide: whether they stay in FP32 (olmo).
        paired: whether each angle stands twice side by side (cohere).
        half: whether each angle stands once (gpt_oss).
        complex: whether cosine and sine are one complex number (deepseek_v2), held where cosines are.
        kind: the type of scaling: ``dynamic`` and ``longrope`` look at the positions first.
    """

    width: Count
    wide: bool = False
    paired: bool = False
    half: bool = False
    complex: bool = False
    kind: str = "default"


def rotary_of(config: Any, width: Count, *, wide: bool = False, paired: bool = False, half: bool = False) -> Rotary:
    """Those of a config, under the type of scaling it asks for."""
    settings = getattr(config, "rope_scaling", None) or getattr(config, "rope_parameters", None)
    return Rotary(width, wide, paired, half, kind="default" if settings is None else str(settings.kind))


def turn_tables(machine: Machine, rotary: Rotary, dtype: str, place: Value, context: Context) -> None:
    """Cosines and sines of every position, into the context of the layers that take them.

    source: transformers 5.23.0 models/llama/modeling_llama.py:LlamaRotaryEmbedding.forward, and its namesakes
    """
    before, machine.recording = machine.recording, False
    cast, machine.autocast = machine.autocast, None
    context.cos, context.sin = machine.call("rotary_emb", _tables, machine, rotary, dtype, place)
    machine.recording, machine.autocast = before, cast


def _tables(machine: Machine, rotary: Rotary, dtype: str, place: Value) -> tuple[Value, Value]:
    _looked(machine, rotary)
    if rotary.complex:
        return _complex_tables(machine, rotary, place)
    angles, both = _angles(machine, rotary, place)
    cos = scaled(machine, machine.like(both, "cos"))
    sin = scaled(machine, machine.like(both, "sin"))
    del angles
    if rotary.wide:
        return cos, sin
    return to(machine, cos, dtype), to(machine, sin, dtype)


def _complex_tables(machine: Machine, rotary: Rotary, place: Value) -> tuple[Value, Value]:
    """source: transformers 5.23.0 models/deepseek_v2/modeling_deepseek_v2.py:DeepseekV2RotaryEmbedding.forward"""
    (rows, tokens), width = place.shape, rotary.width
    wide = machine.new((rows, tokens, 1), "float32", "_to_copy")
    angles = machine.new((rows, tokens, width // 2), "float32", "mul.Tensor")
    del wide
    ones = machine.like(angles, "ones_like")
    turns = machine.like(angles, "polar", "complex64")
    del ones
    turns = machine.like(turns, "mul.Tensor")
    return turns, turns


def _looked(machine: Machine, rotary: Rotary) -> None:
    """How long the sequence is (transformers 5.23.0 modeling_rope_utils.py:dynamic_rope_update)."""
    if "dynamic" not in rotary.kind and rotary.kind != "longrope":
        return
    longest = machine.new((), "int64", "max")
    length = machine.new((), "int64", "add.Tensor")
    del longest
    over = machine.new((), "bool", "gt.Scalar")
    if rotary.kind == "longrope":
        chosen = machine.new((rotary.width // 2,), "float32", "where.self")
        del over, chosen
    del length


def _angles(machine: Machine, rotary: Rotary, place: Value) -> tuple[Value, Value]:
    (rows, tokens), width = place.shape, rotary.width
    wide = machine.new((rows, tokens, 1), "float32", "_to_copy")
    angles = machine.new((rows, tokens, width // 2), "float32", "mul.Tensor")
    del wide
    if rotary.half:
        return angles, angles
    if not rotary.paired:
        return angles, machine.new((rows, tokens, width), "float32", "cat")
    return angles, machine.new((rows, tokens, width), "float32", "repeat_interleave.self_int")
