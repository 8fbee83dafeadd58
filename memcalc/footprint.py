"""The answer: the one type every output, verdict and comparison is a function of. It computes nothing.

Bytes are integers; ``None`` means not modelled, ``0`` modelled and zero. The keys of :meth:`Footprint.to_dict` are a contract:
additions are free, a rename or a change of meaning raises ``schema_version``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, field
from typing import TYPE_CHECKING, Any

from memcalc.records import dataclass

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """The model as understood."""

    name: str
    family: str
    num_parameters: int
    num_trainable_parameters: int
    architecture: str | None = None
    num_tensors: int = 0


@dataclass(frozen=True, slots=True)
class Components:
    """Each role's own maximum over the steady step: requested bytes on the fullest rank. Never to be summed."""

    parameters: int | None = None
    parameter_copies: int | None = None
    master_parameters: int | None = None
    buffers: int | None = None
    cache: int | None = None
    gradients: int | None = None
    optimizer_states: int | None = None
    inputs: int | None = None
    activations: int | None = None
    temporaries: int | None = None
    communication: int | None = None
    workspace: int | None = None
    context: int | None = None


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest instant of the step.

    ``low`` and ``high`` bound the allocated peak. ``device`` is what the process takes of its GPU, where that is one number;
    ``device_low`` and ``device_high`` are the range it lies in, with ``reserved`` as predicted.
    """

    requested: int | None = None
    rounded: int | None = None
    allocated: int | None = None
    reserved: int | None = None
    device: int | None = None
    low: int | None = None
    high: int | None = None
    phase: str | None = None
    instant: str | None = None
    iteration: int | None = None
    device_low: int | None = None
    device_high: int | None = None


@dataclass(frozen=True, slots=True)
class Outside:
    """Memory of a process that the allocator does not hold: the CUDA context, libraries, NCCL.

    Attributes:
        name: what it is.
        low: bytes it takes at least.
        high: at most; None where no end is known.
        source: what that rests on.
    """

    name: str
    low: int
    high: int | None
    source: str


@dataclass(frozen=True, slots=True)
class States:
    """The highest instant of what is kept: parameters, copies, masters, gradients, optimizer states and its step's needs.

    Activations, inputs, workspaces and the CUDA context are not in it, so it is a lower bound of the step's peak.
    ``bound`` is the most the CUDA allocator may count for it; ``at_peak`` gives the roles live then, which sum to ``rounded``.
    """

    requested: int
    rounded: int
    bound: int
    phase: str
    instant: str
    at_peak: dict[str, int]


@dataclass(frozen=True, slots=True)
class Rank:
    """``multiplicity`` ranks alike, the first of them ``index``."""

    index: int
    multiplicity: int
    peak: int | None
    states: int


@dataclass(frozen=True, slots=True)
class Held:
    """``times`` buffers of ``requested`` bytes each."""

    component: str
    name: str
    requested: int
    times: int
    place: str
    lives: str


@dataclass(frozen=True, slots=True)
class Fits:
    """The verdict on a device."""

    gpu: str | None
    capacity: int
    usable: int
    verdict: str
    headroom: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Where every byte of a training step goes, on one rank.

    Attributes:
        model: what was measured.
        job: the job as understood, every default filled in.
        engine: how it was found.
        components: each role's own maximum.
        optimizer_states: parts of ``components.optimizer_states`` (momentum, variance, …).
        peak: the highest instant of the whole step.
        states: the highest instant of what is kept.
        at_peak: roles live at ``peak``, summing to ``peak.rounded``; None where that is not modelled.
        phases: each phase's highest point.
        host: bytes in CPU memory, by component, and managed memory that pages.
        unattributed: bytes of a measurement nothing explains.
        ranks: the distinct ranks, the fullest first.
        fits: the verdict, where a device or memory was given.
        textbook: the textbook's figures for the same question.
        assumptions: what was assumed because the job did not say.
        warnings: settings that were ignored, and the like.
        buffers: what the states are made of, buffer by buffer; the explanation of each component. Not part of the JSON
            unless asked for.
        outside: what the device holds beside what the allocator reserves, line by line.
    """

    model: ModelSummary
    job: dict[str, Any]
    engine: str
    components: Components
    optimizer_states: dict[str, int]
    peak: Peak
    states: States
    phases: dict[str, dict[str, int | None]]
    host: dict[str, int]
    ranks: tuple[Rank, ...]
    fits: Fits | None = None
    at_peak: dict[str, int] | None = None
    unattributed: int | None = None
    textbook: dict[str, Any] | None = None
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    buffers: tuple[Held, ...] = ()
    outside: tuple[Outside, ...] = ()
    bytes_per_parameter: dict[str, float | None] = field(default_factory=dict)

    def to_dict(self, *, explain: bool = False) -> dict[str, Any]:
        """The contract's JSON object, as plain data; ``explain`` adds every buffer."""
        told = {
            "schema_version": SCHEMA_VERSION,
            "model": asdict(self.model),
            "job": self.job,
            "engine": self.engine,
            "components": asdict(self.components),
            "optimizer_states": self.optimizer_states,
            "bytes_per_parameter": self.bytes_per_parameter,
            "at_peak": self.at_peak,
            "peak": asdict(self.peak),
            "states": asdict(self.states),
            "phases": self.phases,
            "outside": [asdict(line) for line in self.outside],
            "host": self.host,
            "unattributed": self.unattributed,
            "ranks": [asdict(rank) for rank in self.ranks],
            "fits": None if self.fits is None else asdict(self.fits),
            "textbook": self.textbook,
            "assumptions": list(self.assumptions),
            "warnings": list(self.warnings),
        }
        if explain:
            told["buffers"] = [asdict(held) for held in self.buffers]
        return told

    def to_json(self, indent: int | None = 2, *, explain: bool = False) -> str:
        """The same as text."""
        return json.dumps(self.to_dict(explain=explain), indent=indent, ensure_ascii=False, allow_nan=False)

    def __rich__(self) -> RenderableType:
        from memcalc.formats.table import render

        return render(self)

    def _repr_html_(self) -> str:
        from memcalc.formats.html import fragment

        return fragment(self)
