"""What goes wrong in a trace, in a person's words: whose line it was, and what can be done."""

from __future__ import annotations

import contextlib
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

from memcalc.engines.trace.kernels import Kernels
from memcalc.engines.trace.loop import Loop
from memcalc.engines.trace.routing import DIMENSIONS
from memcalc.engines.trace.tracker import Tracker
from memcalc.errors import InputError, MemcalcError, MissingPackageError, NotModelledError
from memcalc.optimizers.base import Optimizer
from memcalc.runtime.build import Built
from memcalc.runtime.optimizers import optimizer_class


class UnrunnableError(Exception):
    """The optimizer's class failed on tensors without data, or is not here."""


class _AfterChoiceError(MemcalcError):
    """What may have gone wrong for want of a router's choice.

    Attributes:
        chosen: whether anything was chosen before, as a router chooses among experts.
    """

    chosen = False


class ValueNeededError(NotModelledError, _AfterChoiceError):
    """The model decides by a tensor's values."""


class FailedError(InputError, _AfterChoiceError):
    """The model fails."""


COMPILED = {"deepspeed": "its kernels are compiled when it is made"}
"""Packages whose optimizers are not made for a trace, and why."""


def require_runnable(entry: Optimizer) -> None:
    """The optimizer's package, loaded before it could see a GPU that is not there.

    Raises:
        UnrunnableError: there is no such package, or its step is no plain call.
    """
    package = entry.name.partition(":")[0]
    if package in COMPILED:
        raise UnrunnableError(COMPILED[package])
    try:
        optimizer_class(entry)
    except (MissingPackageError, NotModelledError) as error:
        raise UnrunnableError(error.rule) from None


def take(loop: Loop, built: Built) -> None:
    """The loop, its failures told in a person's words.

    Raises:
        UnrunnableError: the optimizer's class fails on tensors without data.
        InputError: the module fails.
        NotModelledError: code decides by values, or an operator says nothing of its shapes.
    """
    try:
        loop.build(built)
        loop.run()
    except MemcalcError:
        raise
    except Exception as error:
        if loop.in_optimizer and loop.asked.real:
            raise UnrunnableError(_in_optimizer(error)) from None
        refusal: MemcalcError | None = refused(error, built.name, loop.tracker)
        if refusal is None:
            rule = f"fails in {loop.tracker.now[0]} at {_where(error)} ({_said(error)})"
            refusal = FailedError("model", built.name, rule, "mend it, or its --input")
        if isinstance(refusal, _AfterChoiceError):
            refusal.chosen = not DIMENSIONS.keys().isdisjoint(loop.tracker.operators)
        raise refusal from error


def refused(error: Exception, name: str, tracker: Tracker) -> NotModelledError | None:
    """What a trace cannot answer, in a person's words; None where the fault is the code's own."""
    if odd := _odd(error, tracker.under_way):
        rule = f"makes a {odd} tensor at {_where(error)}, whose bytes depend on its values"
        return NotModelledError("model", name, rule, "pad it to a dense tensor there, or measure instead")
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        operator = str(error.func).removeprefix("aten.")
        rule = f"decides by a tensor's values, at {_where(error)} ({operator}), which a trace does not have"
        way_out = "decide by shapes there, give --input that avoids it, or measure instead"
        return ValueNeededError("model", name, rule, way_out)
    if isinstance(error, UnsupportedOperatorException):
        rule = f"calls {error.func} at {_where(error)}, which says nothing of its result's shape without data"
        return NotModelledError("model", name, rule, "register a fake kernel for it (torch.library.register_fake)")
    return None


NESTED = str(Path(torch.__file__).parent / "nested")
"""Where PyTorch makes nested and jagged tensors."""


def _odd(error: Exception, under_way: Any) -> str:
    """The layout that failed, where one did that has no rule for its shape."""
    if any(frame.filename.startswith(NESTED) for frame in traceback.extract_tb(error.__traceback__)):
        return "nested or jagged"
    operator = str(under_way)
    return "nested or jagged" if "nested" in operator or "jagged" in operator else "sparse" if "sparse" in operator else ""


def _in_optimizer(error: Exception) -> str:
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return f"{error.func} asks for a value at {_where(error)}"
    if isinstance(error, UnsupportedOperatorException):
        return f"{error.func} has no rule for shapes"
    return _said(error)


def _said(error: Exception) -> str:
    said = next((line for line in str(error).strip().splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _where(error: BaseException) -> str:
    """The innermost line that is neither torch's nor ours: the one a person can change."""
    frames = list(traceback.extract_tb(error.__traceback__))
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]))
    own = [frame for frame in frames if not frame.filename.startswith(ours) and not frame.filename.startswith("<")]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def kernel_warnings(kernels: Kernels) -> tuple[str, ...]:
    """What is not known for sure of the kernels of a trace."""
    said = []
    if kernels.unread:
        names = ", ".join(sorted(kernels.unread))
        said.append(f"nobody has read what the kernels of these need beyond their results, so it is taken for nothing: {names}")
    if kernels.bounded:
        said.append(f"an upper figure stands for what only a library knows: {'; '.join(kernels.bounded)}")
    return tuple(said)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """No word of a library's below an error: stderr is for memcalc's own."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
