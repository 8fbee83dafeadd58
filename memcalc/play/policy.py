"""How a machine holds parameters, which kernels it takes, and what it assumes of software and GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from memcalc.arrays import Count
from memcalc.kernels.behaviour import Behaviour
from memcalc.kernels.workspaces import Workspaces
from memcalc.play.choose import Call, kernel_of
from memcalc.play.graph import Leaf
from memcalc.play.values import Life, Value
from memcalc.tensors import Kind

if TYPE_CHECKING:
    from memcalc.play.adapting import Adapter
    from memcalc.play.around import Hooks
    from memcalc.play.machine import Machine


FLASH_ATTN = "flash_attention_2"
"""What transformers calls flash-attn's own kernels (``attn_implementation``), and a job's ``attention``."""


class Updates(Protocol):
    """What updates parameters inside backward."""

    @property
    def last(self) -> Life | None:
        """The memory of the gradient that waits for the next one's arrival; None where none does."""
        ...

    def arrives(self, machine: Machine) -> None:
        """A gradient has come to a parameter, and is not stored yet."""
        ...

    def stored(self, machine: Machine, leaf: Leaf) -> None:
        """It is stored."""
        ...

    def ends(self, machine: Machine) -> None:
        """Backward is through."""
        ...


class Policy:
    """How parameters are held, and what is assumed of software and GPU.

    Attributes:
        dtype: the parameters' dtype.
        keeps: kinds of parameters that stay in FP32.
        trains: whether a parameter receives a gradient, by name.
        on_gradient: told of every gradient as it is stored.
        hooks: the engine of parallelism that does something around modules; None for none.
        attention: the kernel asked for, or ``auto``.
        sequences: how many stand in each row, where flash-attn's kernels follow them; None where they follow none.
        cross_entropy: the loss of a language model's head: ``plain``, ``chunked``, ``liger`` or ``cce``.
        checkpointing: ``none``, ``selective`` or ``full``.
        every: of how many layers the last is recomputed, where that is not said for all; 0 where it is.
        asks_inputs: whether checkpointing has a frozen embedding's result ask for a gradient, as transformers' does.
        updates: what updates parameters inside backward; None where nothing does.
        gradients_kept: whether every gradient is there from the start, zeroed and never dropped.
        adapter: what stands on linear layers; None for nothing.
        behaviour: the software and GPU.
    """

    def __init__(
        self,
        dtype: str,
        *,
        keeps: frozenset[str] = frozenset(),
        trains: Callable[[str], bool] = lambda name: True,
        on_gradient: Callable[[Machine, Leaf], None] | None = None,
        attention: str = "auto",
        sequences: Count | None = None,
        checkpointing: str = "none",
        asks_inputs: bool = True,
        cross_entropy: str = "plain",
        gradients_kept: bool = False,
        updates: Updates | None = None,
        hooks: Hooks | None = None,
        adapter: Adapter | None = None,
        behaviour: Behaviour | None = None,
    ) -> None:
        how, _, often = checkpointing.partition("-")
        # modules wrapped from outside: no model is told that anything is recomputed
        self.checkpointing, self.every = ("none", int(often)) if how == "every" else (checkpointing, 0)
        self.cross_entropy, self.asks_inputs = cross_entropy, asks_inputs
        self.gradients_kept, self.adapter, self.hooks, self.updates = gradients_kept, adapter, hooks, updates
        self.dtype, self.keeps, self.trains, self.on_gradient = dtype, keeps, trains, on_gradient
        self.attention, self.sequences, self.behaviour = attention, sequences, behaviour or Behaviour()
        self.workspaces = Workspaces(self.behaviour)

    def dtype_of(self, kind: Kind) -> str:
        """A parameter's dtype by the operator that reads it."""
        return "float32" if kind in self.keeps else self.dtype

    def kernel(
        self,
        machine: Machine,
        query: Value,
        key: Value,
        value: Value,
        mask: Value | None,
        probability: float,
        causal: bool,
        grouped: bool,
        order: tuple[str, ...] | None = None,
    ) -> str:
        """The kernel that CUDA takes for a call of scaled_dot_product_attention, of those allowed in ``order``."""
        trains = machine.wants(query, key, value)
        call = Call(query, key, value, mask, probability, causal, grouped, trains, self.behaviour)
        return kernel_of(machine, self.attention, call, order)
