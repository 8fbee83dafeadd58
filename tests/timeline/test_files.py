"""Timelines as files: what they hold, that they are whole or not there, and that equal ones are equal bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise

import jsonschema
import numpy as np
import pytest

from memcalc.errors import InputError, MissingPackageError
from memcalc.formats.palette import DARK, LABELS, LIGHT
from memcalc.formats.timeline import write
from memcalc.formats.timeline.document import document
from memcalc.schemas import schema
from memcalc.tape.events import ROLES, Alloc, Buffer
from memcalc.timeline.timeline import STACK, Timeline

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<!--{{data}} \u2028 \ud800 &lt;"
)


@pytest.fixture(scope="module")
def hostile():
    """A tape whose every name tries to be markup."""
    names = dict.fromkeys(("site", "module", "operator", "dtype"), HOSTILE)
    return Timeline.of([Alloc(Buffer(requested=5000, role="activation", **names))])


def test_json_fits_its_schema(step, footprint, hostile, tmp_path):
    """What is written is what ``memcalc schema timeline`` promises, with a footprint and without, names of any kind in it."""
    for timeline, answer in ((step, footprint), (hostile, None)):
        told = json.loads(write(timeline, tmp_path / "a.json", answer).read_text())
        jsonschema.validate(told, schema("timeline"))
        assert told["peak"]["bytes"] == timeline.peak.bytes == sum(told["peak"]["by_role"].values())
    assert told["strings"][told["buffers"]["module"][0]] == HOSTILE


def test_json_holds_every_event(step):
    """Births and deaths written out give the totals back, and the columns the buffers."""
    told = document(step)
    live, totals, columns = 0, [], told["buffers"]
    for event in told["events"]:
        live += (1 if event > 0 else -1) * -(-columns["requested"][abs(event) - 1] // 512) * 512
        totals.append(live)
    assert totals == told["total"]
    assert told["allocated"] == step.allocated.tolist()
    alive = [k for k, (born, dies) in enumerate(zip(columns["born"], columns["dies"], strict=True))
             if born <= told["peak"]["instant"] and (dies is None or dies > told["peak"]["instant"])]  # fmt: skip
    assert len(alive) == len(step.alive(step.peak.instant))
    assert told["strings"][columns["site"][0]] == "transformer.wte.weight"
    assert told["shapes"][columns["shape"][0]] == [1000, 256]


@pytest.mark.parametrize("suffix", [".json", ".html", ".png", ".svg"])
def test_equal_timelines_are_equal_files(step, footprint, tmp_path, suffix):
    """No clock, no random name and no order of a set gets into a file."""
    first, second = (write(step, tmp_path / f"{name}{suffix}", footprint).read_bytes() for name in "ab")
    assert first == second
    start = {".png": b"\x89PNG\r\n", ".svg": b"<?xml", ".html": b"<!DOCTYPE html>", ".json": b"{\n"}[suffix]
    assert first.startswith(start)


def test_the_picture_says_what_it_shows(step, footprint, tmp_path, monkeypatch):
    """An SVG has a curve for each role and line, in the palette's colours, and the words that explain it."""
    from memcalc.formats.timeline import picture

    # letters as text rather than outlines, so that they can be read here
    monkeypatch.setitem(picture._SETTINGS, "svg.fonttype", "none")
    text = write(step, tmp_path / "a.svg", footprint, title="a $x_1$ model").read_text()
    said = re.findall(r">([^<>\n]+)</text>", text)
    assert {"a $x_1$ model", "forward", "backward", "iteration 1", "iteration 2", "allocated", "reserved"} <= {
        s.strip() for s in said
    }
    assert any(one.startswith("peak ") and one.endswith("iteration 2") for one in said)
    for role in step.roles:
        assert LABELS[role] in said
        assert LIGHT[role] in text


def test_a_picture_of_a_tape_without_bytes(tmp_path):
    """Nothing on the device is an empty picture and page rather than a fault."""
    timeline = Timeline.of([Alloc(Buffer("x", 8, "optimizer_state", place="host"))])
    for suffix in (".svg", ".html", ".json"):
        assert write(timeline, tmp_path / f"a{suffix}").stat().st_size > 500


