"""A model as the rest of memcalc sees it: its tensors, where they came from, and what had to be assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from memcalc.arrays import Count
from memcalc.layers.base import Layer
from memcalc.records import dataclass
from memcalc.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Model:
    """A model, read.

    Attributes:
        name: what it was asked by, or what its config calls itself.
        family: the ``model_type``, or ``safetensors``, ``module``, ``params`` for one known by its tensors alone.
        architecture: the class name, as ``LlamaForCausalLM``; None where there is none.
        tensors: every parameter and buffer, identical ones counted.
        tied: names that share another's storage, and are therefore not in ``tensors``.
        root: the layers, for the families; None for a model known by its tensors alone.
        config: the validated family config.
        dtype: the dtype its weights are stored in, where that is known.
        assumptions: what the reader had to assume.
        shapes_known: False for a bare size, whose one tensor stands for many of unknown shapes.
        implementation: whose code it is.
        adapter: what stands on its layers, as a machine asks it (``memcalc.play.adapting``); None for nothing.
        prefix: what stands before every name of ``root``'s tensors.
    """

    name: str
    family: str
    tensors: tuple[Tensor, ...]
    architecture: str | None = None
    tied: Mapping[str, str] = field(default_factory=dict)
    root: Layer | None = None
    config: Any = None
    dtype: str | None = None
    assumptions: tuple[str, ...] = ()
    shapes_known: bool = True
    implementation: str = "transformers"
    adapter: Any = None
    prefix: str = ""

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors that are parameters."""
        return tuple(tensor for tensor in self.tensors if tensor.role == "parameter")

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """The tensors that are not."""
        return tuple(tensor for tensor in self.tensors if tensor.role == "buffer")

    @property
    def num_parameters(self) -> Count:
        """Parameters, tied ones once; of a matrix in 4 bits what it stands for, as transformers' num_parameters has it."""
        return sum((tensor.elements * tensor.holds for tensor in self.parameters), 0)

    @property
    def num_trainable_parameters(self) -> Count:
        """Parameters that receive a gradient."""
        return sum((tensor.elements for tensor in self.parameters if tensor.trainable), 0)
