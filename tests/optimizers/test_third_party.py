"""Small libraries of one optimizer family each: every storage and every step's need, against the real classes."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace
from unittest import mock

import pytest

torch = pytest.importorskip("torch", reason="the oracle runs real optimizers")

from memcalc.errors import InputError  # noqa: E402
from memcalc.optimizers.base import Param  # noqa: E402
from memcalc.optimizers.names import all_optimizers, find_optimizer  # noqa: E402
from memcalc.optimizers.step import step_bytes  # noqa: E402
from tests.optimizers.arrays import assert_arrays_equal_scalars  # noqa: E402
from tests.optimizers.peak import SCALARS, dispatched_peak  # noqa: E402
from tests.optimizers.walk import assert_held_as_promised, described, held, parameters, promised, take_steps  # noqa: E402

LIBRARIES = (
    *("sophia-opt", "came-pytorch", "lion-pytorch", "galore-torch", "transformers", "apollo-torch", "adam-mini"),
    *("muon-optimizer", "lomo-optim", "schedulefree", "prodigyopt"),
)
NAMES = sorted(name for name in all_optimizers() if name.split(":")[0] in LIBRARIES)
PROJECTING = [name for name in NAMES if "rank" in find_optimizer(name).options]
BY_NAME = ["adam-mini:Adam_mini"]
IN_BACKWARD = [name for name in NAMES if find_optimizer(name).frees_gradients]
PLAIN = [name for name in NAMES if name not in {*PROJECTING, *BY_NAME, *IN_BACKWARD}]
SHAPES = [(), (1,), (3,), (4, 5), (64, 64), (2, 3, 4), (5, 4, 3, 3), (1, 300), (4097,)]
UNEQUAL = {
    "vectors": [(100,), (3500,), (750,), (2000,)],
    "matrices": [(10, 35), (60, 40), (20, 80), (81, 30)],
    "kernels": [(10, 5, 3, 3), (20, 30, 3, 3), (8, 8, 7, 7)],
}
"""Large enough that a 0-dim constant is not mistaken for one of them, and in no order of size."""
DTYPES = [torch.float32, torch.bfloat16]


def real_class(name):
    """The real class of an entry; a test of a library that is not installed is skipped."""
    module, _, attribute = find_optimizer(name).cls.rpartition(".")
    pytest.importorskip(module.split(".")[0], reason="the oracle is the library's own class")
    return getattr(importlib.import_module(module), attribute)


def build(name, params, **arguments):
    """The real optimizer, with what its constructor cannot do without."""
    required = {"came-pytorch:CAME": {"lr": 1e-3}}.get(name, {})
    cls = real_class(name)
    if name.endswith("SingleDeviceMuonWithAuxAdam"):
        hidden = [param for param in params if param.ndim >= 2]
        rest = [param for param in params if param.ndim < 2]
        return cls([{"params": group, "use_muon": muon} for group, muon in ((hidden, True), (rest, False)) if group])
    optimizer = cls(params, **{**required, **find_optimizer(name).preset, **arguments})
    if hasattr(optimizer, "train"):  # schedule-free optimizers refuse to step otherwise
        optimizer.train()
    return optimizer


def accepted(name, shapes):
    takes = find_optimizer(name).accepts
    return [shape for shape in shapes if takes(Param(shape))]  # of linear layers, unless told otherwise


def large(nbytes):
    """A buffer counts if it is no 0-dim constant."""
    return nbytes if nbytes > SCALARS else 0


@pytest.mark.parametrize("name", NAMES)
def test_options_are_the_constructors(name):
    """An entry knows exactly its constructor's arguments, by name and by default, and its own extras beside them."""
    entry = find_optimizer(name)
    first = ("self", "params", "model", "named_parameters", "param_groups")
    signature = inspect.signature(real_class(name).__init__)
    real = {key: value.default for key, value in signature.parameters.items() if key not in first}
    assert {*entry.options, *entry.ignored} - entry.own == set(real)
    kept = {key: value for key, value in entry.options.items() if key not in entry.own}
    assert kept == {key: entry.preset.get(key, real[key]) for key in kept}


WIDENING = ["came-pytorch:CAME", "transformers:Adafactor"]
"""Those that step half precision on float32 copies, where float16 is a case of its own."""


