"""fitcheck-llm: weights, adapters, optimizer, gradients, activations, overhead, of one GPU.

Its command fetches config.json and the parameter count from the Hub; here both are handed to the same function, so that its own
checks (2 % between the count and its formula, no mixture of experts) decide what it takes.
"""

import json
import tempfile
from pathlib import Path

import fitcheck
from fitcheck import GPU_DB, TrainingConfig, config_parser
from fitcheck.memory.lora import LORA_TARGETS_FULL
from worker import NotCovered, answer, one_rank, optimizer, recomputation, serve, steps_only

MIB = 2**20
OPTIMIZERS = {"adamw": "adamw", "adamw8bit": "adam8bit"}


def estimate(case):
    """The five formulas as tensors, and with its overhead as the process."""
    steps_only(case)
    one_rank(case)
    lora, dtypes = case["lora"], case["dtypes"]
    other = set(lora["pieces"]) - set(LORA_TARGETS_FULL) if lora else set()
    if other:
        raise NotCovered("adapters on " + ", ".join(sorted(other)))
    training = TrainingConfig(
        precision=dtypes["compute"], quantization="nf4" if case["quantized"] else "none",
        double_quant=case["quantized"] == "nf4-dq", optimizer=optimizer(case, OPTIMIZERS),
        optimizer_dtype="bf16" if not lora and dtypes["parameters"] == "bf16" and not dtypes["master"] else "fp32",
        batch_size=case["micro_batch_size"], seq_len=case["sequence_length"], lora_rank=lora["rank"] if lora else None,
        lora_targets=lora["pieces"] if lora else [], grad_checkpoint=recomputation(case) == "full",
        flash_attn=not case["eager"],
    )  # fmt: skip
    report = fitcheck.estimate(model(case), training, GPU_DB["a100-80"])
    return answer((report.total_mib - report.overhead_mib) * MIB, report.total_mib * MIB)


def model(case):
    """Its own reading of a config, with what it would fetch put in."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(case["config"]), encoding="utf-8")
        config_parser.hf_hub_download = lambda **_: str(path)
        config_parser._reported_param_count = lambda *_: case["parameters"]
        return config_parser.fetch_model_config("case/" + case["id"])


serve("fitcheck-llm", estimate)
