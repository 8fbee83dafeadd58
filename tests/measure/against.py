"""Predicted tensors and real ones as two multisets, equal only when no byte of any tensor differs."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from memcalc.engines.analytic.estimate import ONE_AT_A_TIME, buffers_of
from memcalc.engines.analytic.static import accounts
from memcalc.job import read_job
from memcalc.measurement import Measurement, Rank
from memcalc.plan import make_plan
from memcalc.readers.source import read_model

LISTED = ("parameters", "master_parameters", "buffers", "gradients", "optimizer_states", "host_optimizer_states")


def starred(name: str) -> str:
    """A name without the indices that a prediction does not spell out."""
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", name)


def predicted(request: dict[str, Any]) -> dict[int, Counter]:
    """For the first rank of each kind: (component, name without indices, bytes) -> how many tensors."""
    job = read_job(request)
    model, plan = read_model(job.model), make_plan(job)
    found = {}
    for account in accounts(plan, model, int(plan.shards * plan.replicas)):
        counted: Counter = Counter()
        for held in buffers_of(plan, account, model):
            component = held.component
            if component == "optimizer_states" and held.place != "device":
                component = "host_optimizer_states"
            # what lives inside backward alone is gone when the gradients are looked at
            if component in LISTED and held.lives not in ("backward", ONE_AT_A_TIME):
                counted[component, _named(component, held.name), held.requested] += held.times
        found[account.layout.index] = counted
    return found


def measured(rank: Rank) -> Counter:
    """The same of what was walked."""
    return Counter((t.component, _named(t.component, t.name), t.nbytes) for t in rank.tensors if t.component in LISTED)


def _named(component: str, name: str) -> str:
    """A reduced group's buffer is called after the group in one place and after its first gradient in the other."""
    return "" if component == "gradients" and not name.endswith(".grad") else starred(name)


def assert_every_byte(record: Measurement) -> None:
    """Each rank holds exactly what is predicted for it, tensor by tensor."""
    assert record.status == "measured", record.failure
    expected = predicted(record.request)
    for rank in record.ranks:
        ours = expected.get(rank.index, next(iter(expected.values())))
        assert measured(rank) - ours == Counter(), f"rank {rank.index} holds what was not predicted"
        assert ours - measured(rank) == Counter(), f"rank {rank.index} lacks what was predicted"


def assert_counted(record: Measurement, *, but: tuple[str, ...] = ()) -> None:
    """What was walked is what the counters saw being born, for every component both can know."""
    for rank in record.ranks:
        both = {n: c for n, c in rank.components.items() if c.walked is not None and c.counted is not None}
        assert {"parameters", "gradients", "optimizer_states"} <= set(both)
        for name, component in both.items():
            if name not in but:
                assert component.counted == component.walked, (name, component)
                assert component.reason == ""
