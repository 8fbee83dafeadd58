"""DeepSeek's multi-head latent attention: keys and values (and queries) pass through a narrow latent vector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from memcalc.arrays import Count
from memcalc.layers.attending import Context
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import Linear, rms_norm
from memcalc.layers.latent import latent
from memcalc.play.machine import Machine
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Each head's query and key have ``nope_dim`` plain and ``rope_dim`` rotated dimensions, the latter shared by all keys.

    source: transformers 5.23.0 models/deepseek_v3/modeling_deepseek_v3.py DeepseekV3Attention.__init__

    Attributes:
        query_rank: width of the latent queries are made from; None where they come from the hidden states directly.
        kv_rank: width of the latent keys and values are made from.
        value_dim: dimensions of a head's value.
        bias: on the matrices that read or write hidden states (but not on a direct query matrix).
        dropout: of the attention probabilities.
        interleaved: whether a pair of rotated dimensions stands side by side.
        turned: how they are rotated: as pairs of numbers, or as complex ones (DeepSeek-V2).

    >>> [t.name for t in LatentAttention(8, 2, None, 4, 3, 2, 3).tensors()][:2]
    ['q_proj.weight', 'kv_a_proj_with_mqa.weight']
    """

    hidden: Count
    heads: Count
    query_rank: Count | None
    kv_rank: Count
    nope_dim: Count
    rope_dim: Count
    value_dim: Count
    bias: bool = False
    dropout: float = 0.0
    interleaved: bool = True
    turned: Literal["pairs", "complex"] = "pairs"

    @property
    def kv_heads(self) -> Count:
        """Every head has a key and a value."""
        return self.heads

    @property
    def causal(self) -> bool:
        """Queries see what is before them."""
        return True

    @property
    def query_dim(self) -> Count:
        """Dimensions of a head's query and key."""
        return self.nope_dim + self.rope_dim

    def tensors(self) -> Iterator[Tensor]:
        """Queries, then keys and values down and up, then the output."""
        queries: list[tuple[str, Layer]] = [("q_proj", Linear(self.hidden, self.heads * self.query_dim, bias=False))]
        if self.query_rank is not None:
            queries = [
                ("q_a_proj", Linear(self.hidden, self.query_rank, self.bias)),
                ("q_a_layernorm", rms_norm(self.query_rank)),
                ("q_b_proj", Linear(self.query_rank, self.heads * self.query_dim, bias=False)),
            ]
        yield from Module(
            [
                *queries,
                ("kv_a_proj_with_mqa", Linear(self.hidden, self.kv_rank + self.rope_dim, self.bias)),
                ("kv_a_layernorm", rms_norm(self.kv_rank)),
                ("kv_b_proj", Linear(self.kv_rank, self.heads * (self.nope_dim + self.value_dim), bias=False)),
                ("o_proj", Linear(self.heads * self.value_dim, self.hidden, self.bias)),
            ]
        ).tensors()

    def play(self, machine: Machine, hidden: Value, context: Context) -> Value:
        """``(batch, length, hidden)`` to the same."""
        return latent(machine, self, hidden, context)
