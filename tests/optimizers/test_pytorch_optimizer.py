"""pytorch-optimizer: every storage each class keeps, against the real classes."""

from __future__ import annotations

import inspect

import pytest

torch = pytest.importorskip("torch", reason="the oracle runs real optimizers")
library = pytest.importorskip("pytorch_optimizer", reason="the oracle is the library's own classes")

from memcalc.errors import InputError  # noqa: E402
from memcalc.optimizers.base import OPTIMIZERS  # noqa: E402
from memcalc.optimizers.names import find_optimizer  # noqa: E402
from tests.optimizers.arrays import assert_arrays_equal_scalars  # noqa: E402
from tests.optimizers.walk import assert_held_as_promised, parameters, take_steps  # noqa: E402

find_optimizer("pytorch-optimizer:Lamb")
NAMES = sorted(name for name in OPTIMIZERS if name.startswith("pytorch-optimizer:"))
BATCHED = [name for name in NAMES if "foreach" in find_optimizer(name).options]
MUONS = [name for name in NAMES if "uon" in name]
SOPHIA = "pytorch-optimizer:SophiaH"
SHAPES = [(), (1,), (3,), (4, 5), (20, 30), (30, 20), (33, 33), (2, 3, 4), (5, 4, 3, 3), (1, 40), (65,)]
DTYPES = [torch.float32, torch.bfloat16]


def short(name):
    """The class without its library."""
    return name.split(":")[1]


def build(name, params, **arguments):
    """The real optimizer, with what its constructor cannot do without."""
    entry = find_optimizer(name)
    dtypes = {key: getattr(torch, value) for key, value in arguments.items() if key.endswith("_dtype")}
    required = {"num_iterations": 100} if short(name) == "Ranger21" else {}
    groups = params
    if name in MUONS:
        parts = ([p for p in params if p.ndim >= 2], True), ([p for p in params if p.ndim < 2], False)
        groups = [{"params": part, "use_muon": muon} for part, muon in parts if part]
    constructor = {key: value for key, value in arguments.items() if key not in entry.own}
    optimizer = getattr(library, short(name))(groups, **{**required, **constructor, **dtypes})
    if hasattr(optimizer, "train") and "ScheduleFree" in name:  # it refuses to step otherwise
        optimizer.train()
    return optimizer


def run(name, optimizer, params, steps=2):
    """Real steps; SophiaH needs gradients that can be differentiated again."""
    if name != SOPHIA:
        take_steps(optimizer, params, steps)
        return
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        sum((param.float() ** 4).sum() for param in params).backward(create_graph=True)
        optimizer.step()


def check(name, dtype, arguments, shapes=SHAPES, steps=2, **told):
    """Zero bytes of difference after real steps, the gradients gone as they are between steps."""
    params = parameters(shapes, dtype)
    optimizer = build(name, params, **arguments)
    run(name, optimizer, params, steps)
    for param in params:
        param.grad = None
    assert_held_as_promised(optimizer, params, find_optimizer(name), arguments, **told)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_the_constructors(name):
    """An entry knows exactly its constructor's named arguments and their defaults, and its own extras beside them."""
    entry = find_optimizer(name)
    signature = inspect.signature(getattr(library, short(name)).__init__)
    real = {key: value.default for key, value in signature.parameters.items() if key not in ("self", "params", "kwargs")}
    assert {*entry.options, *entry.ignored} - entry.own == set(real)
    spelled = {key: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else v for key, v in real.items()}
    kept = {key: value for key, value in entry.options.items() if key not in entry.own}
    assert kept == {key: spelled[key] for key in kept}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_states_equal_the_real_ones(name, dtype):
    """Shapes of 0 to 4 dimensions keep what the registry says, tensor by tensor."""
    told = {"names": [f"norm{index}" for index in range(len(SHAPES))]} if short(name) == "GaLore" else {}
    check(name, dtype, {}, **told)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BATCHED)
def test_states_do_not_depend_on_the_form_but_where_said(name, dtype):
    """Stepping the other way, in lists or one by one, keeps what the registry says of that way."""
    other = find_optimizer(name).options["foreach"] is False
    told = {"names": [f"norm{index}" for index in range(len(SHAPES))]} if short(name) == "GaLore" else {}
    check(name, dtype, {"foreach": other}, **told)


