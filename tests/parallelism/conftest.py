"""A model of plain tensors, and settings over it."""

from __future__ import annotations

import pytest

import memcalc.optimizers.torch  # noqa: F401  (registers torch:Adam)
from memcalc.models import Model
from memcalc.optimizers.base import OPTIMIZERS
from memcalc.parallelism.base import Setting
from memcalc.precision import SCHEMES
from memcalc.tensors import Span, Tensor


def model_of(shapes, *, dtype="float32", trainable=True) -> Model:
    """A model with one tensor a shape."""
    tensors = tuple(
        Tensor(f"p{at}", tuple(shape), dtype, kind="linear", trainable=trainable) for at, shape in enumerate(shapes)
    )
    return Model("test", "test", tensors)


def stacked_model() -> Model:
    """Two kinds of tensor in three layers, and an embedding before them."""
    span = (Span(3),)
    return Model("test", "test", (
        Tensor("embed", (100, 8), kind="embedding"),
        Tensor("h.*.w", (8, 24), count=3, kind="linear", spans=span),
        Tensor("h.*.b", (24,), count=3, kind="linear", spans=span),
        Tensor("norm", (8,), kind="norm"),
    ))  # fmt: skip


@pytest.fixture
def setting():
    """Make a setting from a model and what differs from the textbook on one rank."""

    def make(model, precision="fp32", stage=0, shards=1, replicas=1, implementation="foreach", optimizer="torch:Adam", **args):
        entry = OPTIMIZERS.get(optimizer)
        return Setting(model, SCHEMES.get(precision), entry, implementation, stage, shards, replicas, args)

    return make


def total(holdings, role=None) -> int:
    """Requested bytes of holdings, of one role or of all."""
    return sum(held.buffer.requested * held.times for held in holdings if role in (None, held.buffer.role))
