"""What only a GPU can show: the allocator's own counters beside real steps. Skipped, with a reason, where there is none."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="a measurement is a real step")

from memcalc.campaign import RunSettings  # noqa: E402
from memcalc.engines.measure import measure_mapping  # noqa: E402
from memcalc.engines.measure.history import unpack  # noqa: E402
from memcalc.units import MIB  # noqa: E402
from tests.measure.against import assert_every_byte  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
MODEL = {"model": "transformer", "micro_batch_size": 4, "sequence_length": 64}


def measure(settings=None, **request):
    return measure_mapping({**MODEL, **request}, device="cuda", settings=RunSettings(**(settings or {})))


def test_the_textbook_step_requests_2p_2p_12p():
    """Parameters, gradients, and masters with moments: the allocator counts exactly 2P, 2P and 12P requested bytes."""
    record = measure()
    parts, count = record.ranks[0].components, record.model.num_parameters
    assert parts["parameters"].counted == parts["gradients"].counted == 2 * count
    assert parts["master_parameters"].counted + parts["optimizer_states"].counted == 12 * count
    large = sum(tensor.nbytes > MIB for tensor in record.ranks[0].tensors if tensor.component == "optimizer_states")
    slack = parts["optimizer_states"].allocated - parts["optimizer_states"].counted
    assert 0 <= slack <= large * MIB + 512 * record.model.num_tensors * 2
    assert not any("NOT within" in part.unsplit for part in parts.values())


@pytest.mark.parametrize("precision", ["amp-fp16", "amp-bf16", "fp32", "bf16-pure"])
@pytest.mark.parametrize("arguments", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_every_form_holds_what_is_predicted(precision, arguments):
    """Every form of AdamW under every scheme holds the predicted tensors, its counters in every phase."""
    record = measure(optimizer="adamw", precision=precision, optimizer_args=arguments)
    assert_every_byte(record)
    for phase in record.ranks[0].iterations[-1].phases:
        for counters in (phase.start, phase.end, phase.peak):
            assert counters.live is None
            assert counters.requested <= counters.allocated <= counters.reserved


def test_events_workspaces_and_the_driver_are_recorded():
    """With history on, a record holds the allocator's events by phase, the workspaces, and the driver's figures."""
    rank = measure({"history": True, "alone": True}).ranks[0]
    events = unpack(rank.history)
    assert {event[0] for event in events} >= {"alloc", "free_completed", "segment_alloc"}
    assert any(phase.endswith("backward") for *_, phase in events)
    assert sum(each.nbytes * each.times for each in rank.workspaces) == rank.components["workspace"].counted > 0
    assert rank.device_bytes.total > rank.device_bytes.free_before > rank.device_bytes.free_after


def test_out_of_memory_is_data():
    """A batch that cannot fit is recorded with what was asked and what was free."""
    record = measure(micro_batch_size=2**22)
    assert record.status == "out_of_memory"
    assert record.failure.asked > record.failure.free
    assert record.failure.total > 0
