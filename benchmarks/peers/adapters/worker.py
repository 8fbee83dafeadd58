"""What every adapter shares: cases in on stdin, answers out on stdout. The standard library only: any interpreter runs it.

An adapter is a script, run by the interpreter of the environment its tool is in. It gives a function from a case to an answer:
the bytes of tensors, and those with whatever the tool adds for allocator and context where it adds any.
"""

import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version


class NotCovered(Exception):  # noqa: N818 - no error: an answer
    """The tool has no word for something that this case needs."""


def answer(tensors, process=None):
    """The bytes a tool gives: ``tensors`` against what was allocated, ``process`` against segments or what nvidia-smi shows."""
    return {"tensors": int(tensors), "process": int(tensors if process is None else process)}


def one_rank(case):
    """Refuse several ranks."""
    if case["ranks"] is None or any(case["ranks"][key] > 1 for key in ("dp", "tp", "pp")):
        raise NotCovered("several ranks")


def known_ranks(case):
    """The ranks, where their kinds have words."""
    if case["ranks"] is None:
        raise NotCovered("these ranks")
    return case["ranks"]


def whole(case):
    """Refuse adapters and quantised bases."""
    if case["lora"] or case["quantized"]:
        raise NotCovered("LoRA" if not case["quantized"] else "a quantised base")


def steps_only(case):
    """Refuse what is no training step."""
    if case["kind"] != "train_step":
        raise NotCovered("no estimate of the model alone")


def optimizer(case, known):
    """The optimizer in a tool's word for it. States that page between host and device are refused, unless they are adapters'.

    Those of adapters are a hundredth of the model's bytes, wherever they are.
    """
    if case["paged"] and not case["lora"]:
        raise NotCovered("a paged optimizer")
    if case["optimizer"] not in known:
        raise NotCovered("this optimizer")
    return known[case["optimizer"]]


def recomputation(case, known=("none", "full")):
    """Refuse policies of recomputation that a tool has no word for."""
    if case["kind"] == "train_step" and case["checkpointing"] not in known:
        raise NotCovered("this policy of recomputation" if case["checkpointing"] not in ("none", "full") else "recomputation")
    return case["checkpointing"]


def attempt(estimate, case):
    """An answer, or the reason why there is none."""
    try:
        return estimate(case)
    except NotCovered as reason:
        return {"reason": f"not covered: {reason}"}
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return {"reason": f"{type(error).__name__}: {lines[0][:200]}"}


def serve(package, estimate):
    """Answer every case of stdin: ``{"cases": [...], "repeat": n}``; the fastest of n is its time, answered or not."""
    began = time.process_time()
    asked = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # tools print
    told = []
    for case in asked["cases"]:
        seconds = []
        for _ in range(asked.get("repeat", 1)):
            start = time.process_time()
            said = attempt(estimate, case)
            seconds.append(time.process_time() - start)
        told.append({"id": case["id"], **said, "seconds": min(seconds)})
    try:
        number = version(package) if package else None
    except PackageNotFoundError:
        number = None
    json.dump({"version": number, "answers": told, "seconds": time.process_time() - began}, out)
    out.flush()
