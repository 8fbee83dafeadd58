"""``dataclass`` as the standard library's to a type checker, and a quarter of its cost when a module is imported.

A command that answers in a third of a second imports some sixty small records, and ``dataclasses.dataclass(frozen=True,
slots=True)`` compiles half a dozen methods for each: 0.9 ms against 0.2 ms here. So the methods every record can share are
shared, and what ``frozen`` forbids is left to the type checker, which sees the real decorator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    import dataclasses

    def dataclass(cls=None, /, *, frozen=False, slots=False, **settings):
        """Stands in for ``dataclasses.dataclass``; ``frozen`` and ``slots`` are read by the type checker alone."""
        if cls is None:
            return lambda decorated: dataclass(decorated, frozen=frozen, slots=slots, **settings)
        made = dataclasses.dataclass(cls, eq=False, repr=False, **settings)
        for name, method in _SHARED.items():
            if name not in cls.__dict__:
                setattr(made, name, method)
        return made


def _values(record: Any) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in record.__dataclass_fields__)


def _repr(record: Any) -> str:
    shown = ", ".join(f"{name}={getattr(record, name)!r}" for name in record.__dataclass_fields__)
    return f"{type(record).__qualname__}({shown})"


def _eq(record: Any, other: object) -> bool:
    if other.__class__ is not record.__class__:
        return NotImplemented
    return _values(record) == _values(other)


def _hash(record: Any) -> int:
    return hash(_values(record))


_SHARED = {"__repr__": _repr, "__eq__": _eq, "__hash__": _hash}
