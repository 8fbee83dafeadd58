"""Gradients that meet in backward: real CPU tensors and the trace allocate and free the same bytes in the same order."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the trace runs torch's own dispatcher")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from memcalc.engines.trace.accumulation import alone, is_dense  # noqa: E402
from memcalc.engines.trace.cuda import formulas  # noqa: E402
from tests.trace.backwards import additions, additions_in_trace, in_trace, really  # noqa: E402

CASES = {}
"""Name -> (what it makes, the engine's additions on real tensors)."""


def case(*expected):
    """A graph by its function's name; what it returns is differentiated."""

    def register(make):
        def made(device):
            result = make(device)
            return lambda: result.backward()

        CASES[make.__name__] = (made, list(expected))
        return make

    return register


def leaf(device, *shape):
    """A tensor of ones that wants a gradient."""
    return torch.ones(*shape, device=device).requires_grad_()


def hidden(device, *shape):
    """A leaf, doubled."""
    return leaf(device, *(shape or (8, 16))) * 2


def linears(device, count, bias):
    """Linear layers 16 -> 16."""
    return nn.ModuleList(nn.Linear(16, 16, bias=bias) for _ in range(count)).to(device)


@case("add_")
def residual(device):
    """The sum's gradient reaches ``h`` at once and tanh as well, which has let go of it by the time it comes back."""
    h = hidden(device)
    return (h.tanh() + h).exp().sum()


@case("add_")
def picked_by_lists(device):
    """Two rows picked by lists, whose gradients meet: what an index saved is a list, which is released whole."""
    h = hidden(device)
    return h[[-2]].sum() + h[[-1]].sum()


@case("add")
def residual_of_an_expanded_gradient(device):
    """What arrives first is the sum's gradient, one number expanded."""
    h = hidden(device)
    return (h + h.tanh()).sum()


@case("add")
def twice_in_one_sum(device):
    """Both gradients are one tensor."""
    h = hidden(device)
    return (h + h).tanh().sum()


@case("add_")
def squared(device):
    """Both gradients come from one node."""
    h = hidden(device)
    return (h * h).sum()


@case("add_")
def linears_on_two_dimensions(device):
    """A product's gradient is memory of its own."""
    h, (a, b) = hidden(device), linears(device, 2, bias=False)
    return (a(h).tanh() + b(h)).tanh().sum()


@case("add")
def linears_on_three_dimensions(device):
    """A flattened input's gradient is a view of the product's."""
    h, (a, b) = hidden(device, 2, 8, 16), linears(device, 2, bias=False)
    return (a(h).tanh() + b(h)).tanh().sum()


@case("add")
def linears_with_biases_on_three_dimensions(device):
    """The same through addmm."""
    h, (a, b) = hidden(device, 2, 8, 16), linears(device, 2, bias=True)
    return (a(h).tanh() + b(h)).tanh().sum()


@case("add", "add_")
def three_ways(device):
    """The first of three gradients is a view, the sum of two is not."""
    h, (a, b, c) = hidden(device, 2, 8, 16), linears(device, 3, bias=False)
    return (a(h).tanh() + b(h).tanh() + c(h)).tanh().sum()


@case("add_", "add_")
def shared_between_branches(device):
    """A sum's two inputs are each used again."""
    a, b = hidden(device), hidden(device)
    return ((a + b).tanh() + a.exp() * b.sin()).tanh().sum()


@case("add")
def tied(device):
    """A head's gradient, a transposed view, meets its embedding's."""
    embedding = nn.Embedding(32, 16).to(device)
    ids = torch.zeros(2, 8, dtype=torch.long, device=device)
    return functional.linear(embedding(ids).tanh(), embedding.weight).tanh().sum()


@case("add", "add")
def used_twice(device):
    """A weight's gradient is a transposed view, a bias's a reshaped one."""
    (layer,) = linears(device, 1, bias=True)
    return layer(layer(hidden(device)).tanh()).tanh().sum()


@case("add", "add_")
def used_twice_untransposed(device):
    """The gradient of a weight that ``addmm`` takes as it is, as GPT-2's, is ``mm``'s own result."""
    weight, bias = leaf(device, 16, 16), leaf(device, 16)
    return torch.addmm(bias, torch.addmm(bias, hidden(device), weight).tanh(), weight).tanh().sum()


@case()
def stolen_by_one_of_two(device):
    """Two leaves are given one tensor: the first copies it, the second, which then holds it alone, keeps it."""
    return (leaf(device, 8, 16) + leaf(device, 8, 16)).tanh().sum()


@case()
def stolen_as_parts(device):
    """What ``cat`` gives back are views of one block, and both leaves keep theirs."""
    return torch.cat([leaf(device, 8, 16), leaf(device, 8, 16)]).tanh().sum()


@case()
def copied_for_its_strides(device):
    """A gradient whose strides are not the leaf's is copied, though nobody else holds it."""
    return leaf(device, 8, 16).t().contiguous().tanh().sum()


def block(layers):
    """A residual block with a product, whose recomputed forward adds."""

    def run(h):
        a = layers[0](h).tanh()
        return h + layers[1](a).tanh() * a

    return run


@case("add_", "add_", "add", "add_", "add", "add", "add_", "add")
def checkpointed(device):
    """Recomputed within backward, by the hooks of saved tensors; its layers' gradients meet those of the other block."""
    h, run = hidden(device), block(linears(device, 2, bias=True))
    for _ in range(2):
        h = checkpoint(run, h, use_reentrant=False, preserve_rng_state=False)
    return h.tanh().sum()


@case("add_", "add", "add_", "add")
def checkpointed_by_an_engine_of_its_own(device):
    """Recomputed within a node and differentiated by a second engine inside the first."""
    h, run = hidden(device), block(linears(device, 2, bias=True))
    for _ in range(2):
        h = checkpoint(run, h, use_reentrant=True, preserve_rng_state=False)
    return h.tanh().sum()


@case()
def accumulated(device):
    """A second backward adds to ``.grad`` in place; the first kept what it was given."""
    (layer,) = linears(device, 1, bias=True)
    layer(hidden(device)).tanh().sum().backward()
    return layer(hidden(device)).tanh().sum()


class Tripled(torch.autograd.Function):
    """tanh, with a backward of one's own that adds; it may keep what it returns."""

    held = None

    @staticmethod
    def forward(ctx, x, keep):
        ctx.keep = keep
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        made = grad * 2 + grad
        Tripled.held = made if ctx.keep else None
        return made, None


@case("add_")
def function(device):
    """What a Function adds is a tensor of its own; what it returns is alone once Python has let go of it."""
    h = hidden(device)
    return (h.tanh() * Tripled.apply(h, False)).tanh().sum()


@case("add")
def function_that_keeps(device):
    """What Python still holds is not written to."""
    h = hidden(device)
    return (h.tanh() * Tripled.apply(h, True)).tanh().sum()


@case("add", "add_", "add")
def hooked(device):
    """Hooks that add."""
    h = hidden(device)
    h.register_hook(lambda grad: grad + grad * 2)
    a = h.tanh()
    a.register_hook(lambda grad: grad * 2 + grad)
    return (a * h.sin()).tanh().sum()


@case("add_")
def formula_that_adds(device):
    """std_mean's backward adds two tensors itself, before what it makes meets another gradient."""
    h = hidden(device)
    deviation, mean = torch.std_mean(h, 1, keepdim=True)
    return ((h - mean) / deviation).tanh().sum()


@case("add", "add_", "add", "add", "add", "add_", "add")
def recurrent_cell(device):
    """A GRU cell, whose parameters are used twice."""
    cell, h = nn.GRUCell(16, 16).to(device), hidden(device)
    return (cell(h) + cell(h.tanh())).tanh().sum()


@case()
def split(device):
    """Three parts of one projection come together by a copy, not by addition."""
    (layer,), h = linears(device, 1, bias=True), hidden(device, 2, 8, 16)
    q, k = layer(h).split(8, -1)
    return (q.tanh() * k).tanh().sum()


@pytest.mark.parametrize("name", CASES)
def test_backward_takes_and_gives_back_the_same_bytes_in_the_same_order(name):
    """Every birth and death of a backward pass is the CPU's, where no kernel needs scratch."""
    make, expected = CASES[name]
    assert additions(make) == expected
    assert in_trace(make) == really(make)


def ones(h, *shape):
    """A constant beside ``h``."""
    return torch.ones(*shape, device=h.device)


VIEWS = {
    "transpose": lambda h: h.transpose(0, 1),
    "permute": lambda h: h.permute(2, 0, 1),
    "flatten": lambda h: h.flatten(),
    "reshape by a copy": lambda h: h.transpose(0, 1).reshape(16, 16),
    "unsqueeze": lambda h: h.unsqueeze(0),
    "expand": lambda h: h.expand(3, 2, 8, 16),
    "cat": lambda h: torch.cat([h, h.detach()]),
    "stack": lambda h: torch.stack([h, h.detach()]),
    "sum over a dimension": lambda h: h.sum(-1, keepdim=True),
    "sum": lambda h: h.sum(),
    "matmul by a matrix": lambda h: h @ ones(h, 16, 4),
    "matmul in four dimensions": lambda h: h.view(2, 2, 4, 16) @ ones(h, 2, 2, 16, 4),
    "einsum": lambda h: torch.einsum("bsh,hk->bsk", h, ones(h, 16, 4)),
    "leading broadcast": lambda h: h * ones(h, 3, 2, 8, 16),
    "max_pool1d": lambda h: functional.max_pool1d(h, 2),
}
"""What gives a view back, or an expanded tensor, so that a third is born."""
OWN = {
    "bmm": lambda h: h.bmm(ones(h, 2, 16, 4)),
    "multiplication": lambda h: h * 3,
    "softmax": lambda h: h.softmax(-1),
    "layer_norm": lambda h: functional.layer_norm(h, (16,)),
    "mean": lambda h: h.mean(-1),
    "slice": lambda h: h[:, 2:4],
    "select": lambda h: h[0],
    "split": lambda h: h.split(8, -1)[0],
    "unbind": lambda h: h.unbind(0)[0],
    "change of dtype": lambda h: h.double(),
    "inner broadcast": lambda h: h[:, :1] * ones(h, 2, 8, 16),
    "repeat": lambda h: h.repeat(2, 1, 1),
    "contiguous, which it is": lambda h: h.contiguous(),
}
"""What gives memory of its own back."""


@pytest.mark.parametrize(("operators", "expected"), [(VIEWS, "add"), (OWN, "add_")], ids=["views", "own"])
def test_whether_a_gradient_is_a_view_decides(operators, expected):
    """What arrives first at ``h`` is the operator's gradient; it takes the second only if it is no view."""
    for name, operator in operators.items():

        def make(device, operator=operator):
            h = hidden(device, 2, 8, 16)
            last = h.tanh().exp().sum()
            total = last + (operator(h) * 2).tanh().sum()
            return lambda: total.backward()

        assert (name, additions(make)) == (name, [expected])
        assert (name, additions_in_trace(make).get(f"aten.{expected}.Tensor")) == (name, 1)


def zeros(h, *shape):
    """Indices, all of them 0."""
    return torch.zeros(*shape, dtype=torch.long, device=h.device)


FORMULAS = {
    "index_backward": lambda h: h[zeros(h, 3)],
    "index_select_backward": lambda h: h.index_select(0, zeros(h, 3)),
    "gather_backward": lambda h: h.gather(0, zeros(h, 3, 16)),
    "cummaxmin_backward": lambda h: h.cummax(-1)[0] * h.cummin(-1)[0],
    "take_backward": lambda h: h.take(zeros(h, 30)),
    "trace_backward": lambda h: h.view(4, 32).trace(),
    "silu_backward": functional.silu,
    "mish_backward": functional.mish,
}
"""The function in C++ whose road hangs on the kind of tensors -> what calls it."""


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_takes_the_road_of_real_tensors(name):
    """What is scattered into zeros, or has a kernel of its own, takes no more than on real tensors."""

    def make(device):
        total = (FORMULAS[name](hidden(device)) * 2).tanh().sum()
        return lambda: total.backward()

    assert in_trace(make) == really(make)


def test_every_formula_s_operator_has_its_form_in_place():
    """The form in place takes the same arguments."""
    for func, (instead, nodes) in formulas.FORMULAS.items():
        assert instead._schema.name == f"{func._schema.name}_"
        assert [(a.name, str(a.type)) for a in instead._schema.arguments] == [
            (a.name, str(a.type)) for a in func._schema.arguments
        ]
        assert all(hasattr(torch._C._functions, node) for node in nodes)


def test_a_retained_graph_is_added_up_in_place_too():
    """Where nothing is released after a node has run, its gradients still meet in place."""

    def make(device):
        h = hidden(device)
        total = (h + h.tanh()).tanh().sum()
        return lambda: total.backward(retain_graph=True)

    assert additions(make) == ["add_"]
    assert in_trace(make) == really(make)


def test_with_create_graph_nothing_is_added_in_place():
    """A backward that is to be differentiated again keeps every gradient."""

    def make(device):
        h = hidden(device)
        total = (h + h.tanh()).tanh().sum()
        return lambda: torch.autograd.grad(total, [h], create_graph=True)

    assert additions(make) == ["add"]
    assert "aten.add_.Tensor" not in additions_in_trace(make)


def test_dense_is_what_pytorch_calls_so():
    """A transposed tensor is dense; an expanded, a sliced and a strided one are not."""
    whole = torch.ones(4, 6, 2)
    assert all(map(is_dense, (whole, whole.permute(2, 0, 1), whole[1], torch.ones(()), whole[:1].transpose(0, 2))))
    assert not any(map(is_dense, (whole[:, :3], whole[..., 0], torch.ones(()).expand(3), torch.ones(1, 3).expand(2, 3))))


def test_the_counts_of_a_lone_tensor_are_read_once():
    """The probe finds one addition, and the same counts each time."""
    first = alone()
    alone.cache_clear()
    assert alone() == first
