"""Values of fake tensors that follow from how a router is assumed to choose: kept beside a tensor, and looked up there."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

_NAME = "_memcalc_known"


class Router(NamedTuple):
    """A choice of experts.

    Attributes:
        module: dotted path of the module that chooses.
        rows: tokens that choose.
        chosen: experts that each of them chooses.
        experts: to choose among.
        what: ``choice``, or ``weights`` where a value hangs on what the choice is weighted by.
    """

    module: str
    rows: int
    chosen: int
    experts: int
    what: str


class Memory:
    """What tensors that share a storage share: whether its values are still known."""

    __slots__ = ("valid",)

    def __init__(self) -> None:
        self.valid = True


class Known(NamedTuple):
    """A tensor's values.

    Attributes:
        real: they, on the CPU; views of one storage are views of one storage here.
        memory: shared by those.
        routers: whose choices they follow from; none where they are plain numbers.
    """

    real: torch.Tensor
    memory: Memory
    routers: frozenset[Router]


def known(tensor: torch.Tensor) -> Known | None:
    """A tensor's values, where they are known."""
    if not isinstance(tensor, FakeTensor):
        return Known(tensor, Memory(), frozenset()) if type(tensor) is torch.Tensor else None
    if tensor.constant is not None:
        return Known(tensor.constant, Memory(), frozenset())
    found: Known | None = tensor.__dict__.get(_NAME)
    return found if found is not None and found.memory.valid else None


def followed(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values are known from here, and not from the fake tensors themselves."""
    return isinstance(tensor, FakeTensor) and tensor.constant is None and known(tensor) is not None


def keep(tensor: Any, found: Known) -> None:
    """Know a tensor's values from now on."""
    tensor.__dict__[_NAME] = found


def ones_of(mask: torch.Tensor) -> int | None:
    """How many elements of a mask are not zero; None where that is not known."""
    found = known(mask)
    if found is None:
        return None
    with _disable_current_modes():
        return int(found.real.count_nonzero())
