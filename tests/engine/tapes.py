"""The trace's own tape of clipping and the optimizer's step beside the analytic engine's, each as a list of sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn, ones

from memcalc.api import model_of
from memcalc.engines.analytic.update import clip_events, step_events
from memcalc.engines.trace.estimate import Feed, trace_job
from memcalc.job import read_job
from memcalc.parallelism.engines import layouts
from memcalc.plan import make_plan
from memcalc.tape.events import Alloc, Event, Free, Mark
from memcalc.tape.unroll import unroll

STEP = ("clip", "optimizer_step")
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp16-pure": "float16", "bf16-pure": "bfloat16"}


class Bag(nn.Module):
    """Parameters of whatever shapes, each in the loss once; their names are those of a linear layer's in an MLP."""

    shapes: Sequence[tuple[int, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.ParameterList([nn.Parameter(ones(shape)) for shape in self.shapes])

    def forward(self, x):
        total = x.sum()
        for weight in self.mlp:
            total = total + (weight * x.sum()).sum()
        return total


def bag() -> Bag:
    """One of them."""
    return Bag()


class Linears(nn.Module):
    """The same matrices as linear layers, which projecting optimizers choose; vectors are biases of none."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [shape for shape in Bag.shapes if len(shape) == 2]
        self.mlp = nn.ModuleList([nn.Linear(columns, rows, bias=False) for rows, columns in shapes])

    def forward(self, x):
        total = x.sum()
        for layer in self.mlp:
            total = total + (layer.weight * x.sum()).sum()
        return total


class Block(nn.Module):
    """A linear layer and a normalisation with other sizes than any other tensor's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(width, 3 * width), nn.LayerNorm(3 * width), nn.Linear(3 * width, width)

    def forward(self, x):
        return self.down(self.norm(self.up(x)))


class Layers(nn.Module):
    """A table, some equal layers, and a head."""

    def __init__(self, count: int = 3, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(width, width, bias=False)
        self.layers = nn.ModuleList(Block(width) for _ in range(count))
        self.head = nn.Linear(width, 5 * width, bias=False)

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@dataclass
class Pair:
    """Signed sizes of both tapes (births +, deaths -, a run of deaths in order of size), phase by phase.

    Attributes:
        traced: the trace's.
        told: the analytic engine's.
        registry: whether the trace had to take the registry's word.
    """

    traced: dict[str, list[int]] = field(default_factory=dict)
    told: dict[str, list[int]] = field(default_factory=dict)
    registry: bool = False

    def tops(self, block: int = 1) -> dict[str, tuple[int, int]]:
        """Phase -> the highest point of each above its start, in blocks of so many bytes."""
        return {phase: (top(self.traced[phase], block), top(self.told[phase], block)) for phase in STEP}

    @property
    def same(self) -> bool:
        """Whether one is the other."""
        return self.traced == self.told


def top(sizes: Iterable[int], block: int = 1) -> int:
    """The highest point of a list of signed sizes."""
    live = highest = 0
    for size in sizes:
        live += (1 if size > 0 else -1) * (-(-abs(size) // block) * block)
        highest = max(highest, live)
    return highest


def both(keys: dict, inputs: str = "2", shapes: Sequence[tuple[int, ...]] = ()) -> Pair:
    """A job's two tapes; the model is a bag of tensors where shapes are given."""
    Bag.shapes = shapes
    job = read_job({"model": "py:tests.engine.tapes:bag", **keys})
    found = trace_job(job, Feed(inputs=[f"args0={DTYPES.get(job.training.precision, 'float32')}[{inputs}]"]))
    plan, model = make_plan(job), model_of(job)
    (layout,) = layouts(plan.setting(model), plan.backend, 1)
    told = {
        "clip": clip_events(plan, layout, model),
        "optimizer_step": step_events(plan, layout, model),
    }
    registry = any("registry" in assumption for assumption in found.footprint.assumptions)
    return Pair(_phases(found.tape), {phase: _sizes(unroll(events)) for phase, events in told.items()}, registry)


def _phases(tape: Iterable[Event]) -> dict[str, list[int]]:
    """The steady iteration's clip and step."""
    parts: dict[str, list[Event]] = {phase: [] for phase in STEP}
    now: list[Event] = []
    for event in tape:
        if isinstance(event, Mark):
            now = parts.get(event.phase, []) if event.iteration == 2 else []
        else:
            now.append(event)
    return {phase: _sizes(events) for phase, events in parts.items()}


def _sizes(events: Iterable[Event]) -> list[int]:
    sizes: list[int] = []
    dead: list[int] = []
    for event in events:
        assert isinstance(event, Alloc | Free)
        if event.buffer.place != "device" or not event.buffer.requested:
            continue
        if isinstance(event, Free):
            dead.append(-int(event.buffer.requested))
        else:
            sizes += [*sorted(dead), int(event.buffer.requested)]
            dead = []
    return sizes + sorted(dead)
