"""What one rank is asked to measure."""

from __future__ import annotations

from pathlib import Path

from memcalc.campaign import RunSettings
from memcalc.job import Job
from memcalc.plan import Plan
from memcalc.records import dataclass
from memcalc.runtime.ranks import World


@dataclass(frozen=True, slots=True)
class Question:
    """One measurement on one rank.

    Attributes:
        job: what is asked.
        plan: the same with every name resolved.
        settings: what a measurement is told beside it.
        device: ``cpu`` or ``cuda``.
        here: this rank.
        app_dir: the folder for ``py:`` models.
        base_dir: the folder relative paths start from.
    """

    job: Job
    plan: Plan
    settings: RunSettings
    device: str
    here: World
    app_dir: Path | None = None
    base_dir: Path | None = None

    @property
    def place(self) -> str:
        """The device of this rank's tensors."""
        return f"cuda:{self.here.local}" if self.device == "cuda" else "cpu"