@pytest.mark.parametrize(
    ("name", "dtype"), [*[(name, dtype) for name in PLAIN for dtype in DTYPES], *[(name, torch.float16) for name in WIDENING]]
)
def test_states_equal_the_real_ones(name, dtype):
    """Shapes of 0 to 4 dimensions keep what the registry says, tensor by tensor."""
    params = parameters(accepted(name, SHAPES), dtype)
    optimizer = build(name, params)
    take_steps(optimizer, params)
    assert_held_as_promised(optimizer, params, find_optimizer(name))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("prodigyopt:Prodigy", {"slice_p": 11}),
        ("prodigyopt:Prodigy", {"betas": (0.0, 0.99)}),
        ("schedulefree:AdamWScheduleFree", {"foreach": False}),
        ("schedulefree:SGDScheduleFree", {"foreach": False, "weight_decay": 0.1}),
        ("transformers:Adafactor", {"beta1": 0.5}),
        ("lion-pytorch:Lion+cautious", {"cautious_wd": True, "weight_decay": 0.1}),
        ("sophia-opt:SophiaG", {"maximize": True}),
    ],
)
def test_states_with_options(name, arguments):
    """Each option that adds, thins or drops a state does so as the registry says."""
    params = parameters([(4, 5), (7,), (2, 3, 3), (23,)])
    optimizer = build(name, params, **arguments)
    take_steps(optimizer, params)
    assert_held_as_promised(optimizer, params, find_optimizer(name), arguments)


def test_prodigy_keeps_one_element_for_a_tensor_of_zeros():
    """The one value-dependent state of all: a tensor that starts as zeros keeps a scalar for its start."""
    param = torch.nn.Parameter(torch.zeros(40))
    optimizer = build("prodigyopt:Prodigy", [param])
    take_steps(optimizer, [param])
    assert optimizer.state[param]["p0"].untyped_storage().nbytes() == 4
    states, _ = promised(find_optimizer("prodigyopt:Prodigy"), described([param]), {})
    assert sum(states[0].values()) == len(held(optimizer, [param]).per_parameter[0]) == 4


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "prodigyopt:Prodigy"])
def test_scalars_live_where_the_registry_says(name):
    """With parameters on a device that is not the host, each state is where the registry puts it."""
    params = parameters(accepted(name, [(8, 8)]), device="meta")
    optimizer = build(name, params)
    for param in params:
        param.grad = torch.empty_like(param)
    with mock.patch("builtins.max", lambda *values: values[0]):  # a scale from a tensor's value, which meta tensors lack
        optimizer.step()
    found = sorted(
        (k.dtype, k.nbytes, "host" if k.device == "cpu" else "device") for k in held(optimizer, params).per_parameter[0]
    )
    entry = find_optimizer(name)
    states = entry.states(described(params)[0], entry.resolve({}))
    assert found == sorted((state.dtype, state.nbytes, state.place) for state in states if state.count)


def test_sophia_capturable_step_is_on_the_device():
    """capturable=True makes the step where the parameter is; the update itself then needs CUDA, so the step is not run."""
    params = parameters([(8, 8)], device="meta")
    optimizer = build("sophia-opt:SophiaG", params, capturable=True)
    params[0].grad = torch.empty_like(params[0])
    optimizer.update_hessian()
    assert {kept.device for kept in held(optimizer, params).per_parameter[0]} == {"meta"}
    entry = find_optimizer("sophia-opt:SophiaG")
    assert {s.place for s in entry.states(Param((8, 8)), entry.resolve({"capturable": True}))} == {"device"}


FORMS = {name: [{"foreach": True}, {"foreach": False}] for name in NAMES if "foreach" in find_optimizer(name).options}
STEPS = [
    *[(name, form) for name in PLAIN for form in FORMS.get(name, [{}])],
    *[(name, {"weight_decay": 0.1}) for name in PLAIN if not name.endswith("WithAuxAdam")],
    ("sophia-opt:SophiaG", {"maximize": True}),
    ("transformers:Adafactor", {"beta1": 0.5, "weight_decay": 0.1}),
    ("prodigyopt:Prodigy", {"slice_p": 7}),
    ("lion-pytorch:Lion+cautious", {"cautious_wd": True, "weight_decay": 0.1}),
    ("lion-pytorch:Lion+cautious", {"cautious_wd": True, "weight_decay": 0.1, "cautious_factor": 1.0}),
    ("lion-pytorch:Lion+cautious", {"cautious_factor": 1.0}),
]


