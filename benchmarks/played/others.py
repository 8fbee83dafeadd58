"""Modules of other projects than transformers', traced: what the played steps of ``memcalc.implementations`` are held against.

Each case is a job for the analytic engine and the module of the project's own that it stands for, which runs under a loop
as the trace's own: two iterations, the second of which is steady.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

from benchmarks.played.against import Step, _steps

Make = Callable[[], Any]
MicroBatch = Callable[[], Any]
"""() -> the loss of a micro-batch."""


class Case(NamedTuple):
    """A module, the loop's part that is the project's own, and the job they stand for.

    Attributes:
        name: of the case.
        job: for the analytic engine; its update is of no account.
        make: the module, on the device and in the dtype that are the default.
        run: (session, module) -> what gives a micro-batch's loss; its inputs are made there.
    """

    name: str
    job: dict[str, Any]
    make: Make
    run: Callable[[Any, Any], MicroBatch]


def traced(
    job: Mapping[str, Any], make: Make, run: Callable[[Any, Any], MicroBatch], optimizer: str = "SGD"
) -> tuple[Any, list[Step]]:
    """A module's step: the footprint of two iterations, and what forward and backward of the second allocate.

    Args:
        job: precision and what the machine is.
        make: the module, made on the device in the dtype of the parameters.
        run: (session, module) -> what gives a micro-batch's loss; inputs are made there.
        optimizer: of ``torch.optim``; with ``SGD`` events are compared, with ``AdamW`` peaks.
    """
    import torch

    import memcalc

    mixed = {"amp-bf16": torch.bfloat16, "amp-fp16": torch.float16}.get(job["precision"])
    dtype = torch.bfloat16 if job["precision"] == "bf16-pure" else torch.float32
    keys = {"behaviour": job.get("behaviour", {}), "attention": job.get("attention", "auto")}
    with memcalc.tracing(name="module", **keys) as session:
        with torch.device(session.device), default(dtype):
            module = make()
        session.watch(module)
        params = [param for param in module.parameters() if param.requires_grad]
        update = getattr(torch.optim, optimizer)(params, lr=0.1)
        micro_batch = run(session, module)
        context = torch.autocast("cuda", mixed) if mixed else contextlib.nullcontext()
        # gradients go before the next iteration is said to begin
        update.register_step_post_hook(lambda which, *_: which.zero_grad())
        for _ in range(2):
            with context:
                loss = micro_batch()
            loss.backward()
            del loss
            update.step()
    return session.traced.footprint, _steps(session.traced.tape, 2)


@contextlib.contextmanager
def default(dtype: Any) -> Iterator[None]:
    """Modules made inside have parameters of this dtype."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Shadow(type):
    """Every attribute of a class that stands for one is such a class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _class(name)


def _class(name: str) -> Any:
    return _Shadow(name, (), {"__init__": lambda self, *_, **__: None})


class _Stands(MetaPathFinder, Loader):
    """Modules that are imported and never run: whatever is asked of one is a class that does nothing."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Of the packages that are stood in for."""
        found = fullname.partition(".")[0] in self.packages
        return ModuleSpec(fullname, self, is_package=True) if found else None

    def exec_module(self, module: ModuleType) -> None:
        """Nothing but what is asked for."""

        def made(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return _class(name)

        module.__getattr__ = made  # type: ignore[method-assign]


@contextlib.contextmanager
def stood_in(*packages: str) -> Iterator[None]:
    """Packages that a project imports and that what is traced of it does not use, where they are not installed.

    They are away again afterwards, with what was imported of them.
    """
    missing = tuple(package for package in packages if importlib.util.find_spec(package) is None)
    finder = _Stands(missing)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in missing]:
            del sys.modules[name]
