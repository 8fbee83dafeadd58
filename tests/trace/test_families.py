"""Traces of transformers' own models: held against real forwards on the CPU and against the analytic engine, to the byte."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the trace runs torch's own dispatcher")
pytest.importorskip("transformers", reason="the models are transformers' own classes")

from memcalc.api import estimate_mapping  # noqa: E402
from memcalc.engines.trace.estimate import trace_job  # noqa: E402
from memcalc.job import read_job  # noqa: E402
from tests.trace.oracle import really_saved, traced_activations  # noqa: E402

TOKENS = {"vocab_size": 99, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, **TOKENS}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32,
          "patch_size": 8}  # fmt: skip
FEW = {"sequence_length": 8}
WHISPER = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
           "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 99, "num_mel_bins": 8, "max_source_positions": 10,
           "max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
           "dropout": 0.0}  # fmt: skip
MODELS = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 99, "n_positions": 32,
             "bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, FEW),
    "llama": ("LlamaForCausalLM", {**SMALL, "num_key_value_heads": 1}, FEW),
    "bert": ("BertForPreTraining", {**SMALL, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, FEW),
    "t5": ("T5ForConditionalGeneration", {"d_model": 32, "d_ff": 48, "d_kv": 16, "num_heads": 2, "num_layers": 2,
           "vocab_size": 99, "dropout_rate": 0.0}, {"sequence_length": 6, "source_length": 11}),
    "mixtral": ("MixtralForCausalLM", {**SMALL, "num_key_value_heads": 1, "num_local_experts": 4,
                "num_experts_per_tok": 2}, FEW),
    "mamba": ("MambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 99, "state_size": 4}, FEW),
    "vit": ("ViTForImageClassification", VISION, {"image_size": 32}),
    "clip": ("CLIPModel", {"text_config": {**SMALL, "max_position_embeddings": 20}, "vision_config": VISION,
             "projection_dim": 16}, {"sequence_length": 8, "image_size": 32}),
    "resnet": ("ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
               "layer_type": "bottleneck"}, {"image_size": 32}),
    "whisper": ("WhisperForConditionalGeneration", WHISPER, {"sequence_length": 6}),
}  # fmt: skip
"""No dropout, which is where a CPU and a GPU save different things."""


def asked(name, shallow=False, **keys):
    """The job of one of the models, of one layer where it is shallow."""
    architecture, config, sizes = MODELS[name]
    one = {key: 1 for key in ("num_hidden_layers", "n_layer", "num_layers") if shallow and key in config}
    model = {"model_type": name, "architectures": [architecture], **config, **one}
    return {"model": model, "micro_batch_size": 2, "optimizer": "sgd", "precision": "fp32", **sizes, **keys}


@pytest.mark.parametrize("name", MODELS)
def test_saved_activations_are_those_of_a_real_forward(name):
    """What is alive when backward begins is, to the byte, what a real FP32 forward saves with eager attention, and the loss."""
    job = read_job(asked(name, attention="eager"))
    found = trace_job(job)
    real = really_saved(job)
    assert (traced_activations(found.tape, 1), traced_activations(found.tape, 2)) == (real, real)


CASES = [
    ("gpt2", {"precision": "fp16", "optimizer": "adam"}), ("gpt2", {"precision": "amp-fp16", "max_grad_norm": 1.0}),
    ("gpt2", {"precision": "amp-fp16", "optimizer_args": {"fused": True}}),
    ("gpt2", {"precision": "amp-fp16", "optimizer_args": {"fused": True}, "max_grad_norm": 1.0}),
    ("llama", {"precision": "amp-bf16", "activation_checkpointing": "full"}), ("llama", {"precision": "bf16-pure"}),
    ("bert", {"precision": "bf16", "optimizer": "adamw"}), ("mixtral", {"precision": "amp-bf16"}),
    ("t5", {"precision": "amp-bf16", "gradient_accumulation_steps": 2}), ("clip", {"precision": "amp-fp16"}),
    ("resnet", {"precision": "amp-fp16"}), ("whisper", {"precision": "fp16-pure", "activation_checkpointing": "selective"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keys"), CASES, ids=[f"{name}-{keys['precision']}" for name, keys in CASES])
def test_what_is_kept_equals_the_analytic_engine(name, keys):
    """Parameters, masters, gradients, buffers and states by part, on the device and the host, agree between the two engines."""
    job = asked(name, shallow=True, **{"optimizer": "adamw", **keys})
    trace, analytic = trace_job(read_job(job)).footprint, estimate_mapping(job)
    for component in ("parameters", "master_parameters", "buffers", "gradients", "optimizer_states"):
        assert getattr(trace.components, component) == getattr(analytic.components, component), component
    assert trace.optimizer_states == {part: size for part, size in analytic.optimizer_states.items() if size}
    assert trace.host["optimizer_states"] == analytic.host["optimizer_states"]
    assert trace.states.requested == analytic.states.requested
    assert sum(trace.at_peak.values()) == trace.peak.rounded


def test_experts_run_by_grouped_multiplication():
    """The class of transformers chooses grouped matrix multiplication for a mixture on a GPU, forward and backward."""
    found = trace_job(read_job(asked("mixtral", precision="bf16-pure")))
    assert (
        found.operators["aten._grouped_mm.default"] == 2 * 2 * 2 * 3
    )  # iterations, layers, projections; forward and 2 backward
