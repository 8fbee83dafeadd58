"""Whole models, tiny: forward and backward of the trace against a real run on the CPU, allocation by allocation."""

from __future__ import annotations

from difflib import SequenceMatcher

import pytest

torch = pytest.importorskip("torch", reason="the trace runs torch's own dispatcher")
transformers = pytest.importorskip("transformers", reason="the models are transformers'")

from tests.trace.backwards import in_trace, really_by_operator  # noqa: E402

SMALL = {"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 56, "num_attention_heads": 4, "vocab_size": 96}
MODELS = {
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"n_layer": 1, "n_embd": 24, "n_head": 4, "vocab_size": 96, "attn_pdrop": 0.0, "embd_pdrop": 0.0,
         "resid_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 2},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "bert": (
        "BertForMaskedLM", "BertConfig", {**SMALL, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {"num_layers": 1, "d_model": 24, "d_ff": 56, "num_heads": 4, "d_kv": 6, "vocab_size": 96, "dropout_rate": 0.0,
         "decoder_start_token_id": 0, "pad_token_id": 0},
    ),
}  # fmt: skip
ON_THE_CPU_ALONE = {
    "aten::native_layer_norm_backward": "native/cpu/layer_norm_kernel.cpp: a row of partial sums for each thread",
    "aten::embedding": "native/Embedding.cpp: a contiguous copy of the indices, which the trace has as scratch",
    "aten::embedding_dense_backward": "native/Embedding.cpp: likewise, and of the gradient",
    "aten::cumsum": "native/ReduceOps.cpp: its input in the result's dtype, which the trace has as scratch",
}
"""What CPU kernels take for themselves; the trace keeps CUDA's own account of scratch, which is left out here."""


def model_case(name, passes):
    """A tiny model's forward and backward, in FP32 with eager attention; the second pass adds to the first's gradients."""
    cls, config, keys = MODELS[name]

    def make(device):
        config_ = getattr(transformers, config)(**keys, use_cache=False, attn_implementation="eager")
        with torch.device(device):
            model = getattr(transformers, cls)(config_).train()
        ids = torch.ones(2, 16, dtype=torch.long, device=device)

        def run():
            for _ in range(passes):
                model(input_ids=ids, labels=ids).loss.backward()

        return run

    return make


def beside(real, trace):
    """What a real run has beside the trace, as (bytes, operator); nothing may be in the trace alone."""
    blocks = SequenceMatcher(None, [nbytes for nbytes, _ in real], trace, autojunk=False).get_opcodes()
    assert {kind for kind, *_ in blocks} <= {"equal", "delete"}
    return [event for kind, begin, end, *_ in blocks if kind == "delete" for event in real[begin:end]]


@pytest.mark.parametrize(("name", "passes"), [("gpt2", 1), ("llama", 2), ("bert", 1), ("t5", 1)])
def test_a_model_takes_and_gives_back_what_it_does_for_real(name, passes):
    """Each birth and each death of forward and backward, in order; what is left over is scratch of the CPU's kernels."""
    make = model_case(name, passes)
    scratch = beside(really_by_operator(make), in_trace(make))
    assert sum(nbytes for nbytes, _ in scratch) == 0
    assert {operator for nbytes, operator in scratch if nbytes < 0} <= set(ON_THE_CPU_ALONE)
