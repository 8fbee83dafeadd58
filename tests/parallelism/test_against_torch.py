"""DDP, ZeroRedundancyOptimizer and FSDP2 against torch's own code, run over a fake process group on CPU."""

from __future__ import annotations

import pytest

from memcalc.parallelism import fsdp2, plain, zero_redundancy
from memcalc.tensors import Span, Tensor

from .conftest import model_of, stacked_model, total

torch = pytest.importorskip("torch", reason="the oracle is torch's own code")
dist = pytest.importorskip("torch.distributed")

SHAPES = [(20, 10), (20,), (7, 130), (7,), (1, 33), (64, 64), (3, 5, 7), (64,), (300, 9)]


class Bag(torch.nn.Module):
    """Parameters of given shapes."""

    def __init__(self, shapes):
        super().__init__()
        for at, shape in enumerate(shapes):
            setattr(self, f"p{at}", torch.nn.Parameter(torch.zeros(shape)))


@pytest.fixture
def group():
    """A fake process group of any size, seen from any rank."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def start(ranks, rank=0):
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())

    yield start
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 16])
def test_zero_redundancy_deals_whole_tensors_as_torch_does(group, setting, ranks):
    """Every rank gets the very elements that ZeroRedundancyOptimizer gives it, however uneven."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    group(ranks)
    real = ZeroRedundancyOptimizer(Bag(SHAPES).parameters(), optimizer_class=torch.optim.Adam)._partition_parameters()
    truth = [sorted(p.numel() for g in part for p in g["params"]) for part in real]
    dealt = zero_redundancy.deal(setting(model_of(SHAPES), stage=1, shards=ranks))
    numels = [tensor.numel for tensor in model_of(SHAPES).tensors]
    assert [sorted(numels[at] for at, times in mine for _ in range(times)) for mine in dealt] == truth


def test_zero_redundancy_reports_the_fullest_rank_first(group, setting):
    """Ranks alike are counted together, all ranks are there, and the fullest comes first."""
    layouts = zero_redundancy.layouts(setting(model_of(SHAPES), stage=1, shards=4), 4)
    elements = [sum(p.numel * p.count for p in layout.params) for layout in layouts]
    assert elements == sorted(elements, reverse=True)
    assert sum(layout.multiplicity for layout in layouts) == 4
    assert sum(e * layout.multiplicity for e, layout in zip(elements, layouts, strict=True)) == model_of(SHAPES).num_parameters


@pytest.mark.parametrize("cap_mb", [1, 2, 25])
def test_ddp_buckets_are_torchs(setting, cap_mb):
    """Bucket sizes equal those of the C++ function that DDP calls, and add up to the gradients."""
    shapes = [(512, 512), (512,), (1000, 300), (2048, 700), (5,), (900, 900), (3000, 1200)]
    params = list(Bag(shapes).parameters())[::-1]
    indices, _ = dist._compute_bucket_assignment_by_size(params, [plain.FIRST_BUCKET, cap_mb * 2**20])
    truth = [sum(params[at].nbytes for at in bucket) for bucket in indices]
    ours = plain.ddp_buckets(setting(model_of(shapes)), cap_mb * 2**20)
    assert ours == truth
    (layout,) = plain.ddp(setting(model_of(shapes), replicas=2, bucket_cap_mb=cap_mb))
    assert total(layout.resident, "communication") == total(layout.gradients)


def test_stacks_are_laid_out_layer_by_layer():
    """Counted tensors come in the order the module registers them, not all of one kind first."""
    order = [position for position, _ in plain.in_order(stacked_model().tensors)]
    assert order == [0, 1, 2, 1, 2, 1, 2, 3]


def test_interleaved_stacks_keep_their_indices():
    """Two kinds of layer in one list are laid out by their places in it."""
    tensors = (
        Tensor("h.*.dense", (4,), count=2, spans=(Span(2, (0, 2)),)),
        Tensor("h.*.sparse", (6,), count=2, spans=(Span(2, (1, 3)),)),
    )
    assert [position for position, _ in plain.in_order(tensors)] == [0, 1, 0, 1]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 16])
def test_fsdp2_shards_are_torchs_on_every_rank(group, setting, ranks):
    """Padded storage on every rank, and the unpadded piece the optimizer sees, are those of fully_shard."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layouts = fsdp2.layouts(setting(model_of(SHAPES), stage=3, shards=ranks), ranks)
    assert sum(layout.multiplicity for layout in layouts) == ranks
    for rank in sorted({0, 1 % ranks, ranks // 2, ranks - 1}):
        group(ranks, rank)
        module = fully_shard(Bag(SHAPES), mesh=init_device_mesh("cpu", (ranks,)))
        real = [(p.to_local().numel(), p.to_local().untyped_storage().nbytes()) for p in module.parameters()]
        mine = max((layout for layout in layouts if layout.index <= rank), key=lambda layout: layout.index)
        storages = [held.buffer.requested for held in mine.resident]
        # torch gives a rank whose piece is empty a storage of its own size: the padded one its group's buffer has
        assert [p.numel for p in mine.params] == [numel for numel, _ in real]
        assert storages == [nbytes for _, nbytes in real]


def test_fsdp2_reduces_into_one_buffer_a_group(setting):
    """Gradients of one layer are views of one output: three layers and a root make four buffers of padded size."""
    (layout,) = fsdp2.layouts(setting(stacked_model(), stage=3, shards=1), 1)
    assert [(h.buffer.requested, h.times) for h in layout.gradients] == [((800 + 8) * 4, 1), ((192 + 24) * 4, 3)]
