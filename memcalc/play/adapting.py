"""What stands on a linear layer, as the machine asks it: adapters beside it, and a base in 4 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from memcalc.play.machine import Machine
    from memcalc.play.values import Value


class Adapter(Protocol):
    """Adapters of a model."""

    def linear(self, machine: Machine, layer: Any, value: Value) -> Value:
        """A linear layer's forward, at the machine's path, with whatever stands on it."""
        ...
