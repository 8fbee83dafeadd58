"""EleutherAI's "Transformer Math 101", restated from its text (EleutherAI/website 0a0e0eab content-blog/transformer-math.md).

Formulas and no tool: they are evaluated here as the text gives them, with the parameters counted tensor by tensor.
"""

from worker import answer, known_ranks, optimizer, recomputation, serve, steps_only, whole

SIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
MOMENTS = {"adamw": 8, "adamw8bit": 2}  # "Optimizer States": momentum and variance, 4 + 4 bytes, or 1 + 1 in 8 bit
COPY = 4  # "Optimizer States": the FP32 copy of the parameters that mixed precision keeps


def estimate(case):
    """Model + optimizer + activations + gradients ("Total Training Memory"), split as "Sharded Optimizers" and "3D" have it."""
    steps_only(case)
    whole(case)
    ranks, dtypes, count = known_ranks(case), case["dtypes"], case["parameters"]
    moments = optimizer(case, MOMENTS)
    mixed = dtypes["master"] or dtypes["compute"] != dtypes["parameters"]
    model = count * SIZE[dtypes["compute"]]  # "Model Memory": 2 bytes in mixed precision, 4 in FP32
    states = count * (moments + (COPY if mixed else 0))
    gradients = count * SIZE[dtypes["gradients"]]  # "Gradients": 4 bytes in FP32, 2 in FP16
    split = ranks["tp"] * ranks["pp"]
    total = ranks["dp"] * split
    model /= split  # "3D Parallelism": model memory over pipe x tensor
    gradients /= ranks["pp"]  # "3D Parallelism": gradient memory over pipe alone
    states /= split  # not in the text without ZeRO: states follow the parameters that a rank has
    if ranks["zero"] >= 1:
        states = states * split / total  # "Sharded Optimizers": optimizer memory over all GPUs
    if ranks["zero"] >= 2:
        gradients = gradients * ranks["pp"] / total
    if ranks["zero"] == 3:
        model = model * split / total  # its live parameters are an option of DeepSpeed's, and not counted
    return answer(model + states + gradients + activations(case, ranks["tp"]))


def activations(case, t):
    """By "Activations and Batch Size": s b h L (10 + 24/t + 5 a s / (h t)), or 2 s b h L with full recomputation.

    The last term is what attention keeps; a kernel that recomputes it in backward has the text's selective recomputation.
    """
    config = case["config"]
    layers, heads, hidden = (
        config.get(key, config.get(other))
        for key, other in (("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head"), ("hidden_size", "n_embd"))
    )
    s = case["sequence_length"]
    tokens = s * case["micro_batch_size"] * hidden * layers
    if recomputation(case) == "full":
        return 2 * tokens
    return tokens * (10 + 24 / t + (5 * heads * s / (hidden * t) if case["eager"] else 0))


serve(None, estimate)
