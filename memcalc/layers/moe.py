"""Mixtures of experts: the router, the experts in the layout asked for, and the block that joins them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from memcalc.arrays import Count
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Buffer, Linear, Parameter
from memcalc.layers.mixing import MIXTURES
from memcalc.layers.routing import ROUTES, Routed, run_experts
from memcalc.layers.transformer import GatedMLP
from memcalc.play.machine import Machine
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor

ExpertLayout = Literal["stacked", "separate"]
"""``stacked``: one three-dimensional parameter holds a matrix of every expert (transformers 5). ``separate``: every expert is a
module of its own, as in transformers 4 and in the checkpoints on the Hub."""


@dataclass(frozen=True, slots=True)
class Router:
    """Scores every expert for every token and keeps ``top_k``: weight ``(experts, hidden)``.

    Attributes:
        top_k: experts a token goes to; None where the config leaves it out.
        bias: whether the scores have one, ``(experts,)``.
        correction: whether a buffer of that shape is added for the choice alone (DeepSeek-V3's load balancing).
        groups: the groups experts stand in, of which ``top_groups`` are considered; None for no groups.
        scoring: how scores become weights.
        grouped: whether the choice is among the best groups, where a family's config says so.
        normalised: whether the weights of the chosen ones are brought to a sum of 1.
        route: the steps from scores to weights (:mod:`memcalc.layers.routing`).
    """

    hidden: Count
    experts: Count
    top_k: Count | None
    bias: bool = False
    correction: bool = False
    groups: Count | None = None
    top_groups: Count | None = None
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    grouped: bool = False
    normalised: bool = False
    route: str = "softmax"

    def tensors(self) -> Iterator[Tensor]:
        """The scoring matrix, its bias, the correction."""
        yield from Linear(self.hidden, self.experts, self.bias).tensors()
        if self.correction:
            for tensor in Buffer((self.experts,)).tensors():
                yield tensor.under("e_score_correction_bias")

    def play(self, machine: Machine, hidden: Value) -> Routed:
        """``(tokens, hidden)`` to scores, weights and numbers of the chosen experts."""
        return ROUTES[self.route](machine, self, hidden)


@dataclass(frozen=True, slots=True)
class Experts:
    """``experts`` gated feed-forwards, each of ``hidden`` by ``intermediate``.

    Attributes:
        layout: stacked or separate.
        names: gate, up and down of one expert, where they are separate.
        bias: whether the matrices have one.
        transposed: stacked matrices are ``(in, out)`` rather than ``(out, in)`` (gpt_oss).
        activation: applied to the gate.
    """

    experts: Count
    hidden: Count
    intermediate: Count
    layout: ExpertLayout = "stacked"
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    bias: bool = False
    transposed: bool = False
    activation: str = "silu"

    def expert(self) -> GatedMLP:
        """One of them."""
        return GatedMLP(self.hidden, self.intermediate, self.bias, names=self.names, activation=self.activation)

    def tensors(self) -> Iterator[Tensor]:
        """Gate and up, then down: for all experts at once, or for each."""
        if self.layout == "separate":
            yield from Stack(self.expert(), self.experts).tensors()
            return
        parts: list[tuple[str, Layer]] = []
        for name, wide, narrow in (
            ("gate_up_proj", 2 * self.intermediate, self.hidden),
            ("down_proj", self.hidden, self.intermediate),
        ):
            matrix = (narrow, wide) if self.transposed else (wide, narrow)
            parts.append((name, Parameter((self.experts, *matrix), kind="expert")))
            if self.bias:
                parts.append((f"{name}_bias", Parameter((self.experts, wide), kind="expert")))
        yield from Module(parts).tensors()

    def play(self, machine: Machine, hidden: Value, places: Value, weights: Value) -> Value:
        """``(tokens, hidden)`` to the same, by the experts of those numbers, weighed; stacked alone."""
        return run_experts(machine, self, hidden, places, weights)


@dataclass(frozen=True, slots=True)
class SharedExperts:
    """What every token passes through beside the chosen experts: one gated feed-forward as wide as ``count`` experts, its
    output weighed by a gate of one feature where the family has one.
    """

    mlp: GatedMLP
    count: Count = 1
    name: str = "shared_experts"
    gate: str = ""

    def parts(self) -> list[tuple[str, Layer]]:
        """The feed-forward and its gate, under their names."""
        gate: list[tuple[str, Layer]] = [(self.gate, Linear(self.mlp.hidden, 1, bias=False))] if self.gate else []
        return [(self.name, self.mlp), *gate]


@dataclass(frozen=True, slots=True)
class Mixture:
    """A feed-forward made of experts; ``names`` are those of router and experts, in the order the module registers them."""

    router: Router
    experts: Experts
    shared: SharedExperts | None = None
    names: tuple[tuple[Literal["router", "experts"], str], ...] = (("router", "gate"), ("experts", "experts"))
    order: Literal["alone", "gated", "beside"] = "alone"
    """The steps of the block (:mod:`memcalc.layers.mixing`): no shared experts, gated ones first, or plain ones last."""

    def tensors(self) -> Iterator[Tensor]:
        """Router and experts, then what is shared."""
        parts: list[tuple[str, Layer]] = [
            (name, self.router if part == "router" else self.experts) for part, name in self.names
        ]
        shared = self.shared.parts() if self.shared is not None else []
        yield from Module([*parts, *shared]).tensors()

    def play(self, machine: Machine, hidden: Value) -> Value:
        """``(batch, length, hidden)`` to the same."""
        return MIXTURES[self.order](machine, self, hidden)

    def named(self, part: str) -> str:
        """The name of the router or of the experts."""
        return next(name for each, name in self.names if each == part)
