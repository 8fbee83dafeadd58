"""torch.optim: every storage each class keeps, where it keeps it, and what its step needs, against the real classes."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is torch's own optimizers")

import memcalc.optimizers.torch  # noqa: E402, F401  registers the entries
from memcalc.arrays import rounded  # noqa: E402
from memcalc.errors import InputError  # noqa: E402
from memcalc.optimizers.base import OPTIMIZERS, Param  # noqa: E402
from memcalc.optimizers.step import step_bytes  # noqa: E402
from tests.optimizers.arrays import assert_arrays_equal_scalars  # noqa: E402
from tests.optimizers.peak import SCALARS, dispatched_peak, profiled_peak  # noqa: E402
from tests.optimizers.walk import assert_held_as_promised, described, held, parameters, promised, take_steps  # noqa: E402

NAMES = sorted(name for name in OPTIMIZERS if name.startswith("torch:"))
SHAPES = [(), (1,), (3,), (4, 5), (64, 64), (2, 3, 4), (5, 4, 3, 3), (0, 7), (1, 300), (4097,)]
UNEQUAL = [(100,), (10, 350), (5, 10, 15), (20, 100)]
"""Large enough that a 0-dim constant is not mistaken for one of them, and in no order of size."""
ORDINARY = [name for name in NAMES if name.split(":")[1] not in ("SparseAdam", "LBFGS")]
CAPTURABLE = [name for name in ORDINARY if "capturable" in OPTIMIZERS.get(name).options]
MODULES = ("adadelta", "adam", "adamax", "asgd", "nadam", "radam", "rmsprop", "rprop")


def build(name, params, **arguments):
    """The real optimizer, with the entry's preset and these arguments."""
    entry = OPTIMIZERS.get(name)
    passed = {**entry.preset, **{key: value for key, value in arguments.items() if key not in entry.own}}
    if arguments.get("tensor_betas"):
        passed["betas"] = (torch.tensor(0.9), torch.tensor(0.999))
    return getattr(torch.optim, entry.cls.rsplit(".", 1)[1])(params, **passed)


def accepted(name, shapes):
    """The shapes this optimizer takes; the real Adafactor divides by the elements of a parameter, so none of its are empty."""
    takes = OPTIMIZERS.get(name).accepts
    return [s for s in shapes if takes(described([torch.empty(s)])[0]) and not ("Adafactor" in name and 0 in s)]


@contextmanager
def capturable_on(device):
    """Let ``capturable=True`` run on a device without CUDA: the check names devices, the operators run anywhere."""
    paths = [f"torch.optim.{module}._get_capturable_supported_devices" for module in MODULES]
    patches = [mock.patch(path, return_value=[device]) for path in paths]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


@pytest.mark.parametrize("name", NAMES)
def test_options_are_the_constructors(name):
    """An entry knows exactly its constructor's arguments, by name and by default, and its own extras beside them."""
    entry = OPTIMIZERS.get(name)
    signature = inspect.signature(getattr(torch.optim, entry.cls.rsplit(".", 1)[1]).__init__)
    real = {key: value.default for key, value in signature.parameters.items() if key not in ("self", "params")}
    assert {*entry.options, *entry.ignored} - entry.own == set(real)
    assert {k: v for k, v in entry.options.items() if k not in entry.own} == {
        k: entry.preset.get(k, real[k]) for k in entry.options if k not in entry.own
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ORDINARY)
def test_states_equal_the_real_ones(name, dtype):
    """Shapes of 0 to 4 dimensions, empty ones too, keep what the registry says, tensor by tensor."""
    params = parameters(accepted(name, SHAPES), dtype)
    optimizer = build(name, params)
    take_steps(optimizer, params)
    assert_held_as_promised(optimizer, params, OPTIMIZERS.get(name))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torch:SGD", {"momentum": 0.5, "weight_decay": 0.1, "nesterov": True}),
        ("torch:SGD", {"momentum": 0.5, "fused": True}),
        ("torch:Adam", {"fused": True}),
        ("torch:AdamW+amsgrad", {"fused": True}),
        ("torch:Adagrad", {"fused": True}),
        ("torch:RMSprop", {"momentum": 0.9}),
        ("torch:RMSprop", {"centered": True}),
        ("torch:NAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
        ("torch:Adafactor", {"foreach": True}),
    ],
)
def test_states_with_options(name, arguments):
    """Each option that adds or moves a state does so as the registry says."""
    params = parameters([(4, 5), (7,), (2, 3, 3)])
    optimizer = build(name, params, **arguments)
    take_steps(optimizer, params)
    assert_held_as_promised(optimizer, params, OPTIMIZERS.get(name), arguments)