@pytest.mark.parametrize(
    ("name", "arguments", "dtype"),
    [
        *[(*step, torch.float32) for step in STEPS],
        *[(*step, torch.bfloat16) for step in STEPS if "weight_decay" not in step[1]],
    ],
)
def test_step_temporaries_equal_the_real_ones(name, arguments, dtype):
    """The operators' results alive at the worst moment of a step are the registry's to the byte, in any order of sizes."""
    entry = find_optimizer(name)
    for shapes in UNEQUAL.values():
        if not accepted(name, shapes):
            continue
        params = parameters(shapes, dtype)
        optimizer = build(name, params, **arguments)
        take_steps(optimizer, params, 7 if "RAdam" in name else 2)  # RAdam rectifies from step 6
        options = entry.resolve({key: value for key, value in arguments.items() if key in entry.options})
        assert dispatched_peak(optimizer.step) == step_bytes(entry, described(params), options, large), shapes


GALORE = [
    *[{"proj_type": projection} for projection in ("std", "reverse_std", "right", "left", "full")],
    {"rank": 100},
]
APOLLO = [
    {},
    {"proj_type": "reverse_std", "scale_type": "tensor"},
    {"proj_type": "left", "scale_type": "tensor"},
    {"proj_type": "right", "scale_type": "tensor"},
    {"proj": "svd"},
    {"proj": "svd", "proj_type": "reverse_std", "scale_type": "tensor"},
    {"rank": 100},
    {"disable_nl": True},
]
MATRICES = [(40, 24), (24, 40), (32, 32), (9, 200)]
TOLD = ["layers.0.attn.a", "layers.0.mlp.b", "layers.1.attn.c", "layers.1.mlp.d", "embed", "norm", "conv"]
KINDS = [*["linear"] * 4, "embedding", "norm", "conv"]
CASES = [
    (name, arguments)
    for name in PROJECTING
    for arguments in (APOLLO if name == "apollo-torch:APOLLOAdamW" else [{}] if "mini" in name else GALORE)
]


def project(name, params, arguments):
    """A real optimizer with the first four tensors in a projected group, the rest in a plain one."""
    entry = find_optimizer(name)
    options = {"rank": 64 if "8bit" in name else 8, **entry.preset, **arguments}
    group = {"update_proj_gap": 200, "scale": 1.0, "proj_type": "std", "proj": "random", "scale_type": "channel"}
    group = {**group, **{key: value for key, value in options.items() if key in entry.own}}
    constructor = {key: value for key, value in arguments.items() if key not in entry.own}
    groups = [{"params": params[:4], **group}, *([{"params": params[4:]}] if params[4:] else [])]
    return real_class(name)(groups, **constructor), entry, options


SLOW = [(name, arguments) for name, arguments in CASES if "8bit" in name and arguments.get("proj_type") not in ("std", "full")]
"""bitsandbytes dequantises in Python on a CPU: the 8-bit class is held in two projections, and in bfloat16 in one."""


