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
    (folder / "acted.html").write_text(path.read_text().replace("</body>", ACTIONS + "</body>"))
    return path


def chromium(*arguments):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000"]
    return subprocess.run(
        [CHROMIUM, *flags, *arguments], capture_output=True, text=True, timeout=300, check=True
    ).stdout


@pytest.mark.parametrize("size", ["1280,900", "500,900"])
def test_page_opens_sorts_and_filters(page, size):
    dom = chromium(f"--window-size={size}", "--dump-dom", page.with_name("acted.html").as_uri())
    out = json.loads(re.search(r"<title>(\{.*?\})</title>", dom)[1].replace("&quot;", '"'))
    assert out["rows"] == 104
    assert (out["up"], out["down"]) == ("acrobot-swingup", "walker-walk-backwards")
    assert out["sorted"] == "descending"
    assert out["best"] == pytest.approx(58, abs=0.01)  # dreamerv3's best: 40 + 16 + 2
    assert (out["dogs"], out["dog_panels"], out["count"]) == (4, 4, "4 of 104 tasks")
    assert out["maniskill"] == 5
    assert out["overflow"] <= 0  # nothing sticks out of the page, on a phone neither


def test_page_stays_moderate(page):
    assert page.stat().st_size < 4_000_000
    assert "http://" not in page.read_text().replace("http://www.w3.org", "")
    assert "https://" not in page.read_text()
