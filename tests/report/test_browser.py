"""The page as a browser shows it: on a phone and on a desk, in light and in dark, by keyboard.

Debian's Chromium is driven. Where it is missing these tests are skipped, but in CI they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from fellrec.evaluation.bootstrap import Interval
from fellrec.report import Reference, write_comparison, write_report
from tests.report.made_comparison import STRATEGIES, made_up, write_file

CHROMIUM = Path("/usr/bin/chromium")
NARROW, WIDE = 400, 1400
KINDS = ("several", "many", "one", "untrained", "deployment", "audited", "people")
FLAGS = ("--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")

pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists() and os.environ.get("CI") != "true",
    reason=f"{CHROMIUM} is missing; install Debian's chromium",
)

# What is wrong with the charts that are to be seen, as lines of text.
CHARTS = """() => {
  const wrong = [];
  const meets = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
                          Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2.5;
  let charts = 0;
  for (const svg of document.querySelectorAll('svg[role=img]')) {
    const frame = svg.getBoundingClientRect();
    if (frame.width === 0) continue;
    charts += 1;
    const name = svg.getAttribute('aria-labelledby');
    for (const key of ['aria-labelledby', 'aria-describedby']) {
      const told = document.getElementById(svg.getAttribute(key));
      if (!told || !told.textContent.trim()) wrong.push(`${name}: nothing for ${key}`);
    }
    const scale = frame.width / svg.viewBox.baseVal.width;
    const boxes = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim()).map(t => {
      const size = parseFloat(getComputedStyle(t).fontSize) * scale;
      if (size < 10.95) wrong.push(`${name}: "${t.textContent}" has ${size.toFixed(1)} px`);
      return [t.textContent, t.getBoundingClientRect()];
    });
    for (const [words, box] of boxes) {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 ||
          box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        wrong.push(`${name}: "${words}" leaves its chart`);
    }
    for (let i = 0; i < boxes.length; i++)
      for (let j = i + 1; j < boxes.length; j++)
        if (meets(boxes[i][1], boxes[j][1]))
          wrong.push(`${name}: "${boxes[i][0]}" meets "${boxes[j][0]}"`);
  }
  return [charts, wrong.slice(0, 20)];
}"""

# Whatever of the page, with all its parts opened, is wider than the window: tables that scroll
# may be, what is said above them may not.
TOO_WIDE = """() => {
  document.querySelectorAll('details').forEach(each => each.open = true);
  const inside = each => each.closest('.scroll') && !each.matches('.scroll, caption span');
  const wrong = [...document.querySelectorAll('body *')]
    .filter(each => !inside(each) && each.getBoundingClientRect().right > innerWidth + 0.5)
    .map(each => `${each.tagName} ${each.className.baseVal ?? each.className}`);
  return [document.documentElement.scrollWidth - innerWidth, wrong.slice(0, 10)];
}"""

REACHABLE = """() => {
  document.querySelectorAll('details').forEach(each => each.open = true);
  const all = [...document.querySelectorAll('a, summary, .scroll')];
  all.forEach((each, index) => each.dataset.place = index);
  return all.length;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM.exists(), f"{CHROMIUM} is missing; install Debian's chromium"
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(
    made: dict[str, Path], page_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Return all pages, one of them beside two others' scores."""
    beside = [
        Reference("local only", {f"c{n}": Interval(0.1, 0.05, 0.2) for n in range(5)}),
        Reference("centralised", {f"c{n}": Interval(0.2, 0.1, 0.3) for n in range(5)}),
    ]
    out = tmp_path_factory.mktemp("beside") / "several.html"
    compared = write_report(made["several"], out, references=beside, examples=0)
    return {**page_files, "several": compared}


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the page of a comparison of twenty rows, and one of several tables."""
    folder = tmp_path_factory.mktemp("comparisons")
    more = [f"fellrec-variant-{number}" for number in range(14)]
    longest = "a-label-as-long-as-a-label-is-allowed-be"
    rows = STRATEGIES | {label: {"balance.beta": 2.0} for label in [*more, longest]}
    few = {label: STRATEGIES[label] for label in ("fedavg", "fellrec")}
    axes = {"clients.count": [2, 12]}
    files = {
        "rows": write_file(folder / "rows.toml", strategies=rows, peers=["popularity"]),
        "axes": write_file(folder / "axes.toml", strategies=few, axes=axes),
    }
    return {
        name: write_comparison(made_up(file, rounds=3), folder / f"{name}.html", examples=0)
        for name, file in files.items()
    }


@pytest.fixture(scope="module")
def people(undisturbed: Path, toys_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a run that was really trained, with its users."""
    return write_report(undisturbed, tmp_path_factory.mktemp("people") / "people.html")


@contextmanager
def opened(
    browser: Browser, path: Path, width: int, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Page]:
    """Open a page alone; nothing but the file may be asked for, nothing be said of an error."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    yield page
    own = [url for url in asked if not url.startswith("data:")]
    assert (own, said) == ([path.as_uri()], [])
    context.close()


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("kind", KINDS)
def test_charts_are_legible_and_named_and_nothing_overflows(
    kind: str, width: int, browser: Browser, pages: dict[str, Path], people: Path
) -> None:
    with opened(browser, people if kind == "people" else pages[kind], width) as page:
        charts, wrong = page.evaluate(CHARTS)
        assert wrong == [] and charts >= 2
        excess, wide = page.evaluate(TOO_WIDE)
        assert excess <= 0 and wide == []


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("kind", ["rows", "axes"])
def test_a_comparison_is_legible_with_all_of_it_opened(
    kind: str, width: int, browser: Browser, comparisons: dict[str, Path]
) -> None:
    with opened(browser, comparisons[kind], width, "dark") as page:
        excess, wide = page.evaluate(TOO_WIDE)
        assert excess <= 0 and wide == []
        charts, wrong = page.evaluate(CHARTS)
        assert wrong == [] and charts > 20
        title = "NDCG@10 over fedavg"
        assert page.get_by_role("img", name=title).count() == (1 if kind == "rows" else 2)


def test_the_reader_of_a_screen_hears_every_chart(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["several"], WIDE) as page:
        named = page.get_by_role("img").all()
        assert len(named) == page.evaluate(CHARTS)[0]
        assert page.get_by_role("img", name="Test NDCG@10 of each client").count() == 1
        assert page.get_by_role("heading", level=1).count() == 1
        assert page.get_by_role("main").count() == 1


def test_tab_reaches_all_that_opens_or_scrolls(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"], NARROW) as page:
        count = page.evaluate(REACHABLE)
        reached = []
        for _ in range(count):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.dataset.place"))
        assert reached == [str(place) for place in range(count)]


def test_details_open_by_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"], NARROW) as page:
        first = page.locator("details").first
        assert not first.locator("table").is_visible()
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        assert first.locator("table").is_visible()


def test_a_wide_table_scrolls_inside_its_box_by_keyboard(
    browser: Browser, pages: dict[str, Path]
) -> None:
    with opened(browser, pages["one"], NARROW) as page:
        box = page.locator(".scroll:visible").first
        assert box.evaluate("box => box.scrollWidth > box.clientWidth")
        box.evaluate("box => { box.onscroll = () => { box.dataset.moved = box.scrollLeft; } }")
        box.focus()
        page.keyboard.press("ArrowRight")
        page.locator(".scroll[data-moved]").wait_for(state="attached")


def test_the_dark_scheme_turns_the_page_dark(browser: Browser, pages: dict[str, Path]) -> None:
    sums = []
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme in schemes:
        with opened(browser, pages["one"], WIDE, scheme) as page:
            for name in ("backgroundColor", "color"):
                sums.append(_brightness(page.evaluate(f"getComputedStyle(document.body).{name}")))
    light_ground, light_ink, dark_ground, dark_ink = sums
    assert light_ground > 700 > dark_ink > 600 and light_ink < 150 and dark_ground < 100


def _brightness(colour: Any) -> int:
    """Sum the channels of "rgb(1, 2, 3)"."""
    return sum(int(part) for part in str(colour).strip("rgb()").split(","))
