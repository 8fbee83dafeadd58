"""Real ranks under ``torchrun`` and gloo: every rank's record holds what is predicted for that rank, tensor by tensor."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

pytest.importorskip("torch", reason="ranks are real processes of torch's launcher")

from memcalc.campaign import RunSettings
from memcalc.engines.measure import measure_mapping
from memcalc.engines.measure.footprint import footprint_of
from memcalc.measurement_files import read_measurement
from tests.launched import launched
from tests.measure.against import assert_counted, assert_every_byte
from tests.measure.ranks import measured

SMALL = ("py:tests.measure.small:transformer", "--sequence-length", "16", "--micro-batch-size", "2", "--iterations", "2")
CASES = {
    "ddp": [*SMALL, "--gradient-accumulation-steps", "2"],
    "ddp-views": [*SMALL, "--precision", "fp32", "--zero-arg", "gradient_as_bucket_view=true"],
    "zero-1": [*SMALL, "--zero-stage", "1", "--zero-backend", "torch", "--max-grad-norm", "0.5"],
    "zero-1-fp32": [*SMALL, "--zero-stage", "1", "--zero-backend", "torch", "--precision", "fp32", "--optimizer", "adamw"],
    "fsdp2": [*SMALL, "--zero-stage", "3", "--zero-backend", "fsdp2"],
    "fsdp2-2": [*SMALL, "--zero-stage", "2", "--zero-backend", "fsdp2", "--precision", "fsdp2-mixed"],
}
BUCKET = ("--zero-arg", "reduce_bucket_size=100000")
DEEPSPEED = {
    "deepspeed-1": ["py:tests.measure.small:halves", "--zero-stage", "1", "--precision", "bf16", *BUCKET],
    "deepspeed-2": ["py:tests.measure.small:halves", "--zero-stage", "2", "--precision", "fp32", *BUCKET],
    "deepspeed-3": [*SMALL, "--zero-stage", "3", "--precision", "bf16", *BUCKET, "--zero-arg",
                    "stage3_param_persistence_threshold=200", "--gradient-accumulation-steps", "2"],
    "deepspeed-uneven": [*SMALL, "--zero-stage", "1", "--precision", "bf16", *BUCKET],
}  # fmt: skip
if find_spec("deepspeed"):
    CASES |= DEEPSPEED


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Every case, measured by the command line under ``torchrun`` on two ranks; only rank 0 writes and speaks."""
    folder = tmp_path_factory.mktemp("ranks")
    lines = [["measure", *case, "--format", "json", "--out", str(folder / f"{name}.json")] for name, case in CASES.items()]
    codes = launched(2, measured, lines, logs=folder / "logs")
    assert codes == {rank: [0] * len(CASES) for rank in (0, 1)}, [log.read_text() for log in folder.rglob("stderr.log")]
    (spoken, silent) = (next(folder.glob(f"logs/**/{rank}/stdout.log")).read_text() for rank in (0, 1))
    assert (spoken.count('"engine": "measure"') >= len(CASES), silent) == (True, "")
    return {name: read_measurement(folder / f"{name}.json") for name in CASES}


@pytest.mark.parametrize("name", list(CASES))
def test_every_rank_holds_what_is_predicted_for_it(records, name):
    """DDP, ZeroRedundancyOptimizer, FSDP2 and DeepSpeed: zero bytes of difference, on each rank, in every tensor."""
    record = records[name]
    assert [rank.index for rank in record.ranks] == [0, 1]
    assert record.job["parallelism"]["dp"] == 2
    assert_every_byte(record)


def test_zero_deals_unevenly_and_says_so(records):
    """The ranks of ZeroRedundancyOptimizer hold different states, the footprint is the fullest's, and both are listed."""
    record = records["zero-1"]
    assert_counted(record)
    states = [rank.components["optimizer_states"].walked for rank in record.ranks]
    assert states[0] != states[1]
    shown = footprint_of(record)
    assert shown.components.optimizer_states == max(states)
    assert {rank.index for rank in shown.ranks} == {0, 1}


def test_buckets_are_what_ddp_allocates(records):
    """DDP's buckets, which no Python object holds, are counted as the predicted bytes; as views they are the gradients."""
    for name in ("ddp", "ddp-views"):
        record = records[name]
        gradient = 2 if name == "ddp" else 4
        for rank in record.ranks:
            assert rank.components["communication"].counted == gradient * record.model.num_parameters
    views = records["ddp-views"].ranks[0].components
    assert (views["gradients"].walked, views["communication"].walked) == (0, views["communication"].counted)


@pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed")
def test_a_gradient_that_a_partition_cuts_stays_whole(records):
    """DeepSpeed's ZeRO-1 keeps, on each rank, the whole gradient of every tensor its partition touches."""
    record = records["deepspeed-uneven"]
    shapes = [(t.name, t.shape) for t in record.ranks[0].tensors if t.component == "parameters"]
    assert shapes[0][0] == "bit16_groups_flat"
    from tests.measure.small import transformer

    sizes = [param.numel() for param in transformer().parameters()]
    partition = -(-sum(sizes) // 4) * 2  # padded to two elements a rank
    for rank in record.ranks:
        start, at, touched = rank.index * partition, 0, 0
        for size in sizes:
            touched += size if at < start + partition and at + size > start else 0
            at += size
        assert rank.components["gradients"].walked == 2 * touched


def test_a_killed_rank_is_recorded():
    """When the kernel ends one of two ranks, the case is a failure of record, and whoever asked goes on."""
    job = {"model": "py:tests.measure.small:killed_on_rank_1", "precision": "fp32", "dp": 2}
    record = measure_mapping(job, settings=RunSettings(iterations=1, timeout=100.0))
    failure = record.failure
    assert (record.status, failure.kind, failure.rank) == ("failed", "killed", 1)
    assert failure.message == "rank 1 was ended by SIGKILL, as the kernel does when memory runs out"
