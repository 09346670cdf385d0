"""`bench figures paper`: the figures and tables of the TD-MPC2 paper (arXiv 2310.16828), from public numbers alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis import paper_data, paper_panels, statistics
from analysis.groups import LOCOMOTION
from analysis.panels import write_csv
from analysis.paper_data import AGENTS, VISUAL_AGENTS, VISUAL_END_ENV_STEPS, PaperData
from analysis.style import title
from analysis.text_tables import interval, latex, markdown
from bench import atomic, tasks
from bench.errors import UserError

BAND = "Mean over seeds with its 95 % bootstrap interval, stratified by task."
NO_CURVES = "needs the curves: run `bench published import` (or give --curves DIR)"
NOT_PUBLIC = (
    ("Figures 2, 3, 11", "renderings and the architecture: no numbers"),
    ("Figure 7, 30 tasks", "the scores of the 30-task models were not published as text"),
    ("Figures 7 and 19, embeddings", "the embeddings were not published as data"),
    ("Figure 9, curves and the bar of 2 Q-functions", "not published as data"),
    ("Figure 17", "the few-shot curves of each task were not published"),
    ("Figure 18", "the scores without normalized task embeddings were not published"),
    ("Gradient norms (appendix G)", "not published as data"),
    ("Tables 8 and 9", "hyperparameters: `bench` keeps them in code"),
)


@dataclass
class _Index:
    """What was drawn, in order."""

    made: list[tuple[str, str, str]] = field(default_factory=list)
    lacking: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, item: str, caption: str) -> None:
        self.made.append((name, item, caption))


def write_figures(
    out: Path, data: PaperData, reps: int = statistics.REPS, progress: Callable[[str], None] | None = None
) -> Path:
    """Draw everything that the data allow; the same data give the same bytes.

    Args:
        out: folder for PNG, PDF and CSV files and the tables.
        data: `paper_data.load()`.
        reps: bootstrap resamples.
        progress: called with a line about what is going on.

    Returns:
        `index.md`, which lists what was drawn and what lacks data.

    Raises:
        UserError: the folder cannot be written.
    """
    say = progress or (lambda line: None)
    index = _Index()
    try:
        out.mkdir(parents=True, exist_ok=True)
        matrices = data.matrices()
        say("aggregate statistics")
        bars = paper_data.bars(matrices, reps)
        write_csv(bars, out, "fig01_scores_by_domain")
        paper_panels.draw_bars(bars, AGENTS, out, "fig01_scores_by_domain")
        index.add("fig01_scores_by_domain", "Figure 1", f"Final scores by domain. {BAND}")
        _curves(out, data, matrices, reps, index, say)
        _printed_numbers(out, index)
        _visual(out, data, reps, index, say)
        _grids(out, data, reps, index, say)
        say("tables")
        _tables(out, data, bars, reps, index)
        say("beyond the paper")
        _beyond(out, data, matrices, bars, reps, index)
        atomic.write_text(out / "index.md", _index_text(index))
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror}): choose another folder with -o") from error
    return out / "index.md"


def _curves(
    out: Path,
    data: PaperData,
    matrices: dict[str, dict[str, paper_data.Floats]],
    reps: int,
    index: _Index,
    say: Callable[[str], None],
) -> None:
    if data.curves is None:
        items = ("Figure 4", "Figure 5", "Figure 6", "Figure 12", "Figure 13", "Figure 14", "Figure 16")
        index.lacking += [(item, NO_CURVES) for item in (*items, "Sample efficiency (IQM)")]
        return
    say("curves by domain")
    table = paper_data.group_curves(data.curves, matrices, reps)
    means = ("mean", "mean_low", "mean_high")
    write_csv(table[["group", "agent", "env_steps", *means]], out, "fig04_curves_by_domain")
    paper_panels.draw_group_curves(table, AGENTS, out, "fig04_curves_by_domain", means, "score (0–100)")
    ends = "A panel ends at the smallest budget of its tasks; a curve begins where every run of it has been evaluated."
    index.add("fig04_curves_by_domain", "Figure 4", f"Score over env steps by domain. {BAND} {ends}")
    iqm = ("iqm", "low", "high")
    write_csv(table[["group", "agent", "env_steps", *iqm]], out, "extra_sample_efficiency")
    paper_panels.draw_group_curves(table, AGENTS, out, "extra_sample_efficiency", iqm, "IQM of scores (0–100)")
    for name, item, names, caption in (
        ("fig05_locomotion", "Figure 5", _of_set("locomotion"), "High-dimensional locomotion."),
        ("fig06_object_manipulation", "Figure 6", paper_panels.domain_tasks("maniskill"), "Object manipulation."),
    ):
        of_tasks = paper_data.task_curves(data.curves, AGENTS, names, reps)
        if item == "Figure 5":
            of_tasks = paper_data.with_mean(of_tasks, table, LOCOMOTION)
        write_csv(of_tasks, out, name)
        paper_panels.draw_task_curves(of_tasks, AGENTS, out, name, 4 if item == "Figure 5" else 3, (2.5, 2.1))
        index.add(name, item, f"{caption} {BAND}")


def _of_set(name: str) -> list[str]:
    return [task.name for task in tasks.task_set(name)]


def _grids(out: Path, data: PaperData, reps: int, index: _Index, say: Callable[[str], None]) -> None:
    if data.curves is None:
        return
    for name, item, domain, columns in (
        ("fig12_dmcontrol", "Figure 12", "dmcontrol", 5),
        ("fig13_metaworld", "Figure 13", "metaworld", 6),
        ("fig14_maniskill", "Figure 14", "maniskill", 5),
        ("fig16_myosuite", "Figure 16", "myosuite", 5),
    ):
        names = paper_panels.domain_tasks(domain)
        say(f"{item}: {len(names)} tasks")
        table = paper_data.task_curves(data.curves, AGENTS, names, reps)
        write_csv(table, out, name)
        paper_panels.draw_task_curves(table, AGENTS, out, name, columns, (2.05, 1.55))
        index.add(name, item, f"{len(names)} tasks one by one. {BAND}")


def _visual(out: Path, data: PaperData, reps: int, index: _Index, say: Callable[[str], None]) -> None:
    if data.visual is None:
        index.lacking.append(("Figure 10", NO_CURVES))
        return
    say("visual RL")
    there = [agent for agent in VISUAL_AGENTS if agent in data.visual.agents]
    names = [task for task in sorted(_of_set("visual")) if task in data.visual.tasks]
    table = paper_data.task_curves(data.visual.curves, there, names, reps, VISUAL_END_ENV_STEPS)
    write_csv(table, out, "fig10_visual_rl")
    paper_panels.draw_task_curves(table, there, out, "fig10_visual_rl", 5, (2.2, 1.8))
    caption = (
        f"DMControl from pixels, to {VISUAL_END_ENV_STEPS:,} env steps. {BAND} DreamerV3 is the later version that its "
        "authors publish, not the one of 2023 that the paper ran."
    )
    index.add("fig10_visual_rl", "Figure 10", caption)


def _printed_numbers(out: Path, index: _Index) -> None:
    """What the paper prints as text and publishes no data for."""
    numbers = paper_data.paper_numbers()
    sizes = numbers[numbers["item"] == "Table 1"]
    write_csv(sizes, out, "fig07_model_size")
    paper_panels.draw_model_size(sizes, out, "fig07_model_size")
    index.add("fig07_model_size", "Table 1 and Figure 7, left", "Score against model size, 80 tasks, one model.")
    few = numbers[numbers["item"] == "Figure 8"].assign(panel="10 held-out tasks, 20k env steps")
    write_csv(few, out, "fig08_few_shot")
    paper_panels.draw_settings(few, out, "fig08_few_shot", "normalized score")
    index.add("fig08_few_shot", "Figure 8", "Few-shot finetuning, 3 seeds; the paper prints no interval as text.")
    items = numbers["item"].str.startswith("Figure 9: ")
    ablations = numbers[items].assign(panel=numbers["item"].str.removeprefix("Figure 9: "))
    write_csv(ablations, out, "fig09_ablations")
    paper_panels.draw_settings(ablations, out, "fig09_ablations", "normalized score, 80 tasks")
    caption = (
        "Ablations of the multi-task agent of 19M parameters: bars alone. Transcriptions of the figure disagree on "
        "SimNorm without LayerNorm (51.0 or 54.2), and the base (54.2) is not the 57.1 of Table 1."
    )
    index.add("fig09_ablations", "Figure 9, right", caption)


def _tables(out: Path, data: PaperData, bars: pd.DataFrame, reps: int, index: _Index) -> None:
    rows = [
        [task.name, task.domain, str(task.obs_size), str(task.action_size), str(task.action_repeat),
         f"{task.episode_env_steps:,}", f"{task.budget_env_steps:,}", "yes" if "sparse" in task.tags else "",
         "yes" if "new" in task.tags else ""]
        for task in tasks.task_set("all")
    ]  # fmt: skip
    header = ["task", "domain", "obs", "act", "action repeat", "episode env steps", "budget env steps", "sparse", "new"]
    _write_table(out, "table02-05_tasks", header, rows, "The 104 tasks.", 2)
    index.add("table02-05_tasks", "Tables 2-5", "The tasks (csv, md, tex).")
    finals = paper_data.final_table(data.finals, reps)
    write_csv(finals, out, "table_final_scores")
    keyed = finals.set_index(["task", "agent"])
    rows = []
    for task in dict.fromkeys(finals["task"]):
        cells = [keyed.loc[(task, agent)] for agent in AGENTS]
        rows.append([task, *(interval(cell["score"], cell["low"], cell["high"]) for cell in cells)])
    header = ["task", *map(title, AGENTS)]
    caption = "Final scores (0-100), mean over 3 seeds with its 95 % bootstrap interval."
    atomic.write_text(out / "table_final_scores.md", markdown(header, rows))
    atomic.write_text(out / "table_final_scores.tex", latex(header, rows, caption))
    index.add("table_final_scores", "Appendix D", f"{caption} (csv, md, tex)")
    keyed = bars.set_index(["group", "agent", "metric"])
    rows = []
    for group in dict.fromkeys(bars["group"]):
        for metric in ("Mean", "IQM"):
            cells = [keyed.loc[(group, agent, metric)] for agent in AGENTS]
            rows.append([group, metric, *(interval(cell["value"], cell["low"], cell["high"]) for cell in cells)])
    _write_table(
        out, "table_aggregates", ["group", "metric", *map(title, AGENTS)], rows, "Aggregate scores (0-100).", 2
    )
    index.add("table_aggregates", "Aggregates", "Mean and IQM of final scores by domain (csv, md, tex).")


def _write_table(
    out: Path, name: str, header: list[str], rows: list[list[str]], caption: str, numbers_from: int
) -> None:
    write_csv(pd.DataFrame(rows, columns=header), out, name)
    atomic.write_text(out / f"{name}.md", markdown(header, rows, numbers_from))
    atomic.write_text(out / f"{name}.tex", latex(header, rows, caption, numbers_from))


def _beyond(
    out: Path,
    data: PaperData,
    matrices: dict[str, dict[str, paper_data.Floats]],
    bars: pd.DataFrame,
    reps: int,
    index: _Index,
) -> None:
    write_csv(bars, out, "extra_intervals")
    paper_panels.draw_intervals(bars, AGENTS, out, "extra_intervals")
    index.add("extra_intervals", "Beyond the paper", "Median, IQM, mean and optimality gap with 95 % intervals.")
    profiles = paper_data.profiles(matrices, reps)
    write_csv(profiles, out, "extra_performance_profiles")
    paper_panels.draw_profiles(profiles, AGENTS, out, "extra_performance_profiles")
    index.add("extra_performance_profiles", "Beyond the paper", "Share of runs above every score, with 95 % bands.")
    improvements = paper_data.improvements(matrices, reps)
    write_csv(improvements, out, "extra_probability_of_improvement")
    paper_panels.draw_improvements(improvements, out, "extra_probability_of_improvement")
    caption = "Probability that a run of TD-MPC2 ends above one of another agent on the same task; ties count half."
    index.add("extra_probability_of_improvement", "Beyond the paper", caption)
    if data.curves is not None:
        caption = "Interquartile mean over env steps with its 95 % interval."
        index.add("extra_sample_efficiency", "Beyond the paper", caption)


def _index_text(index: _Index) -> str:
    lines = [
        "# The figures and tables of the TD-MPC2 paper",
        "",
        "Drawn from published numbers. Scores are 0–100: return / 10 on DMControl, success rate in percent elsewhere.",
        "The final score of a run is its last evaluation; a run that stopped early keeps it in the curves of groups. "
        "The numbers behind each",
        "figure are in the CSV of the same name. With three seeds, a percentile bootstrap interval is too narrow.",
        "",
        markdown(["file", "of the paper", "what"], index.made, 3),
        "## Not drawn",
        "",
        markdown(["of the paper", "why"], [*index.lacking, *NOT_PUBLIC], 2),
    ]
    return "\n".join(lines)
