"""hf-mem: bytes of weights from a safetensors header. It says nothing of training.

Its command fetches the header from the Hub; here its own parser is given the header that this model's file has.
"""

from hf_mem.safetensors.metadata import parse_safetensors_metadata
from worker import NotCovered, answer, one_rank, serve

DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}


def estimate(case):
    """Weights alone."""
    if case["kind"] != "model_init":
        raise NotCovered("training: weights and a KV cache for inference are estimated")
    one_rank(case)
    dtype = DTYPES[case["dtypes"]["parameters"]]
    header = {
        f"{name}#{index}": {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
        for name, shape, count in case["tensors"]
        for index in range(count)
    }
    return answer(parse_safetensors_metadata({"transformers": header}).bytes_count)


serve("hf-mem", estimate)
