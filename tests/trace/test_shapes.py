"""Results by rule are those of PyTorch's fake tensors, and a step's tape does not change by them."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.nn import functional as F  # noqa: E402, N812

from memcalc.engines.trace import loop, shapes, thrift  # noqa: E402
from memcalc.engines.trace.bridge import cuda_is_here  # noqa: E402
from memcalc.engines.trace.estimate import Feed, Traced, trace_job, trace_module  # noqa: E402
from memcalc.engines.trace.fake import CUDA, CudaFakeMode  # noqa: E402
from memcalc.engines.trace.likeness import look  # noqa: E402
from memcalc.engines.trace.machine import machine_of  # noqa: E402
from memcalc.job import read_job  # noqa: E402
from memcalc.tape.events import Alloc, Free, Mark  # noqa: E402

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 96, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_head": 2, "n_layer": 1, "vocab_size": 96}
VIT = {
    "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 32, "intermediate_size": 64,
    "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 32, "patch_size": 8,
}  # fmt: skip


@pytest.fixture
def mode() -> Iterator[CudaFakeMode]:
    """The mode a trace runs in, each answer by rule compared with its own."""
    with cuda_is_here(machine_of(read_job({"model": "gpt2"}))) as mode:
        mode.rules.checking = True
        yield mode


def tensor(*shape: int, dtype: Any = torch.float32) -> Any:
    """One on the GPU."""
    return torch.empty(shape, dtype=dtype, device=CUDA)


OPERATORS: dict[str, Callable[[], Any]] = {
    "add, broadcast": lambda: tensor(4, 1) + tensor(3),
    "add, promoted": lambda: tensor(4, dtype=torch.bfloat16) + tensor(4),
    "mul by a float": lambda: tensor(4, dtype=torch.int64) * 2.0,
    "mul by an int": lambda: tensor(4, dtype=torch.int64) * 2,
    "in place": lambda: tensor(4, 4).add_(tensor(4), alpha=2).mul_(0.5),
    "in place on a view": lambda: tensor(4, 4)[1:].t().zero_(),
    "view": lambda: tensor(4, 6).view(2, 12),
    "view of a view": lambda: tensor(4, 6)[1:, 2:].transpose(0, 1)[1],
    "expand": lambda: tensor(4, 1).expand(4, 6) + 1,
    "expand, contiguous": lambda: tensor(4, 1).expand(4, 6).contiguous(),
    "reshape that copies": lambda: tensor(4, 6).t().reshape(-1),
    "reshape that does not": lambda: tensor(4, 6).reshape(-1),
    "permuted pointwise": lambda: tensor(2, 3, 4).permute(2, 0, 1) * 2,
    "channels last": lambda: tensor(2, 3, 4, 4).to(memory_format=torch.channels_last).relu(),
    "as_strided": lambda: tensor(24).as_strided((2, 3), (6, 2), 1),
    "split": lambda: tensor(4, 6).split([2, 4], dim=1),
    "unbind": lambda: tensor(3, 4).unbind(),
    "matmul": lambda: tensor(2, 4, 6) @ tensor(6, 3),
    "addmm": lambda: torch.addmm(tensor(3), tensor(4, 6), tensor(6, 3)),
    "cast": lambda: tensor(4).to(torch.bfloat16).float(),
    "to the CPU": lambda: tensor(4).cpu(),
    "sum": lambda: tensor(4, 6).sum(0, keepdim=True),
    "topk": lambda: tensor(4, 6).topk(2),
    "layer norm": lambda: torch.ops.aten.native_layer_norm(tensor(4, 6), [6], tensor(6), tensor(6), 1e-5),
    "batch norm": lambda: F.batch_norm(tensor(2, 3, 4, 4), tensor(3), tensor(3), tensor(3), tensor(3), training=True),
    "dropout": lambda: F.dropout(tensor(4, 6), 0.1),
    "softmax": lambda: tensor(4, 6, dtype=torch.bfloat16).softmax(-1, dtype=torch.float32),
    "convolution": lambda: F.conv2d(tensor(2, 3, 8, 8), tensor(4, 3, 3, 3), padding=1),
    "max pool": lambda: F.max_pool2d(tensor(2, 3, 8, 8), 2, return_indices=True),
    "embedding": lambda: F.embedding(tensor(2, 5, dtype=torch.int64), tensor(9, 4)),
    "cross entropy": lambda: F.cross_entropy(tensor(4, 9), tensor(4, dtype=torch.int64)),
    "index by numbers": lambda: tensor(4, 6)[tensor(3, dtype=torch.int64)],
    "cat": lambda: torch.cat([tensor(2, 3), tensor(4, 3)]),
    "stack": lambda: torch.stack([tensor(3), tensor(3)], 1),
    "where": lambda: torch.where(tensor(4, dtype=torch.bool), tensor(4), 0.0),
    "empty_like": lambda: torch.empty_like(tensor(4, 6).t()),
    "makers": lambda: (torch.zeros(4, device=CUDA), torch.arange(5, device=CUDA), torch.full((2,), 1.5, device=CUDA)),
    "foreach": lambda: torch._foreach_mul([tensor(4), tensor(2, 3), tensor(4)], 2.0),
    "foreach in place": lambda: torch._foreach_add_([tensor(4), tensor(2)], [tensor(4), tensor(2)], alpha=0.5),
    "foreach, scalars": lambda: torch._foreach_addcdiv_([tensor(4), tensor(2)], *[[tensor(4), tensor(2)]] * 2, [0.1, 0.2]),
    "foreach norm": lambda: torch._foreach_norm([tensor(4), tensor(2, dtype=torch.bfloat16)]),
    "complex": lambda: (tensor(4, dtype=torch.complex64).conj() * 2).real,
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_a_result_by_rule_is_what_the_mode_gives(mode: CudaFakeMode, name: str) -> None:
    """The second call is answered by rule, and shows shape, strides, dtype, keys and aliasing of the mode's own answer."""
    OPERATORS[name]()
    before = mode.rules.hits
    OPERATORS[name]()
    assert mode.rules.hits > before


