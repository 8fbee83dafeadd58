"""Evaluation, prefill and decoding of a job by the real model, as loops of one's own under ``memcalc.tracing``.

Without gradients, in eval mode, with the cache objects of transformers themselves. The second iteration is the steady one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from memcalc.allocator.played import Replay
from memcalc.tape.events import Event


@dataclass
class Looped:
    """A loop, traced.

    Attributes:
        tape: its events.
        replay: the same as the allocator played them.
        cache: bytes of the cache once the steady step is over.
        operators: how often each was called.
    """

    tape: list[Event]
    replay: Replay
    cache: int
    operators: dict[str, int]

    def peak(self, metric: str) -> int:
        """The steady step's peak: ``requested``, ``rounded``, ``allocated`` or ``reserved``."""
        return self.replay.peak(metric, iteration=2).bytes


def looped(job: Mapping[str, Any]) -> Looped:
    """The loop of a job whose mode is ``evaluate``, ``prefill`` or ``decode``."""
    import torch

    import memcalc
    from memcalc.job import read_job
    from memcalc.plan import make_plan
    from memcalc.runtime.around import floating_dtype, only_kernel
    from memcalc.runtime.build import build, cast_parameters
    from memcalc.runtime.caching import cached_bytes
    from memcalc.runtime.inference import Forwards, Running
    from memcalc.runtime.inputs import make_batch

    asked = read_job({**job, "engine": "analytic"})
    scheme = make_plan(asked).scheme
    with memcalc.tracing(name="loop") as session, only_kernel(asked.training.attention):
        built = build(asked)
        cast_parameters(built.module, scheme)
        built.module.to("cuda")
        session.watch(built.module)
        batch = make_batch(built.inputs, "cuda:0", floating_dtype(built.module), 0)
        copy = scheme.copy and getattr(torch, scheme.copy)
        loop = Running(built.module, batch, Forwards.of(asked, built.module.config, copy))
        del batch
        loop.prepare()
        size = 0
        for iteration in (1, 2):
            session.mark("forward", iteration)
            loop.step()
            size = cached_bytes(loop.cache)
            session.keep(loop.cached(), "cache")
        del loop
    traced = session.traced
    return Looped(traced.tape, traced.replay, size, traced.operators)


def steps_of(tape: Iterable[Event], iteration: int = 2) -> list[tuple[str, int, str, str]]:
    """Events of an iteration's forward and loss, as ``benchmarks.played.against`` compares them."""
    from benchmarks.played.against import _steps

    return _steps(tape, iteration)
