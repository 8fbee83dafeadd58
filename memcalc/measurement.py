"""The record of a real step: what ran, where, and every byte that was seen. No torch: any machine can read one.

One JSON file a case (``.json``, or ``.json.gz``), holding every rank. Bytes are integers; null means that nothing here can
count them, as ``allocated`` on a CPU, where ``live`` stands for the bytes of the storages that were really alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memcalc.errors import NO_VALUE, InputError
from memcalc.validation import explain

SCHEMA_VERSION: Literal[1] = 1


class Entry(BaseModel):
    """A part of a record: fixed once made. Keys it does not know, of a later memcalc, are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Counters(Entry):
    """What a device's own counters say at one instant, or their peaks within a phase, in bytes."""

    allocated: int | None = None
    """``torch.cuda.memory_allocated``: whole blocks."""
    requested: int | None = None
    """``requested_bytes.all``: what the tensors asked for."""
    active: int | None = None
    """``active_bytes.all``: allocated, and freed blocks another stream may still be using."""
    reserved: int | None = None
    """``torch.cuda.memory_reserved``: segments held from the driver."""
    inactive_split: int | None = None
    """``inactive_split_bytes.all``: free pieces of segments in use."""
    live: int | None = None
    """On a CPU: bytes of the storages alive that operators returned, seen by dispatch. Never a CUDA figure."""


class Phase(Entry):
    """One phase of one iteration; ``micro_batch`` counts from 0 where several precede a step."""

    phase: Literal["init", "forward", "loss", "backward", "clip", "optimizer_step", "zero_grad"]
    what: str = ""
    """What of it, where a phase has parts: ``model``, ``optimizer`` and the like of ``init``."""
    micro_batch: int | None = None
    start: Counters
    end: Counters
    peak: Counters
    seconds: float = 0.0


class Iteration(Entry):
    """One optimizer step with the micro-batches before it; the first is 1."""

    index: int
    phases: list[Phase]
    loss: float | None = None
    """The last micro-batch's; null where it was not a finite number."""
    gradient_norm: float | None = None
    loss_scale: float | None = None
    """The scale the step was taken with; null without loss scaling."""
    skipped: bool = False
    """Whether loss scaling left the step out because a gradient was not finite."""
    seconds: float = 0.0


class Tensor(Entry):
    """One storage found by walking real objects.

    ``name`` is spelled as the analytic engine spells its buffers: ``w`` for a parameter or a buffer, ``w.grad`` for its
    gradient, ``w (master)`` for its master copy and ``w exp_avg`` for its state of that key.
    """

    component: str
    name: str
    part: str = ""
    """Of an optimizer state: ``momentum``, ``variance``, ``step``, …"""
    owner: str | None = None
    """The parameter it belongs to; null for a table shared by several."""
    dtype: str
    shape: list[int]
    """Of the first tensor found that looks into the storage."""
    nbytes: int = Field(ge=0)
    """The whole storage, which may be larger than that tensor."""
    device: str
    also: list[str] = Field(default_factory=list)
    """Further names of the same storage, as a tied head's."""


class Component(Entry):
    """One role's bytes, found twice."""

    walked: int | None = None
    """The sum of the tensors listed; null for what no Python object holds."""
    counted: int | None = None
    """The counters' own difference over the stretch in which it is born (``requested`` on CUDA, ``live`` on a CPU)."""
    allocated: int | None = None
    """The same difference in whole blocks, on CUDA."""
    unsplit: str = ""
    """Which tensors ``allocated`` exceeds their rounding for, on CUDA; empty where it does not."""
    reason: str = ""
    """Why the two differ; empty where they agree or only one is known."""


class DeviceBytes(Entry):
    """What the driver says, beside the allocator's own counters."""

    total: int | None = None
    free_before: int | None = None
    """``mem_get_info`` once the context exists and before anything is built."""
    free_after: int | None = None
    """``mem_get_info`` after the last iteration."""
    process: int | None = None
    """NVML's figure for this process, after the last iteration."""
    context: int | None = None
    """The driver's figure before anything was allocated: CUDA context and the libraries loaded until then."""
    libraries: int | None = None
    """What came on top of the context outside the allocator's segments: cuBLAS, cuDNN, NCCL and lazily loaded kernels."""
    alone: bool = True
    """Whether nothing else ran on the device, without which ``free_*`` say nothing about this process."""


class Workspace(Entry):
    """A cuBLAS or cuDNN workspace that was seen in the allocator."""

    library: str
    nbytes: int
    times: int = 1
    where: str = ""


class Attention(Entry):
    """Which attention kernel ran, by the operators that were called: name -> times."""

    asked: str
    taken: str | None = None
    operators: dict[str, int] = Field(default_factory=dict)


