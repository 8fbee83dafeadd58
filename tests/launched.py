"""Ranks as ``torchrun`` starts them, forked from one server that has imported torch once, not each from nothing.

``torch.distributed.launcher.elastic_launch`` is what ``torchrun`` calls; only the way its processes begin is another.
"""

from __future__ import annotations

import multiprocessing
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMPORTED = ["torch._dynamo", "torch._meta_registrations", "transformers.models.llama.modeling_llama"]
"""What every rank of these tests would import for itself, which takes longer than all it does."""


def launched(world: int, function: Callable[..., Any], *args: Any, logs: Path) -> dict[int, Any]:
    """What a function gives on each of ``world`` ranks of this machine, which find each other by torchrun's environment.

    What they print goes to files under ``logs``; where one fails, torch's error says which and how.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    multiprocessing.set_forkserver_preload(IMPORTED)
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=world, run_id=str(uuid.uuid4()), rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", start_method="forkserver", max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL), monitor_interval=0.05,
    )  # fmt: skip
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        return elastic_launch(settings, function)(*args)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