OPTIONS = [
    *[
        (short(name), {"ams_bound": not entry.options["ams_bound"]})
        for name, entry in OPTIMIZERS.items()
        if name in NAMES and "ams_bound" in entry.options
    ],
    ("AdaFactor", {"betas": (None, 0.999)}),
    ("AdaFactor", {"momentum_dtype": "float32", "foreach": False}),
    ("GrokFastAdamW", {"grokfast": False}),
    ("GrokFastAdamW", {"grokfast_lamb": 0.0}),
    ("LaProp", {"centered": True, "ams_bound": True}),
    ("LARS", {"momentum": 0.0}),
    ("SM3", {"momentum": 0.9}),
    ("SOAP", {"precondition_1d": True}),
    ("SOAP", {"max_precondition_dim": 20}),
    ("SOAP", {"max_precondition_dim": 19, "precondition_1d": True}),
    ("StableAdamW", {"kahan_sum": False}),
    *[("Conda", {"projection_type": kind}) for kind in ("std", "reverse_std", "right", "left", "full", "random")],
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cls", "arguments"), OPTIONS)
def test_states_with_options(cls, arguments, dtype):
    """Each option that adds, drops or shrinks a state does so as the registry says."""
    check(f"pytorch-optimizer:{cls}", dtype, arguments)


def test_fadam_keeps_the_dtypes_it_is_given():
    """Both states follow their options, in the combinations whose arithmetic the class can carry out."""
    check("pytorch-optimizer:FAdam", torch.float32, {"fim_dtype": "bfloat16"})
    check("pytorch-optimizer:FAdam", torch.bfloat16, {"momentum_dtype": "bfloat16", "fim_dtype": "bfloat16"})
    with pytest.raises(RuntimeError, match="expected dtype"):
        check("pytorch-optimizer:FAdam", torch.float32, {"momentum_dtype": "bfloat16"})


def test_soap_keeps_its_bytes_when_the_eigenvectors_are_renewed():
    """The power iteration of a later step replaces matrices by matrices of the same bytes."""
    check("pytorch-optimizer:SOAP", torch.float32, {}, SHAPES[:5], steps=12)


def test_stable_adamw_widens_the_variance_of_float16():
    """float16 parameters keep a float32 variance and a float16 compensation."""
    check("pytorch-optimizer:StableAdamW", torch.float16, {})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [8, 100])
@pytest.mark.parametrize("kind", ["std", "reverse_std", "right", "left", "full", "random"])
def test_galore_states_equal_the_real_ones(kind, rank, dtype):
    """Every projection, wide and tall, its rank above and below a side: moments and matrices, nothing else kept alive."""
    shapes = [(40, 24), (24, 40), (32, 32), (9, 200)]
    params = parameters(shapes, dtype)
    group = {"params": params, "rank": rank, "update_proj_gap": 50, "scale": 1.0, "projection_type": kind}
    optimizer = library.GaLore([group])
    take_steps(optimizer, params)
    names = [f"layers.{index}.attn.weight" for index in range(len(shapes))]
    arguments = {"rank": rank, "projection_type": kind}
    assert_held_as_promised(optimizer, params, find_optimizer("pytorch-optimizer:GaLore"), arguments, names=names)


def test_scion_light_keeps_the_momentum_in_the_gradients():
    """Nothing is held by the optimizer, and after its step the gradients are still there and not zero."""
    params = parameters([(4, 5), (7,)])
    optimizer = build("pytorch-optimizer:SCIONLight", params)
    take_steps(optimizer, params)
    assert all(param.grad is not None and param.grad.abs().sum() > 0 for param in params)
    assert find_optimizer("pytorch-optimizer:SCIONLight").keeps_gradients


def test_merged_dimensions_are_refused():
    """What is not modelled is an error that names the option."""
    with pytest.raises(InputError, match="merge_dims: True is not modelled"):
        find_optimizer("pytorch-optimizer:SOAP").resolve({"merge_dims": True})


@pytest.mark.parametrize("cls", ["GaLore", "Conda"])
def test_unknown_projections_are_refused(cls):
    """A word the library does not know as a projection is an error that lists those it does."""
    with pytest.raises(InputError, match="projection_type: up is not a projection; use std, "):
        find_optimizer(f"pytorch-optimizer:{cls}").resolve({"projection_type": "up"})


@pytest.mark.parametrize("name", NAMES)
def test_arrays_equal_scalars(name):
    """A sweep over shapes gives element by element what each shape gives alone, projected or not, in both forms."""
    entry = find_optimizer(name)
    assert_arrays_equal_scalars(entry, {})
    if short(name) in ("Lamb", "AdaFactor"):  # the two whose states depend on the form
        assert_arrays_equal_scalars(entry, {"foreach": False})
    if "projection_type" in entry.options:
        for kind in ("reverse_std", "right", "left", "full"):
            assert_arrays_equal_scalars(entry, {"projection_type": kind}, name="layers.*.attn.weight")
