"""Each way in which fake tensors are CUDA's on a machine without CUDA, and that nothing of it is left afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the trace runs torch's own dispatcher")

from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402

from memcalc.engines.trace.bridge import cuda_is_here  # noqa: E402
from memcalc.engines.trace.estimate import Feed, trace_job, trace_module  # noqa: E402
from memcalc.engines.trace.fake import CUDA  # noqa: E402
from memcalc.engines.trace.machine import machine_of  # noqa: E402
from memcalc.errors import InputError, NotModelledError  # noqa: E402
from memcalc.job import read_job  # noqa: E402
from memcalc.tape.events import Alloc, Mark  # noqa: E402
from tests.trace import small  # noqa: E402

GPU = machine_of(read_job({"model": "gpt2", "gpu": "h100-80gb"}))


def traced(name, *inputs, **keys):
    """A small module of ``tests.trace.small``, traced."""
    job = {"model": f"py:tests.trace.small:{name}", "precision": "fp32", "optimizer": "sgd", **keys}
    return trace_job(read_job(job), Feed(inputs=inputs))


def births(found, phase, iteration=2):
    """(bytes, operator, dtype, role) of what is born on the device in that phase."""
    seen, now = [], None
    for event in found.tape:
        if isinstance(event, Mark):
            now = (event.phase, event.iteration)
        elif isinstance(event, Alloc) and now == (phase, iteration) and event.buffer.place == "device":
            each = event.buffer
            seen.append((each.requested, each.operator.removeprefix("aten.").partition(".")[0], each.dtype, each.role))
    return seen


@pytest.fixture(scope="module")
def told():
    """What a module is told of devices from within its forward."""
    traced("Telling", "args0=float32[2,4]")
    return dict(small.Telling.told)


def test_python_sees_cuda(told):
    """A module that asks is told of ``cuda:0`` everywhere: its weights, its results, and that there is a GPU."""
    assert (told["device"], told["weight"], told["is_cuda"], told["index"]) == ("cuda:0", "cuda:0", True, 0)
    assert told["available"] is True
    assert told["capability"] == (9, 0)


def test_factories_make_cuda_tensors(told):
    """``device="cuda"`` and ``like`` give tensors on the GPU, values of Python's among them; without it they are the host's."""
    assert (told["made"], told["like"], told["value"], told["host"]) == ("cuda:0", "cuda:0", "cuda:0", "cpu")


def test_tensors_are_moved(told):
    """``.cuda()`` and ``.to(0)`` bring a host tensor to the GPU; one that is there already stays the very object."""
    assert (told["moved"], told["bare"], told["stays"]) == ("cuda:0", "cuda:0", True)


def test_what_a_checkpoint_recomputes_is_told_the_same():
    """``.to`` the device a tensor is on gives it back in the recomputation too, which runs inside backward."""
    from torch.utils.checkpoint import checkpoint

    stays: list[bool] = []

    def stretch(x):
        stays.append(x.to(device=x.device) is x)
        return x.sin().cos()

    with cuda_is_here(GPU):
        checkpoint(stretch, torch.ones(3, device="cuda", requires_grad=True), use_reentrant=False).sum().backward()
    assert stays == [True, True]


def test_to_copies_only_where_something_changes():
    """``.to`` in all its spellings gives the tensor back unless device or dtype differ, or a copy is asked for."""
    with cuda_is_here(GPU):
        x, host = torch.ones(3, device="cuda"), torch.ones(3)
        kept = (x.to("cuda"), x.to(CUDA), x.to(0), x.cuda(), x.to("cuda", torch.float32), x.to(x), x.to(torch.float32))
        assert all(each is x for each in kept)
        made = (x.to("cuda", copy=True), x.to("cuda", torch.int64), host.to(x), host.to(0, torch.float16))
        assert all(each is not x and each.device == CUDA for each in made)
        assert x.cpu().device.type == "cpu"
        assert host.to("cpu") is host


def test_modules_are_moved():
    """``Module.to`` and ``.cuda`` move parameters, buffers and scalars, whichever way the device is spelled."""
    with cuda_is_here(GPU):
        for move in (lambda m: m.to("cuda"), lambda m: m.to(0), lambda m: m.cuda(), lambda m: m.to(CUDA, torch.float16)):
            module = torch.nn.Module()
            module.scale = torch.nn.Parameter(torch.tensor(2.0))
            module.weight = torch.nn.Parameter(torch.ones(3))
            module.register_buffer("seen", torch.zeros(()))
            move(module)
            assert {str(t.detach().device) for t in (module.scale, module.weight, module.seen)} == {"cuda:0"}


def test_optimizers_take_their_foreach_road():
    """AdamW and SGD of default options, and clipping, run as lists, as on CUDA."""
    found = traced("Perceptron", "x=float32[4,3]", "y=float32[4,2]", optimizer="adamw", max_grad_norm=1.0)
    for name in ("aten._foreach_addcdiv_.ScalarList", "aten._foreach_norm.Scalar", "aten._foreach_mul_.Tensor"):
        assert name in found.operators, sorted(name for name in found.operators if "foreach" in name)
    assert sum(e[0] for e in births(found, "optimizer_step") if e[1] == "_foreach_sqrt") == 128
    assert sum(e[0] for e in births(found, "clip") if e[1] == "_foreach_norm") == 2 * 4 * 4  # norms, and partial ones


def test_fused_adam_needs_nothing_beside_its_states():
    """With ``fused=True`` the step is one kernel over all parameters, its step counters on the device."""
    found = traced(
        "Perceptron", "x=float32[4,3]", "y=float32[4,2]", optimizer="adamw", optimizer_args={"fused": True}
    )  # fmt: skip
    assert "aten._fused_adamw_.default" in found.operators
    assert births(found, "optimizer_step") == []
    assert found.footprint.components.optimizer_states == 2 * 128 + 4 * 4


def test_autocast_casts_cuda_s_operators_and_keeps_weights_cached():
    """Under AMP a linear runs in half; its weight is cast once a step, is no activation, and dies when autocast is left."""
    found = traced("Tied", "args0=int64[2,5]<50", precision="amp-fp16")
    copies = [event[0] for event in births(found, "forward") if event[3] == "parameter_copy"]
    assert sorted(copies) == [8 * 2, 8 * 8 * 2, 50 * 8 * 2]
    assert any(event[1] == "mm" and event[2] == "float16" for event in births(found, "forward"))


def test_grad_scaler_is_cuda_s():
    """Under FP16 autocast the scale, its growth tracker and found_inf are scalars on the device."""
    found = traced("Perceptron", "x=float32[4,3]", "y=float32[4,2]", precision="amp-fp16")
    scalars = {e.buffer.site for e in found.tape if isinstance(e, Alloc) and e.buffer.site.startswith("GradScaler")}
    assert scalars == {"GradScaler _scale", "GradScaler _growth_tracker"}
    assert "aten._amp_foreach_non_finite_check_and_unscale_.default" in found.operators


@pytest.fixture(scope="module")
def dropping():
    """Linear, layer norm, dropout and a softmax that widens, in FP16."""
    return traced("Dropping", "args0=float16[4,8]", precision="fp16-pure")


def test_dropout_keeps_a_mask_of_bytes(dropping):
    """Dropout of 32 halves: its result, and a mask of one byte each."""
    assert [e[0] for e in births(dropping, "forward") if e[1] == "native_dropout"] == [64, 32]


def test_dropout_of_nothing_copies_nothing():
    """With p = 0 the input itself is given back, as C++ does, and not a copy of it."""
    with cuda_is_here(GPU):
        x = torch.ones(8, device="cuda", requires_grad=True)
        assert torch.nn.functional.dropout(x, 0.0, True).untyped_storage()._cdata == x.untyped_storage()._cdata
        assert torch.nn.functional.dropout(x, 0.5, False).untyped_storage()._cdata == x.untyped_storage()._cdata


def test_softmax_widens_a_half_without_a_copy(dropping):
    """Softmax of halves into FP32 is one kernel with one result: no FP32 copy of its input."""
    seen = births(dropping, "forward")
    assert [e[0] for e in seen if e[1] == "_softmax"] == [128]
    assert [e for e in seen if e[1] == "_to_copy"] == []


def test_layer_norm_s_statistics_are_fp32(dropping):
    """Mean and reciprocal deviation of 4 rows are 16 bytes each, whatever the input's dtype."""
    assert [(e[0], e[2]) for e in births(dropping, "forward") if e[1] == "native_layer_norm"] == [
        (64, "float16"), (16, "float32"), (16, "float32")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "operator"),
    [
        ("flash", "_scaled_dot_product_flash_attention"), ("efficient", "_scaled_dot_product_efficient_attention"),
        ("cudnn", "_scaled_dot_product_cudnn_attention"), ("math", "_safe_softmax"),
    ],
)  # fmt: skip
def test_attention_takes_the_kernel_that_is_asked_for(asked, operator):
    """Each attention backend runs its own operators, and no other's."""
    found = traced("Attending", "args0=float16[2,6,32]", precision="fp16-pure", attention=asked)
    assert f"aten.{operator}.default" in found.operators
    others = {"flash", "efficient", "cudnn"} - {asked}
    assert not any(f"product_{other}" in name for name in found.operators for other in others)


