"""mamba-ssm's fused function restated without its kernels: an autograd function that allocates what theirs does."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn import functional


class Restated(torch.autograd.Function):
    """What MambaInnerFn allocates and saves, its two CUDA extensions stood in for by empty results.

    source: mamba-ssm 2.3.2.post1 mamba_ssm/ops/selective_scan_interface.py:MambaInnerFn (checkpoint_lvl=1);
    csrc/selective_scan/selective_scan.cpp; causal-conv1d 1.6.1 causal_conv1d/cpp_functions.py
    """

    @staticmethod
    def forward(ctx, xz, conv_w, conv_b, x_w, dt_w, out_w, decay, skip, dt_b):
        if torch.is_autocast_enabled("cuda"):
            low = torch.get_autocast_dtype("cuda")
            x_w, dt_w, out_w = x_w.to(low), dt_w.to(low), out_w.to(low)
        xz = xz.contiguous()
        x, z = xz.chunk(2, dim=1)
        batch, dim, length = x.shape
        n, rank = decay.shape[1], dt_w.shape[1]
        conv = torch.empty_like(x)
        latent = functional.linear(conv.permute(0, 2, 1).reshape(batch * length, dim), x_w)
        delta = (dt_w @ latent[:, :rank].t()).view(dim, batch, length).permute(1, 0, 2)
        entering, leaving = (
            part.view(batch, length, 1, n).permute(0, 2, 3, 1).contiguous()
            for part in (latent[:, rank : rank + n], latent[:, -n:])
        )
        out_z, out = torch.empty_like(z), torch.empty_like(delta)
        states = torch.empty(batch, dim, -(-length // 2048), 2 * n, dtype=torch.float32, device=x.device)
        del conv, delta
        ctx.save_for_backward(xz, conv_w, conv_b, latent, x_w, dt_w, out_w, decay, entering, leaving, skip, dt_b, states, out)
        return functional.linear(out_z.permute(0, 2, 1), out_w)

    @staticmethod
    def backward(ctx, dout):
        xz, conv_w, conv_b, latent, x_w, dt_w, out_w, decay, entering, leaving, skip, dt_b, _states, out = ctx.saved_tensors
        x, _z = xz.chunk(2, dim=1)
        batch, dim, length = x.shape
        n, rank = decay.shape[1], dt_w.shape[1]
        dout = dout.contiguous()
        conv = torch.empty_like(x)
        delta = (dt_w @ latent[:, :rank].t()).view(dim, batch, length).permute(1, 0, 2)
        dxz = torch.empty_like(xz)
        dout = dout.permute(2, 0, 1).reshape(-1, batch * length)
        dout_y = (out_w.t() @ dout).view(dim, batch, length).permute(1, 0, 2)
        out_z = torch.empty_like(out)
        du, ddelta, dA = torch.empty_like(conv), torch.empty_like(delta), torch.zeros_like(decay)
        wide = [torch.zeros_like(part, dtype=torch.float32) for part in (entering, leaving)]
        dD, ddt_b = torch.zeros_like(skip), torch.zeros_like(dt_b)
        dB, dC = [part.to(x.dtype) for part in wide]
        del wide
        dout_w = torch.einsum("eB,dB->ed", dout, out_z.permute(1, 0, 2).reshape(dim, -1))
        dlatent = torch.empty_like(latent)
        dB = dB.permute(0, 3, 1, 2).reshape(-1, n).contiguous()
        dlatent[:, rank : rank + n] = dB
        dB = None
        dC = dC.permute(0, 3, 1, 2).reshape(-1, n).contiguous()
        dlatent[:, -n:] = dC
        dC = None
        ddelta = ddelta.permute(1, 0, 2).reshape(dim, -1)
        ddt_w = torch.einsum("dB,Br->dr", ddelta, latent[:, :rank])
        dlatent[:, :rank] = torch.einsum("dB,dr->Br", ddelta, dt_w)
        du = du.permute(1, 0, 2).reshape(dim, -1)
        dx_w = torch.einsum("Br,Bd->rd", dlatent, conv.permute(0, 2, 1).reshape(-1, dim))
        du = torch.addmm(du, x_w.t(), dlatent.t(), out=du)
        dconv_w = torch.zeros_like(conv_w, dtype=torch.float32)
        dconv_b = torch.zeros_like(conv_b, dtype=torch.float32)
        dconv_w, dconv_b = dconv_w.type_as(conv_w), dconv_b.type_as(conv_b)
        del dout_y
        return dxz, dconv_w, dconv_b, dx_w, ddt_w, dout_w, dA, dD, ddt_b


def _inner(xz, conv_w, conv_b, x_w, dt_w, out_w, out_b, decay, entering, leaving, skip, *, delta_bias, delta_softplus):
    assert out_b is None
    return Restated.apply(xz, conv_w, conv_b, x_w, dt_w, out_w, decay, skip, delta_bias)


@contextmanager
def installed():
    """Transformers finds the restated function where it looks for mamba-ssm's."""
    from transformers.models.mamba import modeling_mamba

    before, modeling_mamba.mamba_inner_fn = modeling_mamba.mamba_inner_fn, _inner
    try:
        yield
    finally:
        modeling_mamba.mamba_inner_fn = before


RECORDED = Path(__file__).with_name("fused_mamba.json")
"""By setting: the highest point, what is left, what is saved."""
SETTINGS = [
    {"micro_batch_size": rows, "precision": precision, "activation_checkpointing": checkpointing}
    for rows in (1, 3)
    for precision in ("bf16", "amp-fp16", "fp32")
    for checkpointing in ("none", "full", "selective")
]


def name_of(setting):
    """A setting in one line."""
    return " ".join(map(str, setting.values()))


def main():
    """Trace every setting and keep what it comes to: python -m tests.play.fused_mamba."""
    from benchmarks.played.against import heights, traced
    from tests.play.test_mamba import job

    rows = {}
    with installed():
        for setting in SETTINGS:
            found = heights(traced(job(4, **setting)))
            rows[name_of(setting)] = [found.top, found.net, found.saved]
    RECORDED.write_text(json.dumps(rows, indent=0) + "\n")


if __name__ == "__main__":
    main()
