"""The rule: which published runs memcalc's engines are asked to predict. By features alone, never by how well one comes out.

``static`` records (what is held between steps, optimizer states, a model's own bytes) are asked of the analytic engine,
``train_step`` records of the trace, which runs one rank's step with the very code the run trained, or it is not in scope.
A reason with a stand-in says what could be put in the place of what is not modelled: such records may be predicted too, and are
shown apart, but never counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from benchmarks.published.records import Record
from memcalc.records import dataclass

STATIC = ("static_after_step", "optimizer_state", "model_init")
BUILT = ("transformers", "torchvision", "timm", "litgpt")
"""Model code that is run: from a config, or litgpt's own, of the commit that the run was made with."""
SAME_TENSORS = (*BUILT, "torchtune", "torchtitan", "megatron")
"""Implementations whose parameters are those of the family's config, whatever their layers keep for backward."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a record is not in scope.

    Attributes:
        feature: what is not modelled, in one word.
        text: the sentence.
        stand_in: what may be put in its place, for a prediction shown apart; empty where nothing may.
    """

    feature: str
    text: str
    stand_in: str = ""


Rule = Callable[[Record], Reason | None]


def why_not(record: Record) -> tuple[Reason, ...]:
    """Every reason that keeps a record out of scope; none: it is in."""
    return tuple(_reasons(record))


def engine_of(record: Record) -> str:
    """Who answers."""
    return "analytic" if record.kind in STATIC else "trace"


def _reasons(record: Record) -> Iterator[Reason]:
    if record.grade == "C":
        yield Reason("grade", "grade C: the run is not told unambiguously")
    if record.measured is None:
        yield Reason("unit", "the unit is not known")
    if record.kind in ("inference", "component", "cuda_context"):
        yield Reason("kind", f"a {record.kind} is no training step")
        return
    if record.metric is None:
        yield Reason("metric", "what was counted is not stated")
    for rule in RULES:
        reason = rule(record)
        if reason is not None:
            yield reason


def _quantized(record: Record) -> Reason | None:
    return Reason("quantized base", "a quantised base is not modelled") if record.quantized else None


def _method(record: Record) -> Reason | None:
    known = record.method in ("full", "lora") or (record.kind == "model_init" and record.method == "none")
    return None if known or record.quantized else Reason("method", f"{record.method} is not modelled")


def _compiled(record: Record) -> Reason | None:
    return Reason("compile", "compiled code keeps other tensors") if record.text("compile") else None


def _offload(record: Record) -> Reason | None:
    words = " ".join(record.text(key) for key in ("optimizer", "sharding", "activation_checkpointing"))
    return Reason("offload", "offloading is not modelled") if "offload" in words.lower() else None


def _in_backward(record: Record) -> Reason | None:
    found = re.search(r"into backward|post_accumulate", record.text("optimizer"))
    return Reason("optimizer in backward", "an update within backward is not traced") if found else None


def _optimizer(record: Record) -> Reason | None:
    if record.optimizer is not None or record.kind == "model_init":
        return None
    return Reason("optimizer", f"no optimizer of the registry is meant by {record.text('optimizer')!r}")


def _precision(record: Record) -> Reason | None:
    return None if record.precision else Reason("precision", f"no scheme is meant by {record.text('precision')!r}")


def _adapters(record: Record) -> Reason | None:
    if record.kind == "train_step" and record.precision == "bf16-pure, adapters fp32":
        return Reason("precision", "adapters in another dtype than the base are not traced")
    return None


def _ranks(record: Record) -> Reason | None:
    if record.raw["world_size"] == 1:
        return None
    if record.kind == "train_step":
        return Reason("ranks", "the step of several ranks is not traced")
    return None if sharding(record) is not None else Reason("ranks", f"{record.text('sharding')} is not modelled")


def _checkpointing(record: Record) -> Reason | None:
    if record.kind in STATIC or record.checkpointing in ("none", "full"):
        return None
    return Reason("checkpointing", "another policy of recomputation than none and full")


def _sizes(record: Record) -> Reason | None:
    told = all(isinstance(record.raw[key], int) and record.raw[key] > 0 for key in ("micro_batch_size", "seq_len"))
    return None if told or record.kind in STATIC else Reason("sizes", "the batch's shape is not stated")


def _device(record: Record) -> Reason | None:
    if record.gpu is not None or record.kind in STATIC:
        return None
    return Reason("device", f"{record.text('gpu')}: kernels are known for NVIDIA's GPUs", "an NVIDIA GPU")


def _implementation(record: Record) -> Reason | None:
    known = SAME_TENSORS if record.kind in STATIC else BUILT
    if record.implementation in known:
        return None
    named = record.implementation or "unknown"
    stand_in = "transformers" if named in ("torchtune",) else ""
    return Reason("implementation", f"implementation: {named}, whose code is not run here", stand_in)


def _model(record: Record) -> Reason | None:
    from benchmarks.published.models import known

    return None if known(record) else Reason("model", "the record does not have the whole shape of a family memcalc knows")


RULES: tuple[Rule, ...] = (
    _quantized, _method, _compiled, _offload, _in_backward, _optimizer, _precision, _adapters, _ranks, _checkpointing, _sizes,
    _device, _implementation, _model,
)  # fmt: skip


def sharding(record: Record) -> dict[str, object] | None:
    """The keys of a job for a way of sharding whose statics are modelled; None for another."""
    words = record.text("sharding")
    ranks = record.raw["world_size"]
    if not isinstance(ranks, int):
        return None
    if ranks == 1:
        return {}
    if re.fullmatch(r"FSDP2 \d+", words):
        return {"dp": ranks, "zero_stage": 3, "zero_backend": "fsdp2"}
    match = re.fullmatch(r"TP 1 x PP 1 x CP 1 x EP 1( \+ distributed optimizer)?", words)
    if match and record.implementation == "megatron":
        return {"dp": ranks, "zero_stage": 1 if match[1] else 0, "zero_backend": "megatron"}
    return None
