"""What goes wrong is a record or one clear error, and takes nothing else with it."""

from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip("torch", reason="a measurement is a real step")

from memcalc.campaign import RunSettings  # noqa: E402
from memcalc.engines.measure import measure_mapping  # noqa: E402
from memcalc.engines.measure.here import Ask, failure_of, measure_here  # noqa: E402
from memcalc.errors import InputError, MissingPackageError  # noqa: E402
from memcalc.runtime import build  # noqa: E402
from tests.measure.against import assert_every_byte  # noqa: E402


def measure(factory, settings=None, **request):
    asked = {"model": f"py:tests.measure.small:{factory}", "precision": "fp32", "micro_batch_size": 2, **request}
    return measure_here(Ask(request=asked, settings=RunSettings(**{"iterations": 2, **(settings or {})})))


def test_a_failing_forward_is_recorded():
    """The record says which error, in which phase of which iteration, and keeps the phases before it."""
    record = measure("broken")
    failure = record.failure
    assert (record.status, failure.kind, failure.phase, failure.iteration) == ("failed", "raised", "forward", 1)
    assert failure.message == "KeyError: 'no such thing'"
    assert [phase.what for phase in record.ranks[0].init][-1] == "optimizer"
    assert record.ranks[0].iterations == []


def test_running_out_of_memory_is_data():
    """An allocation no machine can serve is recorded with the bytes that were asked for."""
    record = measure("hungry")
    assert (record.status, record.failure.kind) == ("out_of_memory", "out_of_memory")
    assert record.failure.asked == 2**60
    assert record.failure.phase == "forward"


def test_what_the_gpu_s_allocator_saw_is_data():
    """The observer's figures, in bytes, become the failure's: asked, free, total, allocated, reserved."""

    class Recorder:
        where = ("backward", 2)

    class Question:
        class here:  # noqa: N801
            rank = 0

    class Loop:
        recorder, question = Recorder, Question

    seen = {"asked": 512, "free": 7, "allocated": 9, "total": 80, "reserved": 70}
    failure = failure_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512 bytes."), Loop, seen)
    assert failure.kind == "out_of_memory"
    assert {key: getattr(failure, key) for key in seen} == seen


def test_losses_that_are_not_finite_are_said():
    """A loss of infinity is null in the record, with a warning; the bytes are as good as any."""
    record = measure("infinite")
    assert record.status == "measured"
    assert [iteration.loss for iteration in record.ranks[0].iterations] == [None, None]
    assert "the loss was not finite in iteration 1, 2" in record.ranks[0].warnings


def test_steps_that_are_never_taken_are_a_failure():
    """Under loss scaling infinite gradients leave every step out, so no state is born and the record says why."""
    record = measure("infinite", precision="fp16")
    assert (record.status, record.failure.kind) == ("failed", "non_finite")
    scales = [iteration.loss_scale for iteration in record.ranks[0].iterations]
    assert scales == sorted(scales, reverse=True)
    assert scales[-1] < scales[0]


def test_parameters_without_gradients_are_named():
    """A parameter the loss does not depend on has no gradient and no state, and a frozen one is not asked about."""
    record = measure("frozen_half")
    assert any("depend on unused" in warning for warning in record.ranks[0].warnings)
    gradients = {tensor.name for tensor in record.ranks[0].tensors if tensor.component == "gradients"}
    assert gradients == {"1.weight.grad", "1.bias.grad"}
    assert record.model.num_trainable_parameters == 8 * 2 + 2 + 5


@pytest.mark.parametrize(
    ("request_", "kind", "says"),
    [
        ({"optimizer": "apex:FusedAdam"}, "missing_package", "needs a package that is not installed; pip install apex"),
        ({"optimizer": "torch:LBFGS"}, "refused", "evaluates the model again inside its step"),
        ({"optimizer_args": {"betas": [2.0, 0.9]}}, "refused", "refuses its arguments (Invalid beta parameter"),
        (
            {"activation_checkpointing": "full", "model": "py:tests.measure.small:two_inputs"},
            "refused",
            "finds no list of layers",
        ),
        ({"model": {"params": 1000}}, "refused", "has no code that could be run"),
        ({"model": "nonsuch"}, "refused", "is neither a shipped model nor a path"),
        ({"precision": "apex-o2"}, "refused", "is a layout that torch alone does not run"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(request_, kind, says):
    """Each reason is a record's failure, in the words a person can act on."""
    record = measure("transformer", **request_)
    assert (record.status, record.failure.kind) == ("failed", kind)
    assert says in record.failure.message


def test_a_job_that_cannot_be_is_no_record():
    """What no machine could run is the asker's error, before anything is measured."""
    with pytest.raises(InputError, match="keeps masters, which are updated after it; use precision bf16-pure"):
        measure("transformer", optimizer="lomo", precision="fp16")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (None, "model: torchvision is not installed; pip install 'memcalc[measure]'"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "cannot be loaded here (operator torchvision::nms"),
        ("import nonsuch", "cannot be loaded here (No module named 'nonsuch'); install the torchvision that goes with torch"),
    ],
)
def test_a_package_that_is_missing_or_of_another_torch_is_said(code, says, tmp_path, monkeypatch):
    """Without torchvision, or with one built for another torch, its models are a failure of record that says which it is."""
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    if code is None:
        monkeypatch.setitem(sys.modules, "torchvision", None)
        monkeypatch.setattr(build, "import_module", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name=name)))
    else:
        (tmp_path / "torchvision.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
    record = measure("transformer", model="resnet18", image_size=32)
    assert (record.status, record.failure.kind) == ("failed", "missing_package")
    assert says in record.failure.message


def test_models_of_torchvision_are_measured():
    """ResNet and VisionTransformer of torchvision hold what their configs predict, where it goes with this torch."""
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        pytest.skip(f"torchvision cannot be imported beside torch {torch.__version__}: {error}")
    for model in ({"base": "resnet18", "num_labels": 5}, {"base": "vit_b_16", "image_size": 32, "num_hidden_layers": 1}):
        assert_every_byte(measure("transformer", model=model, image_size=32))


def test_without_a_gpu_cuda_is_an_error():
    """Asking for a GPU that is not there is refused before anything runs, with the way out."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(MissingPackageError, match=r"^--device: cuda cannot be used: .*; use --device cpu"):
        measure_here(Ask(request={"model": "mlp"}, device="cuda"))


def test_code_is_not_run_unasked():
    """A job from a file may not run code by itself."""
    with pytest.raises(InputError, match="trust it with --allow-code"):
        measure_mapping({"model": "py:os:getcwd"}, allow_code=False)


@pytest.mark.parametrize(
    ("factory", "settings", "kind", "says"),
    [
        ("killed", {}, "killed", "ended by SIGKILL, as the kernel does when memory runs out"),
        ("sleeping", {"timeout": 2.0}, "time_out", "took more than 2 s and was ended"),
    ],
)
def test_a_process_that_dies_or_hangs_is_recorded(factory, settings, kind, says):
    """Killed by the kernel or out of time, a case ends as a record; whoever started it goes on."""
    job = {"model": f"py:tests.measure.small:{factory}", "precision": "fp32"}
    record = measure_mapping(job, settings=RunSettings(iterations=1, **settings), case="odd")
    assert (record.case, record.status, record.failure.kind, record.failure.message) == ("odd", "failed", kind, says)
