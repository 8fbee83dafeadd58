"""llm-analysis: LLMAnalysis.training, weights + gradients + optimizer states + activations of one GPU of many.

The GPU's memory is set beyond any model's, for it refuses a batch that its own estimate does not fit. A gated MLP is given as
the two matrices of the same parameters that its shipped Llama configs have.
"""

from llm_analysis.analysis import ActivationRecomputation, DSZeRO, LLMAnalysis
from llm_analysis.config import DtypeConfig, GPUConfig, ModelConfig, ParallelismConfig
from llm_analysis.logger import logger
from worker import answer, known_ranks, optimizer, recomputation, serve, steps_only, whole

BITS = {"bf16": 16, "fp16": 16, "fp32": 32}
WORDS = {"adamw": "adamw", "adamw8bit": "adamw8bit"}
GATED = ("llama", "gemma", "gemma2", "phi3", "qwen3")
KEYS = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embd"}
TOTAL = "(weight+op_state+grad+act)_memory_per_gpu"
logger.setLevel("ERROR")


def estimate(case):
    """Its sum of four."""
    steps_only(case)
    whole(case)
    ranks, dtypes = known_ranks(case), case["dtypes"]
    optimizer(case, WORDS)
    policy = {"none": ActivationRecomputation.NONE, "full": ActivationRecomputation.FULL}[recomputation(case)]
    states, master = states_of(case, dtypes)
    analysis = LLMAnalysis(
        model(case), GPUConfig("any", 1e6, 2000, 300, 8e-6, 300),
        DtypeConfig("own", *3 * (BITS[dtypes["compute"]],)),
        ParallelismConfig(tp_size=ranks["tp"], pp_size=ranks["pp"], dp_size=ranks["dp"]), flops_efficiency=1,
    )  # fmt: skip
    told = analysis.training(
        batch_size_per_gpu=case["micro_batch_size"], seq_len=case["sequence_length"], activation_recomputation=policy,
        ds_zero=DSZeRO(ranks["zero"]), master_weights_dtype_bytes=master, other_op_bytes=states,
        flash_attn=not case["eager"], mlp_gated_linear_units=case["config"]["model_type"] in GATED,
    )  # fmt: skip
    return answer(told[TOTAL])


def states_of(case, dtypes):
    """``other_op_bytes`` and ``master_weights_dtype_bytes``, whose sum is the optimizer's and the second the gradients'.

    Mixed precision is what it takes by default: weights of 16 bits, and an FP32 copy in the optimizer.
    """
    mixed = dtypes["master"] or dtypes["compute"] != dtypes["parameters"]
    gradients = BITS[dtypes["gradients"]] // 8
    moments = 2 if case["optimizer"] == "adamw8bit" else 8 if mixed else 2 * BITS[dtypes["parameters"]] // 8
    return moments + (4 if mixed else 0) - gradients, gradients


def model(case):
    """Its own config; GPT-2's keys are other ones."""
    config = case["config"]
    layers, heads, hidden = (config.get(key, config.get(other)) for key, other in KEYS.items())
    inner = config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
    inner = inner * 3 // 2 if config["model_type"] in GATED else inner
    kv = config.get("num_key_value_heads") or (1 if config.get("multi_query") else heads)
    return ModelConfig(
        "case", layers, heads, hidden, config["vocab_size"], max_seq_len=1 << 20, num_key_value_heads=kv,
        ffn_embed_dim=inner, expansion_ratio=inner / hidden, model_type=config["model_type"],
    )  # fmt: skip


serve("llm-analysis", estimate)