class History(Entry):
    """The allocator's own events, stripped to what a replay needs.

    ``events`` is zlib-compressed JSON in base85: rows of [action, address number, bytes, stream number, phase number],
    addresses and streams numbered in ascending order.
    """

    phases: list[str]
    count: int
    events: str


class Rank(Entry):
    """What one process saw."""

    index: int = 0
    device: str = "cpu"
    init: list[Phase] = Field(default_factory=list)
    iterations: list[Iteration] = Field(default_factory=list)
    tensors: list[Tensor] = Field(default_factory=list)
    components: dict[str, Component] = Field(default_factory=dict)
    """The keys of a footprint's components, and ``host_optimizer_states`` for those in CPU memory."""
    optimizer_states: dict[str, int] = Field(default_factory=dict)
    """Device bytes of optimizer state by part."""
    device_bytes: DeviceBytes | None = None
    workspaces: list[Workspace] = Field(default_factory=list)
    attention: Attention | None = None
    history: History | None = None
    warnings: list[str] = Field(default_factory=list)


class Device(Entry):
    """What it ran on."""

    name: str
    kind: Literal["cpu", "cuda"]
    total_bytes: int | None = None
    capability: str | None = None
    driver: str | None = None


class Environment(Entry):
    """Everything the bytes may depend on besides the job."""

    device: Device
    python: str
    platform: str
    memcalc: str
    torch: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    allocator: dict[str, str] = Field(default_factory=dict)
    """The allocator's settings, and the environment variables that change what is allocated."""
    command: list[str] = Field(default_factory=list)


class ModelSummary(Entry):
    """The model as it was built, all ranks together."""

    name: str
    family: str
    architecture: str | None = None
    num_parameters: int
    num_trainable_parameters: int
    num_tensors: int = 0


class Settings(Entry):
    """What a measurement has and an estimate has not."""

    device: Literal["cpu", "cuda"] = "cpu"
    iterations: int = 3
    set_to_none: bool = True
    seed: int = 0
    inputs: list[str] = Field(default_factory=list)
    """As they were made: ``input_ids=int64[2,128]``."""
    loss: str = ""
    attention: str = "auto"
    schedule: str = "none"
    lora: dict[str, Any] | None = None
    built_by: str = ""
    """What built the model, as ``transformers GPT2LMHeadModel``."""


class Failure(Entry):
    """Why a case gave no full answer, as data."""

    kind: Literal["out_of_memory", "time_out", "killed", "missing_package", "refused", "non_finite", "raised"]
    message: str
    rank: int = 0
    phase: str | None = None
    iteration: int | None = None
    asked: int | None = None
    """Bytes of the request that failed, out of memory."""
    free: int | None = None
    """Bytes the device had free then."""
    total: int | None = None
    allocated: int | None = None
    reserved: int | None = None


class Measurement(Entry):
    """One case, run for real."""

    schema_version: Literal[1] = SCHEMA_VERSION
    case: str
    status: Literal["measured", "out_of_memory", "failed"]
    created: str
    """UTC, to the second, as 2026-01-31T12:00:00Z."""
    environment: Environment
    request: dict[str, Any]
    """The job as it was asked, which ``read_job`` reads again."""
    job: dict[str, Any]
    """The job as understood, every default filled in: the key of that name in a footprint."""
    model: ModelSummary | None = None
    zeros: list[str] = Field(default_factory=list)
    """Trainable parameters that were all zeros before the first step, for which some optimizers keep less."""
    settings: Settings = Field(default_factory=Settings)
    ranks: list[Rank] = Field(default_factory=list)
    failure: Failure | None = None
    seconds: float = 0.0
    """Wall time of the whole process."""
    warnings: list[str] = Field(default_factory=list)


def component_sums(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Bytes of each component, from the tensors themselves."""
    sums: dict[str, int] = {}
    for tensor in tensors:
        sums[tensor.component] = sums.get(tensor.component, 0) + tensor.nbytes
    return sums


def schema() -> dict[str, Any]:
    """The JSON Schema of a record."""
    return {**Measurement.model_json_schema(mode="serialization"), "title": "memcalc measurement"}


def measurement_from(value: Any, where: str = "measurement") -> Measurement:
    """A record from plain data.

    Raises:
        InputError: it breaks a rule.
    """
    if not isinstance(value, Mapping):
        raise InputError(where, NO_VALUE, "is not a measurement", "give a file that memcalc measure wrote")
    try:
        return Measurement.model_validate(value)
    except ValidationError as error:
        raise explain(error, where, Measurement.model_fields) from None
