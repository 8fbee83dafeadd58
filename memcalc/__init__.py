"""memcalc: how many bytes a training step takes, and where each byte goes.

>>> import memcalc
>>> memcalc.estimate({"params": 1_000_000}).components.gradients
2000000
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memcalc.api import compare, estimate, measure, trace, tracing
    from memcalc.check import check_files as check
    from memcalc.errors import InputError, MemcalcError, MissingPackageError, NotModelledError
    from memcalc.footprint import Footprint
    from memcalc.job import Job

_EXPORTS = {
    "estimate": ("memcalc.api", "estimate"),
    "compare": ("memcalc.api", "compare"),
    "check": ("memcalc.check", "check_files"),
    "measure": ("memcalc.api", "measure"),
    "trace": ("memcalc.api", "trace"),
    "tracing": ("memcalc.api", "tracing"),
    "Footprint": ("memcalc.footprint", "Footprint"),
    "Job": ("memcalc.job", "Job"),
    "MemcalcError": ("memcalc.errors", "MemcalcError"),
    "InputError": ("memcalc.errors", "InputError"),
    "NotModelledError": ("memcalc.errors", "NotModelledError"),
    "MissingPackageError": ("memcalc.errors", "MissingPackageError"),
}

__all__ = [
    "Footprint", "InputError", "Job", "MemcalcError", "MissingPackageError", "NotModelledError", "check", "compare", "estimate",
    "measure", "trace", "tracing",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ``import memcalc`` costs nothing."""
    if name == "__version__":
        from importlib.metadata import version

        return version("memcalc")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'memcalc' has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
