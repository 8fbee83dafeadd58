"""What is watched on a device besides its phases: the driver's figures, workspaces, event history, running out of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.engines.measure.meter import Recorder
from memcalc.measurement import Component, Rank

if TYPE_CHECKING:
    from memcalc.engines.measure.loop import Loop
    from memcalc.engines.measure.question import Question


class DeviceWatch:
    """Around one rank's loop: nothing on a CPU."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.driver: Any = None
        self.memory: Any = None
        self.history: Any = None
        if question.device != "cuda":
            return
        from memcalc.engines.measure.driver import DriverReader, HistoryReader, OutOfMemoryWatch

        self.driver = DriverReader(question.here.local, alone=question.settings.alone)
        self.memory = OutOfMemoryWatch()
        if question.settings.history:
            self.history = HistoryReader(question.here.local)

    def begin(self, loop: Loop) -> None:
        """The loop is about to start."""
        if self.history is not None:
            _cut_at_phases(loop.recorder, self.history)

    def out_of_memory(self) -> dict[str, int]:
        """What was asked and what was free when memory ran out; empty where it did not."""
        if self.memory is None or not self.memory.seen:
            return {}
        import torch

        index = self.question.here.local
        seen: dict[str, int] = dict(self.memory.seen)
        return {**seen, "total": self.driver.total, "reserved": int(torch.cuda.memory_reserved(index))}

    def finish(self, loop: Loop, rank: Rank) -> Rank:
        """The rank's record with what the device adds to it."""
        if self.driver is None:
            return rank
        from memcalc.engines.measure.driver import workspaces

        update: dict[str, Any] = {"device_bytes": self.driver.read()}
        if self.history is not None:
            update["history"] = self.history.read()
        found = workspaces(self.question.here.local)
        update["workspaces"] = found
        total = sum(each.nbytes * each.times for each in found)
        update["components"] = {**rank.components, "workspace": Component(counted=total)}
        loop.done()
        return rank.model_copy(update=update)


def _cut_at_phases(recorder: Recorder, history: Any) -> None:
    """Mark every phase's first event."""
    original = recorder.phase

    def phase(name: Any, what: str = "", **told: Any) -> Any:
        iteration = told.get("iteration")
        history.cut(" ".join(str(word) for word in (iteration, name, what) if word not in (None, "")))
        return original(name, what, **told)

    recorder.phase = phase  # type: ignore[method-assign]
