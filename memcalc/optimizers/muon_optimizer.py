"""muon-optimizer 0.1.0, the PyPI package of KellerJordan/Muon, and its repository (commit 857d1ad): the single-device classes.

The two differ in what becomes of a parameter that no gradient comes to: the package's step fails there, the repository's, which
the README installs, gives it a gradient of zeros (muon.py:117-119, 261-263, 272-274) and updates it like any other.
"""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count, minimum, product
from memcalc.optimizers._parts import hidden_matrix, whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, optimizer
from memcalc.optimizers.script import Section, in_turn
from memcalc.tensors import ITEMSIZE


def _turn(p: Param) -> str:
    """muon.py:5-31, zeropower_via_newtonschulz5: all of it in bfloat16, whatever the gradient's dtype.

    The last line of an iteration holds X, a*X, B@X and their sum beside A and B, square on the shorter side.
    """
    cast = "+cast:nh" if p.grad_dtype != "bfloat16" else ""
    square = "+gram:gram =A:gram +b:gram +c:gram +product:gram -c +sum:gram -b -product =B:sum"
    step = f"{square} +scaled:nh +moved:nh +next:nh -scaled -moved =X:next "
    return f"{cast} +norm:norm %n +eps:norm -norm +X0:nh -eps -cast =X:X0 {step * 5} -A -B =update:X"


def _gram(p: Param) -> Count:
    """Dimensions before the last two are a batch."""
    side = minimum(p.shape[-2], p.shape[-1])
    return product(p.shape[:-2]) * side * side * ITEMSIZE["bfloat16"]


def _norm(p: Param) -> Count:
    return product(p.shape[:-2]) * ITEMSIZE["bfloat16"]


def _muon(o: Options, form: Implementation) -> list[Section]:
    return [in_turn(_turn, gram=_gram, norm=_norm)]


def _mixed(o: Options, form: Implementation) -> list[Section]:
    """adam_update: the square of the gradient, buf1c, buf2c, its root, the sum with eps, the quotient."""
    adam = "+square -square +corrected1 +corrected2 +root +sum -root +quotient -sum -corrected1 -corrected2 =update:quotient"
    return [in_turn(lambda p: _turn(p) if hidden_matrix(p) else adam, gram=_gram, norm=_norm)]


@optimizer(
    "muon-optimizer:SingleDeviceMuon",
    cls="muon.SingleDeviceMuon",
    summary="one momentum in the parameter's dtype, for tensors of two dimensions or more",
    source="muon-optimizer 0.1.0 muon.py:SingleDeviceMuon.step, muon_update; KellerJordan/Muon 857d1ad",
    constructor=words("lr weight_decay momentum"),
    script=_muon,
    regardless=True,
    fills=True,
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
    script=_mixed,
    group=lambda p, o: 1 - hidden_matrix(p),
    regardless=True,
    fills=True,
    needs="fewer than four dimensions where Muon takes it: a 4-D update is flattened and never given its shape back",
    accepts=lambda p: p.ndim < 4 or not hidden_matrix(p),
)
def muon_with_aux_adam(p: Param, o: Options) -> Iterator[State]:
    """The groups are the README's: hidden matrices to Muon, the rest to Adam."""
    if hidden_matrix(p):
        yield whole(p, "momentum_buffer", "momentum")
    else:
        yield whole(p, "exp_avg", "momentum")
        yield whole(p, "exp_avg_sq", "variance")
