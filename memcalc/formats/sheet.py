"""A footprint as lines of a sheet, before anyone decides whether they are drawn, marked down or written as HTML."""

from __future__ import annotations

from memcalc.footprint import Footprint
from memcalc.records import dataclass
from memcalc.units import GIB, KIB, MIB, format_count, format_gib

LABELS = {
    "parameters": "parameters",
    "parameter_copies": "parameter copies",
    "gradients": "gradients",
    "master_parameters": "master parameters",
    "buffers": "buffers",
    "cache": "keys and values",
    "communication": "communication",
    "inputs": "inputs",
    "activations": "activations",
    "temporaries": "temporaries",
    "workspace": "workspace",
    "context": "CUDA context",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line: a label, its bytes (None for not modelled), bytes per parameter, a remark, and how far it is set in."""

    label: str
    size: int | None
    per_parameter: float | None = None
    remark: str = ""
    level: int = 0
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Sheet:
    """A heading, lines, and what is said below them."""

    heading: str
    about: str
    lines: tuple[Line, ...]
    verdict: str
    remarks: tuple[str, ...]


def sheet(footprint: Footprint) -> Sheet:
    """The sheet of one footprint."""
    return Sheet(
        heading=footprint.model.name,
        about=" · ".join(_about(footprint)),
        lines=tuple(_lines(footprint)),
        verdict=verdict(footprint),
        remarks=(*footprint.warnings, *footprint.assumptions),
    )


def _about(footprint: Footprint) -> list[str]:
    model, job = footprint.model, footprint.job
    training, parallelism = job["training"], job["parallelism"]
    said = [f"{format_count(model.num_parameters)} parameters"]
    if model.architecture:
        said.insert(0, model.architecture)
    if model.num_trainable_parameters != model.num_parameters:
        said.append(f"{format_count(model.num_trainable_parameters)} trainable")
    mode = job.get("mode", "train")
    said += [training["optimizer"] if mode == "train" else mode, training["precision"]]
    if mode in ("prefill", "decode"):
        said.append(f"{job['inference']['cache']} cache")
    if mode == "decode":
        said.append(f"{job['inference']['context_length']} tokens in it")
    if parallelism["dp"] > 1:
        stage = parallelism["zero_stage"]
        said.append(f"rank {footprint.ranks[0].index} of {parallelism['dp']}")
        said.append(
            f"ZeRO-{stage} ({parallelism['zero_backend']})" if stage else f"data parallel ({parallelism['zero_backend']})"
        )
    return said


def _lines(footprint: Footprint) -> list[Line]:
    components = footprint.to_dict()["components"]
    per = footprint.bytes_per_parameter
    if footprint.job.get("mode", "train") != "train":
        return _forward_lines(footprint)
    lines = [Line(LABELS[name], components[name], per[name]) for name in ("parameters", "gradients")]
    states, masters = components["optimizer_states"], components["master_parameters"]
    total = states + masters
    name = "optimizer states and masters" if masters else "optimizer states"
    lines.append(Line(name, total, (per["optimizer_states"] or 0) + (per["master_parameters"] or 0), _textbook(footprint)))
    count = footprint.model.num_parameters
    lines += [Line(part, size, size / count, level=1) for part, size in footprint.optimizer_states.items()]
    if masters:
        lines.append(Line(LABELS["master_parameters"], masters, per["master_parameters"], level=1))
    others = ("parameter_copies", "buffers", "communication")
    lines += [Line(LABELS[name], components[name], per[name]) for name in others if components[name] != 0]
    states_at = f"peak of the states, in {footprint.states.phase.replace('_', ' ')}"
    lines.append(Line(states_at, footprint.states.rounded, footprint.states.rounded / count, strong=True))
    # What is live at that instant besides the components above: the step's own casts and scratch.
    if brief := footprint.states.at_peak.get("temporaries"):
        lines.append(Line("of it temporaries", brief, brief / count, level=1))
    lines += _step(footprint)
    named = ("inputs", "activations", "workspace", *(() if footprint.outside else ("context",)))
    unknown = [LABELS[name] for name in named if components[name] is None]
    if unknown:
        lines.append(Line(", ".join(unknown), None))
    for name, size in footprint.host.items():
        if size:
            lines.append(Line(f"host: {name.replace('_', ' ')}", size))
    return lines


def _forward_lines(footprint: Footprint) -> list[Line]:
    """Of a model that does not train: what it holds, and the peak of its forward."""
    components, per = footprint.to_dict()["components"], footprint.bytes_per_parameter
    names = ("parameters", "parameter_copies", "buffers", "cache")
    lines = [Line(LABELS[name], components[name], per[name]) for name in names if components[name] != 0]
    return lines + _step(footprint)


def _step(footprint: Footprint) -> list[Line]:
    """What a step that was run or traced holds besides, each at its own highest, and the peak of all together."""
    components, peak, count = footprint.to_dict()["components"], footprint.peak, footprint.model.num_parameters
    if peak.requested is None:
        return []
    names = ("inputs", "activations", "temporaries", "workspace")
    lines = [Line(LABELS[name], components[name], footprint.bytes_per_parameter[name]) for name in names if components[name]]
    top = peak.requested if peak.rounded is None else peak.rounded
    word = "step" if footprint.job.get("mode", "train") == "train" else "forward"
    lines.append(Line(f"peak of the {word}, in {(peak.phase or '').replace('_', ' ')}", top, top / max(count, 1), strong=True))
    others = (("as the allocator counts it", peak.allocated), ("reserved from the driver", peak.reserved))
    lines += [Line(label, size, level=1) for label, size in others if size is not None]
    if peak.device_low is not None:
        end = "to no known end" if peak.device_high is None else f"to {format_gib(peak.device_high)}"
        lines.append(Line("on the device, with its context, from", peak.device_low, None, end, level=1))
    return lines


def _textbook(footprint: Footprint) -> str:
    book = footprint.textbook
    if book is None:
        return ""
    parallelism = footprint.job["parallelism"]
    share = f"/{parallelism['dp_shard']}" if parallelism["zero_stage"] and parallelism["dp_shard"] > 1 else ""
    each = book["optimizer_states"] / footprint.model.num_trainable_parameters
    return f"textbook {each:g}P{share} = {format_gib(book['optimizer_states_per_rank'])}"


def verdict(footprint: Footprint) -> str:
    """One line that answers whether it fits; empty where nobody asked."""
    fits = footprint.fits
    if fits is None:
        return ""
    words = {"fits": "fits", "tight": "too close to say", "does_not_fit": "does not fit", "unknown": "cannot be said yet"}
    where = fits.gpu or format_gib(fits.capacity)
    return f"{where}: {words[fits.verdict]}: {fits.reason}"


@dataclass(frozen=True, slots=True)
class Scale:
    """The unit of a column of sizes: one for all its lines, so that they can be compared at a glance."""

    unit: str
    size: int

    def text(self, count: int | None) -> str:
        """A size in this unit, or ``-`` for one that is not modelled."""
        if count is None:
            return "not modelled"
        if self.size == 1:
            return f"{count:,}"
        value = count / self.size
        return "< 0.01" if 0 < value < 0.01 else f"{value:,.2f}"


def scale(sizes: list[int], *, exact: bool) -> Scale:
    """GiB, or a smaller unit where the largest would not reach a tenth of one; bytes on request.

    >>> scale([8 * 2**30], exact=False).unit, scale([2**20], exact=False).unit, scale([2**40], exact=True).unit
    ('GiB', 'MiB', 'bytes')
    """
    largest = max(sizes, default=0)
    if exact:
        return Scale("bytes", 1)
    if largest >= GIB // 10:
        return Scale("GiB", GIB)
    return Scale("MiB", MIB) if largest >= MIB // 10 else Scale("KiB", KIB)


def per_parameter(value: float | None) -> str:
    """Bytes per parameter with two decimals, more where two would round something to nothing."""
    if value is None:
        return ""
    return "< 0.01" if 0 < value < 0.005 else f"{value:.2f}"
