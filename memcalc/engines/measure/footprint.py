"""A measurement as a footprint, so that every output format prints it. What a CPU cannot say stays null. No torch."""

from __future__ import annotations

from typing import Any

from memcalc.footprint import Components, Footprint, ModelSummary, Peak, States
from memcalc.footprint import Rank as RankLine
from memcalc.measurement import Counters, Measurement, Phase, Rank
from memcalc.textbook import card

HOST = "host_optimizer_states"
KEPT = ("parameters", "master_parameters", "buffers", "gradients", "optimizer_states", "communication")
"""What a footprint's ``states`` are made of."""
ON_CPU = "measured on a CPU: requested is the live bytes of real storages, and allocated, reserved and device are not known"


def footprint_of(record: Measurement) -> Footprint:
    """The footprint of the fullest rank."""
    assert record.model is not None, "a record without a model has no footprint"
    ranks = sorted(record.ranks, key=lambda rank: -kept_bytes(rank))
    fullest = ranks[0]
    components = {name: component_bytes(fullest, name) for name in Components.__dataclass_fields__}
    if len(ranks) == 1:
        components["communication"] = 0  # there is nobody to talk to
    count = record.model.num_parameters
    training, parallelism = record.job["training"], record.job["parallelism"]
    return Footprint(
        model=ModelSummary(**record.model.model_dump()), job=record.job, engine="measure", components=Components(**components),
        optimizer_states=fullest.optimizer_states, peak=peak_of(fullest), states=states_of(fullest),
        phases=phases_of(fullest), host={"optimizer_states": component_bytes(fullest, HOST) or 0},
        ranks=tuple(RankLine(rank.index, 1, _main(_highest(rank)), kept_bytes(rank)) for rank in ranks),
        textbook=card(
            training["optimizer"], count, record.model.num_trainable_parameters, parallelism["zero_stage"],
            parallelism.get("dp_shard") or 1,
        ),
        assumptions=tuple(record.warnings),
        warnings=(*fullest.warnings, *([ON_CPU] if record.settings.device == "cpu" else [])),
        bytes_per_parameter={name: None if size is None else round(size / count, 6) for name, size in components.items()},
    )  # fmt: skip


def component_bytes(rank: Rank, name: str) -> int | None:
    """A component's bytes: what was walked, else what was counted."""
    found = rank.components.get(name)
    if found is None:
        return 0 if name == "parameter_copies" and rank.components and not rank.device.startswith("cuda") else None
    return found.walked if found.walked is not None else found.counted


def kept_bytes(rank: Rank) -> int:
    """Requested bytes of everything kept at the end of backward."""
    return sum(component_bytes(rank, name) or 0 for name in KEPT)


def states_of(rank: Rank) -> States:
    """What is kept, all of it at once; a measurement rounds nothing, so the bytes are requested ones throughout."""
    at_peak = {name: size for name in KEPT if (size := component_bytes(rank, name))}
    total = sum(at_peak.values())
    return States(requested=total, rounded=total, bound=total, phase="backward", instant="end of backward", at_peak=at_peak)


def peak_of(rank: Rank) -> Peak:
    """The highest instant of the steady steps."""
    found = _highest(rank)
    if found is None:
        return Peak()
    phase, iteration = found
    device = rank.device_bytes.process if rank.device_bytes else None
    counters = phase.peak
    return Peak(
        requested=_main(found), allocated=counters.allocated, reserved=counters.reserved, device=device,
        low=counters.allocated, high=counters.allocated, phase=phase.phase,
        instant=phase.what or f"within {phase.phase}", iteration=iteration,
    )  # fmt: skip


def phases_of(rank: Rank) -> dict[str, dict[str, int | None]]:
    """Each phase's highest point over the steady steps."""
    shown: dict[str, dict[str, int | None]] = {}
    for phase, _ in _steady(rank):
        before = shown.setdefault(phase.phase, {"peak_allocated": None, "peak_requested": None, "peak_reserved": None})
        peak = phase.peak
        told = {"peak_allocated": peak.allocated, "peak_requested": requested(peak), "peak_reserved": peak.reserved}
        for name, value in told.items():
            before[name] = value if before[name] is None else max(before[name] or 0, value or 0)
    return shown


def requested(counters: Counters) -> int | None:
    """Requested bytes; on a CPU the live ones."""
    return counters.live if counters.requested is None else counters.requested


def _steady(rank: Rank) -> list[tuple[Phase, int]]:
    """The phases of iteration 2 and later; of the only iteration where there is one."""
    later = [each for each in rank.iterations if each.index > 1] or rank.iterations
    return [(phase, each.index) for each in later for phase in each.phases]


def _highest(rank: Rank) -> tuple[Phase, int] | None:
    known = [entry for entry in _steady(rank) if requested(entry[0].peak) is not None]
    return max(known, key=lambda entry: requested(entry[0].peak) or 0, default=None)


def _main(found: Any) -> int | None:
    return None if found is None else requested(found[0].peak)
