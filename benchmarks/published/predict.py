"""Predict published runs, and write what came out.

    python -m benchmarks.published.predict [FILE] [--litgpt CLONE] [--only ID ...] [--again]
    python -m benchmarks.published.predict --page          # docs/published.md from the predictions kept, nothing traced
    python -m benchmarks.published.predict [FILE] --engine analytic [--only ID ...]    # from configs alone, in seconds

FILE is of the schema of cases.yaml, which is taken by default. Predictions are kept in predictions.json beside it, and a run
that has one is not traced again unless --again; of another file nothing is kept, and its errors are printed. litgpt's runs need
a clone of litgpt, whose commits are read from it; without one theirs are left as they are.

The analytic engine is asked of every record each time; what it says of the project's own cases is kept in analytic.json and
makes docs/published-analytic.md. What is out of its scope is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.published.convert import Question, question
from benchmarks.published.records import CASES, Record, load, readable
from benchmarks.published.scope import ODD, why_not
from memcalc.errors import MemcalcError, MissingPackageError
from memcalc.footprint import Footprint

KEPT = Path(__file__).parent / "predictions.json"
KEPT_ANALYTIC = Path(__file__).parent / "analytic.json"
PAGE = Path(__file__).parents[2] / "docs" / "published.md"
PAGE_ANALYTIC = PAGE.with_name("published-analytic.md")


def predict(record: Record, clone: Path | None = None, engine: str = "trace") -> dict[str, Any]:
    """What memcalc says of a record, as it is kept: bytes, engine, the instant of the peak, and what stood in for what.

    ``predicted`` is None where the engine answers the job and leaves the figure that was asked for null.

    Raises:
        MemcalcError: a job that an engine refuses, or code that is not here.
    """
    asked = question(record, engine)
    footprint = footprint_of(record, asked, clone)
    if asked.more:
        every = [footprint, *(estimated(replace(asked, job=job)) for job in asked.more)]
        footprint = max(every, key=lambda one: answer(one, asked.reading) or 0)
    told: dict[str, Any] = {
        "id": record.id, "engine": footprint.engine, "predicted": answer(footprint, asked.reading), "of": list(asked.reading),
    }  # fmt: skip
    if footprint.engine == "analytic" and asked.reading[0].startswith("peak."):
        peak = footprint.peak
        told |= {"mode": footprint.job["mode"]} if record.kind == "inference" else {}
        told |= {"allocated": peak.allocated, "reserved": peak.reserved, "device": [peak.device_low, peak.device_high]}
    if footprint.engine == "trace":
        told |= {
            "allocated": footprint.peak.allocated, "reserved": footprint.peak.reserved, "phase": footprint.peak.phase,
            "instant": footprint.peak.instant, "at_peak": dict(footprint.at_peak), "warnings": list(footprint.warnings),
            "torch": footprint.job["behaviour"]["torch"],
        }  # fmt: skip
    return told


def footprint_of(record: Record, asked: Question, clone: Path | None) -> Footprint:
    """By the engine the rule names; litgpt's by litgpt's own code."""
    from memcalc import api
    from memcalc.job import read_job

    if asked.job["engine"] == "trace":
        if record.implementation == "litgpt":
            from benchmarks.published import litgpt

            if clone is None:
                raise MissingPackageError("--litgpt", None, "is missing", "give a clone of Lightning-AI/litgpt")
            return litgpt.trace(record, clone).footprint
        if record.implementation == "timm" and not all(map(find_spec, ("timm", "torchvision"))):
            raise MissingPackageError("model", "timm", "is not installed with torchvision", "pip install timm torchvision")
        told = {"lora": asked.lora, "loss": asked.loss, "inputs": asked.inputs}
        return api.trace_read(read_job(asked.job), **told).footprint
    return estimated(asked)


def estimated(asked: Question) -> Footprint:
    """By the analytic engine, adapters and their dtype included."""
    from memcalc import api
    from memcalc.adapters import with_adapters
    from memcalc.job import read_job

    job = read_job(asked.job)
    model = api.model_of(job)
    if asked.lora is None:
        return api.estimate_read(job, model)
    model = with_adapters(model, asked.lora)
    if asked.adapters is not None:  # a base in BF16, adapters in their own dtype: the job takes the model as it is
        dtypes = {True: asked.adapters, False: "bfloat16"}
        tensors = (replace(one, dtype=dtypes[one.trainable]) if one.role == "parameter" else one for one in model.tensors)
        model = replace(model, tensors=tuple(tensors))
        job = read_job({**asked.job, "training": {**asked.job["training"], "precision": "as-is"}})
    return api.estimate_read(job, model)


def answer(footprint: Footprint, reading: Iterable[str]) -> int | None:
    """The bytes that are compared with what was measured; None where a peak is not modelled.

    Of a device's total that is known as a range, its middle.
    """
    total = 0
    for name in reading:
        head, _, leaf = name.partition(".")
        value = getattr(footprint.peak, leaf) if head == "peak" else getattr(footprint.components, name) or 0
        low, high = footprint.peak.device_low, footprint.peak.device_high
        if name == "peak.device" and value is None and low is not None and high is not None:
            value = (low + high) // 2
        if value is None:
            return None
        total += int(value)
    return total


def asked_for(records: Iterable[Record], only: Iterable[str] = (), engine: str = "trace") -> list[Record]:
    """Records that are in scope, and those that a stand-in brings in; of these, the ones named."""
    wanted = set(only)
    return [
        record
        for record in records
        if all(reason.stand_in for reason in why_not(record, engine)) and (not wanted or record.id in wanted)
    ]


def run(
    records: list[Record], clone: Path | None, kept: dict[str, dict[str, Any]], engine: str = "trace"
) -> dict[str, dict[str, Any]]:
    """Predictions by id, those that are kept left as they are; what is refused says why."""
    done = dict(kept)
    for index, record in enumerate(records, 1):
        if record.id in done:
            continue
        began = time.process_time()
        try:
            done[record.id] = predict(record, clone, engine)
        except MissingPackageError as error:
            print(f"{record.id}: left out: {error}", file=sys.stderr)
            continue
        except MemcalcError as error:
            done[record.id] = {"id": record.id, "refused": str(error)}
        except ODD as error:  # of a file of one's own, whose fields may be of any kind
            done[record.id] = {"id": record.id, "refused": f"not understood ({type(error).__name__}: {error})"}
        told = done[record.id].get("predicted")
        error_text = "not answered" if told is None else f"{100 * (told / int(record.measured or 1) - 1):+.2f} %"
        print(f"[{index}/{len(records)}] {record.id}: {error_text} ({time.process_time() - began:.1f} s)", file=sys.stderr)
    return done


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=CASES)
    parser.add_argument("--litgpt", type=Path)
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--again", action="store_true", help="predict what has a prediction, too")
    parser.add_argument("--page", action="store_true", help="write the page from what is kept, and predict nothing")
    parser.add_argument("--engine", choices=("trace", "analytic"), default="trace", help="who is asked for training steps")
    told = parser.parse_args(arguments)
    own = told.file.resolve() == CASES
    records, wrong = (load(told.file), []) if own else readable(told.file)
    for each in wrong:
        print(f"cannot be read: {each}")
    if told.engine == "analytic":
        return _analytic(records, told.only, own=own)
    kept = read_kept() if own else {}
    if not told.page:
        chosen = asked_for(records, told.only)
        again = {record.id for record in chosen} if told.again else set()
        kept = run(chosen, told.litgpt, {name: value for name, value in kept.items() if name not in again})
    from benchmarks.published.report import page, table

    if own:
        write_kept(records, kept)
        PAGE.write_text(page(records, kept), encoding="utf-8")
    else:
        print(table(records, kept))
    return 0


def _analytic(records: list[Record], only: Iterable[str], *, own: bool) -> int:
    """From configs alone: nothing is kept back but what is named, and the whole is printed."""
    from benchmarks.published.report_analytic import listing, page

    told = run(asked_for(records, only, "analytic"), None, {}, "analytic")
    print(listing(records, told))
    if own and not only:
        write_kept(records, told, KEPT_ANALYTIC)
        PAGE_ANALYTIC.write_text(page(records, told), encoding="utf-8")
    return 0


def read_kept(path: Path = KEPT) -> dict[str, dict[str, Any]]:
    """The predictions kept, by id."""
    listed: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {each["id"]: each for each in listed}


def write_kept(records: list[Record], kept: Mapping[str, dict[str, Any]], path: Path = KEPT) -> None:
    """In the order of the cases."""
    listed = [kept[record.id] for record in records if record.id in kept]
    path.write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
