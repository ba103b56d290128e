"""The page in headless Chromium: it opens from a file, asks nothing of a network, and can be read everywhere.

Needs Debian's chromium and chromium-driver (`make browser` installs them). Without them the tests are skipped, unless
PERDURE_BROWSER=required. PERDURE_SCREENSHOTS=FOLDER keeps the pictures, to be looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.report.page import write_report
from perdure.state.scores import read_scores
from perdure.state.words import points
from tests.report.run_folders import HOSTILE, HOSTILE_TASK, ROWS, write_hostile_run, write_joint_run, write_run

pytestmark = pytest.mark.browser
PATIENCE = 200
"""Seconds; a busy machine takes its time, and pytest's own limit is 300."""
WIDTHS, THEMES = (400, 800, 1400), ("light", "dark")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        message = "NOT TESTED: chromium and chromium-driver are not installed; `make browser` installs them."
        if os.environ.get("PERDURE_BROWSER") == "required":
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_page_load_timeout(PATIENCE)
    chrome.set_script_timeout(PATIENCE)
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods and joint training."""
    folder = tmp_path_factory.mktemp("compared")
    runs = [
        write_run(folder / "ps", notes={"a-gem/fired": 0.5}),
        write_run(folder / "inc", method="inc-lora", rows=[ROWS[0], ROWS[1], ROWS[1], ROWS[3]]),
        write_joint_run(folder / "joint"),
    ]
    return write_report(runs, folder / "out")["html"]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of fifteen tasks with long names and a long log."""
    folder = tmp_path_factory.mktemp("long")
    names = ["yelp", "a-task-with-a-rather-long-name", *(f"super-natural-{i:04d}" for i in range(13))]
    labels = dict.fromkeys(names, ("yes",) * 8 + ("no",) * 12)
    rows = [{name: ("yes",) * (20 - (7 * t + s) % 12) + ("no",) * ((7 * t + s) % 12) for t, name in enumerate(names)}
            for s in range(16)]  # fmt: skip
    run = write_run(folder / "run", labels=labels, rows=rows, steps=200)
    return write_report([run], folder / "out")["html"]


def opened(browser: Any, page: Path, width: int = 1400, theme: str = "light") -> None:
    """Load the page at a width in a theme, and wait until its charts are drawn."""
    for log in ("performance", "browser"):  # reading empties them
        browser.get_log(log)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    resized(browser, width, 900)
    browser.get(page.as_uri())
    drawn(browser, theme)


def drawn(browser: Any, theme: str) -> None:
    shows = "return document.documentElement.dataset.drawn"
    until(lambda: browser.execute_script(shows) == theme, "the charts were not drawn")


def until(holds: Callable[[], object], otherwise: str) -> None:
    """Wait until `holds()`; fail with `otherwise` after PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, otherwise
        time.sleep(0.05)


def resized(browser: Any, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def requested(browser: Any) -> list[str]:
    """Addresses of everything the browser asked for since the page was opened, without what is inside the page."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("data:", "chrome:"))]


def keep_picture(browser: Any, name: str, width: int) -> None:
    if folder := os.environ.get("PERDURE_SCREENSHOTS"):
        height = browser.execute_script("return document.documentElement.scrollHeight")
        resized(browser, width, min(height, 16000))
        time.sleep(0.5)
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["compared", "long"])
def test_page_is_whole_at_every_width_in_both_themes(
    browser: Any, request: pytest.FixtureRequest, which: str, width: int, theme: str
) -> None:
    page = request.getfixturevalue(which)
    opened(browser, page, width, theme)
    assert requested(browser) == [page.as_uri()]
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    charts = browser.execute_script(CHARTS)
    assert len(charts) >= 8
    assert [c for c in charts if c["empty"]] == []
    keep_picture(browser, f"{which}-{width}-{theme}", width)
    assert [c["cut"] for c in charts if c["cut"]] == [], "names outside their chart"
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 27)"
    assert dark == (theme == "dark")
    assert browser.execute_script(CONTRAST) == [], "text that is hard to read"
    keep_picture(browser, f"{which}-{width}-{theme}", width)


CHARTS = """
return [...document.querySelectorAll('.chart')].map((chart) => {
  const frame = chart.getBoundingClientRect();
  const names = [...chart.querySelectorAll('.xtick text, .ytick text, .legendtext, .bartext')];
  const outside = names.filter((t) => {
    const box = t.getBoundingClientRect();
    return box.left < frame.left - 2 || box.right > frame.right + 2 || box.bottom > frame.bottom + 2 || box.top < frame.top - 2;
  });
  return {
    id: chart.id,
    empty: !chart.querySelector('.main-svg') || frame.width < 200 || frame.height < 80,
    cut: outside.map((t) => `${chart.id}: ${t.textContent}`),
  };
});
"""
"""Every chart: whether it is drawn, and names that do not fit in."""

