"""What many records say together, figures others measured, and every form the answer is printed in."""

from __future__ import annotations

import csv
import io
import json

import pytest

from memcalc.api import estimate
from memcalc.errors import InputError
from memcalc.formats import differences
from memcalc.measurement_files import write_measurement
from memcalc.verify.files import verify_records
from memcalc.verify.observed import judge_observed, parse_observed
from memcalc.verify.summary import errors, percentile, summary
from memcalc.verify.tolerance import EXACT

WEIGHT = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture
def verdicts(tmp_path, altered):
    """Ten records: seven exact, three with one tensor 512, 1,024 and 9,000 bytes off, the last of them below."""
    for index, change in enumerate([0] * 7 + [512, 1024, -9000]):
        write_measurement(altered({WEIGHT: change}, case=f"case-{index}"), tmp_path / f"{index}.json")
    return verify_records(tmp_path)


def test_a_summary_adds_up(verdicts):
    """n, exact, median, 90th percentile, worst and bias are those of the three differences among ten records."""
    rows = {(row.by, row.value): row for row in summary(verdicts)}
    whole = rows["all", ""]
    measured = [errors(verdict)[2] for verdict in verdicts]
    shares = [100 * size / total for size, total in zip([0] * 7 + [512, 1024, 9000], measured, strict=True)]
    assert (whole.n, whole.exact, whole.median, whole.worst_bytes) == (10, 7, 0.0, 9000)
    assert whole.p90 == shares[8]
    assert whole.worst == shares[9]
    assert whole.bias == pytest.approx((shares[7] + shares[8] - shares[9]) / 10)
    assert {by for by, _ in rows} == {"all", "engine", "device", "family", "optimizer", "precision", "layout", "torch"}
    assert rows["family", "gpt2"].n == rows["optimizer", "torch:AdamW"].n == rows["engine", "analytic"].n == 10


def test_a_percentile_is_one_of_the_values():
    """The nearest rank is taken, so that nine in ten records really are at or below it."""
    assert percentile([5.0, 1.0, 4.0], 90) == 5.0
    assert percentile([float(value) for value in range(1, 101)], 90) == 90.0


def test_nothing_judged_is_no_summary(tmp_path):
    """Records that cannot be read have no errors to sum up, and are not counted as exact."""
    (tmp_path / "broken.json").write_text("{")
    verdicts = verify_records(tmp_path)
    assert summary(verdicts) == []
    differences.show(verdicts, "table", "0 B", listing=True)


def test_json_lists_components_and_tensors(tmp_path, altered, capsys):
    """One record's JSON has each component's predicted, measured and difference, and every tensor's."""
    write_measurement(altered({f"{WEIGHT}.grad": 512}), tmp_path / "r.json")
    differences.show(verify_records(tmp_path / "r.json"), "json", "0 B", listing=False)
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 1
    gradients = told["components"]["gradients"]
    assert gradients["difference"] == gradients["measured"] - gradients["predicted"] == 512
    assert told["components"]["activations"]["predicted"] is None
    assert len(told["tensors"]["parameters"]) == len(told["tensors"]["gradients"]) == 28
    assert len(told["tensors"]["optimizer_states"]) == 56
    assert [row for row in told["tensors"]["gradients"] if row["difference"]] == [
        {"name": f"{WEIGHT}.grad", "predicted": 9216, "measured": 9728, "difference": 512}
    ]


def test_a_folder_in_every_form(verdicts, capsys):
    """JSON, CSV, Markdown and the table all carry the difference and the summary's count."""
    differences.show(verdicts, "json", "0 B", listing=True)
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == {"passed": 7, "failed": 3, "unjudged": 0}
    assert told["summary"][0] | {"median": 0.0, "n": 10, "exact": 7} == told["summary"][0]
    assert len(told["records"][9]["tensors"]["parameters"]) == 1, "tensors that agree are left out of a folder's"
    differences.show(verdicts, "csv", "0 B", listing=True)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sum(row["component"] == "parameters" and row["difference"] == "512" for row in rows) == 1
    differences.show(verdicts, "markdown", "0 B", listing=True)
    page = capsys.readouterr().out
    assert "10 records: 7 agree, 3 differ" in page
    assert "| case-9" in page
    differences.show(verdicts, "table", "0 B", listing=True)
    assert "FAIL  case-9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "nbytes", "slack"),
    [("71.3GiB", 76557792051, 53687092), ("24GiB", 24 * 2**30, 2**29), ("1000000", 1000000, 0), ("80GB", 8 * 10**10, 5 * 10**8),
     ("12.50 MiB", 13107200, 5243)],
)  # fmt: skip
def test_a_figure_is_read_with_its_precision(text, nbytes, slack):
    """A figure counts as rounded to the last digit it was written with; whole bytes count as exact."""
    read = parse_observed(text, "allocated")
    assert (read.nbytes, read.slack) == (nbytes, slack)


@pytest.mark.parametrize(
    ("text", "metric"), [("lots", "allocated"), ("3 parsecs", "allocated"), ("1GiB", "vram"), ("0", "reserved")]
)
def test_a_bent_figure_is_refused(text, metric):
    """What is no size, and a metric nobody knows, are refused by the flag's name."""
    with pytest.raises(InputError, match=r"--(observed|metric)"):
        parse_observed(text, metric)


def test_a_figure_outside_the_range_is_a_contradiction():
    """Allocated bytes are judged on both sides; what is reserved, or on the device, on the lower side alone."""
    footprint = estimate({"model_type": "gpt2"})
    low, high = footprint.peak.low, footprint.peak.high

    def judged(nbytes, metric="allocated"):
        return judge_observed(parse_observed(str(nbytes), metric), footprint, EXACT)

    outcomes = [judged(nbytes).outcome for nbytes in (low - 1, low, high, high + 1)]
    assert outcomes == ["failed", "passed", "passed", "failed"]
    assert "at least" in judged(low - 1).reason
    assert "the states alone" in judged(footprint.states.rounded // 2).reason
    for metric, said in (("reserved", "to reserve"), ("nvidia-smi", "of the device")):
        assert judged(low - 1, metric).outcome == "failed"
        above = judged(high + 1, metric)
        assert (above.outcome, said in above.reason) == ("unjudged", True)


def test_a_figure_below_the_states_is_a_contradiction():
    """Only a figure below what the states alone take is judged where the step is not played; the rest is not modelled yet."""
    footprint = estimate({"model_type": "gpt2"}, parallelism={"dp": 8, "zero_backend": "deepspeed"})
    low = footprint.states.rounded
    below = judge_observed(parse_observed(str(low - 1), "allocated"), footprint, EXACT)
    assert (below.outcome, below.exit_code) == ("failed", 1)
    above = judge_observed(parse_observed(str(low), "allocated"), footprint, EXACT)
    assert (above.outcome, above.exit_code) == ("unjudged", 2)
    assert "not modelled yet" in above.reason
    assert judge_observed(parse_observed(f"{low / 2**30:.1f}GiB", "nvidia-smi"), footprint, EXACT).outcome == "unjudged"
