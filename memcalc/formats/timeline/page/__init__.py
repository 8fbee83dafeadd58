"""A timeline as one self-contained page: no network, no library, one script and one style written for it.

The files beside this one are its template: ``page.html``, ``page.css`` and the scripts, which are joined in order. Whatever
comes from data is escaped HTML or sits in an inert JSON element, and the page's own policy lets only its own script run.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files

from memcalc.footprint import Footprint
from memcalc.formats.palette import DARK, LABELS, LIGHT
from memcalc.formats.timeline.page.facts import about, job, tiles
from memcalc.formats.timeline.page.pack import island, packed
from memcalc.tape.events import Role
from memcalc.timeline.timeline import Timeline

SCRIPTS = ("data.js", "text.js", "chart.js", "treemap.js", "panels.js", "main.js")
DARK_PAGE = (
    "--page: #0e1319; --card: #161d25; --ink: #e6edf3; --dim: #9aa7b4; --edge: #2d3742; --grid: #26303a; --tint: #1f2832;"
    " --odd: #28323d; --accent: #6cb6ff; --focus: #6cb6ff; --pin: #e6edf3; color-scheme: dark;"
)
_SLOT = re.compile(r"\{\{(\w+)\}\}")


def made(timeline: Timeline, footprint: Footprint | None, *, title: str, suffix: str = ".html") -> bytes:
    """The page as UTF-8; equal timelines make equal pages."""
    style = _filled(
        _file("page.css"), light=_variables(LIGHT), dark=_variables(DARK), dark_page=DARK_PAGE, fills=_fills(timeline.roles)
    )
    script = '(() => {\n"use strict";\n' + "\n".join(_file(name) for name in SCRIPTS) + "})();\n"
    policy = f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; base-uri 'none'"
    page = _filled(
        _file("page.html"),
        title=escape(title),
        about=about(footprint),
        policy=policy,
        style=style,
        tiles=tiles(timeline, footprint),
        last=str(len(timeline) - 1),
        lines=_lines(timeline),
        legend="".join(f'<li><span class="swatch fill-{role}"></span>{escape(LABELS[role])}</li>' for role in timeline.roles),
        job=job(footprint),
        footer=_footer(timeline),
        data=island(packed(timeline)),
        script=script,
    )
    # a name may hold half of a surrogate pair, which no encoding takes: it is written as a reference
    return page.encode("utf-8", "xmlcharrefreplace")


def _file(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _filled(template: str, **slots: str) -> str:
    """The template with its slots filled, in one pass: what fills a slot is never searched for slots."""
    return _SLOT.sub(lambda match: slots[match[1]], template)


def _variables(colours: dict[Role, str]) -> str:
    return " ".join(f"--role-{role}: {colour};" for role, colour in colours.items())


def _fills(roles: tuple[Role, ...]) -> str:
    return "\n".join(f".fill-{role} {{ fill: var(--role-{role}); background: var(--role-{role}); }}" for role in roles)


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _lines(timeline: Timeline) -> str:
    """The key to the lines over the areas."""
    said = [f"Areas: bytes {timeline.measure}, by role."]
    for name, series, kind in (("allocated", timeline.allocated, ""), ("reserved", timeline.reserved, " dashed")):
        if series is not None:
            line = f'<svg viewBox="0 0 26 8" aria-hidden="true"><path class="line{kind}" d="M0,4H26"/></svg>'
            said.append(f"{line}{name} by the caching allocator")
    return " ".join(said)


def _footer(timeline: Timeline) -> str:
    counted = "each buffer rounded up to 512 bytes" if timeline.measure == "rounded" else "each buffer as its tensor asks"
    where = f"instants {timeline.window[0]:,} to {timeline.window[1] - 1:,}"
    return (
        f"An instant is the moment just after one allocation or free. Bytes are {counted}; GiB = 2³⁰. A column of the chart "
        f"shows the highest instant in it. The peak is the highest of {where}. Written by memcalc; the page asks nothing of "
        "any network."
    )
