"""What an implementation is: another project's code of a family's model, whose layers hold and keep other tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import Any

from memcalc.arrays import Count
from memcalc.errors import InputError
from memcalc.families._forward import Batch
from memcalc.models import Model
from memcalc.parallelism.fsdp2_units import Units
from memcalc.records import dataclass
from memcalc.tape.events import Buffer


@dataclass
class Asked:
    """What a job says of an implementation.

    Attributes:
        arguments: the implementation's own.
        lora: options of adapters; None without them.
        quantization: of a frozen base; None without it.
    """

    arguments: Mapping[str, Any]
    lora: Mapping[str, Any] | None = None
    quantization: str | None = None


def dated(arguments: Mapping[str, Any], usual: str) -> str:
    """The version that is asked for, by the date of its code; ``usual`` where nobody asks.

    Raises:
        InputError: it is no date.

    >>> dated({"version": "2025-06-17"}, "2024-01-01")
    '2025-06-17'
    """
    asked = arguments.get("version", usual)
    if not isinstance(asked, str) or not re.fullmatch(r"\d{4}-\d\d-\d\d", asked, flags=re.ASCII):
        raise InputError("implementation_args.version", asked, "is no date", f"write it as {usual}")
    return asked


def nothing_held(model: Model, batch: Batch, dtype: str, low: str) -> Iterable[tuple[Buffer, Count]]:
    """No buffers beside the model's."""
    return ()


@dataclass
class Implementation:
    """A project's code.

    Attributes:
        name: as a job has it.
        source: project and commits that were read.
        build: the model of a family's config with this project's tensors and layers.
        play: its training forward and loss: (machine, architecture, config, root, batch) -> (loss, what is held to backward).
        held: buffers whose size goes by the batch: (model, batch, dtype of the parameters, that of matrix products) ->
            (buffer, how many).
        summary: one line for a person.
        arguments: names of its arguments.
        adapts: whether it has adapters of its own, in place of peft's.
        units: how it calls ``fully_shard`` on a model that it built; None for the usual way.
        enters: whether ``play`` calls the model by its name itself (``machine.call("", …)``), its loss standing outside of it.
    """

    name: str
    source: str
    build: Callable[[Model, Asked], Model]
    play: Callable[..., tuple[Any, Any]]
    held: Callable[[Model, Batch, str, str], Iterable[tuple[Buffer, Count]]] = field(default=nothing_held)
    summary: str = ""
    arguments: tuple[str, ...] = ()
    adapts: bool = False
    units: Callable[[Model], Units] | None = None
    enters: bool = False
