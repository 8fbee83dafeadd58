"""The page in a real browser: it draws what the timeline says, answers mouse and keys, and asks nothing of any network."""

from __future__ import annotations

import pytest

from memcalc.formats.timeline import write
from memcalc.timeline.groups import by
from memcalc.timeline.timeline import Timeline
from memcalc.units import format_gib
from tests.timeline.browser import Browser, executable
from tests.timeline.test_files import HOSTILE

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium on the path, and MEMCALC_CHROMIUM names none")


@pytest.fixture(scope="module")
def browser():
    with Browser(executable()) as one:
        yield one


@pytest.fixture(scope="module")
def page(step, footprint, tmp_path_factory):
    return write(step, tmp_path_factory.mktemp("page") / "a.html", footprint)


@pytest.fixture
def opened(browser, page):
    """The page, just opened at a common size."""
    browser.problems.clear()
    browser.asked.clear()
    browser.open(page)
    return browser


def text(browser, selector):
    return browser.run(f"document.querySelector({selector!r}).textContent")


def now(browser):
    return int(browser.run("document.querySelector('#chart').getAttribute('aria-valuenow')"))


def focus(browser):
    browser.run("document.querySelector('#chart').focus()")


def total(browser):
    return int(browser.run("document.querySelector('#moment-total').title").removesuffix(" bytes").replace(",", ""))


def pin(browser, instant):
    """Pin an instant with the keys alone."""
    focus(browser)
    browser.press("0", "Home", *["ArrowRight"] * instant, "Enter")


def test_it_opens_without_a_network_or_a_complaint(opened, page, step):
    """One address is asked for, the file's own; the console stays silent; every role has its area and the peak is shown."""
    assert set(opened.asked) == {page.as_uri(), "data:,"} or set(opened.asked) == {page.as_uri()}
    assert opened.problems == []
    assert opened.run("document.querySelectorAll('path.area').length") == len(step.roles)
    assert text(opened, "text.peak-text") == f"peak {format_gib(step.peak.bytes)}"
    assert (now(opened), total(opened)) == (step.peak.instant, step.peak.bytes)


def test_the_allocators_own_peak_is_marked(browser, footprint, tmp_path):
    """Where the allocator counts most at another instant than the total's peak, that instant has a mark of its own."""
    from memcalc.tape.events import Alloc, Buffer, Free, Mark

    one, two = (Buffer(name, 512 * size, "activation") for name, size in (("one", 2048), ("two", 4096)))
    events = [Mark("forward"), Alloc(one), Free(one), Alloc(two), Free(two)]
    for allocated, marks in (([2**20, 0, 2**21, 0], []), ([2**22, 0, 2**21, 0], ["allocated 4.00 MiB"])):
        browser.open(write(Timeline.of(events, allocated=allocated), tmp_path / "a.html", footprint))
        assert text(browser, "text.peak-text") == "peak 2.00 MiB"
        assert browser.run("[...document.querySelectorAll('text.hollow-text')].map(one => one.textContent)") == marks


def test_keys_move_the_cursor_through_exact_instants(opened, step):
    """Each arrow key is one instant, and what is said of it is what the timeline has: bytes, roles, buffers, and aloud."""
    focus(opened)
    opened.press("Home")
    for instant in range(4):
        assert (now(opened), total(opened)) == (instant, int(step.total[instant]))
        opened.press("ArrowRight")
    opened.press("ArrowLeft", "ArrowLeft")
    assert now(opened) == 2
    assert opened.run("document.querySelectorAll('#moment-list li').length") == len(step.alive(2))
    assert text(opened, "#moment-rest") == "that is all of them"
    opened.until("document.querySelector('#said').textContent.startsWith('Instant 2, init: ')")
    opened.press("PageDown")
    assert now(opened) == step.lives.stays[1].start
    opened.press("End", "ArrowRight")
    assert now(opened) == len(step) - 1
    opened.press("p")
    assert now(opened) == step.peak.instant


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_every_instant_is_the_timelines(opened, step, share):
    """Wherever it is pointed at, the page's total, its roles and its series are the timeline's."""
    left, top, width, height = opened.box("#chart")
    opened.mouse("mouseMoved", left + 58 + share * (width - 72), top + height / 2)
    instant = now(opened)
    assert abs(instant - share * len(step)) < len(step) / 50
    assert total(opened) == step.total[instant]
    said = opened.run("[...document.querySelectorAll('#moment-roles td[title]')].map(one => one.title)")
    assert said == [f"{step.live[row, instant]:,} bytes" for row in reversed(range(len(step.roles)))]
    assert f"reserved {format_gib(int(step.reserved[instant]))}" in text(opened, "#moment-series")