@pytest.mark.parametrize("arguments", [{}, {"weight_decay": 0.1}, {"fused": True}, {"fused": True, "weight_decay": 0.1}])
@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_momentum_follows_the_gradient(dtypes, arguments):
    """SGD's buffer has the gradient's dtype where it differs from the parameter's, wider once the decay is added."""
    own, of_gradient = (getattr(torch, dtype) for dtype in dtypes)
    param = torch.nn.Parameter(torch.ones(8, dtype=own))
    param.grad_dtype = None
    param.grad = torch.ones(8, dtype=of_gradient)
    optimizer = torch.optim.SGD([param], momentum=0.9, **arguments)
    if arguments.get("fused"):
        with mock.patch("torch._fused_sgd_"):  # the kernel wants one dtype; the buffer is made before it
            optimizer.step()
    else:
        optimizer.step()
    momentum = {"momentum": 0.9, **arguments}
    states, _ = promised(OPTIMIZERS.get("torch:SGD"), described([param]), momentum)
    assert [kept[:2] for kept in held(optimizer, [param]).per_parameter[0]] == list(states[0])


def places(name, arguments):
    """Bytes by device of a real optimizer over parameters on torch's meta device, which stands for CUDA."""
    params = parameters([(8, 8)], device="meta")
    optimizer = build(name, params, **arguments)
    for param in params:
        param.grad = torch.empty_like(param)
    with capturable_on("meta"), mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", return_value=["meta"]):
        optimizer.step()
    found = held(optimizer, params).per_parameter[0]
    return sorted((kept.dtype, kept.nbytes, "host" if kept.device == "cpu" else "device") for kept in found)


def expected_places(name, arguments):
    entry = OPTIMIZERS.get(name)
    states = entry.states(described(parameters([(8, 8)], device="meta"))[0], entry.resolve(arguments))
    return sorted((state.dtype, state.nbytes, state.place) for state in states)


@pytest.mark.parametrize("name", [name for name in ORDINARY if "Adafactor" not in name and "ASGD" not in name])
def test_scalars_live_where_the_registry_says(name):
    """With parameters off the host, step counters stay on the host by default; every other state goes with them."""
    assert places(name, {}) == expected_places(name, {})


@pytest.mark.parametrize("name", [name for name in CAPTURABLE if "ASGD" not in name])
def test_capturable_scalars_live_beside_the_parameter(name):
    """capturable=True moves the step counters (NAdam's product too) to the device."""
    arguments = {"capturable": True, "foreach": False}
    assert places(name, arguments) == expected_places(name, arguments)


@pytest.mark.parametrize("name", ["torch:Adam", "torch:AdamW", "torch:Adagrad"])
def test_fused_scalars_live_beside_the_parameter(name):
    """fused=True moves the step counters to the device; the kernel itself has no meta form, so it is left out."""
    with mock.patch("torch._fused_adam_"), mock.patch("torch._fused_adamw_"), mock.patch("torch._fused_adagrad_"):
        assert places(name, {"fused": True}) == expected_places(name, {"fused": True})


def test_asgd_scalars_always_live_beside_the_parameter():
    """ASGD makes step, eta and mu on the parameter's device although nothing asked for it."""
    assert places("torch:ASGD", {"capturable": True}) == expected_places("torch:ASGD", {})


def test_adagrad_state_is_born_with_the_optimizer():
    """Adagrad alone holds its state before the first step; all others hold nothing yet."""
    for name in ORDINARY:
        params = parameters(accepted(name, [(4, 5)]))
        found = held(build(name, params), params).per_parameter[0]
        assert bool(found) == (OPTIMIZERS.get(name).born == "init")


