"""Tables as text for papers and pages: Markdown and LaTeX. What comes from outside is escaped."""

from __future__ import annotations

from collections.abc import Collection, Sequence

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
}


def latex_text(text: str) -> str:
    """Text as LaTeX shows it literally."""
    return "".join(_LATEX.get(character, character) for character in text)


def markdown_text(text: str) -> str:
    """Text for a Markdown cell: no markup, no end of the cell."""
    for character in ("\\", "|", "*", "_", "`", "<", "[", "]"):
        text = text.replace(character, "&lt;" if character == "<" else f"\\{character}")
    return " ".join(text.split())


def number_range(values: Collection[int]) -> str:
    """`100,000`, or `100,000 to 200,000` where the numbers differ."""
    first, last = min(values), max(values)
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    """A Markdown table.

    Args:
        numbers_from: columns from here on are aligned to the right.
    """
    lines = [_row([markdown_text(cell) for cell in header])]
    lines.append(_row(["---:" if i >= numbers_from else "---" for i in range(len(header))]))
    lines += [_row([markdown_text(cell) for cell in row]) for row in rows]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def latex(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, numbers_from: int = 1) -> str:
    """A LaTeX table in booktabs' style, several pages long where it must be."""
    columns = "l" * numbers_from + "r" * (len(header) - numbers_from)
    head = " & ".join(latex_text(cell) for cell in header)
    body = [" & ".join(latex_text(cell) for cell in row) + r" \\" for row in rows]
    lines = [
        "% needs \\usepackage{booktabs,longtable}",
        rf"\begin{{longtable}}{{{columns}}}",
        rf"\caption{{{latex_text(caption)}}} \\",
        r"\toprule",
        head + r" \\",
        r"\midrule",
        r"\endhead",
        *body,
        r"\bottomrule",
        r"\end{longtable}",
    ]
    return "\n".join(lines) + "\n"


def interval(value: float, low: float, high: float, digits: int = 1) -> str:
    """`90.8 [89.8, 91.6]`; without the brackets where there is no interval."""
    if value != value:
        return "–"
    if low != low:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
