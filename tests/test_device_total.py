"""What a process takes of its GPU beside the allocator's memory: ranges with sources, and never an invented point."""

from __future__ import annotations

import pytest

from memcalc.device_total import FEW, device_total, running_range
from memcalc.devices import load_device
from memcalc.devices_context import BARE, EAGER, NCCL_LL, NCCL_LL128, NCCL_SIMPLE, RUNNING, Running
from memcalc.errors import InputError
from memcalc.units import GIB, MIB

SEEN_ON_RANKS = [  # several ranks, so in no table: (GPU, ranks, figures, source)
    ("h100-80gb", 4, ("54.99 GiB", "40.00 GiB", "13.91 GiB"), "aqlaboratory/openfold#481"),
    ("rtx-3090", 2, ("23.57 GiB", "22.14 GiB", "510.78 MiB"), "whlzy/FiT#9"),
    ("a100-80gb", 4, ("76.22 GiB", "75.13 GiB", "18.76 MiB"), "out-of-memory message of torch in a public log"),
]


def job(gpu=None, **keys):
    """What a footprint's job says that matters here."""
    return {"behaviour": {"gpu": gpu, **keys.pop("behaviour", {})}, "hardware": {}, "parallelism": keys}


@pytest.mark.parametrize("record", [*RUNNING, *BARE, *EAGER], ids=lambda record: record.source[:40])
def test_every_record_has_a_source_and_a_figure_of_a_context(record):
    """Each says where it was read, and lies between what a driver needs and a tenth of the largest card."""
    assert record.source
    low, high = running_range(record) if isinstance(record, Running) else (record.nbytes - record.halfwidth, record.nbytes)
    assert 64 * MIB < low <= high < 2 * GIB


def test_the_range_holds_every_process_that_was_seen():
    """Whatever was published of a process of that architecture lies within what is said of it."""
    gpus = {"6.0": "p100-16gb", "7.0": "v100-32gb", "7.5": "t4-16gb", "8.0": "a100-40gb", "8.6": "rtx-3090", "8.9": "rtx-4090",
            "9.0": "h100-80gb", "10.0": "b200", "12.0": "rtx-5090"}  # fmt: skip
    for record in RUNNING:
        total = device_total(job(gpus[record.capability]), 0)
        low, high = running_range(record)
        assert load_device(gpus[record.capability]).compute_capability == record.capability
        assert total.low <= low <= high <= total.high
    for bare in BARE:
        assert device_total(job(gpus[bare.capability]), 0).low <= bare.nbytes


def test_few_records_of_a_gpu_give_way_to_all():
    """Under twenty records of an architecture its own highest says too little: the highest of all stands for it."""
    highest = max(high for _, high in map(running_range, RUNNING))
    for gpu in ("t4-16gb", "h100-80gb", "rtx-4090", None):
        assert device_total(job(gpu), 0).high == highest
    assert max([r.capability for r in RUNNING].count(c) for c in {r.capability for r in RUNNING}) < FEW


def test_lines_add_up_to_the_total():
    """Reserved and the lines are the range, to the byte, and each line has its source."""
    total = device_total(job("rtx-4090", dp=8), 5 * GIB)
    assert [line.name for line in total.lines] == ["CUDA context", "kernels and libraries", "NCCL"]
    assert total.low == 5 * GIB + sum(line.low for line in total.lines)
    assert total.high == 5 * GIB + sum(line.high for line in total.lines)
    assert all(line.source and 0 <= line.low <= line.high for line in total.lines)


@pytest.mark.parametrize(("behaviour", "eager"), [
    ({"torch": "1.12"}, True), ({"torch": "1.13"}, False), ({"torch": "2.13.0+cpu"}, False), ({"cuda": "11.6"}, True),
    ({"cuda": "12.8"}, False), ({"torch": "2.1", "cuda": "10.2"}, True), ({}, False),
])  # fmt: skip
def test_before_lazy_loading_all_kernels_are_in_the_context(behaviour, eager):
    """Before torch 1.13 or CUDA 11.7 every kernel is loaded, and what libraries add then has no known end."""
    total = device_total(job("v100-16gb", behaviour=behaviour), 0)
    assert (total.high is None) == eager
    assert (total.low > 800 * MIB) == eager


@pytest.mark.parametrize("gpu", ["mi300x", "gaudi2", "ascend-910b"])
def test_other_vendors_are_not_guessed_at(gpu):
    """No process on such a GPU is on record, so no end is stated and nothing is added."""
    total = device_total(job(gpu, dp=2), GIB)
    assert (total.low, total.high) == (GIB, None)


def test_nccl_is_as_its_source_computes_it():
    """A connection takes 10 MiB at its receiving end and 2 at its sending one, as NCCL_DEBUG_SUBSYS=ALLOC shows (nccl#1685)."""
    assert -(-(4096 + NCCL_LL + NCCL_LL128 + NCCL_SIMPLE) // (2 * MIB)) * 2 * MIB == 10_485_760
    one, two = device_total(job("a100-80gb", dp=8), 0), device_total(job("a100-80gb", dp_shard=4, dp_replicate=2), 0)
    assert one.lines[-1].high == 64 * 3 * 12 * MIB
    assert two.lines[-1].high == 2 * one.lines[-1].high  # a communicator over shards, one over replicas
    hopper = device_total(job("h100-80gb", dp=8), 0).lines[-1]
    assert hopper.high - one.lines[-1].high == 16 * 2 * 8 * MIB  # NVLS: channels x 2 x heads of 1 MiB
    assert device_total(job("h100-80gb", dp=1), 0).lines[-1].name != "NCCL"
    assert device_total(job("h100-80gb", dp=16), 0).high is None  # between nodes


@pytest.mark.parametrize(("gpu", "ranks", "figures", "source"), SEEN_ON_RANKS)
def test_the_range_holds_ranks_that_were_seen(gpu, ranks, figures, source):
    """Processes of several ranks, which the tables leave out, lie within the total with NCCL."""
    total = device_total(job(gpu, dp=ranks), 0)
    low, high = running_range(Running("", *figures, source))
    assert total.low <= low <= high <= total.high


def test_an_unknown_gpu_is_an_error():
    """A name that is no GPU is not silently any GPU."""
    with pytest.raises(InputError, match="is not a GPU memcalc knows"):
        device_total(job("nosuch"), 0)
