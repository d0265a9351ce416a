"""The page in a browser: drawn, silent, complete, legible; and every number of it held against
the document that it carries."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.report import results_of

from edgeopt.core import Results
from edgeopt.numerics.derive import derive
from edgeopt.report.document import conditions_words, pairing_of
from edgeopt.report.numbers import SHAPES, printable
from edgeopt.report.page.render import PAGE_LIMIT, results_page

pytest.importorskip("vl_convert")
playwright = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

#: The documents whose pages are looked at: several conditions and artifacts; tokens a second;
#: names that would run or break out; an artifact that crashed.
DOCUMENTS = ("three", "gguf", "hostile", "failed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"no browser: install one of {', '.join(BROWSERS)}")
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


class Opened:
    """One page of one document: its tab, and what it said and asked for while opening."""

    def __init__(self, browser: Any, results: Results, folder: Path, name: str) -> None:
        self.results = results
        self.text = results_page(results, derive(results))
        path = folder / f"{name}.html"
        path.write_text(self.text, encoding="utf-8")
        self.said: list[str] = []
        self.asked: list[str] = []
        self.tab = browser.new_page(viewport={"width": 1100, "height": 800})
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.said.append("a dialog"), dialog.dismiss()))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.url = path.as_uri()
        self.tab.goto(self.url)

    def show(self, width: int = 1100, scheme: str = "light", media: str = "screen") -> Any:
        self.tab.set_viewport_size({"width": width, "height": 800})
        self.tab.emulate_media(media=media, color_scheme=scheme)
        return self.tab

    @property
    def document(self) -> Any:
        """The document that the page carries."""
        link = self.tab.get_attribute("#document", "href")
        return json.loads(gzip.decompress(base64.b64decode(link.partition(",")[2])))


@pytest.fixture(scope="module")
def pages(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Opened]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: Opened(browser, getattr(results_of, name)(), folder, name) for name in DOCUMENTS}


@pytest.fixture(params=DOCUMENTS)
def page(request: pytest.FixtureRequest, pages: dict[str, Opened]) -> Opened:
    return pages[request.param]


# ---------------------------------------------------------------------------------------------
# it is whole, and alone


def test_opens_silently_and_asks_for_nothing(page: Opened) -> None:
    assert page.said == []
    assert [url for url in page.asked if not url.startswith("data:")] == [page.url]
    assert len(page.text.encode()) < PAGE_LIMIT


def test_carries_the_whole_document(page: Opened) -> None:
    derived = derive(page.results)
    whole = {**page.results.to_json(), "derived": derived.to_json()}
    assert page.document == json.loads(json.dumps(whole))
    assert Results.from_json(page.document).to_json() == page.results.to_json()


def test_names_are_only_ever_words(pages: dict[str, Opened]) -> None:
    tab = pages["hostile"].show()
    assert tab.evaluate("document.querySelectorAll('img, iframe, svg script').length") == 0
    assert tab.evaluate("document.scripts.length") == 1
    assert results_of.HOSTILE in tab.inner_text("main")
    assert "\x1b" not in pages["hostile"].text


# ---------------------------------------------------------------------------------------------
# every number

#: What the page says of a unit, by its own account of it.
UNITS = {"": 1.0, "x": 1.0, "%": 1.0, "dB": 1.0, "MHz": 1.0, "tokens/s": 1.0, "nat": 1.0}
UNITS |= {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "J": 1.0, "mJ": 1e-3}
UNITS |= {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9, "1/s": 1.0}

NUMBER = re.compile(r"(-?[\d,]*\.?\d+)\s*([A-Za-z%µ/1]*)")

NUMBERS = """() => [...document.querySelectorAll('[data-key]')].map(e => ({
  key: e.dataset.key, value: e.dataset.value, shape: e.dataset.shape || 'value',
  scale: +(e.dataset.scale || 1), text: e.dataset.tip ? '' : e.textContent,
  shown: !!e.getClientRects().length}))"""


def at(document: Any, pointer: str) -> Any:
    """What stands at a JSON pointer (RFC 6901), written down again here."""
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def test_every_number_is_the_documents(page: Opened) -> None:
    document = page.document
    numbers = page.show().evaluate(NUMBERS)
    assert len(numbers) > 60
    for number in numbers:
        held = at(document, number["key"])
        held = len(held) if number["shape"] == "length" else held
        assert float(number["value"]) == float(held), number
        if number["text"]:
            shown = NUMBER.search(number["text"])
            assert shown, number
            digits, unit = shown[1].replace(",", ""), shown[2]
            factor = UNITS[unit] * number["scale"]
            step = 10.0 ** -len(digits.partition(".")[2]) * factor
            meant = SHAPES[number["shape"]](float(held))
            # a percentage of same answers is rounded down, everything else to the nearest
            slack = 1.0 if number["shape"] == "percent" else 0.5
            assert abs(float(digits) * factor - meant) <= slack * step * (1 + 1e-9), number


#: Digits that are no figures of the document: the names of statistics and their thresholds.
FIXED = re.compile(
    r"\bp(50|90|95|99)\b|95%|top-1|99% for everything|from 64|from 128|from 662|20 dB|40 dB|sha256"
)

LOOSE = """() => {
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walk.nextNode();) {
    const inside = node.parentElement;
    if (!/\\d/.test(node.data) || inside.closest('script, [data-key], time')) continue;
    if (inside.closest('.role-axis-label')) continue;
    // the paper under a label of the same words
    if (inside.closest('svg') && getComputedStyle(inside).stroke !== 'none') continue;
    found.push({words: node.data, quoted: !!inside.closest('[data-words], svg, h1')});
  }
  return found;
}"""


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for key in value if isinstance(value, dict) else ():
            yield from (key, key.replace("_", " "))
        for member in value.values() if isinstance(value, dict) else value:
            yield from strings(member)


def test_no_number_is_without_its_source(page: Opened) -> None:
    known = {printable(words) for words in strings(page.document)}
    known |= {
        conditions_words(pairing_of(row["conditions"])) for row in page.document["derived"]["rows"]
    }
    for loose in page.show().evaluate(LOOSE):
        words = loose["words"].strip()
        head, _, tail = words.partition("…")
        quotes = (
            any(head in k and tail in k for k in known) if tail else any(words in k for k in known)
        )
        if loose["quoted"] and quotes:
            continue
        left = words
        for known_words in sorted(known, key=len, reverse=True):
            left = (
                left.replace(known_words, "")
                if known_words and re.search(r"\d", known_words)
                else left
            )
        assert not re.search(r"\d", FIXED.sub("", left)), loose


# ---------------------------------------------------------------------------------------------
# the charts

DRAWN = """() => [...document.querySelectorAll('.drawing svg')]
  .filter(s => s.getClientRects().length).map(svg => {
    const frame = svg.getBoundingClientRect(), x = frame.left, y = frame.top;
    const box = e => { const b = e.getBoundingClientRect();
      return [b.left - x, b.top - y, b.right - x, b.bottom - y]; };
    const paper = getComputedStyle(svg.querySelector('rect')).fill;
    return {name: svg.closest('figure').id, width: frame.width, height: frame.height,
      marks: [...svg.querySelectorAll('.role-mark path, .role-mark line')]
        .filter(e => e.getAttribute('fill') !== 'none' || e.getAttribute('stroke')).map(box),
      bars: [...svg.querySelectorAll('path[data-tip], line[data-tip]')].map(e => (
        {value: +e.dataset.value, box: box(e), tip: e.dataset.tip})),
      texts: [...svg.querySelectorAll('text')].filter(e => e.textContent &&
        getComputedStyle(e).stroke === 'none').map(e => [e.textContent, ...box(e)])};
  })"""


@pytest.mark.parametrize("width", [360, 1100])
def test_charts_are_drawn_within_their_frames(page: Opened, width: int) -> None:
    charts = page.show(width).evaluate(DRAWN)
    expected = 1 if "failed" in page.url else 5
    assert len({chart["name"] for chart in charts}) == len(charts) >= expected
    for chart in charts:
        assert chart["width"] > 250 and chart["height"] > 30, chart["name"]
        assert chart["marks"], chart["name"]
        for left, top, right, bottom in [*chart["marks"], *(t[1:] for t in chart["texts"])]:
            inside = left > -2 and top > -2
            assert inside and right < chart["width"] + 2 and bottom < chart["height"] + 2, (
                chart["name"],
                (left, top, right, bottom),
                [t for t in chart["texts"] if t[3] >= chart["width"] + 2],
            )


@pytest.mark.parametrize("width", [360, 1100])
def test_no_label_lies_on_another(page: Opened, width: int) -> None:
    for chart in page.show(width).evaluate(DRAWN):
        texts = chart["texts"]
        for i, (one, *a) in enumerate(texts):
            for other, *b in texts[i + 1 :]:
                across = min(a[2], b[2]) - max(a[0], b[0])
                down = min(a[3], b[3]) - max(a[1], b[1])
                assert across < 1 or down < 4, (chart["name"], one, other)


def test_bars_are_as_long_as_their_values(page: Opened) -> None:
    for chart in page.show().evaluate(DRAWN):
        if chart["name"] != "chart-size":
            continue
        lengths = [(bar["box"][2] - bar["box"][0], bar["value"]) for bar in chart["bars"]]
        longest, most = max(lengths)
        for length, value in lengths:
            assert length / longest == pytest.approx(value / most, abs=3 / longest)


# ---------------------------------------------------------------------------------------------
# on a phone, in the dark, in print, by keyboard, by ear

CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 :
    ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + .05) / (y + .05); };
  const under = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length && (c.length < 4 || c[3] > 0)) return c.slice(0, 3); } return [255, 255, 255]; };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walk.nextNode();) {
    const e = node.parentElement;
    if (!node.data.trim() || e.closest('script') || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), svg = e.closest('svg');
    if (svg && style.stroke !== 'none') continue;
    const size = parseFloat(style.fontSize), bold = +style.fontWeight >= 600;
    const least = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
    const is = ratio(parse(svg ? style.fill : style.color).slice(0, 3), under(e));
    if (is < least) found.push([node.data.slice(0, 40), is, least]);
  }
  for (const e of document.querySelectorAll('.drawing [data-tip]')) {
    if (!e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const inks = [style.fill, style.stroke].filter(c => c !== 'none').map(parse);
    const is = Math.max(...inks.map(c => ratio(c.slice(0, 3), under(e))));
    if (is < 3) found.push([e.dataset.tip, is, 3]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_stands_out_from_its_ground(pages: dict[str, Opened], scheme: str) -> None:
    tab = pages["three"].show(scheme=scheme)
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(254, 254, 254)"
    assert dark == (scheme == "dark")
    assert tab.evaluate(CONTRAST) == []


def test_fits_a_phone(page: Opened) -> None:
    tab = page.show(360)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    assert tab.evaluate("""() => [...document.querySelectorAll('main *')].filter(e =>
      !e.closest('.away, thead, svg') && e.getBoundingClientRect().right > 361)
      .map(e => e.outerHTML.slice(0, 120))""") == []  # fmt: skip
    smallest = tab.evaluate("""() => Math.min(...[...document.querySelectorAll('.narrow text')]
      .filter(t => t.getClientRects().length).map(t => t.getBoundingClientRect().height))""")
    assert smallest > 11


def test_prints_in_ink_on_paper(pages: dict[str, Opened]) -> None:
    tab = pages["three"].show(360, "dark", "print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(254, 254, 254)"
    assert not tab.is_visible("nav") and not tab.is_visible("summary >> nth=0")
    assert tab.is_visible(".drawing .wide >> nth=0") and not tab.is_visible(".narrow >> nth=0")
    assert tab.pdf(format="A4")[:5] == b"%PDF-"


def test_keyboard_goes_through_in_order(pages: dict[str, Opened]) -> None:
    tab = pages["three"].show()
    tab.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    places = []
    for _ in range(60):
        tab.keyboard.press("Tab")
        place = tab.evaluate("""() => { const e = document.activeElement;
          return e === document.body ? null : {text: e.textContent.trim(), tag: e.tagName,
            place: [...document.querySelectorAll('*')].indexOf(e),
            outline: getComputedStyle(e).outlineStyle, seen: e.getBoundingClientRect().width > 1
              && e.getBoundingClientRect().left >= 0}; }""")
        if place is None:
            break
        places.append(place)
    assert places[0]["text"] == "Skip to the report"
    order = [place["place"] for place in places]
    assert order == sorted(set(order))
    assert all(place["outline"] != "none" and place["seen"] for place in places)
    assert {"A", "SUMMARY"} <= {place["tag"] for place in places}
    assert places[-1]["text"].startswith("Download")


def test_is_read_aloud_in_order(page: Opened) -> None:
    tab = page.show()
    levels = tab.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for landmark in ("header", "nav[aria-label]", "main", "footer"):
        assert tab.locator(landmark).count() == 1
    assert tab.get_attribute("html", "lang") == "en" and tab.title()
    lacking = tab.evaluate("""() => [
      ...[...document.querySelectorAll('table')].filter(t => !t.caption?.textContent.trim()),
      ...document.querySelectorAll('th:not([scope])'),
      ...[...document.querySelectorAll('.drawing')].filter(d => d.getAttribute('role') !== 'img' ||
        (d.getAttribute('aria-label') || '').length < 40),
      ...document.querySelectorAll('section:not([aria-labelledby])'),
      ...document.querySelectorAll('.drawing svg:not([aria-hidden])'),
    ].map(e => e.outerHTML.slice(0, 100))""")
    assert lacking == []
    ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_marks_say_what_they_are(pages: dict[str, Opened]) -> None:
    tab = pages["three"].show()
    mark = tab.locator("#chart-size .wide [data-tip]").nth(1)
    mark.hover()
    assert tab.inner_text("#tip") == "minilm.int8.onnx: 23.1 MB"
    tab.mouse.move(5, 5)
    assert not tab.is_visible("#tip")
