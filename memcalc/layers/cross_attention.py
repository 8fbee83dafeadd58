"""Attention from one sequence to another whose keys and values come from one matrix."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count
from memcalc.layers.base import Module
from memcalc.layers.basic import Linear
from memcalc.records import dataclass
from memcalc.tensors import Tensor


@dataclass(frozen=True, slots=True)
class FusedCrossAttention:
    """Queries from the hidden states, keys and values of as many heads from an encoder's, as wide as the decoder's.

    source: transformers 5.23.0 models/gpt2/modeling_gpt2.py GPT2Attention.__init__ (is_cross_attention)
    """

    hidden: Count
    heads: Count
    head_dim: Count
    transposed: bool = False
    dropout: float = 0.0

    def tensors(self) -> Iterator[Tensor]:
        """Keys and values, queries, then the output."""
        width = self.heads * self.head_dim
        yield from Module(
            [
                ("c_attn", Linear(self.hidden, 2 * width, transposed=self.transposed)),
                ("q_attn", Linear(self.hidden, width, transposed=self.transposed)),
                ("c_proj", Linear(width, self.hidden, transposed=self.transposed)),
            ]
        ).tensors()
