"""adam-mini 1.1.1: one variance for each head, neuron or tensor. Which one is decided by words in the parameter's name."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count
from memcalc.optimizers._parts import live, whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary, optimizer
from memcalc.tensors import itemsize

# adam_mini/adam_mini.py:111-125, the sets of words looked for in the lower-cased name, in the order step() asks
_HEADS = ("k_proj", "q_proj", "wq", "wk", "query", "key")
_NEURONS = (
    *("embed", "embd", "wte"),
    *("lm_head", "output", "final_layer"),
    *("v_proj", "wv", "value"),
    *("feed_forward", "linear", "mlp"),
    *("o_proj", "wo", "attn.proj"),
)


def _branch(p: Param) -> str:
    name = p.name.lower()
    if "bias" in name:
        return "adam"
    if any(word in name for word in _HEADS):
        return "head"
    return "neuron" if any(word in name for word in _NEURONS) else "tensor"


def _variances(p: Param, o: Options) -> Count:
    """How many variances a tensor that is no bias keeps."""
    branch = _branch(p)
    if branch == "head":
        # the view (-1, head_numel) of a query or key; one that head_numel does not divide is an error in the library
        head_numel: int = o.dim * o.dim // o.n_heads
        return p.numel // head_numel
    return p.shape[0] if branch == "neuron" else 1


def _temporaries(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    """Exact among tensors of one branch; names bound in one branch can outlive several tensors of another."""
    branch = _branch(p)
    if branch == "adam":
        yield from live("h", p.nbytes, 2, 1)  # the root and its quotient, and the previous tensor's
        return
    means = _variances(p, o) * itemsize(p.dtype) * int(branch != "tensor")
    # m * stepsize and its negative, with h, stepsize and the mean square
    yield from live("update", p.nbytes, 2)
    yield from live("update", means, 3)
    # the squared gradient and its mean, while the previous update, h, stepsize and mean square are still bound
    yield from live("square", p.nbytes, 1, 1)
    yield from live("square", means, 1, 3)


@optimizer(
    "adam-mini:Adam_mini",
    cls="adam_mini.Adam_mini",
    summary="a momentum in the parameter's dtype and one variance for each head, neuron or tensor; biases keep Adam's two",
    source="adam-mini 1.1.1 adam_mini/adam_mini.py:Adam_mini.__init__, Adam_mini.step",
    options={"dim": 2048, "n_heads": 32},
    constructor=words("lr betas eps weight_decay model_sharding n_kv_heads verbose"),
    temporaries=_temporaries,
    refuses=lambda o: [("n_heads", "leaves no element of dim * dim to a head")] if o.n_heads > o.dim**2 else [],
    needs="two dimensions where the name says embedding, output, value, projection or MLP",
    accepts=lambda p: p.ndim == 2 or _branch(p) != "neuron",
)
def adam_mini(p: Param, o: Options) -> Iterator[State]:
    """``dim`` and ``n_heads`` are the constructor's and have to be told: they set how many heads a query or key is cut into."""
    branch = _branch(p)
    if branch == "adam":
        yield whole(p, "m", "momentum")
        yield whole(p, "v", "variance")
    else:
        dtype = p.grad_dtype if branch == "neuron" else p.dtype
        yield whole(p, "m", "momentum", dtype)
        yield State("vmean", "variance", dtype, _variances(p, o))