def test_a_click_pins_and_escape_goes_back(opened, step):
    """A pinned instant stays when the pointer leaves, the breakdown follows it, and Escape returns to the peak."""
    left, top, width, height = opened.box("#chart")
    opened.click(left + width * 0.4, top + height / 2)
    opened.mouse("mouseMoved", 5, 5)
    pinned = now(opened)
    assert text(opened, "#moment-kind") == "pinned"
    assert text(opened, "#breakdown-title") == f"What makes up instant {pinned:,}"
    assert f"({step.total[pinned]:,} bytes)" in text(opened, "#table-sum")
    focus(opened)
    opened.press("Escape")
    assert (now(opened), text(opened, "#breakdown-title")) == (step.peak.instant, "What makes up the peak")


def test_dragging_zooms_and_a_phase_zooms_to_itself(opened, step):
    """After a drag the ends of the view are where it began and ended; a phase's button shows that phase alone."""
    left, top, width, height = opened.box("#chart")
    inside = width - 72
    at = [left + 58 + share * inside for share in (0.25, 0.5)]
    opened.mouse("mouseMoved", at[0], top + height / 2, button="none")
    opened.mouse("mousePressed", at[0], top + height / 2, button="left", buttons=1, clickCount=1)
    opened.mouse("mouseMoved", at[1], top + height / 2, button="left", buttons=1)
    opened.mouse("mouseReleased", at[1], top + height / 2, button="left", clickCount=1)
    focus(opened)
    opened.press("Home")
    assert abs(now(opened) - len(step) / 4) < len(step) / 100
    opened.press("End")
    assert abs(now(opened) - len(step) / 2) < len(step) / 100
    stay = step.lives.stays[3]
    opened.run("document.querySelectorAll('#phases button')[3].click()")
    focus(opened)
    opened.press("Home")
    assert now(opened) == stay.start
    opened.press("End")
    assert now(opened) == stay.stop - 1
    opened.run("document.querySelector('#zoom-all').click()")
    opened.press("Home")
    assert now(opened) == 0


def test_the_tab_key_reaches_everything_and_focus_shows(opened):
    """Tab goes from the theme's button through the tools and the chart to the treemap and the tables, each with an outline."""
    seen = []
    opened.run("document.activeElement.blur()")
    for _ in range(200):
        opened.press("Tab")
        where, style = opened.run(
            "(e => [e.id || e.className || e.tagName, getComputedStyle(e).outlineStyle])(document.activeElement)"
        )
        if where == "BODY" or (seen and where == seen[0]):
            break
        seen.append(where)
        assert style != "none", where
    order = [seen.index(one) for one in ("theme", "zoom-in", "chart", "most", "cell", "by", "link")]
    assert order == sorted(order)


def test_the_table_is_the_groups_and_sorts(opened, step):
    """The table's rows are the timeline's groups; its heads sort it, and say so."""
    opened.run("(s => { s.value = 'operator'; s.dispatchEvent(new Event('change')) })(document.querySelector('#by'))")
    names = "[...document.querySelectorAll('#table tbody th')].map(one => one.textContent)"
    assert opened.run(names) == [one.name for one in by(step, "operator")][:15]
    opened.run("document.querySelector('#table th button').click()")
    assert opened.run("document.querySelector('#table th').getAttribute('aria-sort')") == "ascending"
    assert opened.run(names) == sorted(one.name for one in by(step, "operator"))[:15]
    assert f"({step.peak.bytes:,} bytes)" in text(opened, "#table-sum")


