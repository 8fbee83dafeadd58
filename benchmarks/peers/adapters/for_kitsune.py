"""torch-kitsune: predict_memory and estimate_lora_memory on a module that is built on the meta device.

As it is documented, a text model's input is its length, and the module is called with a float tensor of that shape. With
``--tokens`` the module is wrapped so that it casts what it is given to token ids, and has a mask given, which lets its forward
pass run on the meta device.
"""

import sys

import torch
from kitsune.predict import LoRAConfig, estimate_lora_memory, predict_memory
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from worker import answer, one_rank, optimizer, recomputation, serve, steps_only

TOKENS = "--tokens" in sys.argv
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OPTIMIZERS = {"adamw": "adamw", "adamw8bit": "adam8bit"}


class Tokens(torch.nn.Module):
    """A model that takes its token ids as floats."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        """Logits."""
        mask = torch.ones(ids.shape[0], 1, ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device)
        return self.model(ids.long(), attention_mask=mask, use_cache=False).logits


def build(case, dtype):
    """As the run had it, without data."""
    config = AutoConfig.for_model(**case["config"])
    kind = AutoModelForSequenceClassification if config.model_type == "bert" else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config, dtype=dtype)
    return Tokens(model) if TOKENS else model


def estimate(case):
    """Without and with its 15 % for allocator and fragmentation."""
    steps_only(case)
    one_rank(case)
    recomputation(case, ("none",))
    states = optimizer(case, OPTIMIZERS)
    shape, batch = (case["sequence_length"],), case["micro_batch_size"]
    compute = DTYPES[case["dtypes"]["compute"]]
    if case["lora"]:
        # its QLoRA takes 4 of 32 bits of what the base has, so that the base is given in FP32
        base = torch.float32 if case["quantized"] else DTYPES[case["dtypes"]["parameters"]]
        told = LoRAConfig(rank=case["lora"]["rank"], target_modules=tuple(case["lora"]["modules"]),
                          use_qlora=bool(case["quantized"]), optimizer=states)  # fmt: skip
        found = estimate_lora_memory(build(case, base), shape, batch, compute, told)
    else:
        model = build(case, DTYPES[case["dtypes"]["parameters"]])
        found = predict_memory(model, shape, batch, compute, states, training=True)
    return answer(found.total_bytes - found.overhead_bytes, found.total_bytes)


serve("torch-kitsune", estimate)