def test_lists_by_one_place_of_each_kind_are_what_the_mode_gives(mode: CudaFakeMode) -> None:
    """A foreach result is the mode's own, place by place, though only one place of each kind was asked about."""

    def grads() -> list[Any]:
        return [tensor(4), tensor(2, 3), tensor(4), tensor(4, dtype=torch.bfloat16), tensor(3, 2).t(), tensor(2, 3)]

    for call in (
        lambda: torch._foreach_sqrt(grads()),
        lambda: torch._foreach_mul(grads(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        lambda: torch._foreach_add(grads(), grads(), alpha=0.5),
        lambda: torch._foreach_norm(grads(), 2.0),
    ):
        mode.rules.checking, before = True, mode.rules.by_places
        own = call()
        mode.rules.forget()
        mode.rules.checking = False
        ours = call()
        assert mode.rules.by_places == before + 1
        assert [look(each) for each in ours] == [look(each) for each in own]
        assert len({t.untyped_storage()._cdata for t in ours}) == len(ours)


def test_a_tensor_given_other_memory_is_another(mode: CudaFakeMode) -> None:
    """Shapes are looked at in every call: ``.data``, ``resize_`` and ``t_`` change what follows."""
    x = tensor(4, 6)
    assert (x * 2).shape == (4, 6)
    x.data = tensor(2, 2)
    assert (x * 2).shape == (2, 2)
    x.resize_(3, 5).t_()
    assert (x * 2).shape == (5, 3)
    assert (x * 2).stride() == (1, 5)


def test_values_have_no_rule(mode: CudaFakeMode) -> None:
    """Known values stay known and are computed with, each by itself, and unknown ones are refused every time."""
    assert [torch.tensor(float(value)).add_(1).item() for value in range(3)] == [1.0, 2.0, 3.0]
    for _ in range(2):
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            tensor(1).item()
        with pytest.raises(torch._subclasses.fake_tensor.DynamicOutputShapeException):
            tensor(4).nonzero()
        with pytest.raises(torch._subclasses.fake_tensor.DynamicOutputShapeException):
            tensor(4)[tensor(4, dtype=torch.bool)]


def told(traced: Traced) -> list[Any]:
    """A tape, with buffers numbered as they are born, and the operators behind it."""
    numbers: dict[int, int] = {}
    lines: list[Any] = []
    for event in traced.tape:
        if isinstance(event, Mark):
            lines.append(event)
        else:
            assert isinstance(event, Alloc | Free)
            numbers.setdefault(id(event.buffer), len(numbers))
            lines.append((type(event).__name__, numbers[id(event.buffer)], event.buffer))
    return [*lines, sorted(traced.operators.items())]


@pytest.mark.parametrize(
    "asked",
    [
        {"model": LLAMA, "precision": "amp-bf16", "optimizer": "adamw", "activation_checkpointing": "full"},
        {
            "model": GPT2,
            "precision": "amp-fp16",
            "optimizer": "adamw",
            "max_grad_norm": 1.0,
            "gradient_accumulation_steps": 2,
            "attention": "eager",
        },
        {"model": VIT, "precision": "fp32", "optimizer": "sgd", "image_size": 32},
    ],
    ids=lambda asked: "-".join([asked["model"]["model_type"], asked["precision"], asked["optimizer"]]),
)
def test_a_tape_is_the_same_without_rules(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Event for event, with rules checked, with rules, and with none, values drawn and garbage collected as ever."""
    length = {} if asked["model"] is VIT else {"sequence_length": 16}
    job = read_job({"micro_batch_size": 2, **length, **asked})
    ruled = told(trace_job(job))
    monkeypatch.setattr(shapes.Rules, "checking", True)
    assert told(trace_job(job)) == ruled
    monkeypatch.setattr(shapes.Rules, "answer", lambda self, *call: self.ask(*call))
    monkeypatch.setattr(thrift, "FILLERS", frozenset())
    monkeypatch.setattr(loop, "own_garbage", contextlib.nullcontext)
    assert told(trace_job(job)) == ruled


def test_a_compiled_part_is_traced() -> None:
    """``torch.compile`` inside a module stays out of the modes: it would end the process."""

    class Part(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
            self.compiled = torch.compile(self.inner.forward, backend="eager")

        def forward(self, x: Any) -> Any:
            return self.compiled(x)

    traced = trace_module(Part(), read_job({"model": "any", "micro_batch_size": 2}), Feed(), [torch.empty(2, 8)])
    assert traced.operators["aten.addmm.default"] >= 4


def test_nothing_is_left_changed() -> None:
    """After a trace, ``torch.nn.init`` fills again and the collector runs as before."""
    gc.unfreeze()
    before = (vars(torch.nn.init)["normal_"], gc.isenabled(), gc.get_freeze_count())
    trace_job(read_job({"model": LLAMA, "micro_batch_size": 1, "sequence_length": 8}))
    assert (vars(torch.nn.init)["normal_"], gc.isenabled(), gc.get_freeze_count()) == before
    with thrift.no_values():
        assert torch.nn.init.ones_(torch.empty(3)).tolist() == [1.0, 1.0, 1.0]
