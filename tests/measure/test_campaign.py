"""A campaign: cases in processes of their own, a journal that survives a kill, and one failure that harms no other."""

from __future__ import annotations

import errno
import json
import os

import pytest

pytest.importorskip("torch", reason="a campaign runs real steps")

from memcalc.__main__ import run
from memcalc.campaign import read_campaign
from memcalc.engines.measure import process, runner
from memcalc.engines.measure.here import measure_here
from memcalc.engines.measure.process import bare_environment
from memcalc.errors import InputError, MissingPackageError
from memcalc.measurement import Measurement
from memcalc.measurement_files import read_measurement, records_in

CAMPAIGN = {
    "name": "tiny", "device": "cpu", "base": {"model": {"params": 10}, "iterations": 1},
    "groups": [{"name": "all", "grid": {"optimizer": ["adam", "sgd", "adagrad", "lion"]}}],
}  # fmt: skip


def fake(ask, ranks=1):
    """A record at once; Adagrad's process stands for one that fails."""
    status = "failed" if ask.request["training"]["optimizer"] == "adagrad" else "measured"
    return Measurement(
        case=ask.case, status=status, created="2026-01-01T00:00:00Z", environment=bare_environment(ask), request=ask.request,
        job=ask.request, failure={"kind": "raised", "message": "so it goes"} if status == "failed" else None,
    )  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """The cases that were really run."""
    ran = []

    def measure(ask, ranks=1):
        ran.append(ask.case)
        return fake(ask)

    monkeypatch.setattr(runner, "measure_apart", measure)
    return ran


def test_every_case_gets_its_record(tmp_path, asked):
    """One file a case and one line a case in the journal; the failing one is among them and the others are unharmed."""
    results = runner.run_campaign(read_campaign(CAMPAIGN), tmp_path)
    assert [done.status for done in results] == ["measured", "measured", "failed", "measured"]
    assert {read_measurement(file).case for file in records_in(tmp_path)} == {done.case for done in results}
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [line["case"] for line in lines] == asked
    assert lines[2]["message"] == "so it goes"


def test_a_killed_run_goes_on(tmp_path, monkeypatch, asked):
    """After a kill in the third case, with the journal's last line cut short, a second run does what is left and no more."""
    cases = read_campaign(CAMPAIGN)

    def dies(ask, ranks=1):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(ask.case)
        return fake(ask)

    monkeypatch.setattr(runner, "measure_apart", dies)
    with pytest.raises(KeyboardInterrupt):
        runner.run_campaign(cases, tmp_path)
    first = list(asked)
    with (tmp_path / "journal.jsonl").open("a") as journal:
        journal.write('{"case": "all-adagr')

    def goes_on(ask, ranks=1):
        asked.append(ask.case)
        return fake(ask)

    monkeypatch.setattr(runner, "measure_apart", goes_on)
    results = runner.run_campaign(cases, tmp_path)
    assert asked == [case.name for case in cases]
    assert [done.again for done in results] == [True, True, False, False]
    assert len(first) == 2
    third = runner.run_campaign(cases, tmp_path)
    assert all(done.again for done in third), "the line that was cut short has not swallowed the one after it"


def test_a_changed_job_is_run_again(tmp_path, asked):
    """The journal knows what was asked, not what it was called: another batch size is another question."""
    runner.run_campaign(read_campaign(CAMPAIGN), tmp_path)
    changed = {**CAMPAIGN, "base": {**CAMPAIGN["base"], "micro_batch_size": 2}}
    results = runner.run_campaign(read_campaign(changed), tmp_path)
    assert not any(done.again for done in results)
    assert len(asked) == 8


def test_failures_are_run_again_when_asked(tmp_path, asked):
    """``retry`` takes up what failed and leaves what was measured; a record that was deleted is made again."""
    cases = read_campaign(CAMPAIGN)
    runner.run_campaign(cases, tmp_path)
    (tmp_path / "all-sgd.json.gz").unlink()
    runner.run_campaign(cases, tmp_path, retry=True)
    assert asked[4:] == ["all-sgd", "all-adagrad"]


def test_no_case_is_begun_after_the_limit(tmp_path, asked):
    """A run of limited length stops between cases and leaves the rest for the next."""
    assert runner.run_campaign(read_campaign(CAMPAIGN), tmp_path, limit=0.0) == []
    assert len(runner.run_campaign(read_campaign(CAMPAIGN), tmp_path, limit=100.0)) == 4


