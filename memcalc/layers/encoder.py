"""What encoders add: summed embeddings, layers that run more often than they are held, disentangled attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memcalc.arrays import Count
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import Linear, Norm
from memcalc.play import matmul as products
from memcalc.play.activations import activated
from memcalc.play.machine import Machine
from memcalc.play.pointwise import dropout
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor


@dataclass(frozen=True, slots=True)
class SummedEmbeddings:
    """Tables whose rows are added up, then perhaps widened by a matrix, then perhaps normalised, then dropped out.

    Attributes:
        tables: the looked-up tables under their names; ``(tokens, width)`` each.
        projection: the matrix from the tables' width to the hidden one, where those differ.
        norm: the normalisation of the sum.
        buffers: what is kept beside them, as BERT's position numbers.
        dropout: that of the result.
        registered: the parts registered before the others, first to last, where that is not the order above.
    """

    tables: tuple[tuple[str, Layer], ...]
    projection: tuple[tuple[str, Layer], ...] = ()
    norm: tuple[tuple[str, Layer], ...] = ()
    buffers: tuple[tuple[str, Layer], ...] = ()
    dropout: float = 0.0
    registered: tuple[str, ...] = ()

    def part(self, name: str) -> Any:
        """The part of that name."""
        return Module([*self.tables, *self.projection, *self.norm]).part(name)

    def dropped(self, machine: Machine, embedded: Value) -> Value:
        """The dropout that comes last."""
        return dropout(machine, embedded, self.dropout)

    def tensors(self) -> Iterator[Tensor]:
        """Tables, projection, norm, buffers."""
        yield from Module([*self.tables, *self.projection, *self.norm, *self.buffers], self.registered).tensors()


@dataclass(frozen=True, slots=True)
class Reused:
    """A list of layers, one of which runs at each of ``passes`` passes and keeps activations of its own (ALBERT's groups)."""

    layer: Layer
    passes: Count

    def tensors(self) -> Iterator[Tensor]:
        """The layer's tensors, once."""
        yield from self.layer.tensors()


@dataclass(frozen=True, slots=True)
class DisentangledAttention:
    """DeBERTa's attention: content scores, plus content-to-position and position-to-content ones from a table of distances.

    source: transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py DisentangledSelfAttention.__init__

    Attributes:
        positions: rows of the table of distances; None where attention is not relative.
        to_position: content attends to positions (``c2p``).
        from_position: positions attend to content (``p2c``).
        share: positions go through the content's own query and key matrices.
        dropout: that of the attention probabilities.
        position_dropout: that of the table's rows.
    """

    hidden: Count
    heads: Count
    head_dim: Count
    positions: Count | None = None
    to_position: bool = False
    from_position: bool = False
    share: bool = False
    dropout: float = 0.0
    position_dropout: float = 0.0

    def tensors(self) -> Iterator[Tensor]:
        """Queries, keys and values, the positions' own keys and queries, the output."""
        matrix = self.matrix()
        own = self.positions is not None and not self.share
        parts: list[tuple[str, Layer]] = [(f"self.{name}_proj", matrix) for name in ("query", "key", "value")]
        if own and self.to_position:
            parts.append(("self.pos_key_proj", matrix))
        if own and self.from_position:
            parts.append(("self.pos_query_proj", matrix))
        yield from Module([*parts, ("output.dense", self.output())]).tensors()

    def matrix(self) -> Linear:
        """Any of the projections."""
        return Linear(self.hidden, self.heads * self.head_dim)

    def output(self) -> Linear:
        """The output matrix."""
        return Linear(self.heads * self.head_dim, self.hidden)


@dataclass(frozen=True, slots=True)
class Transform:
    """A matrix, an activation and perhaps a normalisation: what stands between an encoder and its vocabulary.

    ``norm_first`` says that the module registers its normalisation before its matrix, which changes no order of running.
    """

    dense: tuple[str, Linear]
    activation: str
    norm: tuple[str, Norm] | None = None
    norm_first: bool = False

    def tensors(self) -> Iterator[Tensor]:
        """Matrix and normalisation, as the module registers them."""
        norm: list[tuple[str, Layer]] = [] if self.norm is None else [self.norm]
        first = tuple(name for name, _ in norm if self.norm_first)
        yield from Module([self.dense, *norm], first).tensors()

    def play(self, machine: Machine, hidden: Value) -> Value:
        """``(..., hidden)`` to ``(..., width)``."""
        name, dense = self.dense
        hidden = machine.call(name, dense.play, machine, hidden)
        hidden = activated(machine, self.activation, hidden)
        if self.norm is None:
            return hidden
        name, norm = self.norm
        return machine.call(name, norm.play, machine, hidden)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class WordsLinear:
    """A head's matrix that holds the words' own table, where a head is built before the body that looks words up in it.

    The tensor is one and the same as the table (``embedding``), ``(vocabulary, width)``, under the head's name.
    """

    in_features: Count
    out_features: Count

    def tensors(self) -> Iterator[Tensor]:
        """The table."""
        yield Tensor("weight", (self.out_features, self.in_features), kind="embedding")

    def play(self, machine: Machine, value: Value) -> Value:
        """``(..., width)`` to ``(..., vocabulary)``; the bias is another's."""
        weight = machine.parameter("weight", (self.out_features, self.in_features), "embedding")
        bias = machine.parameter("bias", (self.out_features,), "linear")
        return products.linear(machine, value, weight, bias)
