"""The records in the repository: today's predictions against real steps taken earlier, on any machine and without torch."""

from __future__ import annotations

from pathlib import Path

from memcalc.campaign import load_campaign
from memcalc.catalog import shipped
from memcalc.verify.judge import JUDGED, PASSED

CPU = Path(__file__).parents[2] / "measurements" / "cpu"


def test_every_committed_record_agrees_to_the_byte(committed):
    """Each committed record's parameters, gradients, masters, buffers and states are predicted without a byte of difference."""
    assert [(verdict.case, verdict.reason) for verdict in committed if verdict.outcome != PASSED] == []
    for verdict in committed:
        assert all(not one.difference for rank in verdict.ranks for one in rank.components if one.name in JUDGED)
        assert any(one.measured for rank in verdict.ranks for one in rank.components), verdict.case


def test_the_records_are_of_shipped_cases(committed):
    """The CPU's records are of cases of the shipped campaign, under their names, and cover most of it."""
    known = {case.name: case for case in load_campaign(shipped("campaigns")["cpu"])}
    records = {verdict.case: verdict.record for verdict in committed if Path(verdict.source).parent == CPU}
    assert set(records) <= set(known)
    assert len(records) >= 15
    assert all(record.environment.device.kind == "cpu" for record in records.values())


def test_what_was_walked_was_counted_or_is_explained(committed):
    """In each committed record the tensors walked to and the bytes counted agree for every component, or a reason is given."""
    components = [
        (verdict.case, name, component)
        for verdict in committed
        for rank in verdict.record.ranks
        for name, component in rank.components.items()
        if None not in (component.walked, component.counted)
    ]
    off = [(case, name, one.reason) for case, name, one in components if one.walked != one.counted]
    assert len(off) < len(components) / 5
    assert [entry for entry in off if entry[2] in ("", "not explained")] == []
