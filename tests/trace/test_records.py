"""Traces beside the committed records of real steps: what a record can say on a CPU, a trace says too."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the trace runs torch's own dispatcher")
pytest.importorskip("transformers", reason="the records' models are built by it")

from memcalc.api import trace_read
from memcalc.job import read_job
from memcalc.measurement_files import read_measurement

RECORDS = Path(__file__).parents[2] / "measurements" / "cpu"
KEPT = ("parameters", "buffers", "gradients", "master_parameters", "optimizer_states", "inputs")
CASES = (
    "textbook-fp16-adam", "optimizers-adamw", "optimizers-adamw8bit-bf16-pure", "optimizers-sophia-amp-bf16",
    "families-t5-src24", "families-mixtral-bf16", "families-resnet-i32-sgd-momentum", "habits-acc3-clip1.0-bf16-cosine",
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_trace_holds_what_a_real_step_held(name):
    """Every component that a CPU run can tell, and every part of the optimizer's states, to the byte."""
    record = read_measurement(RECORDS / f"{name}.json.gz")
    job = read_job({**record.request, "engine": "trace"})
    footprint = trace_read(job, inputs=tuple(record.settings.inputs)).footprint
    real = record.ranks[0]
    for component in KEPT:
        counted = real.components.get(component)
        assert getattr(footprint.components, component) == (counted.walked if counted else 0), component
    assert footprint.optimizer_states == real.optimizer_states
    assert footprint.model.num_parameters == record.model.num_parameters