def test_cases_that_ask_to_be_alone_are(tmp_path, monkeypatch):
    """Several run at once, up to ``jobs``; one that must be alone never meets another."""
    import threading
    import time

    at_once, lock, running = [], threading.Lock(), set()

    def slow(ask, ranks=1):
        with lock:
            running.add(ask.case)
            at_once.append((ask.settings.alone, len(running)))
        time.sleep(0.05)
        with lock:
            at_once.append((ask.settings.alone, len(running)))
            running.discard(ask.case)
        return fake(ask)

    monkeypatch.setattr(runner, "measure_apart", slow)
    group = {**CAMPAIGN["groups"][0], "list": [{}, {"alone": True}, {"micro_batch_size": 3}]}
    results = runner.run_campaign(read_campaign({**CAMPAIGN, "groups": [group]}), tmp_path, jobs=3)
    assert len(results) == 12
    assert max(count for alone, count in at_once if alone) == 1
    assert 1 < max(count for _, count in at_once) <= 3


def test_a_full_disk_ends_the_run_and_spoils_nothing(tmp_path, monkeypatch, asked):
    """When the disk fills up the run stops with one error, what was recorded stays readable, and a later run goes on."""
    cases = read_campaign(CAMPAIGN)
    real = os.fsync
    left = [4]

    def filling(file):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(InputError, match="cannot be written \\(No space left on device\\)"):
        runner.run_campaign(cases, tmp_path)
    monkeypatch.setattr(os, "fsync", real)
    assert [read_measurement(file).status for file in records_in(tmp_path)] == ["measured", "measured"]
    assert len(runner.run_campaign(cases, tmp_path)) == 4
    assert asked == ["all-adam", "all-sgd", "all-adagrad", "all-adagrad", "all-lion"]


def test_without_a_device_nothing_is_begun(tmp_path, monkeypatch):
    """Where no case could run, the campaign is one error and no record says otherwise."""

    def none(ask, ranks=1):
        raise MissingPackageError("--device", "cuda", "cannot be used", "use --device cpu")

    monkeypatch.setattr(runner, "measure_apart", none)
    with pytest.raises(MissingPackageError):
        runner.run_campaign(read_campaign(CAMPAIGN), tmp_path)
    assert not list(tmp_path.glob("*.gz"))


def test_the_command_runs_a_campaign_for_real(tmp_path, capsys):
    """Two real cases in processes of their own, one of which fails: exit code 2, two records, and the reason said."""
    file = tmp_path / "campaign.yaml"
    file.write_text(
        "name: two\ndevice: cpu\nbase: {precision: fp32, iterations: 1}\ngroups:\n- name: g\n  include:\n"
        "  - {name: works, model: 'py:memcalc.runtime.models:mlp'}\n"
        "  - {name: breaks, model: 'py:tests.measure.small:broken'}\n"
    )
    out = tmp_path / "records"
    words = ["measure", "--campaign", str(file), "--out", str(out)]
    assert run(words) == 2
    assert "trust it with --allow-code" in capsys.readouterr().err
    assert run([*words, "--allow-code"]) == 2
    said = capsys.readouterr()
    assert "2 of 2 cases recorded" in said.out
    assert "g-breaks failed" in said.err
    assert "KeyError: 'no such thing'" in said.err
    statuses = {file.name: read_measurement(file).status for file in records_in(out)}
    assert statuses == {"g-works.json.gz": "measured", "g-breaks.json.gz": "failed"}


def test_the_command_prints_a_footprint(tmp_path, capsys, monkeypatch):
    """``memcalc measure`` prints the contract's object and nothing else, and leaves the whole record where it is told."""
    out = tmp_path / "mlp.json"
    monkeypatch.setattr(process, "measure_apart", lambda ask, ranks: measure_here(ask))
    assert run(["measure", "mlp", "--format", "json", "--out", str(out), "--iterations", "1"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["engine"], shown["peak"]["allocated"], shown["peak"]["reserved"]) == ("measure", None, None)
    count = shown["model"]["num_parameters"]
    assert shown["components"]["optimizer_states"] + shown["components"]["master_parameters"] == 12 * count
    assert read_measurement(out).model.num_parameters == count


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["mlp", "--optimizer", "torch:LBFGS"], 2, "evaluates the model again inside its step"),
        (["py:tests.measure.small:hungry", "--precision", "fp32"], 1, "can't allocate memory"),
        (["py:tests.measure.small:broken", "--precision", "fp32"], 2, "KeyError: 'no such thing'"),
        (["mlp", "--campaign", "x.yaml", "--out", "there"], 2, "says all of its jobs itself; leave the other flags out"),
        (["--campaign", "x.yaml"], 2, "--out: is missing; name the folder of the records"),
        (["mlp", "--iterations", "0"], 2, "iterations: 0 is below 1"),
        (["mlp", "--schedule", "sometimes"], 2, "schedule: sometimes is not one of the choices"),
    ],
)
def test_the_command_s_exit_codes_are_the_contract_s(arguments, code, says, capsys, monkeypatch):
    """Out of memory is a no; what could not be run or asked is 2; each is one line on stderr."""
    monkeypatch.setattr(process, "measure_apart", lambda ask, ranks: measure_here(ask))
    assert run(["measure", *arguments]) == code
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""