def test_without_matplotlib(step, tmp_path, monkeypatch):
    """A picture without matplotlib is an error that names the extra, before anything is drawn or written."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("memcalc.formats.timeline.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"matplotlib is not installed; pip install 'memcalc\[plot\]'"):
        write(step, tmp_path / "a.png")
    write(step, tmp_path / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_a_name_that_says_nothing(step, tmp_path):
    """An ending that is none of the four is refused with the four."""
    with pytest.raises(InputError, match=r"--timeline: \S*a.pdf is no kind of file .* end it in .json, .html, .png, .svg"):
        write(step, tmp_path / "a.pdf")


def test_whole_or_not_at_all(step, tmp_path, monkeypatch):
    """A disk that fails in the middle leaves the old file as it was and nothing beside it."""
    target = tmp_path / "a.html"
    target.write_text("before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"--timeline: .* cannot be written \(No space left on device\)"):
        write(step, target)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.html", "before")]


class _Scripts(HTMLParser):
    """The page's elements as a browser's tokenizer cuts them."""

    def __init__(self):
        super().__init__()
        self.inside, self.scripts, self.tags, self.addresses = None, [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "poster", "srcset")]
        if tag == "script":
            self.scripts.append([dict(attrs), ""])

            self.inside = self.scripts[-1]

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside is not None:
            self.inside[1] += data


def _parsed(page):
    parser = _Scripts()
    parser.feed(page)
    parser.close()
    return parser


def test_names_stay_names_in_the_page(hostile, footprint, tmp_path):
    """A hostile name neither ends the data element nor becomes an element, and the data is it again when parsed."""
    page = write(hostile, tmp_path / "a.html", footprint, title=HOSTILE).read_text()
    harmless = Timeline.of([Alloc(Buffer("x", 5000, "activation", module="y", operator="z", dtype="w"))])
    parser, other = _parsed(page), _parsed(write(harmless, tmp_path / "b.html", footprint, title="t").read_text())
    assert parser.tags == other.tags
    data = next(text for attributes, text in parser.scripts if attributes.get("id") == "data")
    assert HOSTILE in json.loads(data)["strings"]
    assert "<b>1 < 2" not in page
    assert "&lt;b&gt;1 &lt; 2 &amp; 3&lt;/b&gt;" in page


def test_the_page_is_self_contained(step, footprint, tmp_path):
    """Its policy lets in nothing but the script and style it holds, and it names no address."""
    page = write(step, tmp_path / "a.html", footprint).read_text()
    parser = _parsed(page)
    assert parser.addresses == ["data:,"]
    assert len(parser.scripts) == 2
    assert re.findall(r"https?:[^\"' <]*", page) == ["http://www.w3.org/2000/svg"]
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    for text in (parser.scripts[1][1], re.search(r"<style>(.*?)</style>", page, re.S)[1]):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none'")


def test_pages_are_small(tmp_path):
    """A page of sixty thousand events is under a megabyte and a half, all of them in it."""
    from tests.timeline.demo import series, tape

    events = tape(5, layers=106)
    allocated, reserved = series(events)
    timeline = Timeline.of(events, allocated=allocated, reserved=reserved)
    assert len(timeline) >= 60_000
    assert write(timeline, tmp_path / "a.html").stat().st_size < 1_500_000


def test_the_templates_are_in_the_package():
    """The page's files lie where an installed package finds them."""
    from importlib.resources import files

    from memcalc.formats.timeline.page import SCRIPTS

    folder = files("memcalc.formats.timeline.page")
    assert all(folder.joinpath(name).is_file() for name in (*SCRIPTS, "page.html", "page.css"))


# Machado, Oliveira and Fernandes 2009, "A physiologically-based model for simulation of color vision deficiency", table 1
# (severity 1.0), in linear RGB
EYES = {
    "all colours": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def _lab(colour, eye):
    """A colour's place in CIE L*a*b* (D65), as an eye sees it."""
    rgb = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(EYES[eye]) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = np.array(to_xyz) @ seen / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


USUAL = ("parameter", "master_parameter", "optimizer_state", "gradient", "activation", "temporary")
"""The roles that fill nearly every picture: any two of them may touch where those between are thin."""


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("eye", EYES)
def test_colours_stay_apart(palette, eye):
    """Roles that touch in the stack, and any two of the usual ones, are far apart (an eye needs about 2.3 Lab units)."""
    assert set(palette) == set(ROLES)
    neighbours = {*pairwise(STACK), *((a, b) for a in USUAL for b in USUAL if a < b)}
    apart = {pair: np.linalg.norm(_lab(palette[pair[0]], eye) - _lab(palette[pair[1]], eye)) for pair in neighbours}
    assert min(apart.values()) > 15, min(apart, key=apart.get)
