"""Run under ``torchrun``: the command line, once for each line of a file of arguments, in one pair of processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed

from memcalc.__main__ import run

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    codes = [run(arguments) for arguments in json.loads(Path(sys.argv[1]).read_text())]
    torch.distributed.destroy_process_group()
    sys.exit(max(codes))
