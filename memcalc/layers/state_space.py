"""State-space layers: a recurrence over the sequence in place of attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from memcalc.arrays import Count
from memcalc.layers.base import Module
from memcalc.layers.basic import Conv, Linear, Parameter
from memcalc.play.machine import Machine
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor

Kernels = Literal["mamba-ssm", "torch"]
"""Whose kernels scan: mamba-ssm's with causal-conv1d's, or none, token after token."""


@dataclass(frozen=True, slots=True)
class MambaMixer:
    """Mamba's selective scan with the gate, the short convolution and the projections around it.

    source: transformers 5.23.0 models/mamba/modeling_mamba.py MambaMixer.__init__

    Attributes:
        inner: channels inside the mixer, usually twice ``hidden``.
        state: entries of the recurrent state of one channel.
        kernel: positions the convolution sees.
        rank: width of the projection that step sizes are made from.
        bias: on the matrices into and out of the mixer.
        conv_bias: on the convolution.
        activation: of the convolution.
    """

    hidden: Count
    inner: Count
    state: Count
    kernel: Count
    rank: Count
    bias: bool = False
    conv_bias: bool = True
    activation: str = "silu"

    def tensors(self) -> Iterator[Tensor]:
        """The module's own parameters, then its parts, as torch walks them."""
        yield from Module(
            [
                ("A_log", Parameter((self.inner, self.state), kind="recurrent")),
                ("D", Parameter((self.inner,), kind="recurrent")),
                ("conv1d", Conv(self.inner, self.inner, (self.kernel,), self.conv_bias, groups=self.inner)),
                *self.matrices(),
            ]
        ).tensors()

    def matrices(self) -> tuple[tuple[str, Linear], ...]:
        """The projections, as torch walks them."""
        return (
            # the channels and their gate come from one matrix
            ("in_proj", Linear(self.hidden, 2 * self.inner, self.bias)),
            # a step size's latent, and what of the input enters and leaves the state
            ("x_proj", Linear(self.inner, self.rank + 2 * self.state, bias=False)),
            ("dt_proj", Linear(self.rank, self.inner)),
            ("out_proj", Linear(self.inner, self.hidden, self.bias)),
        )

    def play(self, machine: Machine, hidden: Value, kernels: Kernels) -> Value:
        """``(rows, tokens, hidden)`` to the same."""
        from memcalc.layers.scanning import WAYS

        return WAYS[kernels](machine, self, hidden)
