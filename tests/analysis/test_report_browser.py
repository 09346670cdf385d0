"""The report in a real browser: headless Chromium opens it, clicks, sorts and filters."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from analysis import figures
from analysis.report import write_report
from analysis.tables import Tables, frame
from bench import tasks
from bench.schema import RUNS

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
pytestmark = [pytest.mark.whole, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")]

OPENS_MS = 2000
"""From the start of navigation until the page is loaded, laid out and its scripts have run, by the page's own clock."""
SHEET = "718,1000"
"""A4 less margins of 1 cm in CSS pixels."""
ACTIONS = """
<script>
addEventListener("load", () => setTimeout(() => {
  const out = {}, table = document.getElementById("final-scores");
  const first = () => table.tBodies[0].rows[0].cells[0].textContent;
  const shown = () => [...table.tBodies[0].rows].filter(row => row.offsetParent !== null).length;
  const heads = [...table.tHead.rows[0].cells];
  out.rows = shown();
  heads[0].querySelector("button").click(); out.up = first();
  heads[0].querySelector("button").click(); out.down = first();
  heads[3].querySelector("button").click();
  out.best = parseFloat(table.tBodies[0].rows[0].cells[3].dataset.value);
  out.sorted = heads[3].getAttribute("aria-sort");
  const type = (id, value, event) => {
    const field = document.getElementById(id); field.value = value; field.dispatchEvent(new Event(event)); };
  type("filter-task", "DOG", "input"); out.dogs = shown();
  out.dog_panels = [...document.querySelectorAll("#panels li")].filter(item => item.offsetParent !== null).length;
  out.count = document.getElementById("filter-count").textContent;
  type("filter-task", "", "input");
  type("filter-domain", "maniskill", "change"); out.maniskill = shown();
  out.overflow = document.documentElement.scrollWidth - innerWidth;
  document.title = JSON.stringify(out);
}, 50));
</script>
"""

OPENED = """
<script>
addEventListener("load", () => {
  const height = document.body.offsetHeight;  // asks for the layout of everything
  document.title = JSON.stringify({opened_ms: performance.now(), height});
});
</script>
"""
MEASURES = """
<script>
addEventListener("load", () => {
  const right = item => item.getBoundingClientRect().right;
  const wide = [...document.querySelectorAll("table, img, svg, pre")].filter(item => right(item) > innerWidth + 1);
  document.title = JSON.stringify({
    overflow: document.documentElement.scrollWidth - innerWidth,
    wide: wide.map(item => item.id || item.tagName),
    controls: [...document.querySelectorAll("nav, .filter")].filter(item => item.offsetParent !== null).length,
  });
});
</script>
"""


@pytest.fixture(scope="module")
def page(make_evals, tmp_path_factory):
    """104 tasks, 4 agents, 3 seeds; only the small panels are drawn."""
    names = [task.name for task in tasks.task_set("all")]
    runs = {
        (agent, name, seed): {step * 100_000: (20 * (place + 1) + index % 17 + seed) * step / 10 for step in range(11)}
        for place, agent in enumerate(("sac", "dreamerv3", "tdmpc", "tdmpc2"))
        for index, name in enumerate(names)
        for seed in (1, 2, 3)
    }
    evals = make_evals(runs)
    evals["domain"] = evals["task"].map({name: tasks.get(name).domain for name in names}).astype("string")
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_curve_page", lambda *args: figures.Drawn("page", "", "", "", b""))
        path = write_report(Tables(evals, frame([], RUNS)), folder / "report.html", "made up", 100)
    text = path.read_text()
    (folder / "acted.html").write_text(text.replace("</body>", ACTIONS + "</body>"))
    (folder / "opened.html").write_text(text.replace("</body>", OPENED + "</body>"))
    printed = text.replace("@media print", "@media all").replace("</body>", MEASURES + "</body>")
    (folder / "printed.html").write_text(printed)
    return path


VIRTUAL_TIME = "--virtual-time-budget=20000"
"""Lets timers run out before the page is handed over, with a clock that stands still while the page works."""


def chromium(*arguments):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    return subprocess.run(
        [CHROMIUM, *flags, *arguments], capture_output=True, text=True, timeout=300, check=True
    ).stdout


def acted(path, size, *flags):
    """What the page's script found, in a window of this size."""
    dom = chromium(f"--window-size={size}", *flags, "--dump-dom", path.as_uri())
    return json.loads(re.search(r"<title>(\{.*?\})</title>", dom)[1].replace("&quot;", '"'))


@pytest.mark.parametrize("size", ["1280,900", "500,900"])
def test_page_opens_sorts_and_filters(page, size):
    out = acted(page.with_name("acted.html"), size, VIRTUAL_TIME)
    assert out["rows"] == 104
    assert (out["up"], out["down"]) == ("acrobot-swingup", "walker-walk-backwards")
    assert out["sorted"] == "descending"
    assert out["best"] == pytest.approx(58, abs=0.01)  # dreamerv3's best: 40 + 16 + 2
    assert (out["dogs"], out["dog_panels"], out["count"]) == (4, 4, "4 of 104 tasks")
    assert out["maniskill"] == 5
    assert out["overflow"] <= 0  # nothing sticks out of the page, on a phone neither


def test_page_opens_in_time(page):
    out = acted(page.with_name("opened.html"), "1280,900")
    assert out["height"] > 5000
    assert 0 < out["opened_ms"] < OPENS_MS


def test_page_fits_on_paper(page):
    """With the rules for print in force on a sheet's width nothing sticks out, and the controls are gone."""
    out = acted(page.with_name("printed.html"), SHEET)
    assert out["overflow"] <= 0
    assert out["wide"] == []
    assert out["controls"] == 0


def test_page_prints_on_a_few_sheets(page, tmp_path):
    chromium("--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}", page.as_uri())
    sheets = len(re.findall(rb"/Type /Page\b(?!s)", (tmp_path / "page.pdf").read_bytes()))
    assert 5 < sheets < 20


def test_page_stays_moderate(page):
    assert page.stat().st_size < 4_000_000
    assert "http://" not in page.read_text().replace("http://www.w3.org", "")
    assert "https://" not in page.read_text()