CONTRAST = """
const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ratio = (a, b) => { const [hi, lo] = [light(a), light(b)].sort((x, y) => y - x); return (hi + .05) / (lo + .05); };
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = parse(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const hex = (name) => {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
  return [0, 2, 4].map((i) => parseInt(text.slice(i, i + 2), 16));
};
const bad = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || ['SCRIPT', 'NOSCRIPT', 'STYLE'].includes(e.tagName) || !e.getClientRects().length) continue;
  const style = getComputedStyle(e), inHeat = e.closest('.heatmap-label');
  const colour = parse(e instanceof SVGElement ? style.fill : style.color);
  const grounds = inHeat ? ['--heat-0', '--heat-1', '--heat-2', '--heat-3'].map(hex) : [behind(e)];
  const worst = Math.min(...grounds.map((ground) => ratio(colour, ground)));
  if (worst < 4.5) bad.push(`${e.tagName} ${e.textContent.trim().slice(0, 30)}: ${worst.toFixed(2)}`);
}
for (let i = 0; i < 8; i++) {
  const worst = ratio(hex(`--series-${i}`), hex('--paper'));
  if (worst < 3) bad.push(`series ${i}: ${worst.toFixed(2)}`);
}
return bad;
"""
"""Text below 4.5 : 1 against what is behind it, lines and bars below 3 : 1 (WCAG 2.2, AA)."""


def test_theme_follows_the_system_while_the_page_is_open(browser: Any, compared: Path) -> None:
    opened(browser, compared, theme="light")
    colour = "return document.querySelector('.bars path').style.fill"
    before = browser.execute_script(colour)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    drawn(browser, "dark")
    assert browser.execute_script(colour) != before
    assert requested(browser) == [compared.as_uri()]


def test_numbers_in_the_drawn_heat_map_are_the_scores(browser: Any, compared: Path) -> None:
    opened(browser, compared)
    scores = read_scores(compared.parent.parent / "ps")
    wanted = [points(v) for row in (scores.untrained_scores, *scores.score_matrix) for v in row]
    cells = browser.execute_script(
        "const heat = document.querySelector('.heatmap-label').closest('.chart');"
        "return [...heat.querySelectorAll('.heatmap-label text')].map((t) => t.textContent)"
    )
    assert cells == wanted


def test_hostile_names_are_shown_and_do_nothing(browser: Any, tmp_path: Path) -> None:
    page = write_report([write_hostile_run(tmp_path / "run")], tmp_path / "out")["html"]
    opened(browser, page)
    assert browser.get_log("browser") == []
    assert requested(browser) == [page.as_uri()]
    assert browser.execute_script("return typeof owned") == "undefined"
    assert browser.execute_script("return document.title") == f"perdure: {HOSTILE}"
    assert browser.execute_script("return document.querySelectorAll('img, b, [href^=javascript]').length") == 0
    assert browser.execute_script("return document.querySelector('h1').textContent") == f"perdure: {HOSTILE}"
    ticks = browser.execute_script(
        "return [...document.querySelectorAll('.xtick text, .legendtext')].map(t => t.textContent)"
    )
    assert f"{HOSTILE_TASK[:8]}…{HOSTILE_TASK[-13:]}" in ticks
    keep_picture(browser, "hostile", 1400)


@pytest.mark.parametrize("width", [320, 400, 700, 800])
def test_on_a_narrow_screen_every_number_of_a_task_is_in_view(browser: Any, long: Path, width: int) -> None:
    opened(browser, long, width)
    cells = "return [...document.querySelectorAll('.standing td')].map((cell) => cell.getBoundingClientRect().right)"
    ends = browser.execute_script(cells)
    assert len(ends) == 9 * 15
    assert max(ends) <= width


def test_a_browser_that_cannot_unpack_says_so(browser: Any, compared: Path) -> None:
    """The tables stay; nothing else is said to be wrong."""
    old = {"source": "delete window.DecompressionStream"}
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", old)
    try:
        browser.get(compared.as_uri())
        notice = "return document.getElementById('undrawn').checkVisibility()"
        until(lambda: browser.execute_script(notice), "the notice was to be shown")
        assert browser.execute_script("return typeof Plotly") == "undefined"
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_a_script_that_is_not_ours_may_not_run(browser: Any, compared: Path) -> None:
    opened(browser, compared)
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.owned = 1'; document.body.append(s);"
        "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i);"
    )
    refused: list[str] = []
    until(
        lambda: refused.extend(entry["message"] for entry in browser.get_log("browser")) or len(refused) == 2,
        "two refusals were to be logged",
    )
    assert browser.execute_script("return typeof owned") == "undefined"
    assert all("Content Security Policy" in message for message in refused)


def test_the_keyboard_reaches_what_scrolls_and_folds(browser: Any, compared: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    opened(browser, compared, 400)
    total = browser.execute_script("return document.querySelectorAll('a, summary, .scroll').length")
    reached = set()
    for _ in range(total + 10):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.add(browser.execute_script(
            "const e = document.activeElement; return e.tagName + (e.getAttribute('aria-label') || e.textContent).slice(0, 60)"
        ))  # fmt: skip
    kinds = {name[:3] for name in reached}
    assert {"A", "DIV", "SUM"} <= {kind if kind in ("DIV", "SUM") else kind[0] for kind in kinds}
    assert any(name.startswith("DIVMetrics in points") for name in reached)