def test_flash_attention_pads_heads_to_eight():
    """Heads of 12 are padded to 16 for flash attention: three padded copies of 2·2·6·16 halves."""
    found = traced("attending_12", "args0=float16[2,6,24]", precision="fp16-pure", attention="flash")
    assert [e[0] for e in births(found, "forward") if e[1] == "constant_pad_nd"] == 3 * [2 * 2 * 6 * 16 * 2]


def test_grouped_matrix_multiplication_takes_every_dtype():
    """CUDA's grouped product runs in FP32 too, its rows padded to 16 bytes, forward and backward."""
    with cuda_is_here(GPU):
        rows = torch.ones(6, 8, device="cuda", requires_grad=True)
        weights = torch.ones(2, 8, 10, device="cuda", requires_grad=True)
        out = torch.nn.functional.grouped_mm(rows, weights, offs=torch.tensor([2, 6], dtype=torch.int32, device="cuda"))
        assert (tuple(out.shape), out.stride(), out.untyped_storage().nbytes()) == ((6, 10), (12, 1), (5 * 12 + 10) * 4)
        out.sum().backward()
        assert (rows.grad.shape, weights.grad.shape) == (rows.shape, weights.shape)


def test_short_ranges_have_their_values():
    """A constructor may read a short range of numbers, such as the rates of a drop path."""
    with cuda_is_here(GPU):
        assert [x.item() for x in torch.linspace(0, 1, 5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert torch.arange(4).tolist() == [0, 1, 2, 3]


def state():
    """All that a trace touches: attributes, lists, dispatch, modes."""
    import torch.optim.optimizer as optimizer
    import torch.utils._foreach_utils as utils
    from torch._subclasses import fake_tensor

    asked = ("is_available", "device_count", "current_device", "get_device_capability", "get_device_properties", "_lazy_init")
    return {
        "cuda": [getattr(torch.cuda, name) for name in asked],
        "fake": dict(vars(FakeTensor)),
        "foreach": [list(optimizer._foreach_supported_types), list(utils._foreach_supported_types)]
        if hasattr(optimizer, "_foreach_supported_types") else list(utils._foreach_supported_types),
        "torch": [torch.Tensor._make_subclass, torch.utils.swap_tensors, torch.Generator, torch.clear_autocast_cache,
                  torch._C._group_tensors_by_device_and_dtype, torch._C._nn._parse_to, torch.autograd.backward],
        "fake module": [fake_tensor.init_gpu_context, fake_tensor.CONSTANT_NUMEL_LIMIT, fake_tensor.log.disabled],
        "raw stream": hasattr(torch._C, "_cuda_getCurrentRawStream"),
        "tables": [torch._C._dispatch_dump(f"aten::{name}") for name in ("dropout", "linear", "mm", "_grouped_mm")],
        "modes": [torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack(), torch.is_autocast_enabled("cuda"),
                  torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), torch.get_default_dtype()],
        "hooks": [len(torch.nn.modules.module._global_forward_pre_hooks), len(torch.nn.modules.module._global_forward_hooks)],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Dropping", "Broken", "Branch"])
def test_nothing_is_left_behind(name):
    """After a trace, and after one that failed, torch is as it was: attributes, dispatch tables, modes, hooks."""
    before = state()
    try:
        traced(name, "args0=float32[4,8]" if name == "Dropping" else "args0=float32[4,4]", precision="amp-bf16")
    except (InputError, NotModelledError):
        assert name != "Dropping"
    after = state()
    assert {key for key in before if before[key] != after[key]} == set()
    assert torch.cuda.is_available() is False
    with FakeTensorMode():
        assert torch.nn.functional.dropout(torch.ones(2, requires_grad=True), 0.5).grad_fn.name() != "NativeDropoutBackward0"


def test_a_live_module_keeps_its_own_tensors():
    """A module's parameters, buffers, ties and gradients are the same objects and values after its trace, failed or not."""
    from memcalc.runtime.inputs import parse_inputs

    for make, text in ((small.Tied, "args0=int64[2,5]<50"), (small.Broken, "args0=float32[2,4]")):
        module = make().double()
        before = {name: (tensor, tensor.clone()) for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
        job = read_job({"model": "py:tests.trace.small:Tied", "precision": "fp16", "optimizer": "adamw"})
        try:
            trace_module(module, job, Feed(), parse_inputs([text]))
        except InputError:
            assert make is small.Broken
        after = dict([*module.named_parameters(), *module.named_buffers()])
        assert list(after) == list(before)
        assert all(after[name] is tensor and torch.equal(tensor, copy) for name, (tensor, copy) in before.items())
        assert all(tensor.grad is None and tensor.dtype == torch.float64 for tensor in after.values())
        assert make is not small.Tied or module.head.weight is module.embed.weight


def test_a_branch_on_data_names_the_line():
    """The error of a module that decides by a value names that very line and the ways out."""
    with pytest.raises(NotModelledError) as caught:
        traced("Branch", "args0=float32[2,4]")
    line = next(
        n for n, text in enumerate(Path(small.__file__).read_text().splitlines(), 1) if "the line the error names" in text
    )
    assert f"{small.__file__}:{line}" in str(caught.value)
    assert "measure instead" in str(caught.value)


def test_a_module_that_fails_is_one_error(capfd):
    """A wrong shape gives one InputError with the line and torch's words, and nothing on the terminal."""
    with pytest.raises(InputError, match=r"fails in forward at .*small\.py:\d+ \(RuntimeError: .*reduction dim"):
        traced("Broken", "args0=float32[2,4]")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["nested", "jagged", "sparse"])
def test_nested_and_sparse_tensors_are_refused(kind):
    """A module that holds a nested, jagged or sparse tensor is refused with its name and the reason."""
    from memcalc.runtime.inputs import parse_inputs

    rows = [torch.ones(2), torch.ones(3)]
    odd = {"nested": lambda: torch.nested.nested_tensor(rows), "sparse": lambda: torch.eye(3).to_sparse(),
           "jagged": lambda: torch.nested.nested_tensor(rows, layout=torch.jagged)}[kind]()  # fmt: skip
    job = read_job({"model": "py:tests.trace.small:Lone", "precision": "fp32", "optimizer": "sgd"})
    with pytest.raises(InputError, match=r"^model\.odd: .* is a nested or sparse tensor, whose bytes depend on its values"):
        trace_module(small.Lone(odd), job, Feed(), parse_inputs(["args0=float32[2,4]"]))


def test_checkpointing_does_not_stay_on_a_live_module():
    """Layers whose forward a trace wrapped for checkpointing have their own again."""
    from memcalc.runtime.inputs import parse_inputs

    module = small.Tower(count=2)
    job = read_job(
        {"model": "py:tests.trace.small:Tower", "precision": "fp32", "optimizer": "sgd", "activation_checkpointing": "full"}
    )
    found = trace_module(module, job, Feed(), parse_inputs(["args0=float32[4,16]"]))
    assert found.footprint.components.gradients > 0
    assert all("forward" not in vars(layer) for layer in module.layers)


def test_a_module_on_the_meta_device_is_traced():
    """A module built without memory gives the same footprint as one with it."""
    from memcalc.runtime.inputs import parse_inputs

    job = read_job({"model": "py:tests.trace.small:Tower", "precision": "fp16", "optimizer": "adamw"})
    with torch.device("meta"):
        hollow = small.Tower()
    peaks = {
        trace_module(each, job, Feed(), parse_inputs(["args0=float16[4,16]"])).footprint.peak.requested
        for each in (hollow, small.Tower())
    }
    assert len(peaks) == 1
    assert next(hollow.parameters()).device.type == "meta"
