"""The played step under FSDP2, against real ranks over gloo and against counts made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memcalc.engines.analytic.step import play_job
from memcalc.tape.events import Alloc, Mark
from memcalc.tape.fold import fold, requested
from memcalc.tape.unroll import unroll
from tests.play.sharded_cases import CASES, MODELS
from tests.play.test_step import sizes

OWN = ("all-gather input", "all-gather output", "(gathered)", "reduce-scatter input", "reduced gradients")
"""How the names of FSDP2's own buffers end."""
RECORDED = json.loads((Path(__file__).parent / "sharded.json").read_text())


def asked(case: dict[str, Any]) -> dict[str, Any]:
    """The job of a case."""
    keys = {key: value for key, value in case.items() if key != "dp" or "dp_shard" not in case}
    return {**keys, "model": MODELS[case["model"]], "attention": "eager", "optimizer": "sgd"}


def told(played: Any) -> dict[str, Any]:
    """How high a played iteration is at each allocation of FSDP2's own, at its highest, where backward begins, at its end."""
    live = top = saved = 0
    at, before = [], ""
    for event in unroll(played.events):
        if isinstance(event, Mark):
            saved = live if event.phase == "backward" else saved
            continue
        buffer = event.buffer
        if buffer.role != "workspace":
            live += buffer.requested if isinstance(event, Alloc) else -buffer.requested
            top = max(top, live)
            if not isinstance(event, Alloc):
                continue
            cast = buffer.site == before and "reduced" in before  # by an operator like any other, of which none is told
            if buffer.site.endswith(OWN) and not cast:
                at.append([buffer.requested, live])
            before = buffer.site
    return {"top": top, "saved": saved, "net": live, "at": at}


@pytest.mark.parametrize("name", CASES)
def test_every_buffer_of_fsdp2_is_alive_when_it_is_on_real_ranks(name):
    """At each gather, copy and reduction of a real iteration as many bytes are alive as are played; so at its highest."""
    found, truth = told(play_job(asked(CASES[name]), unrolled=True)), RECORDED[name]
    assert found == truth


@pytest.mark.parametrize("name", CASES)
def test_layers_played_once_are_the_layers_played_one_by_one(name):
    """A stack whose middle is played once and counted has the very events of one whose layers are all played."""
    folded, whole = play_job(asked(CASES[name])), play_job(asked(CASES[name]), unrolled=True)
    assert sizes(folded.events) == sizes(whole.events)
    assert fold(folded.events, requested).stretch.top == fold(whole.events, requested).stretch.top
    held = [sum(buffer.requested * times for buffer, times in played.gradients) for played in (folded, whole)]
    assert held[0] == held[1]
