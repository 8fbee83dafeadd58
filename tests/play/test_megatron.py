"""Megatron-LM's GPT on Transformer Engine: counted by hand, held against the published formula and a published peak."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.played.against import heights, played
from memcalc import api
from memcalc.engines.analytic.inputs import read_inputs
from memcalc.engines.analytic.many import peaks
from memcalc.errors import InputError, NotModelledError
from memcalc.families.base import load_family
from memcalc.implementations._megatron_attention import way_of
from memcalc.implementations.megatron import WORKSPACE, held
from memcalc.job import read_job
from memcalc.kernels.behaviour import Behaviour
from memcalc.play.machine import Machine
from memcalc.play.policy import Policy
from memcalc.prepared import prepared
from memcalc.readers.source import read_model

S, B, H, A = 64, 2, 96, 4
GPT = {"model_type": "gpt2", "n_embd": H, "n_layer": 2, "n_head": A, "vocab_size": 100, "n_positions": S}
LLAMA = {"model_type": "llama", "hidden_size": H, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": A,
         "num_key_value_heads": 2, "vocab_size": 100}  # fmt: skip
JOB = {"model": GPT, "precision": "bf16-pure", "micro_batch_size": B, "sequence_length": S, "optimizer": "sgd",
       "attention": "eager", "implementation": "megatron"}  # fmt: skip
STATISTICS = 2 * 2 * 4 * S * B
"""A mean and a standard deviation in FP32, of each row under both norms."""


def each(**changes):
    """Bytes that one more layer keeps."""
    job = {**JOB, **changes}
    counts = []
    for layers in (2, 3):
        name = "n_layer" if job["model"]["model_type"] == "gpt2" else "num_hidden_layers"
        counts.append(heights(played({**job, "model": {**job["model"], name: layers}}, unrolled=False)).saved)
    return counts[1] - counts[0]


def test_the_published_formula():
    """Korthikanti et al. 2022 (arXiv:2205.05198, equation 1) count s b h (34 + 5 a s / h) for a layer of GPT; written out it is
    what is kept here, term by term, but for the norms' statistics, which they leave out.
    """
    sbh, squares = S * B * H, A * S * S * B
    attention = {"input of query, key and value: the norm's output": 2 * sbh, "query and key": 4 * sbh, "value": 2 * sbh,
                 "softmax": 2 * squares, "its dropout's mask": squares, "its dropout's output": 2 * squares,
                 "input of the projection": 2 * sbh, "dropout's mask": sbh}  # fmt: skip
    mlp = {"input of the first matrix: the norm's output": 2 * sbh, "input of GELU": 8 * sbh,
           "input of the second matrix": 8 * sbh, "dropout's mask": sbh}  # fmt: skip
    norms = {"their inputs": 4 * sbh}
    counted = sum(sum(terms.values()) for terms in (attention, mlp, norms))
    assert counted == S * B * H * (34 + 5 * A * S // H if 5 * A * S % H == 0 else 34 + 5 * A * S / H)
    assert each() == counted + STATISTICS


def test_attention_that_is_recomputed():
    """Selective recomputation leaves the formula's 34 s b h, whichever kernel attends (their section 5)."""
    for attention in ("eager", "flash", "cudnn"):
        assert each(activation_checkpointing="selective", attention=attention) == 34 * S * B * H + STATISTICS


def test_kernels_keep_a_logarithm_in_place_of_the_squares():
    """The squares go; cuDNN keeps a sum a row and its random state, flash-attn besides its result with the batch in front."""
    sums = 4 * A * S * B
    assert each(attention="cudnn") == 34 * S * B * H + STATISTICS + sums + 16
    assert each(attention="flash") == 34 * S * B * H + STATISTICS + sums + 24 + 2 * S * B * H


@pytest.mark.parametrize(("capability", "way"), [((8, 0), "flash"), ((9, 0), "fused"), ((10, 0), "fused")])
def test_the_kernel_goes_by_the_gpu(capability, way):
    """Flash-attn serves up to Hopper, where cuDNN's comes first."""
    assert way_of(Machine(Policy("bfloat16", behaviour=Behaviour(capability=capability))), 64) == way


def test_layers_that_are_recomputed():
    """Full recomputation keeps a layer's input; of groups, one input for each; of a block, all of the layers after it."""
    assert each(activation_checkpointing="full") == 2 * S * B * H
    job = {**JOB, "model": {**GPT, "n_layer": 6}, "activation_checkpointing": "full"}

    def saved(**arguments):
        return heights(played({**job, "implementation_args": arguments}, unrolled=False)).saved

    assert saved() - saved(recompute_num_layers=2) == 3 * 2 * S * B * H
    blocks = [saved(recompute_method="block", recompute_num_layers=count) for count in (2, 3)]
    assert blocks[0] - blocks[1] == each() - 2 * S * B * H