@pytest.mark.parametrize(
    ("name", "arguments", "dtype"),
    [
        (*case, dtype)
        for dtype in DTYPES
        for case in CASES
        if case not in SLOW and not ("8bit" in case[0] and dtype == torch.bfloat16 and case[1]["proj_type"] == "full")
    ],
)
def test_projected_states_equal_the_real_ones(name, arguments, dtype, monkeypatch):
    """Every projection, wide and tall, its rank above and below a side: moments, and the storage the projection keeps alive."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)  # the 8-bit class synchronises unasked
    params = parameters([*MATRICES, (50, 12), (33,), (4, 3, 3, 3)], dtype)
    if "8bit" in name:
        params = parameters(
            [(64, 64), (70, 66), (66, 70), (90, 40), (80, 80), (33,), (4, 3, 3, 3)], dtype
        )  # 4096 and beside it
    optimizer, entry, options = project(name, params, arguments)
    take_steps(optimizer, params, 1 if "8bit" in name else 2)
    for param in params:
        param.grad = None
    assert_held_as_promised(optimizer, params, entry, options, names=TOLD, kinds=KINDS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "arguments"), [case for case in CASES if "8bit" not in case[0]])
def test_projected_step_temporaries_equal_the_real_ones(name, arguments, dtype):
    """A step that renews no projection needs what the registry says, to the byte; plain tensors are as exact on their own."""
    params = parameters(MATRICES, dtype)
    optimizer, entry, options = project(name, params, arguments)
    take_steps(optimizer, params)
    told = described(params, names=TOLD[:4], kinds=KINDS[:4])
    assert dispatched_peak(optimizer.step) == step_bytes(entry, told, entry.resolve(options), large)


@pytest.mark.parametrize("name", [name for name in PROJECTING if "8bit" not in name and "mini" not in name])
def test_unprojected_step_temporaries_equal_the_real_ones(name):
    """Without a rank the classes are the plain optimizers they were written from."""
    for shapes in UNEQUAL.values():
        params = parameters(shapes)
        optimizer = real_class(name)(params)
        take_steps(optimizer, params)
        entry = find_optimizer(name)
        assert dispatched_peak(optimizer.step) == step_bytes(entry, described(params), entry.resolve({}), large)


def test_only_target_modules_are_projected():
    """An embedding, a norm, a convolution and a linear layer outside the target modules keep whole moments."""
    entry = find_optimizer("galore-adamw")
    options = entry.resolve({"rank": 4})
    inside = Param((64, 64), name="model.layers.*.self_attn.q_proj.weight")
    for outside in (
        Param((64, 64), name="lm_head.weight"),
        Param((64, 64), name="model.embed_tokens.weight", kind="embedding"),
        Param((64,), name="model.layers.*.mlp.down_proj.bias"),
        Param((64, 64, 3, 3), name="attn.conv", kind="conv"),
    ):
        assert [state.numel for state in entry.states(outside, options)] == [outside.numel] * 2
    assert [state.numel for state in entry.states(inside, options)][:2] == [4 * 64] * 2


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("galore-adamw", {"proj_type": "up"}, "galore.proj_type: up is not a projection"),
        ("apollo", {"proj": "hash"}, "galore.proj: hash is neither random nor svd"),
        ("apollo", {"proj_type": "full"}, "galore.proj_type: full is not a projection"),
        ("apollo", {"scale_type": "row"}, "galore.scale_type: row is neither channel nor tensor"),
        ("apollo", {"proj_type": "reverse_std"}, "galore.scale_type: channel is channel, whose factors do not fit"),
        ("came", {"rank": 4}, "galore.rank: 4 is not an option of came-pytorch:CAME"),
    ],
)
def test_what_a_constructor_refuses_is_refused(name, arguments, sentence):
    """Words no library knows are errors that name the option."""
    with pytest.raises(InputError, match=sentence):
        find_optimizer(name).resolve(arguments, "galore")


MINI = ["q_proj.weight", "attn.Key.weight", "v_proj.weight", "mlp.up.weight", "Embed.weight", "lm_head.weight", "norm.weight"]
MINI_SHAPES = [(64, 64), (32, 64), (64, 64), (100, 64), (130, 64), (90, 64), (64,)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_adam_mini_states_follow_the_names(dtype):
    """One variance for each head, neuron or tensor, a whole one for biases: by words in the name, whatever their case."""
    names = [*MINI, "mlp.up.bias", "scale", "odd.tensor"]
    params = parameters([*MINI_SHAPES, (100,), (), (3, 4, 5)], dtype)
    arguments = {"dim": 64, "n_heads": 4}
    optimizer = real_class("adam-mini")(list(zip(names, params, strict=True)), verbose=False, **arguments)
    take_steps(optimizer, params)
    assert_held_as_promised(optimizer, params, find_optimizer("adam-mini"), arguments, names=names)


def test_adam_mini_breaks_where_the_registry_refuses():
    """A 1-D or 3-D tensor whose name says neuron is refused by the registry and is an error of the library."""
    for shape in ((64,), (4, 8, 8)):
        assert not find_optimizer("adam-mini").accepts(Param(shape, name="mlp.norm.weight"))
        params = parameters([shape])
        optimizer = real_class("adam-mini")([("mlp.norm.weight", params[0])], verbose=False)
        with pytest.raises((IndexError, RuntimeError)):
            take_steps(optimizer, params)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["q_proj.weight", "mlp.up.weight", "norm.weight", "up.bias"])
def test_adam_mini_step_temporaries_equal_the_real_ones(name, dtype):
    """Among tensors of one branch the need of a step is exact, whatever the order of sizes."""
    params = parameters([(128, 64), (32, 64), (256, 64), (64, 64)], dtype)
    arguments = {"dim": 64, "n_heads": 4}
    optimizer = real_class("adam-mini")([(name, param) for param in params], verbose=False, **arguments)
    take_steps(optimizer, params)
    entry = find_optimizer("adam-mini")
    told = described(params, names=[name] * len(params))
    assert dispatched_peak(optimizer.step) == step_bytes(entry, told, entry.resolve(arguments), large)


def one_layer(shape, dtype, bias):
    layer = torch.nn.Linear(shape[1], shape[0], bias=bias, dtype=dtype)
    layer.weight.requires_grad_(True)
    return layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["lomo-optim:Lomo", "lomo-optim:AdaLomo"])
def test_lomo_states_equal_the_real_ones(name, dtype, monkeypatch):
    """Lomo keeps nothing, AdaLomo its factors by name from the constructor on; no gradient is left after the backward pass."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)  # AdaLomo moves its states there unasked
    model = torch.nn.Sequential(one_layer((40, 24), dtype, True), one_layer((9, 40), dtype, False))
    optimizer = real_class(name)(model)
    entry = find_optimizer(name)
    names = {key: index for index, (key, _) in enumerate(model.named_parameters())}
    params = list(model.parameters())
    for steps in range(2):
        states, _ = promised(entry, described(params), {})
        claimed = [sorted(claim.elements()) for claim in states]
        keeps = SimpleNamespace(**{key: value for key, value in vars(optimizer).items() if key.startswith("exp_avg")})
        assert [[kept[:2] for kept in one] for one in held(keeps, params, names).per_parameter] == claimed, steps
        optimizer.fused_backward(model(torch.randn(3, 24, dtype=dtype)).float().pow(2).mean(), 1e-3)
        assert all(param.grad is None for param in params)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 24), (200,)])
