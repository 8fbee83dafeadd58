"""accelerate: `accelerate estimate-memory`, its column "Training using Adam".

The command takes its config from the Hub; here the same functions are called on a config that is given, as its gather_data
does: AutoModel in FP32 on the meta device, calculate_maximum_sizes, estimate_training_usage, and the largest of its parts.
"""

import torch
from accelerate import init_empty_weights
from accelerate.commands.estimate import estimate_training_usage
from accelerate.utils import calculate_maximum_sizes
from transformers import AutoConfig, AutoModel
from worker import answer, one_rank, optimizer, recomputation, serve, whole

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def estimate(case):
    """Of a step: training with Adam; else the model's size in its dtype, without adapters."""
    one_rank(case)
    if case["kind"] == "train_step":
        whole(case)
        recomputation(case, ("none",))
        optimizer(case, {"adamw": "Adam"})
    config = AutoConfig.for_model(**case["config"])
    with init_empty_weights():
        model = AutoModel.from_config(config, torch_dtype=torch.float32)
    total, _ = calculate_maximum_sizes(model)
    dtypes = case["dtypes"]
    if case["kind"] == "model_init":
        return answer(total * BYTES[dtypes["parameters"]] // 4)
    mixed = "float32" if dtypes["compute"] == "fp32" else "float16"
    return answer(max(estimate_training_usage(total, mixed).values()))


serve("accelerate", estimate)