def test_without_dropout():
    """No masks, and the softmax is what the second product takes."""
    dry = {**GPT, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
    assert each() - each(model=dry) == 2 * S * B * H + 3 * A * S * S * B


def test_a_llama_layer():
    """RMSNorm keeps one number a row, rotary positions make query and key anew, and SwiGLU keeps both halves of its input."""
    wide, narrow, inner = H, H // 2, 160
    a_token = 2 * H + 2 * H + 2 * wide + 2 * narrow + 2 * narrow + 2 * wide + 2 * H + 2 * H + 4 * inner + 2 * inner
    assert each(model=LLAMA, attention="cudnn") == S * B * a_token + STATISTICS // 2 + 4 * A * S * B + 16


def test_logits():
    """Logits are kept once, in FP32, over a vocabulary padded to a multiple of 128 unless told otherwise."""
    one = {**JOB, "model": {**GPT, "tie_word_embeddings": False}}
    counts = [
        heights(played({**one, "implementation_args": {"make_vocab_size_divisible_by": each}})).saved for each in (128, 256)
    ]
    assert counts[1] - counts[0] == 4 * S * B * 128
    tensors = {tensor.name: tensor.shape for tensor in model_of(one).tensors}
    assert tensors["output_layer.weight"] == tensors["embedding.word_embeddings.weight"] == (128, H)


def model_of(job):
    """The model that a job trains."""
    read = read_job(job)
    return prepared(read_model(read.model), read)


def test_gpt_has_megatrons_tensors():
    """Query, key and value are one matrix with the norm in front of it, and the head is the embedding."""
    model = model_of(JOB)
    tensors = {tensor.name: tensor.shape for tensor in model.tensors}
    assert tensors["decoder.layers.*.self_attention.linear_qkv.weight"] == (3 * H, H)
    assert tensors["decoder.layers.*.mlp.linear_fc1.layer_norm_bias"] == (H,)
    assert model.tied == {"output_layer.weight": "embedding.word_embeddings.weight"}
    assert int(model.num_parameters) == 128 * H + S * H + 2 * (12 * H * H + 13 * H) + 2 * H


PUBLISHED = [("none", 4702430720, 581489664), ("full", 2534070272, 1232487936)]
"""Megatron-LM d98e8a64 tests/functional_tests/test_cases/gpt: gpt3_mcore_te_tp1_pp1_dist_optimizer_no_mmap_bin_files on H100
and gpt3_mcore_te_tp1_pp1_uniform_full_recompute on A100, unfused attention: allocated_bytes.all.peak, and what is left after a
step."""


@pytest.mark.parametrize(("mode", "peak", "left"), PUBLISHED)
def test_what_a_step_adds_on_a_gpu(mode, peak, left):
    """Two of Megatron's own tests say what is allocated after a step and at most: what forward and backward add to the first is
    the second, but for a block of the allocator. Gradients lie in buffers there, and are none of it at the peak, which the FP32
    logits and their gradient are.
    """
    model = {"model_type": "gpt2", "n_embd": 512, "n_layer": 12, "n_head": 8, "vocab_size": 50257, "n_positions": 1024}
    job = {**JOB, "model": model, "micro_batch_size": 4, "sequence_length": 1024, "activation_checkpointing": mode}
    top = heights(played(job, unrolled=False)).top
    read = read_job(job)
    trained = prepared(read_model(read.model), read)
    reading = read_inputs(read.training, load_family("gpt2"), trained, "bfloat16")
    inputs = [buffer for buffer, _ in held(trained, reading.batch, "bfloat16", "bfloat16") if buffer.role == "input"]
    fed = sum(int(buffer.requested) for buffer in (*inputs, *reading.buffers))
    assert abs(top + fed - (peak - left)) <= 4096


@pytest.mark.parametrize("arguments", [{}, {"recompute_num_layers": 2}, {"recompute_num_layers": 3}])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_layers_in_between_are_played_once(mode, arguments):
    """A deep stack whose turns are repeated comes to what its layers come to one by one."""
    job = {**JOB, "model": {**GPT, "n_layer": 13}, "activation_checkpointing": mode, "implementation_args": arguments}
    assert heights(played(job, unrolled=False)) == heights(played(job, unrolled=True))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model": {"model_type": "opt"}}, NotModelledError, "OPTForCausalLM; use a gpt2 or a llama config"),
        ({"model": {**GPT, "activation_function": "relu"}}, NotModelledError, "is not Megatron's fused GELU"),
        ({"model": {**LLAMA, "mlp_bias": True}}, NotModelledError, "use no biases"),
        ({"precision": "fp32"}, NotModelledError, "is not what Megatron's layers are modelled in"),
        ({"precision": "amp-bf16"}, NotModelledError, "use bf16, bf16-pure"),
        ({"attention": "math"}, NotModelledError, "is none of Transformer Engine's; use flash, cudnn or eager"),
        ({"sequence_length": 12}, NotModelledError, "is not served by the fused softmax"),
        ({"model": {**GPT, "n_embd": 24}, "attention": "flash"}, NotModelledError, "is not known to be served by flash"),
        ({"implementation_args": {"recompute_method": "some"}}, InputError, "use uniform or block"),
        ({"implementation_args": {"recompute_num_layers": 0}}, InputError, "is not a whole number over 0"),
        ({"implementation_args": {"fp8": "hybrid"}}, InputError, "is not known to megatron"),
        ({"lora": {"r": 8}}, NotModelledError, "is not modelled on megatron"),
    ],
)
def test_refusals(changes, kind, message):
    """What is not known is refused with a reason, and never played as something else."""
    with pytest.raises(kind, match=message):
        played({**JOB, **changes})


def test_many_sizes_are_each_one():
    """Peaks over an array of batches are those of single jobs, with attention and with layers recomputed."""
    sizes = np.array([1, 2, 5, 8])
    for mode in ("selective", "full"):
        job = {**JOB, "model": LLAMA, "attention": "auto", "activation_checkpointing": mode}
        read = read_job(job)
        together = peaks(read, read_model(read.model), "micro_batch_size", sizes)
        for size, peak in zip(sizes, together, strict=True):
            assert api.estimate_mapping({**job, "micro_batch_size": int(size)}).peak.rounded == peak


def test_workspace_is_held():
    """TE's products share one workspace, which is there from the first to the end."""
    found = api.estimate_mapping({**JOB, "model": LLAMA, "attention": "auto"})
    assert found.components.workspace >= WORKSPACE