def test_muon_takes_matrices_only():
    """The rule of acceptance is the constructor's own refusal."""
    for shape in SHAPES:
        params = parameters([shape])
        takes = OPTIMIZERS.get("torch:Muon").accepts(described(params)[0])
        if takes:
            torch.optim.Muon(params)
        else:
            with pytest.raises(ValueError, match="only supports 2D"):
                torch.optim.Muon(params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_adam_keeps_dense_moments(dtype):
    """Three rows of a table are touched and the moments are as large as the table."""
    table = torch.nn.Embedding(1000, 16, sparse=True, dtype=dtype)
    optimizer = torch.optim.SparseAdam(table.parameters())
    for _ in range(2):
        table(torch.tensor([1, 5, 7])).sum().backward()
        optimizer.step()
    assert_held_as_promised(optimizer, [table.weight], OPTIMIZERS.get("torch:SparseAdam"), kinds=["embedding"])


@pytest.mark.parametrize("history", [1, 3])
def test_lbfgs_keeps_its_history_once_for_all(history):
    """With the history full, LBFGS holds 2 + 2 h vectors as long as the model, and its scalars, once."""
    params = parameters([(6, 5), (7,)])
    optimizer = torch.optim.LBFGS(params, history_size=history, max_iter=3, tolerance_change=0, tolerance_grad=0, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = sum(((param - 1) ** 4).sum() for param in params)
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    found = held(optimizer, params)
    states, shared = promised(OPTIMIZERS.get("torch:LBFGS"), described(params), {"history_size": history})
    assert sorted((kept.dtype, kept.nbytes) for kept in found.per_parameter[0]) == sorted(shared.elements())
    assert found.per_parameter[1] == found.shared == []
    assert not any(states)


EXACT = [name for name in ORDINARY if "Adafactor" not in name]
STEPS = [
    *[(name, {}) for name in EXACT],
    *[(name, {"weight_decay": 0.1}) for name in EXACT if "weight_decay" in OPTIMIZERS.get(name).options],
    *[(name, {"maximize": True}) for name in EXACT if "maximize" in OPTIMIZERS.get(name).options],
    *[
        (name, {"weight_decay": 0.1, "maximize": True})
        for name in EXACT
        if {"weight_decay", "maximize"} <= set(OPTIMIZERS.get(name).options)
    ],
    *[(name, {"weight_decay": 0.1, "decoupled_weight_decay": True}) for name in ("torch:Adam", "torch:NAdam", "torch:RAdam")],
    ("torch:SGD+momentum", {"nesterov": True}),
    ("torch:SGD+momentum", {"nesterov": True, "weight_decay": 0.1}),
    ("torch:SGD+momentum", {"nesterov": True, "maximize": True}),
    ("torch:SGD+momentum", {"nesterov": True, "maximize": True, "weight_decay": 0.1}),
    ("torch:ASGD", {"t0": 0}),
    ("torch:ASGD", {"t0": 0, "weight_decay": 0.1}),
    ("torch:Muon", {"nesterov": False}),
    ("torch:Muon", {"ns_steps": 1}),
    ("torch:Muon", {"ns_steps": 0}),
]


def ready(name, shapes, dtype, **arguments):
    """A real optimizer past its first steps (past step 5, where RAdam begins to rectify), and its entry's prediction."""
    params = parameters(accepted(name, shapes), dtype)
    optimizer = build(name, params, **arguments)
    take_steps(optimizer, params, 7 if "RAdam" in name else 2)
    entry = OPTIMIZERS.get(name)
    return optimizer, lambda size: step_bytes(entry, described(params), entry.resolve(arguments), size)


def large(nbytes):
    """A buffer counts if it is no 0-dim constant."""
    return nbytes if nbytes > SCALARS else 0


def forms(name):
    entry = OPTIMIZERS.get(name)
    return [
        {"foreach": {"foreach": True}, "fused": {"fused": True}, "single": {"foreach": False}}[form]
        for form in entry.implementations
        if "foreach" in entry.options
    ] or [{}]


@pytest.mark.parametrize(
    ("name", "arguments", "dtype"),
    [(*step, torch.float32) for step in STEPS]
    + [(name, {}, torch.bfloat16) for name in EXACT]
    + [("torch:Muon", {"ns_steps": 1}, torch.bfloat16)],
)
def test_step_temporaries_equal_the_real_ones(name, arguments, dtype):
    """In each form of the step, the operators' results alive at the worst moment are the registry's to the byte."""
    shapes = UNEQUAL if "Muon" not in name else [(20, 80), (60, 60), (80, 15)]
    for form in forms(name):
        optimizer, predicted = ready(name, shapes, dtype, **arguments, **form)
        assert dispatched_peak(optimizer.step) == predicted(large), form


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("name", ["torch:Adam", "torch:Adadelta", "torch:RAdam"])
def test_counts_stand_for_equal_parameters(name, foreach):
    """``count`` equal parameters need what the real ones need in a row; none of them need nothing; counts may be an array."""
    shapes = [(30, 20), (50, 40), (50, 40), (50, 40), (9, 9)]
    optimizer, _ = ready(name, shapes, torch.float32, foreach=foreach)
    seen = dispatched_peak(optimizer.step)
    without, _ = ready(name, [shapes[0], shapes[-1]], torch.float32, foreach=foreach)
    seen_without = dispatched_peak(without.step)

    entry = OPTIMIZERS.get(name)
    options = entry.resolve({"foreach": foreach})

    def predicted(count):
        return step_bytes(entry, [Param((30, 20)), Param((50, 40), count=count), Param((9, 9))], options)

    assert (predicted(3), predicted(0)) == (seen, seen_without)
    assert predicted(np.array([0, 1, 3])).tolist() == [predicted(0), predicted(1), predicted(3)]


def test_each_buffer_may_be_rounded():
    """The allocator's rounding applies to each buffer of a list, not to their sum: 3 tensors of 4 bytes take 3 blocks."""
    entry = OPTIMIZERS.get("torch:AdamW")
    assert step_bytes(entry, [Param((1,), count=3)], entry.resolve({}), rounded) == 3 * 512


@pytest.mark.parametrize("name", ORDINARY)
def test_step_temporaries_equal_the_allocators(name):
    """The CPU allocator itself sees no more than the operators' results and 64 bytes of constants and bookkeeping."""
    shapes = UNEQUAL if "Muon" not in name else [(20, 80), (60, 60)]
    for form in forms(name):
        optimizer, _ = ready(name, shapes, torch.float32, **form)
        seen = dispatched_peak(optimizer.step)
        assert 0 <= profiled_peak(optimizer.step) - seen <= 64, form


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("shapes", [[(20, 350), (5, 20, 30), (20, 100)], [(90,), (7_000,), (50,)]])
def test_adafactor_temporaries_by_kind(shapes, maximize):
    """All matrices or all vectors: Adafactor's two forms are exact."""
    for form in ({"foreach": False}, {"foreach": True}):
        optimizer, predicted = ready("torch:Adafactor", shapes, torch.float32, maximize=maximize, **form)
        assert dispatched_peak(optimizer.step) == predicted(large), form


@pytest.mark.parametrize("maximize", [False, True])
def test_adafactor_temporaries_of_a_mixture_are_bounded(maximize):
    """Matrices beside vectors: off by no more than what one kind leaves behind, a vector three times and a set of means."""
    slack = 3 * 100 * 4 + (10 + 350 + 1) * 4
    for form in ({"foreach": False}, {"foreach": True}):
        optimizer, predicted = ready("torch:Adafactor", UNEQUAL, torch.float32, maximize=maximize, **form)
        assert abs(predicted(large) - dispatched_peak(optimizer.step)) <= slack, form


CAPTURED = [
    *[(name, {"foreach": foreach}) for name in CAPTURABLE for foreach in (True, False)],
    *[(name, {"foreach": foreach, "maximize": True}) for name in CAPTURABLE for foreach in (True, False)],
    *[("torch:Adam", {"tensor_betas": True, **more}) for more in ({}, {"weight_decay": 0.1}, {"foreach": False})],
]


@pytest.mark.parametrize(("name", "arguments"), CAPTURED)
def test_capturable_temporaries_equal_the_real_ones(name, arguments):
    """capturable=True keeps corrections as tensors; with tensor betas the scaled gradients are a list of their own."""
    arguments = {"capturable": True, "foreach": True, **arguments}
    with capturable_on("cpu"):
        optimizer, predicted = ready(name, UNEQUAL, torch.float32, **arguments)
        assert dispatched_peak(optimizer.step) == predicted(large)


@pytest.mark.parametrize("name", ["torch:Adam", "torch:NAdam", "torch:RAdam", "torch:Adamax"])
def test_capturable_lists_of_scalars_are_counted(name):
    """One 0-dim correction a tensor and list: exact to the 64 bytes of constants that are not in lists."""
    many = [(30, 30)] * 40
    with capturable_on("cpu"):
        optimizer, predicted = ready(name, many, torch.float32, capturable=True, foreach=True)
        difference = profiled_peak(optimizer.step) - predicted(lambda nbytes: nbytes)
    assert 0 <= difference <= 64


def test_the_form_of_the_step():
    """Either switch given turns the foreach default off; Adafactor and Muon never had it."""
    for name, arguments, form in [
        ("torch:AdamW", {}, "foreach"),
        ("torch:AdamW", {"fused": True}, "fused"),
        ("torch:AdamW", {"fused": False}, "single"),
        ("torch:AdamW", {"foreach": False}, "single"),
        ("torch:AdamW", {"fused": False, "foreach": True}, "foreach"),
        ("torch:Adafactor", {}, "single"),
        ("torch:Adafactor", {"foreach": True}, "foreach"),
        ("torch:Muon", {}, "single"),
    ]:
        entry = OPTIMIZERS.get(name)
        assert entry.implementation(entry.resolve(arguments)) == form


@pytest.mark.parametrize("arguments", [{"fused": False}, {"fused": None}])
def test_fused_false_turns_foreach_off(arguments):
    """The real Adam dispatches as the registry says: fused=False alone runs the one-by-one loop even where foreach would."""
    params = parameters([(4, 5)])
    optimizer = torch.optim.Adam(params, **arguments)
    take_steps(optimizer, params, 1)
    single = mock.Mock()
    with (
        mock.patch("torch.optim.adam._default_to_fused_or_foreach", return_value=(False, True)),
        mock.patch("torch.optim.adam._single_tensor_adam", single),
        mock.patch("torch.optim.adam._multi_tensor_adam"),
    ):
        optimizer.step()
    entry = OPTIMIZERS.get("torch:Adam")
    assert (entry.implementation(entry.resolve(arguments)) == "single") == single.called


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torch:AdamW", {"fused": True, "foreach": True}),
        ("torch:SGD", {"nesterov": True}),
        ("torch:SGD+momentum", {"nesterov": True, "dampening": 0.1}),
        ("torch:Adam", {"tensor_betas": True, "foreach": True}),
    ],
)
def test_refusals_are_the_constructors(name, arguments):
    """What the registry refuses, the real constructor refuses too."""
    entry = OPTIMIZERS.get(name)
    with pytest.raises(InputError, match=r"training\.optimizer_args"):
        entry.resolve(arguments)
    with pytest.raises((ValueError, RuntimeError)):
        build(name, parameters([(2, 2)]), **arguments)


def test_unknown_and_unmodelled_options_are_errors():
    """A name the constructor lacks and a graph-keeping step are both answered with their path."""
    with pytest.raises(InputError, match=r"training.optimizer_args.amsgrd: true is not|amsgrd.*did you mean amsgrad"):
        OPTIMIZERS.get("torch:AdamW").resolve({"amsgrd": True})
    with pytest.raises(InputError, match="graph, which is not modelled"):
        OPTIMIZERS.get("torch:AdamW").resolve({"differentiable": True})
    with pytest.raises(InputError, match="is not an option"):
        OPTIMIZERS.get("torch:Muon").resolve({"maximize": True})


@pytest.mark.parametrize("name", NAMES)
def test_arrays_equal_scalars(name):
    """Every entry over int64 arrays of sizes equals the same entry over each size."""
    entry = OPTIMIZERS.get(name)
    for options in [{}, *({form[0]: form[1]} for form in [("foreach", False), ("fused", True)] if form[0] in entry.options)]:
        assert_arrays_equal_scalars(entry, options)
