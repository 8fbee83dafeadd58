"""Attention, feed-forward and the block around them, in the shapes the families share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, Literal

from memcalc.arrays import Count
from memcalc.layers import attending
from memcalc.layers.attending import Context
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import Linear, Norm, Parameter
from memcalc.play.activations import activated
from memcalc.play.machine import Machine
from memcalc.play.pointwise import dropout, mul
from memcalc.play.reshape import pieces
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor

QKVO = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
"""The names most decoders give their four attention matrices."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Multi-head, grouped-query or multi-query attention with four separate projections.

    ``query_norm``/``key_norm`` is a normalisation of queries and keys, or the width of an RMSNorm: one head (qwen3, gemma3) or
    the whole projection (olmo2); None for none. The order of ``names`` is that in which the module registers its matrices.
    ``rotary`` is how many of a head's dimensions are rotated (None: none), ``softcap`` the bound of the scores, ``clip`` that
    of queries, keys and values. ``dropout`` is that of the attention probabilities, ``window`` the positions a query
    may look back on (None: all), ``alibi`` a position bias added to the scores; ``added_bias`` says that a tensor of biases
    is (t5), ``cross`` that keys and values come from another sequence, ``upcast`` that written-out attention takes its softmax
    in FP32.

    ``normed`` says where queries and keys are normalised: each ``head`` behind its projection (qwen3), the ``width`` of the
    projection (olmo2), all projections' heads in view (cohere) or behind their transposition (``moved``: gemma3, phi);
    ``turn`` how they are rotated (:mod:`memcalc.layers.rotations`).
    """

    hidden: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    bias: bool = False
    output_bias: bool = False
    key_bias: bool | None = None
    names: Mapping[str, str] = field(default_factory=lambda: QKVO)
    query_norm: Count | Layer | None = None
    key_norm: Count | Layer | None = None
    extra: tuple[tuple[str, Layer], ...] = ()
    dropout: float = 0.0
    window: Count | None = None
    alibi: bool = False
    rotary: Count | None = None
    causal: bool = True
    softcap: float | None = None
    clip: float | None = None
    cross: bool = False
    added_bias: bool = False
    normed: Literal["head", "width", "view", "moved"] = "head"
    turn: Literal["halves", "wide", "pairs", "part"] = "halves"
    upcast: bool = True

    def matrices(self) -> dict[str, Linear]:
        """The four projections."""
        key_bias = self.bias if self.key_bias is None else self.key_bias
        matrices: dict[str, Linear] = {
            "q": Linear(self.hidden, self.heads * self.head_dim, self.bias),
            "k": Linear(self.hidden, self.kv_heads * self.head_dim, key_bias),
            "v": Linear(self.hidden, self.kv_heads * self.head_dim, self.bias),
            "o": Linear(self.heads * self.head_dim, self.hidden, self.output_bias),
        }
        return matrices

    def tensors(self) -> Iterator[Tensor]:
        """Projections, then norms, then whatever a family adds (attention sinks, relative biases)."""
        matrices = self.matrices()
        parts: list[tuple[str, Layer]] = [(name, matrices[key]) for key, name in self.names.items() if key in matrices]
        for key, norm in (("q_norm", self.query_norm), ("k_norm", self.key_norm)):
            if norm is not None:
                parts.append((self.names.get(key, key), norm if isinstance(norm, Layer) else Norm(norm)))
        # torch walks a module's own parameters before those of the modules inside it
        own = tuple(name for name, layer in self.extra if isinstance(layer, Parameter))
        yield from Module([*parts, *self.extra], registered=own).tensors()

    def norm_of(self, key: str) -> Any:
        """The normalisation of queries or keys; None for none."""
        norm = self.query_norm if key == "q" else self.key_norm
        return norm if norm is None or isinstance(norm, Layer) else Norm(norm)

    def play(self, machine: Machine, hidden: Value, context: Context) -> Value:
        """``(batch, length, hidden)`` to the same."""
        return attending.separate(machine, self, hidden, context)


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """Attention whose query, key and value come from one matrix of ``(heads + 2 · kv_heads) · head_dim`` features.

    The order of ``names`` is that in which the module registers its matrices; ``rotary`` is how many of a head's dimensions are
    rotated (None: none), ``clip`` the bound of queries, keys and values.
    """

    hidden: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    bias: bool = True
    output_bias: bool = True
    transposed: bool = False
    names: Mapping[str, str] = field(default_factory=lambda: {"qkv": "c_attn", "o": "c_proj"})
    extra: tuple[tuple[str, Layer], ...] = ()
    dropout: float = 0.0
    window: Count | None = None
    alibi: bool = False
    rotary: Count | None = None
    causal: bool = True
    clip: float | None = None

    def matrices(self) -> dict[str, Linear]:
        """The fused projection and that of the output."""
        fused = (self.heads + 2 * self.kv_heads) * self.head_dim
        return {
            "qkv": Linear(self.hidden, fused, self.bias, self.transposed),
            "o": Linear(self.heads * self.head_dim, self.hidden, self.output_bias, self.transposed),
        }

    def tensors(self) -> Iterator[Tensor]:
        """The fused projection and the output projection, then whatever a family adds."""
        matrices = self.matrices()
        parts = [(name, matrices[key]) for key, name in self.names.items() if key in matrices]
        yield from Module([*parts, *self.extra]).tensors()


@dataclass(frozen=True, slots=True)
class MLP:
    """Two matrices around an activation; ``names`` are (in, out), ``dropout`` that of the activated features."""

    hidden: Count
    intermediate: Count
    bias: bool = True
    transposed: bool = False
    names: tuple[str, str] = ("c_fc", "c_proj")
    activation: str = "gelu"
    dropout: float = 0.0

    def matrices(self) -> tuple[Linear, Linear]:
        """Up and down."""
        return (
            Linear(self.hidden, self.intermediate, self.bias, self.transposed),
            Linear(self.intermediate, self.hidden, self.bias, self.transposed),
        )

    def tensors(self) -> Iterator[Tensor]:
        """Up, then down."""
        yield from Module(list(zip(self.names, self.matrices(), strict=True))).tensors()

    def play(self, machine: Machine, hidden: Value) -> Value:
        """``(..., hidden)`` to the same."""
        (up, down), (first, last) = self.names, self.matrices()
        hidden = machine.call(up, first.play, machine, hidden)
        hidden = activated(machine, self.activation, hidden)
        hidden = dropout(machine, hidden, self.dropout)
        return machine.call(down, last.play, machine, hidden)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """Three matrices, the activated gate multiplied into the up-projection; ``fused`` keeps gate and up in one matrix."""

    hidden: Count
    intermediate: Count
    bias: bool = False
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    fused: Literal[""] | str = ""
    activation: str = "silu"
    dropout: float = 0.0

    def tensors(self) -> Iterator[Tensor]:
        """Gate and up (or both in one matrix of that name), then down."""
        gate, up, down = self.names
        first: list[tuple[str, Layer]] = (
            [(self.fused, Linear(self.hidden, 2 * self.intermediate, self.bias))]
            if self.fused
            else [(name, Linear(self.hidden, self.intermediate, self.bias)) for name in (gate, up)]
        )
        yield from Module([*first, (down, Linear(self.intermediate, self.hidden, self.bias))]).tensors()

    def play(self, machine: Machine, hidden: Value) -> Value:
        """``(..., hidden)`` to the same (transformers 5.23.0 models/llama/modeling_llama.py:LlamaMLP.forward)."""
        gate, up, down = self.names
        if self.fused:
            return self._play_fused(machine, hidden)
        wide = Linear(self.hidden, self.intermediate, self.bias)
        return machine.call(  # type: ignore[no-any-return]
            down,
            Linear(self.intermediate, self.hidden, self.bias).play,
            machine,
            mul(
                machine,
                activated(machine, self.activation, machine.call(gate, wide.play, machine, hidden)),
                machine.call(up, wide.play, machine, hidden),
            ),
        )

    def _play_fused(self, machine: Machine, hidden: Value) -> Value:
        """source: transformers 5.23.0 models/phi3/modeling_phi3.py:Phi3MLP.forward"""
        both = Linear(self.hidden, 2 * self.intermediate, self.bias)
        up = machine.call(self.fused, both.play, machine, hidden)
        gate, up = pieces(machine, up, -1, (self.intermediate, self.intermediate))
        up = mul(machine, up, activated(machine, self.activation, gate))
        down = Linear(self.intermediate, self.hidden, self.bias)
        return machine.call(self.names[2], down.play, machine, up)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer layer: attention, feed-forward and the normalisations around them, under a family's names.

    ``parallel`` blocks feed attention and MLP from one input (gptj, gpt_neox, phi, falcon, cohere); it holds no weights but
    decides what backward keeps. So do ``norms``: of what goes into attention and MLP (``pre``), of what comes out before it
    is added to the residual (``output``, olmo2), of both (``both``, gemma2), or of the sum (``post``, bert). ``residual`` is
    what a norm read, or what it gave (bloom).
    ``registered`` names the parts a module registers before the others, where that is not the order they run in (albert).
    """

    parts: tuple[tuple[str, Layer], ...]
    parallel: bool = False
    norms: Literal["pre", "output", "both", "post"] = "pre"
    residual: Literal["input", "output"] = "input"
    registered: tuple[str, ...] = ()

    def part(self, name: str) -> Any:
        """The part of that name."""
        return Module(self.parts).part(name)

    def has(self, name: str) -> bool:
        """Whether there is a part of that name."""
        return Module(self.parts).has(name)

    def tensors(self) -> Iterator[Tensor]:
        """Each part's tensors under its name."""
        yield from Module(self.parts, self.registered).tensors()
