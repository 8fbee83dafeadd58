"""A step is the same whoever looks on: threads that hold frames, as a sampling profiler does, keep nothing of it alive."""

from __future__ import annotations

import sys
import threading

import pytest

from memcalc.engines.analytic import playing
from memcalc.engines.analytic.step import play_job
from memcalc.errors import MemcalcError
from memcalc.play.machine import Machine
from memcalc.tape.fold import fold, requested

JOB = {"model": "gpt2", "training": {"precision": "fp16", "micro_batch_size": 1, "sequence_length": 64}}


def top() -> int:
    """What a play comes to."""
    return int(fold(play_job(JOB).events, requested).stretch.top)


@pytest.mark.parametrize("births", [1, 10, None])
def test_what_another_thread_kept_alive_is_played_again(monkeypatch, births):
    """Frames held at every birth of the first play, for some births or past its end: seen, and the answer is the same."""
    quiet, held, plays = top(), [], []
    new, undisturbed = Machine.new, Machine.undisturbed

    def watched(self, *args, **kwargs):
        if not plays:
            held.append(sys._getframe(1))
            if births is not None and len(held) > births:
                thread = threading.Thread(target=held.clear)
                thread.start()
                thread.join()
        return new(self, *args, **kwargs)

    monkeypatch.setattr(Machine, "new", watched)
    monkeypatch.setattr(Machine, "undisturbed", lambda machine: plays.append(undisturbed(machine)) or plays[-1])
    assert top() == quiet
    assert plays == [False, True]


def test_a_play_that_is_never_undisturbed_is_an_error(monkeypatch):
    """One sentence with the way out, not a number that might be wrong, nor a loop without end."""
    monkeypatch.setattr(Machine, "undisturbed", lambda machine: False)
    monkeypatch.setattr(playing, "TRIES", 2)
    with pytest.raises(MemcalcError, match=r"gpt2 was disturbed 2 times by a thread .* switch the profiler off"):
        play_job(JOB)
