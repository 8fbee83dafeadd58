"""A played step as Megatron-LM's data parallelism and optimizers run it: gradients go into a buffer that is always there.

source: Megatron-LM d98e8a64 core/distributed/distributed_data_parallel.py:_make_backward_post_hook (main_grad.add_, and .grad
is None); core/optimizer/distrib_optimizer.py:_copy_model_grads_to_main_grads (``.float()``, which copies nothing that is FP32
already); core/optimizer/clip_grads.py. Reduction and all-gather are in place (core/distributed/param_and_grad_buffer.py).
"""

from __future__ import annotations

from memcalc.engines.analytic.tapes import Around, Played
from memcalc.models import Model
from memcalc.parallelism.base import Layout
from memcalc.plan import Plan
from memcalc.records import replace
from memcalc.tape.events import Buffer, within

BLOCKS = 320
"""Partial results of ``multi_tensor_l2norm`` (apex csrc/multi_tensor_l2norm_kernel.cu:multi_tensor_l2norm_cuda)."""
FUSION = (
    "each weight's gradient is a tensor for a moment before it is added to Megatron's buffer: no gradient_accumulation_fusion"
)
LAYERS = "only the data parallelism is Megatron-LM's, not the layers"


def under_megatron(plan: Plan, model: Model, layout: Layout, around: Around, played: Played) -> tuple[Around, Played]:
    """What stands around forward and backward whose gradients are let go of as they come.

    The buffers of gradients are there from the start, in the main gradients' dtype or the parameters'.
    """
    norm = [(Buffer("partial results of the norm", BLOCKS * 4, "temporary"), 1)]
    resident = (*around.resident, *layout.gradients)
    changed = replace(around, resident=resident, clip=within(norm) if plan.clips else ())
    said = (FUSION,) if model.implementation == "megatron" else (FUSION, LAYERS)
    return changed, replace(played, assumed=(*played.assumed, *said))
