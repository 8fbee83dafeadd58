"""What changed in torchtitan's Llama 3 from time to time, and how its FSDP2 wraps it.

source: pytorch/torchtitan models/llama*/model.py, models/attention.py, models/norms.py, components/loss.py,
parallelisms/parallelize_llama.py, distributed/activation_checkpoint.py, at the commits of ``VERSIONS``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from memcalc.parallelism.fsdp2_units import Units

FLASH_AND_EFFICIENT = ("mm", "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention")
EVERY_BACKEND = (*FLASH_AND_EFFICIENT, "_scaled_dot_product_cudnn_attention")
EVERY_PRODUCT = (*EVERY_BACKEND, "bmm", "addmm", "convolution")
"""source: 114151ad distributed/activation_checkpoint.py:_get_save_ops; pytorch torch/_functorch/partitioners.py:
get_default_op_list, compute_intensive_ops"""


BLOCKS = Units((("layers.*",),), (("layers.-1",),))
"""source: 9dec370 parallelize_llama.py:apply_fsdp, without a pipeline"""
ENDS_TOO = Units((("tok_embeddings",), ("layers.*",), ("norm", "output")), (("norm", "output"),))
"""source: 83e69410 models/llama3/infra/parallelize.py:apply_fsdp, policy ``default``, without a pipeline"""


class Version(NamedTuple):
    """What changed from time to time.

    Attributes:
        norm: RMSNorm written out in FP32, or ``nn.RMSNorm``.
        float_scores: whether the model gives its logits in FP32; later the loss makes them.
        tables: how many times the sequence's length the rotary table is long.
        order: attention backends in the order that is set around the call; None where nothing is.
        repeats: whether keys and values are repeated for every query head.
        keeps: operators whose results per-operator checkpointing keeps, of products every other one.
        early_stop: whether recomputing ends with the last tensor that is missing.
        holds: whether the trainer holds what the model gave through backward.
        counts: whether the loss is a sum that is divided by a count of tokens on the GPU.
        chunks: how many chunks of the sequence the loss takes through the head and backward, one by one; 0 for none.
        every: whether every so many-th block may be checkpointed.
        head: what the last matrix is called.
        mixing: what stands before the names of the first three matrices of attention.
        units: how FSDP2 wraps the model.
    """

    norm: Literal["written", "torch"] = "written"
    float_scores: bool = False
    tables: int = 1
    order: tuple[str, ...] | None = None
    repeats: bool = True
    keeps: tuple[str, ...] = FLASH_AND_EFFICIENT
    early_stop: bool = True
    holds: bool = False
    counts: bool = False
    chunks: int = 0
    every: bool = True
    head: str = "output"
    mixing: str = ""
    units: Units = BLOCKS


_FLASH = Version("torch", order=("flash", "efficient", "math"))
_WRAPPED = _FLASH._replace(units=ENDS_TOO)
_WHOLE = _WRAPPED._replace(early_stop=False)
_CUDNN = _WHOLE._replace(order=("cudnn", "flash", "efficient"))
_KEPT = _CUDNN._replace(keeps=EVERY_BACKEND)
_COUNTED = _KEPT._replace(counts=True)
_GROUPED = _COUNTED._replace(repeats=False, order=("cudnn", "flash", "math"))
_NO_LAYERS = _GROUPED._replace(keeps=EVERY_PRODUCT, every=False)
_LM_HEAD = Units((("tok_embeddings",), ("norm", "lm_head"), ("layers.*",)), (("norm", "lm_head"),))
_CHUNKED = _NO_LAYERS._replace(chunks=8, head="lm_head", mixing="qkv_linear.", units=_LM_HEAD)

VERSIONS: Mapping[str, Version] = {
    "2024-06-06": Version(float_scores=True, tables=2, holds=True),  # 40f8fd00
    "2024-06-12": Version(float_scores=True, tables=2),  # e29b6b4d
    "2024-10-22": Version(),  # e10cb949, b19456a9; 9dec370 of 2024-12-26 was read whole
    "2025-03-19": Version("torch"),  # 3b39d7ab
    "2025-05-14": _FLASH,  # 3b85aa31; v0.1.0 of 2025-06-17 was read whole
    "2025-07-28": _WRAPPED,  # 83e69410
    "2025-08-29": _WHOLE,  # 25413d22
    "2025-10-09": _CUDNN,  # 6a3a9da9; v0.2.0 of 2025-10-17 was read whole
    "2025-12-01": _KEPT,  # b39377f9
    "2026-01-25": _COUNTED,  # 0cb74355
    "2026-01-27": _GROUPED,  # ff0829c1; v0.2.2 of 2026-02-20 was read whole
    "2026-03-23": _NO_LAYERS,  # 114151ad
    "2026-04-27": _CHUNKED,  # 786e26f8, which was read whole
}
"""By the date of the commit that brought it. A date between two is taken for the earlier one's."""
RELEASE = "2026-02-20"
"""Of v0.2.2 (73a0e697), which a job has unless it says otherwise."""
LAST = "2026-04-27"
"""Of the last code that was read (786e26f8)."""


def version_of(date: str) -> Version | None:
    """The code of a date; None before it is known.

    >>> version_of("2025-06-17").order
    ('flash', 'efficient', 'math')
    """
    known = [each for each in VERSIONS if each <= date]
    return VERSIONS[max(known)] if known else None


def order_of(version: Version, capability: tuple[int, int]) -> tuple[str, ...] | None:
    """The backends that are set around attention, on a GPU of that compute capability.

    cuDNN's stood before flash from compute capability 10.0 on (3b85aa31 models/attention.py:_init_backend).

    >>> order_of(VERSIONS["2025-05-14"], (10, 0))
    ('cudnn', 'flash', 'efficient', 'math')
    """
    if version.order is not None and version.order[0] == "flash" and capability >= (10, 0):
        return ("cudnn", *version.order)
    return version.order
