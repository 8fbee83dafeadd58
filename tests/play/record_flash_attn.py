"""Small models of transformers' on a CPU under flash-attn's own Python, every storage followed.

    python -m tests.play.record_flash_attn flash_attn/flash_attn_interface.py       # of flash-attn 2.8.3

Its kernels are none of a CPU's: what stands there allocates as csrc/flash_attn/flash_api.cpp does, and computes nothing.
"""

from __future__ import annotations

import gc
import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import modeling_flash_attention_utils as flash

from memcalc.job import read_job
from memcalc.precision import SCHEMES
from memcalc.runtime.build import build, cast_parameters
from memcalc.runtime.checkpointing import switch_on
from memcalc.runtime.inputs import make_batch
from tests.play.flash_attn_cases import CASES, asked
from tests.play.sharded import Written, told


def rounded(size: int, to: int) -> int:
    """Up to a multiple."""
    return -(-size // to) * to


def fwd(q: Any, k: Any, v: Any, *args: Any) -> tuple[Any, ...]:
    """Allocates as mha_fwd does where nothing is split."""
    batch, length, heads, _ = q.shape
    return torch.empty_like(q).zero_(), q.new_zeros((batch, heads, length), dtype=torch.float32), q.new_empty(0), state()


def varlen_fwd(q: Any, k: Any, v: Any, out: Any, ends: Any, *args: Any) -> tuple[Any, ...]:
    """Allocates as mha_varlen_fwd does."""
    return torch.empty_like(q).zero_(), q.new_zeros((q.shape[1], q.shape[0]), dtype=torch.float32), q.new_empty(0), state()


def state() -> Any:
    """The generator's."""
    return torch.empty(2, dtype=torch.int64)


def bwd(dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, dq: Any, dk: Any, dv: Any, *args: Any) -> tuple[Any, ...]:
    """Allocates as mha_bwd does."""
    batch, length, heads, size = q.shape
    rows = rounded(length, 128)
    held = [torch.empty((batch, heads, rows)), torch.empty((batch, rows, heads, rounded(size, 32)))]
    return _filled(q, k, (dq, dk, dv), held)


def varlen_bwd(
    dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, dq: Any, dk: Any, dv: Any, ends: Any, *args: Any
) -> tuple[Any, ...]:
    """Allocates as mha_varlen_bwd does."""
    total, heads, size = q.shape
    rows = total + 128 * (ends.numel() - 1)
    return _filled(q, k, (dq, dk, dv), [torch.empty((heads, rows)), torch.empty((rows, heads, rounded(size, 32)))])


def _filled(q: Any, k: Any, grads: tuple[Any, ...], held: list[Any]) -> tuple[Any, ...]:
    heads, of_keys = q.shape[-2], k.shape[-2]
    if heads != of_keys:
        held += [k.new_empty((*k.shape[:-2], heads, k.shape[-1])) for _ in range(2)]
    for grad in grads:
        grad.zero_()
    return (*grads, held[0])


def installed(interface: str) -> None:
    """Transformers takes flash-attn's functions from the file, on kernels that only allocate."""
    kernels: Any = ModuleType("flash_attn_2_cuda")
    kernels.fwd, kernels.varlen_fwd, kernels.bwd, kernels.varlen_bwd = fwd, varlen_fwd, bwd, varlen_bwd
    sys.modules["flash_attn_2_cuda"] = kernels
    spec: Any = spec_from_file_location("flash_attn_interface", interface)
    module: Any = module_from_spec(spec)
    version, torch.__version__ = torch.__version__, "2.3.0"  # before there were custom operators, which are of a device
    spec.loader.exec_module(module)
    torch.__version__ = version
    flash._loaded_implementation = "flash_attention_2"
    flash._flash_fn, flash._flash_varlen_fn = module.flash_attn_func, module.flash_attn_varlen_func
    flash._process_flash_kwargs_fn = flash._lazy_define_process_function(module.flash_attn_varlen_func)


def lived(case: dict[str, Any]) -> dict[str, Any]:
    """A steady iteration's forward and backward."""
    job = read_job({**{key: value for key, value in asked(case).items() if key != "packed_sequences"}, "attention": "eager"})
    scheme = SCHEMES.get(job.training.precision, "")
    built = build(job)
    module = built.module
    module.config._attn_implementation = "flash_attention_2"
    cast_parameters(module.train(), scheme)
    switch_on(module, job.training.activation_checkpointing)
    batch = make_batch(built.inputs, "cpu", scheme.parameter or "float32", seed=0)
    if "position_ids" in batch:
        batch["position_ids"] = places(batch["position_ids"].shape[1], case["packed_sequences"])
    low = None if scheme.copy is None else getattr(torch, scheme.copy)
    with Written() as written:
        for _ in range(3):
            module.zero_grad()
            gc.collect()
            written.events = []
            with torch.autocast("cpu", dtype=low, enabled=low is not None):
                out = module(**batch)
            loss = out.loss
            del out
            written.write("backward", 0)
            loss.backward()
            del loss
    found = told(written.events)
    return {key: found[key] for key in ("top", "saved", "net")}


def places(tokens: int, sequences: int) -> Any:
    """Positions of sequences of unequal lengths, in one row."""
    ends = [tokens * number * (number + 1) // (sequences * (sequences + 1)) for number in range(sequences + 1)]
    return torch.cat([torch.arange(end - start) for start, end in pairwise(ends)])[None]


if __name__ == "__main__":
    installed(sys.argv[1])
    torch.set_num_threads(1)
    gc.disable()
    found = {name: lived(case) for name, case in CASES.items() if not sys.argv[2:] or name in sys.argv[2:]}
    Path(__file__).with_name("flash_attn.json").write_text(json.dumps(found, indent=1) + "\n")
