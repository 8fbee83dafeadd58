"""muon-optimizer 0.1.0, the PyPI package of KellerJordan/Muon (commit 857d1ad, the same file): the single-device classes."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count, minimum, product
from memcalc.optimizers._parts import hidden_matrix, live, whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary, optimizer
from memcalc.tensors import ITEMSIZE


def newton_schulz(p: Param) -> Count:
    """Bytes of the orthogonalisation at its worst: all of it in bfloat16, whatever the gradient's dtype.

    The last line of an iteration holds X, a*X, B@X and their sum beside A and B, square on the shorter side (muon.py:5-31,
    zeropower_via_newtonschulz5). Dimensions before the last two are a batch.
    """
    side = minimum(p.shape[-2], p.shape[-1])
    return (4 * p.numel + 2 * product(p.shape[:-2]) * side * side) * ITEMSIZE["bfloat16"]


def _muon(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    yield Temporary("update", newton_schulz(p), "max")
    yield Temporary("update", p.numel * ITEMSIZE["bfloat16"], "previous")


def _mixed(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    if hidden_matrix(p):
        yield from _muon(p, o, implementation)
    else:
        yield from live("", p.nbytes, 4, 1)  # adam_update: buf1c, buf2c, its root and the sum with eps


@optimizer(
    "muon-optimizer:SingleDeviceMuon",
    cls="muon.SingleDeviceMuon",
    summary="one momentum in the parameter's dtype, for tensors of two dimensions or more",
    source="muon-optimizer 0.1.0 muon.py:SingleDeviceMuon.step, muon_update; KellerJordan/Muon 857d1ad",
    constructor=words("lr weight_decay momentum"),
    temporaries=_muon,
    needs="two dimensions, or a batch of them in three; a 4-D update is flattened and never given its shape back",
    accepts=lambda p: p.ndim in (2, 3),
)
def muon(p: Param, o: Options) -> Iterator[State]:
    """The momentum alone."""
    yield whole(p, "momentum_buffer", "momentum")


@optimizer(
    "muon-optimizer:SingleDeviceMuonWithAuxAdam",
    cls="muon.SingleDeviceMuonWithAuxAdam",
    summary="one momentum for hidden matrices, Adam's two moments for embeddings, the output head and everything below 2-D",
    source="muon-optimizer 0.1.0 muon.py:SingleDeviceMuonWithAuxAdam.step, README's groups; KellerJordan/Muon 857d1ad",
    constructor=(),  # takes parameter groups alone, each with its own settings
    temporaries=_mixed,
    needs="fewer than four dimensions where Muon takes it: a 4-D update is flattened and never given its shape back",
    accepts=lambda p: p.ndim < 4 or not hidden_matrix(p),
)
def muon_with_aux_adam(p: Param, o: Options) -> Iterator[State]:
    """The groups are the README's: hidden matrices to Muon, the rest to Adam. A missing gradient would be created as zeros."""
    if hidden_matrix(p):
        yield whole(p, "momentum_buffer", "momentum")
    else:
        yield whole(p, "exp_avg", "momentum")
        yield whole(p, "exp_avg_sq", "variance")
