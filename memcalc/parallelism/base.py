"""What a rank holds, and the question every data-parallel engine answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from memcalc.arrays import Count, is_array, maximum, where
from memcalc.errors import InputError, did_you_mean
from memcalc.models import Model
from memcalc.optimizers.base import Implementation, Optimizer, Param
from memcalc.precision import AUTOCAST_KINDS, Scheme
from memcalc.records import dataclass
from memcalc.tape.events import Buffer, Role
from memcalc.tensors import Tensor, itemsize

TABLE = "embed_tokens"
"""What transformers calls each side's table where both sides share one: it looks up, and autocast casts nothing for it."""


class ScalarOnlyError(Exception):
    """A partition that goes tensor by tensor cannot be evaluated over arrays; the sweep then takes its jobs one by one."""


@dataclass(frozen=True, slots=True)
class Holding:
    """``times`` equal buffers."""

    buffer: Buffer
    times: Count = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """What each of ``multiplicity`` equal ranks holds, by how long it lives.

    Attributes:
        resident: for good.
        forward: from forward to backward (autocast's copies).
        backward: inside backward alone (buckets; gradients that ZeRO-1 gives up at its end).
        gradients: from backward to ``zero_grad``.
        cast: at the start of the optimizer's step, while gradients are cast and flattened, and gone before it updates.
        step: inside the optimizer's step, beside the optimizer's own temporaries.
        early: whether ``gradients`` go with ``cast`` rather than at ``zero_grad``.
        in_turn: whether the optimizer's step is called for one of ``params`` after another, not for all at once.
        params: the tensors the optimizer is handed.
        index: the first such rank.
        multiplicity: how many ranks are alike.
        notes: what had to be assumed.
        partial: roles of which more exists than is listed here (a gather in flight), so that their total is not known.
        lesser: of many jobs at once, ``params`` as ranks hold them whose piece is the smaller rest; those ranks are not
            listed, for with less to update they hold less, which is to be checked of the optimizer's states.
    """

    resident: tuple[Holding, ...]
    forward: tuple[Holding, ...]
    backward: tuple[Holding, ...]
    gradients: tuple[Holding, ...]
    step: tuple[Holding, ...]
    params: tuple[Param, ...]
    index: int = 0
    multiplicity: Count = 1
    notes: tuple[str, ...] = ()
    partial: frozenset[Role] = frozenset()
    cast: tuple[Holding, ...] = ()
    early: bool = False
    in_turn: bool = False
    lesser: tuple[Param, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """What a layout depends on: the model, how it is held, and the ranks it is spread over.

    Attributes:
        model: its tensors; sizes may be arrays.
        scheme: the precision scheme.
        optimizer: decides which step an engine runs.
        implementation: the form of that step.
        stage: ZeRO stage, 0 to 3.
        shards: ranks the states are split over; may be an array.
        replicas: groups of such ranks that hold the same; may be an array.
        args: the engine's options.
    """

    model: Model
    scheme: Scheme
    optimizer: Optimizer
    implementation: Implementation
    stage: int = 0
    shards: Count = 1
    replicas: Count = 1
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trainable(self) -> tuple[Tensor, ...]:
        """Parameters that ask for a gradient."""
        return tuple(tensor for tensor in self.model.parameters if tensor.trainable)

    @property
    def reached(self) -> tuple[Tensor, ...]:
        """Those of them to which one comes; ``p.grad`` of the others stays None."""
        return tuple(tensor for tensor in self.trainable if not tensor.idle)

    @property
    def frozen(self) -> tuple[Tensor, ...]:
        """Parameters that do not."""
        return tuple(tensor for tensor in self.model.parameters if not tensor.trainable)

    def dtype(self, tensor: Tensor) -> str:
        """The dtype a parameter is held in between steps."""
        if tensor.kind in self.scheme.keeps:
            return "float32"
        if self.scheme.parameter is None or not floating(tensor.dtype):
            return tensor.dtype
        return self.scheme.parameter

    def grad_dtype(self, tensor: Tensor) -> str:
        """The dtype of its ``p.grad``."""
        return self.scheme.gradient or self.dtype(tensor)

    def master(self, tensor: Tensor) -> str | None:
        """The dtype of its master copy; None where the optimizer updates the parameter itself."""
        return self.scheme.master if self.scheme.master != self.dtype(tensor) else None

    def updated(self, tensor: Tensor) -> str:
        """The dtype of the tensor the optimizer updates."""
        return self.master(tensor) or self.dtype(tensor)

    def lowered(self, tensor: Tensor) -> bool:
        """Whether autocast keeps a copy of it: a matrix multiplication or convolution reads it, itself or as a tied head.

        source: pytorch aten/src/ATen/autocast_mode.cpp:cached_cast, which remembers leaves that ask for a gradient
        """
        if tensor.recast or not tensor.trainable:
            return False
        return tensor.kind in AUTOCAST_KINDS or any(
            first == tensor.name and TABLE not in other.split(".") for other, first in self.model.tied.items()
        )

    def uniform(self, path: str = "training.precision") -> str:
        """The one dtype of all trainable parameters, for engines that keep them in one flat buffer.

        Raises:
            InputError: they are of several dtypes.
        """
        dtypes = sorted({self.dtype(tensor) for tensor in self.trainable})
        if len(dtypes) != 1:
            raise InputError(
                path, self.scheme.name, f"leaves parameters in {' and '.join(dtypes)}, which one flat buffer cannot hold",
                "use zero_backend torch or fsdp2",
            )  # fmt: skip
        return dtypes[0]


def floating(dtype: str) -> bool:
    """Whether a precision scheme casts this dtype (quantised and integer weights stay as they are)."""
    return dtype in {"float64", "float32", "bfloat16", "float16"}


def buffers_of(setting: Setting) -> list[Holding]:
    """The model's buffers, resident in their own dtype: no scheme here casts them."""
    return [Holding(Buffer(t.name, t.nbytes, "buffer"), t.count) for t in setting.model.buffers]


def each(tensors: Iterable[Tensor], dtype: Any, role: Role, suffix: str = "") -> list[Holding]:
    """One buffer a tensor, of the dtype that ``dtype(tensor)`` says (None for no buffer)."""
    held = []
    for tensor in tensors:
        kind = dtype(tensor)
        if kind is not None:
            held.append(Holding(Buffer(tensor.name + suffix, tensor.numel * itemsize(kind), role), tensor.count))
    return held


def autocast_copies(setting: Setting) -> list[Holding]:
    """The low-precision copies that live from a layer's forward to its backward."""
    copy = setting.scheme.copy

    def dtype(tensor: Tensor) -> str | None:
        return copy if setting.lowered(tensor) and copy != setting.dtype(tensor) else None

    return each(setting.model.parameters, dtype, "parameter_copy", " (autocast copy)") if copy else []


def scaler_scalars(setting: Setting) -> list[Holding]:
    """GradScaler's scale and growth tracker (pytorch torch/amp/grad_scaler.py:_lazy_init_scale_growth_tracker).

    found_inf is the step's own: memcalc.engines.analytic.update.
    """
    return [Holding(Buffer("GradScaler scalar", 4, "temporary"), 2)] if setting.scheme.scaler else []


def step_casts(setting: Setting, sizes: Iterable[tuple[str, Count, Count]]) -> list[Holding]:
    """The gradients cast to the master's dtype for the step: the largest alone where tensors go one by one, else all.

    ``sizes`` are (name, elements of one, how many).
    """
    if setting.scheme.step != "textbook" or setting.scheme.master is None:
        return []
    size = itemsize(setting.scheme.master)
    if setting.implementation != "single":
        return [Holding(Buffer(f"{name} (gradient cast)", numel * size, "temporary"), count) for name, numel, count in sizes]
    if not setting.model.shapes_known:
        return []
    largest: Count = 0
    for _, numel, count in sizes:
        largest = maximum(largest, where(count > 0, numel, 0))
    return [Holding(Buffer("largest gradient cast", largest * size, "temporary"))]


def steps_in_turn(setting: Setting) -> bool:
    """Whether the textbook's step goes tensor by tensor: casts one gradient, updates, lets go, and takes the next."""
    return setting.scheme.step == "textbook" and setting.implementation == "single"


def handed(setting: Setting, tensor: Tensor, shape: tuple[Count, ...] | None = None, count: Count | None = None) -> Param:
    """The parameter as the optimizer sees it: the master where there is one, whose gradient is of the master's dtype."""
    master = setting.master(tensor)
    return Param(
        shape=tensor.shape if shape is None else shape,
        dtype=setting.updated(tensor),
        grad_dtype=master or setting.grad_dtype(tensor),
        name=tensor.name,
        kind=tensor.kind,
        count=tensor.count if count is None else count,
        zeros=tensor.zeros,
        idle=tensor.idle,
    )


def engine_args(given: Mapping[str, Any], known: Mapping[str, Any], engine: str) -> dict[str, Any]:
    """An engine's options, defaults filled in.

    Raises:
        InputError: an option the engine does not have, one that is not of its default's type, or a size below 0.
    """
    for key, value in given.items():
        path = f"parallelism.zero_args.{key}"
        if key not in known:
            raise InputError(
                path, value, f"is not an option memcalc knows of {engine}", did_you_mean(key, known) if known else ""
            )
        if (rule := _unlike(value, known[key])) is not None:
            raise InputError(path, value, *rule)
    return {**known, **{key: value if isinstance(value, bool) else int(value) for key, value in given.items()}}


def _unlike(value: Any, default: Any) -> tuple[str, str] | None:
    """(rule, way out) of a value that is not of its default's kind; None of one that is."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else ("is not true or false", f"the default is {str(default).lower()}")
    usual = f"the default is {default}"
    # configs write 5e8, which YAML and JSON read as a float
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        return "is not a whole number", usual
    if value > 2**53:
        return "is beyond 2**53, the largest size that an option may be", f"give a smaller one; {usual}"
    return ("is below 0", f"use a size; {usual}") if value < 0 else None


def scalar(value: Count) -> int:
    """The number itself.

    Raises:
        ScalarOnlyError: it is an array.
    """
    if is_array(value):
        raise ScalarOnlyError
    assert isinstance(value, int)
    return value