@pytest.mark.parametrize("name", ["lomo-optim:Lomo", "lomo-optim:AdaLomo"])
def test_lomo_hook_temporaries_equal_the_real_ones(name, shape, dtype, monkeypatch):
    """What one tensor's hook needs beside its gradient is the registry's to the byte."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    model = torch.nn.Module()
    model.weight = parameters([shape], dtype)[0]
    optimizer = real_class(name)(model)
    model.weight.grad = torch.randn(shape).to(dtype)
    optimizer.step_num = 3
    entry = find_optimizer(name)
    gradient = model.weight.grad  # the hook drops the parameter's; autograd's own reference outlives the hook
    assert dispatched_peak(lambda: optimizer.grad_func(None)) == step_bytes(
        entry, [Param(shape, str(dtype)[6:], str(gradient.dtype)[6:])], entry.resolve({}), large
    )


@pytest.mark.parametrize("name", ["SingleDeviceMuon", "SingleDeviceMuonWithAuxAdam"])
def test_muon_breaks_where_the_registry_refuses(name):
    """The library flattens a convolution's update and cannot add it back, so the registry refuses 4-D tensors."""
    name = f"muon-optimizer:{name}"
    assert not find_optimizer(name).accepts(Param((5, 4, 3, 3), kind="conv"))
    params = parameters([(5, 4, 3, 3)])
    with pytest.raises(RuntimeError, match="size of tensor"):
        take_steps(build(name, params), params)


def test_muon_groups_are_the_readmes():
    """Hidden matrices and kernels go to Muon; embeddings, the output head, norms and vectors to Adam."""
    entry = find_optimizer("muon-optimizer:SingleDeviceMuonWithAuxAdam")
    counts = {
        Param((8, 8), name="model.layers.0.mlp.up_proj.weight"): 1,
        Param((8, 8, 3, 3), name="conv1.weight", kind="conv"): 1,
        Param((8, 8), name="model.embed_tokens.weight", kind="embedding"): 2,
        Param((8, 8), name="lm_head.weight"): 2,
        Param((8,), name="model.norm.weight", kind="norm"): 2,
    }
    assert {param: len(list(entry.states(param, entry.resolve({})))) for param in counts} == counts


@pytest.mark.parametrize("name", NAMES)
def test_arrays_equal_scalars(name):
    """A sweep over shapes gives element by element what each shape gives alone, projected or not."""
    entry = find_optimizer(name)
    assert_arrays_equal_scalars(entry, {})
    if name in PROJECTING:
        scaled = {"scale_type": "tensor"} if "scale_type" in entry.options else {}
        for projection in ("std", "reverse_std", "left"):
            arguments = {"proj_type": projection, "rank": 16, **scaled}
            assert_arrays_equal_scalars(entry, arguments, name="layers.*.attn.weight")
    if name in BY_NAME:
        assert_arrays_equal_scalars(entry, {}, name="q_proj.weight")
        assert_arrays_equal_scalars(entry, {}, name="mlp.bias")
