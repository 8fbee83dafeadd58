"""One job by both engines: what forward and backward allocate, event by event."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcalc.tape.events import Alloc, Event, Free, Mark
from memcalc.tape.unroll import unroll

Step = tuple[str, int, str, str]
"""(a phase, or + or -, bytes, operator, module)."""
PHASES = ("forward", "loss", "backward")


@dataclass
class Heights:
    """What a stretch of events comes to, requested bytes.

    Attributes:
        top: the highest point from its start.
        net: what it leaves behind.
        saved: what is alive where backward begins.
    """

    top: int
    net: int
    saved: int


def heights(steps: Iterable[Step]) -> Heights:
    """The heights of forward, loss and backward; workspaces, which are there from iteration 1, are left out."""
    live = top = saved = 0
    for sign, size, _, _ in steps:
        if sign == "backward":
            saved = live
        elif sign in "+-":
            live += size if sign == "+" else -size
            top = max(top, live)
    return Heights(top, live, saved)


def _steps(tape: Iterable[Event], iteration: int) -> list[Step]:
    found: list[Step] = []
    now: str | None = None
    for event in unroll(tape):
        if isinstance(event, Mark):
            now = event.phase if event.iteration == iteration and event.phase in PHASES else None
            if now:
                found.append((now, 0, "", ""))
        elif now is not None:
            buffer = event.buffer
            if buffer.role != "workspace" and buffer.place == "device" and buffer.requested:
                short = buffer.operator.removeprefix("aten.").removesuffix(".default")
                found.append(("+" if isinstance(event, Alloc) else "-", int(buffer.requested), short, buffer.module))
    return found


def traced(job: Mapping[str, Any]) -> list[Step]:
    """The trace's iteration 2. With MEMCALC_TRACES set to a folder, each trace is kept there."""
    folder = os.environ.get("MEMCALC_TRACES")
    path = Path(folder or ".") / f"{hashlib.sha1(json.dumps(job, sort_keys=True).encode()).hexdigest()}.pickle"
    if folder and path.exists():
        return pickle.loads(path.read_bytes())  # type: ignore[no-any-return]  # our own file
    from memcalc.engines.trace.estimate import trace_job
    from memcalc.job import read_job

    steps = _steps(trace_job(read_job({**job, "engine": "trace", "optimizer": "sgd"})).tape, 2)
    if folder:
        path.write_bytes(pickle.dumps(steps))
    return steps


def played(job: Mapping[str, Any], *, unrolled: bool = True) -> list[Step]:
    """The same by the analytic engine."""
    from memcalc.engines.analytic.step import play_job

    return _steps(play_job(dict(job), unrolled=unrolled).events, 2)


def difference(first: list[Step], second: list[Step], most: int = 20) -> list[str]:
    """Where two sequences of events part, as lines."""
    keys = [[step[0] if step[0] in PHASES else f"{step[0]}{step[1]}" for step in steps] for steps in (first, second)]
    matcher = difflib.SequenceMatcher(None, *keys, autojunk=False)
    lines = [f"alike: {matcher.ratio():.4f} of {len(first)} traced and {len(second)} played events"]
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag != "equal" and len(lines) <= most:
            before = first[i - 1] if i else None
            lines.append(f"after {before}:\n    traced {first[i:j]}\n    played {second[k:m]}")
    return lines


__all__ = ["Free", "Heights", "difference", "heights", "played", "traced"]
