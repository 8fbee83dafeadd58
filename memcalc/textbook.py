"""The textbook's card and its claims, each beside memcalc's exact figure and the accounting that makes it true or false."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import Any

from memcalc.records import dataclass

CARD = {"parameters": 2, "gradients": 2, "momentum": 4, "variance": 4, "master_parameters": 4}
"""Bytes per parameter of mixed precision with Adam (Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054, section 3.1)."""

STATES_PER_PARAMETER: dict[str, float] = {
    "torch:Adam": 12,
    "torch:AdamW": 12,
    "torch:SGD+momentum": 4,
    "torch:Adagrad": 4,
    "bitsandbytes:Adam8bit": 8,
    "bitsandbytes:AdamW8bit": 8,
}
"""Bytes of optimizer state a parameter, as the textbook's table and text give them."""

CLOSE = 0.01
"""A figure this near to the claim differs by scales, padding or tensors kept in 32 bit: said, and called near."""

STATES = ("optimizer_states",)
WITH_MASTER = ("optimizer_states", "master_parameters")
KEPT = ("parameters", "optimizer_states", "master_parameters")
ALL = ("parameters", "gradients", "optimizer_states", "master_parameters")


def card(optimizer: str, parameters: int, trainable: int, stage: int, shards: int) -> dict[str, Any] | None:
    """The textbook's figures for one job, gradients and states of what is trained; None for an optimizer it does not name.

    >>> card("torch:Adam", 1000, 1000, 1, 8)["optimizer_states_per_rank"]
    1500
    """
    each = STATES_PER_PARAMETER.get(optimizer)
    if each is None:
        return None
    states = round(each * trainable)
    return {
        "parameters": CARD["parameters"] * parameters,
        "gradients": CARD["gradients"] * trainable,
        "optimizer_states": states,
        "optimizer_states_per_rank": states // shards if stage else states,
        "accounting": "optimizer_states counts momentum, variance and the FP32 master copy" if each == 12 else "states alone",
    }


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to account for a claim: a job, the components that are added up, and what the claim comes to counted so."""

    accounting: str
    job: Mapping[str, Any]
    adds: tuple[str, ...]
    says: float | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What the textbook says, in bytes per parameter, and the readings it may have meant."""

    text: str
    says: float
    readings: tuple[Reading, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Audit:
    """A reading, computed: exact bytes, bytes per parameter, and whether the claim holds under it."""

    claim: Claim
    reading: Reading
    exact: int
    per_parameter: float
    verdict: str = field(default="")


def _job(optimizer: str, precision: str = "fp16", **keys: Any) -> dict[str, Any]:
    return {"optimizer": optimizer, "precision": precision, **keys}


RANKS = 8
"""Ranks of the sharding claim, the textbook's own eight GPUs."""

CLAIMS: tuple[Claim, ...] = (
    Claim("parameters in FP16 take 2P", 2, (Reading("FP16 working copy", _job("adam"), ("parameters",)),)),
    Claim("gradients in FP16 take 2P", 2, (Reading("FP16, all at once after backward", _job("adam"), ("gradients",)),)),
    Claim(
        "Adam's states take 12P: momentum 4P, variance 4P, master 4P",
        12,
        (
            Reading("momentum, variance and FP32 master", _job("adam"), WITH_MASTER),
            Reading("momentum and variance alone", _job("adam"), STATES),
            Reading("pure BF16, no master", _job("adam", "bf16-pure"), STATES),
        ),
        "the momentum and variance follow the dtype of what the optimizer updates",
    ),
    Claim(
        "8-bit Adam lowers memory to 8P",
        8,
        (
            Reading("states alone", _job("adam8bit"), STATES),
            Reading("states and FP32 master", _job("adam8bit"), WITH_MASTER),
            Reading("FP16 parameters, FP32 master, states; gradients left out", _job("adam8bit"), KEPT),
            Reading("everything kept, with the gradients", _job("adam8bit"), ALL),
        ),
        "one byte a moment, plus a float32 scale for each block; tensors under 4096 elements stay in 32 bit",
    ),
    Claim(
        f"ZeRO stage 1 leaves 12P/N of states on each of N = {RANKS} ranks",
        12 / RANKS,
        (
            Reading("DeepSpeed, padded flat partition", _job("adam", zero_stage=1, dp=RANKS), WITH_MASTER),
            Reading(
                "ZeroRedundancyOptimizer, whole tensors, the rank that peaks highest",
                _job("adam", zero_stage=1, dp=RANKS, zero_backend="torch"),
                WITH_MASTER,
            ),
            Reading("with parameters and gradients, at the end of backward", _job("adam", zero_stage=1, dp=RANKS), ALL),
        ),
        "true of the states alone, up to padding; parameters and gradients stay whole",
    ),
    Claim(
        "Sophia lowers memory to 8P",
        8,
        (
            Reading("momentum and Hessian diagonal alone", _job("sophia"), STATES),
            Reading("the same accounting as Adam's 12P, with the master", _job("sophia"), WITH_MASTER),
            Reading("Adam without its master, for comparison", _job("adam"), STATES),
        ),
        "no saving: it keeps what Adam keeps, counted without the master copy",
    ),
    Claim(
        "CAME mixes INT8 and FP16 states, about 40 % below Adam's 12P",
        7.2,
        (
            Reading("states alone (a first moment, rows and columns; all FP32)", _job("came"), STATES),
            Reading("states and FP32 master", _job("came"), WITH_MASTER),
            Reading("everything kept, against 40 % below Adam's 16P", _job("came"), ALL, says=9.6),
        ),
        "the published CAME factors the second moment and keeps nothing in INT8",
    ),
    Claim(
        "table: SGD with momentum takes 4 bytes a parameter",
        4,
        (
            Reading("states alone", _job("sgd-momentum"), STATES),
            Reading("with the master the Adam row counts", _job("sgd-momentum"), WITH_MASTER),
        ),
    ),
    Claim(
        "table: AdaGrad takes 4 bytes a parameter",
        4,
        (
            Reading("states alone", _job("adagrad"), STATES),
            Reading("with the master the Adam row counts", _job("adagrad"), WITH_MASTER),
        ),
    ),
    Claim(
        "table: LAMB takes 12 bytes a parameter",
        12,
        (
            Reading("with the master", _job("lamb"), WITH_MASTER),
            Reading("states alone, as the SGD and AdaGrad rows count", _job("lamb"), STATES),
        ),
    ),
    Claim(
        "Ascend 910 trains with a fused NPU AdamW",
        12,
        (Reading("states and FP32 master", _job("npu-adamw"), WITH_MASTER),),
    ),
)

REMARKS = (
    "the loss is one FP32 number: 4 bytes, one block of 512 on the device",
    "learning-rate warm-up and cosine schedules hold no tensors",
    "clipping the gradients' norm makes nothing of the size of P: one norm a tensor, and the kernels' partial sums",
)


def audit(estimate: Callable[[Mapping[str, Any]], Any]) -> list[Audit]:
    """Every reading of every claim, computed by ``estimate`` on one model."""
    return [_audited(claim, reading, estimate(reading.job)) for claim in CLAIMS for reading in claim.readings]


def _audited(claim: Claim, reading: Reading, footprint: Any) -> Audit:
    exact = sum(getattr(footprint.components, name) or 0 for name in reading.adds)
    each = exact / footprint.model.num_parameters
    return Audit(claim, reading, exact, each, _verdict(each, claim.says if reading.says is None else reading.says))


def _verdict(figure: float, says: float) -> str:
    """Whether a claim holds.

    >>> _verdict(12.0, 12), _verdict(8.03, 8), _verdict(2.03, 8)
    ('holds', 'near: +0.37 %', 'does not: -74.6 %')
    """
    off = figure / says - 1
    if off == 0:
        return "holds"
    return f"near: {off:+.2%}".replace("%", " %") if abs(off) < CLOSE else f"does not: {off:+.1%}".replace("%", " %")


def rows(audits: Iterable[Audit]) -> list[dict[str, Any]]:
    """One flat row a reading."""
    return [
        {
            "claim": one.claim.text,
            "textbook": one.claim.says,
            "accounting": one.reading.accounting,
            "bytes": one.exact,
            "bytes_per_parameter": round(one.per_parameter, 4),
            "verdict": one.verdict,
            "note": one.claim.note,
        }
        for one in audits
    ]
