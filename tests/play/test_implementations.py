"""Implementations and adapters: their tensors, what they save, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from memcalc import api
from memcalc.adapters import adapted
from memcalc.engines.analytic.many import peaks
from memcalc.engines.analytic.step import play_job
from memcalc.errors import InputError, NotModelledError
from memcalc.job import read_job
from memcalc.prepared import prepared
from memcalc.quantization import packed
from memcalc.readers.source import read_model
from memcalc.tape.events import Alloc, Mark
from memcalc.tape.unroll import unroll
from memcalc.tensors import Tensor

LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 96}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 61, "n_positions": 16}
JOB = {"model": LLAMA, "precision": "bf16-pure", "micro_batch_size": 2, "sequence_length": 32, "optimizer": "adamw"}
LITGPT = {**JOB, "implementation": "litgpt", "implementation_args": {"version": "2024-05-06"}}
LORA = {"r": 2, "lora_dropout": 0.1}


def model_of(job):
    """The model that a job trains."""
    read = read_job(job)
    return prepared(read_model(read.model), read)


def saved(job):
    """Bytes alive where backward begins."""
    live = 0
    for event in unroll(play_job(job).events):
        if isinstance(event, Mark):
            if event.phase == "backward":
                return live
        else:
            live += int(event.buffer.requested) * (1 if isinstance(event, Alloc) else -1)
    raise AssertionError("there is no backward")


def test_litgpt_has_its_own_tensors():
    """Query, key and value are one matrix, the head is no tied one, and names are litgpt's."""
    shapes = {tensor.name: tensor.shape for tensor in model_of(LITGPT).tensors}
    assert shapes["transformer.h.*.attn.attn.weight"] == ((4 + 2 * 2) * 16, 64)
    assert shapes["lm_head.weight"] == shapes["transformer.wte.weight"] == (96, 64)
    assert len(shapes) == 3 + 2 + 2 + 3


def test_litgpt_trains_its_own_adapters():
    """One A for query and value together, B below each other, and nothing else of the model trains."""
    job = {**LITGPT, "lora": {**LORA, "target_modules": ["query", "value", "mlp"]}}
    trained = {tensor.name: tensor.shape for tensor in model_of(job).parameters if tensor.trainable}
    assert trained["transformer.h.*.attn.attn.lora_A"] == (4, 64)
    assert trained["transformer.h.*.attn.attn.lora_B"] == (64 + 32, 2)
    assert {name.rpartition(".")[2] for name in trained} == {"lora_A", "lora_B"}
    assert len(trained) == 2 + 3 * 2


def test_litgpt_changed_over_time():
    """An RMSNorm in FP32 (from October 2023) keeps 2 bytes more of each feature than one in BF16, in every norm of a block."""
    old, new = ({**LITGPT, "implementation_args": {"version": version}} for version in ("2023-10-16", "2023-10-27"))
    tokens, width, norms = 2 * 32, 64, 2 * 2 + 1
    # own: x in BF16, which the residual holds once for two norms and the embedding; FP32: a copy of x for each, and x_normed,
    # which the trained weight's gradient needs, in FP32
    assert saved(new) - saved(old) >= norms * tokens * width * 4


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"implementation": "litgtp"}, InputError, "implementation: litgtp is not an implementation"),
        ({"implementation": "nemo", "implementation_args": {}}, InputError, "whose layers are modelled"),
        ({"implementation_args": {"date": "2024"}}, InputError, "implementation_args.date: 2024 is not known to litgpt"),
        ({"implementation_args": {"version": "2022-01-01"}}, InputError, "is before what is known of litgpt"),
        ({"implementation_args": {"script": "chat"}}, InputError, "is no script of litgpt's"),
        ({"model": GPT2}, NotModelledError, "is not modelled for GPT2LMHeadModel"),
        ({"lora": {"target_modules": ["q_proj"]}}, InputError, "is nothing that litgpt adapts"),
        ({"quantization": "nf4"}, InputError, "is of a frozen base"),
        ({"implementation": "transformers"}, InputError, "are of no use to transformers"),
    ],
)
def test_refusals(changes, kind, message):
    """What is not known is refused with a reason, and never played as something else."""
    with pytest.raises(kind, match=message):
        model_of({**LITGPT, **changes})


