"""On each rank that a launcher starts: the command line, once for each line of arguments, in one process."""

from __future__ import annotations


def measured(lines: list[list[str]]) -> list[int]:
    """The exit codes of these command lines."""
    import torch.distributed

    from memcalc.__main__ import run

    torch.distributed.init_process_group("gloo")
    codes = [run(arguments) for arguments in lines]
    torch.distributed.destroy_process_group()
    return codes