def test_the_treemaps_areas_are_bytes(opened, step):
    """Of the outermost rectangles, each takes its share of the area; one opens on a click and the path leads back."""
    shares = opened.run(AREAS)
    outer = {}
    for one in by(step, "module"):
        name = one.name.partition(".")[0]
        outer[name] = outer.get(name, 0) + one.bytes / step.peak.bytes
    expected = sorted((share for share in outer.values() if share > 0.01), reverse=True)
    assert shares[: len(expected)] == pytest.approx(expected, abs=0.01)
    opened.run("document.querySelector('#treemap .head').click()")
    assert text(opened, "#crumbs").startswith("modeltransformer")
    opened.run("document.querySelector('#crumbs button').click()")
    assert text(opened, "#crumbs") == f"model · {format_gib(step.peak.bytes)}"


def test_both_themes_and_the_button_between_them(browser, page):
    """The page follows the system's theme until the button is pressed; text is readable against either."""
    grounds = {}
    for dark in (False, True):
        browser.open(page, dark=dark)
        browser.run("(() => { try { localStorage.clear() } catch {} })()")
        browser.open(page, dark=dark)
        grounds[dark] = browser.run("getComputedStyle(document.body).backgroundColor")
        ratio = browser.run(CONTRAST)
        assert ratio > 4.5, (dark, ratio)
    assert grounds[False] != grounds[True]
    assert text(browser, "#theme") == "Light"
    browser.run("document.querySelector('#theme').click()")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == grounds[False]
    browser.run("document.querySelector('#theme').click(); try { localStorage.clear() } catch {}")


AREAS = """(host => {
  const all = host.getBoundingClientRect();
  return [...host.children].map(one => {
    const box = one.getBoundingClientRect();
    return (box.width + 2) * (box.height + 2) / all.width / all.height;
  });
})(document.querySelector('#treemap'))"""

# the lowest of WCAG 2's contrast ratios (its definitions of contrast ratio and relative luminance) among four kinds of text
CONTRAST = """(() => {
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = selector => getComputedStyle(document.querySelector(selector));
  const ground = light(style('.card').backgroundColor);
  return Math.min(...['h1', '.dim', '#moment-total', '#phases button'].map(selector => {
    const ink = light(style(selector).color);
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  }));
})()"""


@pytest.mark.parametrize("width", [380, 768, 2400])
def test_it_fits_every_width(browser, page, width):
    """From a phone's width to a wide screen's nothing sticks out, and the chart takes the room there is."""
    browser.open(page, width=width, phone=width < 500)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.box("#chart")[2] > min(0.5 * width, 700)


def test_it_prints_light(browser, page, tmp_path):
    """On paper the page is light whatever the theme, its tools are gone, and it makes a document of some pages."""
    browser.open(page, dark=True)
    browser.send("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('.tools')).display") == "none"
    browser.pdf(tmp_path / "a.pdf")
    browser.send("Emulation.setEmulatedMedia", media="")
    assert (tmp_path / "a.pdf").read_bytes().count(b"/Type /Page\n") in range(2, 12)


def test_a_hostile_name_stays_a_name(browser, footprint, tmp_path):
    """Names that are markup are shown as they are written, in every part of the page, and nothing of them runs."""
    from memcalc.tape.events import Alloc, Buffer

    names = dict.fromkeys(("site", "module", "operator", "dtype"), HOSTILE)
    other = Buffer("plain", 4096, "parameter", module="plain")
    timeline = Timeline.of([Alloc(Buffer(requested=5000, role="activation", **names)), Alloc(other)])
    path = write(timeline, tmp_path / "a.html", footprint, title=HOSTILE)
    browser.problems.clear()
    browser.open(path)
    browser.run("(s => { s.value = 'tensor'; s.dispatchEvent(new Event('change')) })(document.querySelector('#by'))")
    assert browser.problems == []
    assert browser.run("document.title").startswith(HOSTILE[:80])
    assert browser.run("document.images.length") == 0
    assert browser.run("document.scripts.length") == 2
    said = HOSTILE[:80]
    assert text(browser, "#table tbody th").startswith(said)
    assert text(browser, "h1").startswith(said)
    assert text(browser, "#moment-list .site").startswith(said)