def test_nanogpt_ties_its_head_and_has_no_biases():
    """GPT-2's config as nanoGPT builds it: matrices (out, in), no bias unless asked, one table for input and output."""
    job = {**JOB, "model": GPT2, "sequence_length": 16, "implementation": "nanogpt"}
    plain, biased = model_of(job), model_of({**job, "implementation_args": {"bias": True}})
    shapes = {tensor.name: tensor.shape for tensor in plain.tensors}
    assert shapes["transformer.h.*.attn.c_attn.weight"] == (96, 32)
    assert not any(name.endswith("bias") for name in shapes)
    assert plain.tied == {"lm_head.weight": "transformer.wte.weight"}
    assert int(biased.num_parameters - plain.num_parameters) == 2 * (96 + 32 + 128 + 32 + 32 + 32) + 32


def test_frozen_weights_have_no_gradient():
    """With adapters, backward leaves the gradients of A and B alone: 2 layers of q and v, BF16."""
    gradients = play_job({**JOB, "lora": LORA}).gradients
    sizes = sum(int(buffer.requested) * int(times) for buffer, times in gradients)
    assert sizes == 2 * 2 * (2 * 64 + 64 * 2 + 2 * 64 + 32 * 2)


def test_an_adapter_keeps_its_dropped_input():
    """Dropout before A keeps a mask of bytes and its own result, in each layer's q and v; without it A shares the input of the
    two, which nothing else keeps, so that one copy a layer goes instead of two.
    """
    tokens, width, layers, adapted_modules = 2 * 32, 64, 2, 2
    with_mask, without = (saved({**JOB, "lora": {**LORA, "lora_dropout": share}}) for share in (0.1, 0.0))
    masks = (layers - 1) * adapted_modules * tokens * width  # the first layer's input asks for no gradient
    results = layers * (adapted_modules - 1) * tokens * width * 2
    assert with_mask - without == results + masks


def test_packed_matrices():
    """NF4: half a byte a weight, FP32 scales of 64 or bytes with scales of 256, and tables; a matrix of 96 by 64."""
    weight = Tensor("w", (96, 64), kind="linear")
    assert sum(int(one.nbytes) for one in packed(weight, nested=False)) == 3072 + 96 * 4 + 64
    assert sum(int(one.nbytes) for one in packed(weight, nested=True)) == 3072 + 96 + 64 + 4 + 1024 + 4


def test_a_quantised_base_leaves_its_head():
    """Every matrix but what reads out the vocabulary is packed, and biases and norms are not."""
    model = adapted(read_model(LLAMA), LORA, "nf4")
    wide = {one.name for one in model.parameters if one.dtype != "uint8" and one.kind == "linear" and not one.trainable}
    assert wide == {"base_model.model.lm_head.weight"}
    assert api.estimate_mapping({**JOB, "lora": LORA, "quantization": "nf4"}).peak.allocated is not None


def test_many_sizes_are_each_one():
    """Peaks over an array of batches are those of single jobs, with litgpt's adapters and with peft's on a packed base."""
    sizes = np.array([1, 2, 5, 8])
    for job in ({**LITGPT, "lora": LORA, "sequence_length": 160}, {**JOB, "lora": LORA, "quantization": "nf4-double"}):
        job = {**job, "lora": {**LORA, **({"target_modules": ["query", "head"]} if "implementation" in job else {})}}
        read = read_job(job)
        model = read_model(read.model)
        together = peaks(read, model, "micro_batch_size", sizes)
        for size, peak in zip(sizes, together, strict=True):
            assert api.estimate_mapping({**job, "micro_batch_size": int(size)}).peak.rounded == peak
