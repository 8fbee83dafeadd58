"""Jobs that a trace does not take."""

from __future__ import annotations

from memcalc.errors import InputError, NotModelledError
from memcalc.job import Job
from memcalc.plan import Plan


def require_one_rank(plan: Plan) -> None:
    """Refuse several ranks, and layouts of other engines.

    Raises:
        NotModelledError: either.
    """
    if int(plan.shards * plan.replicas) > 1 or plan.stage:
        ranks = int(plan.shards * plan.replicas)
        raise NotModelledError(
            "parallelism.dp", ranks, "asks for several ranks, which are not traced yet", "use engine analytic"
        )
    if plan.backend != "torch":
        raise NotModelledError("training.precision", plan.scheme.name, "is another engine's layout", "use engine analytic")


def require_own_step(job: Job) -> None:
    """Refuse what a person's own step would have to do by itself.

    Raises:
        InputError: accumulation, clipping, or gradients to be kept.
    """
    usual, training = type(job.training)(), job.training
    for key in ("gradient_accumulation_steps", "max_grad_norm", "set_to_none"):
        if (value := getattr(training, key)) != getattr(usual, key):
            raise InputError(f"training.{key}", value, "is for a step of one's own to do", "do it there, and leave it out")
