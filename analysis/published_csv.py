"""CSV files as people write them: any usual encoding, delimiter, quoting, thousands separator and decimal mark.

    step,reward,seed        "Step";"Reward";"Seed"        step<tab>success<tab>seed
    400000,195.16,1         400.000;195,16;1              "400,000"<tab>0.25<tab>seed1

What can be read in two ways is refused.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.score_rule import Floats, Ints
from bench.errors import UserError

HEADER = "step,reward,seed or step,success,seed"
VALUES = ("reward", "success")
SUFFIX = re.compile(r"\.(csv|tsv)(\.gz)?$", re.IGNORECASE)
DELIMITERS = (",", ";", "\t", "|", " ")
REMARKS = ("#", "sep=")
"""How lines begin that hold no row; the second is a spreadsheet's."""
MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
"""How files begin that name their encoding."""
BLANK = ' \t,;|"'
NO_NUMBER = frozenset(
    ("", "-", "–", "nan", "na", "n/a", "none", "null", "inf", "+inf", "-inf", "infinity", "-infinity")
)
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
GROUPS = re.compile(r"[-+]?\d{1,3}(?:(?P<mark>[' ’_\u00a0\u2009\u202f])\d{3})(?:(?P=mark)\d{3})*(?:[.,]\d+)?")
"""Thousands apart by a mark that is no decimal mark."""
ONE_MARK = re.compile(r"[-+]?(?P<whole>\d+)(?P<mark>[.,])(?P<rest>\d+)(?P<exponent>e[-+]?\d+)?", re.IGNORECASE)
MARKED_GROUPS = {
    decimal: re.compile(rf"[-+]?\d{{1,3}}(?:\{other}\d{{3}})+(?:\{decimal}\d+)?") for decimal, other in (".,", ",.")
}
SEED = re.compile(r"(?:s|seed)?[ _=]*(\d+)(?:[.,]0*)?", re.IGNORECASE)
MAX_STEP = 10**12


@dataclass(frozen=True)
class Rows:
    """A CSV file as text."""

    header: tuple[str, ...]
    """In lower case, without blanks and quotes."""
    cells: tuple[tuple[int, tuple[str, ...]], ...]
    """Line number and cells of each row, as many as the file has of them; blank lines are left out."""

    @property
    def has_curves(self) -> bool:
        """Whether there are columns for learning curves."""
        return {"step", "seed"} <= set(self.header) and not set(self.header).isdisjoint(VALUES)


def read_rows(path: Path) -> Rows:
    """The header and the rows of a CSV file, under the delimiter that makes columns of curves of the header, if any.

    Raises:
        UserError: the file cannot be read, or is empty or no text.
    """
    text = _text(path)
    lines = enumerate(text.split("\n"), 1)
    first = next((number for number, line in lines if line.strip(BLANK) and not line.startswith(REMARKS)), None)
    if first is None:
        raise UserError("it is empty")
    body = text.split("\n", first - 1)[-1]
    read = {}
    for delimiter in DELIMITERS:
        try:
            read[delimiter] = _split(body, delimiter, first)
        except csv.Error as error:
            raise UserError(f"it cannot be read as CSV ({error})") from error
        if read[delimiter].has_curves:
            return read[delimiter]
    return read[","]


def _split(body: str, delimiter: str, first: int) -> Rows:
    reader = csv.reader(io.StringIO(body), delimiter=delimiter, skipinitialspace=True)
    header = tuple(cell.strip(' \t"').casefold() for cell in next(reader))
    cells = [
        (first + reader.line_num - 1, tuple(cell.strip() for cell in row))
        for row in reader
        if any(cell.strip() for cell in row) and not row[0].startswith(REMARKS)
    ]
    return Rows(header, tuple(cells))


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix.casefold() == ".gz" else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"it is no whole gzip file ({error})") from error
    except OSError as error:
        raise UserError(f"it cannot be read: {error.strerror}") from error
    encoding = next((encoding for mark, encoding in MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise UserError(f"it is no whole {encoding} text ({error.reason}): save it as UTF-8") from error
        text = raw.decode("latin-1")  # of which all that counts here is ASCII
    if "\0" in text:
        raise UserError("it is no text (binary, or UTF-16 without its mark): save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2212", "-")


@dataclass(frozen=True)
class CurveTable:
    """The rows of a file that can be used, and what was left out of it."""

    table: pd.DataFrame
    """Columns step and seed (int64), reward and success where the file has them (float64; NaN: no number)."""
    left_out: tuple[str, ...]


def curve_table(rows: Rows) -> CurveTable:
    """The numbers of a file of curves.

    Raises:
        UserError: no row, rows with more cells than the header, steps or seeds that are none, or numbers that can be
            read in two ways.
    """
    named = [column for column in rows.header if column in ("step", "seed", *VALUES)]
    if len(set(named)) < len(named):
        raise UserError(f"its header names a column twice ({', '.join(rows.header)})")
    left_out: list[str] = []
    whole = _whole_rows(rows, left_out)
    columns = {name: [cells[rows.header.index(name)] for _, cells in whole] for name in named}
    usable = [place for place, seed in enumerate(columns["seed"]) if seed.casefold() not in NO_NUMBER]
    if len(usable) < len(whole):
        left_out.append(f"{len(whole) - len(usable)} rows without a seed, first in line {_first(whole, usable)}")
    columns = {name: [cells[place] for place in usable] for name, cells in columns.items()}
    lines = [whole[place][0] for place in usable]
    if not lines:
        raise UserError("it holds no row")
    values = {name: cells for name, cells in columns.items() if name in VALUES}
    decimal = _decimal_mark(columns["step"], [cell for cells in values.values() for cell in cells])
    steps = _steps(columns["step"], lines, decimal)
    table = {name: _numbers(cells, lines, decimal) for name, cells in values.items()}
    known = np.isfinite(steps)
    if not known.all():
        left_out.append(f"{int((~known).sum())} rows without a step, first in line {lines[int(np.argmin(known))]}")
    frame = pd.DataFrame({"step": np.where(known, steps, 0).astype("int64"), "seed": _seeds(columns["seed"]), **table})
    if not known.any():
        raise UserError("it holds no row with a step")
    return CurveTable(frame[known].reset_index(drop=True), tuple(left_out))


def _first(whole: Sequence[tuple[int, tuple[str, ...]]], usable: Sequence[int]) -> int:
    """The line of the first row that is not usable."""
    kept = set(usable)
    return next(line for place, (line, _) in enumerate(whole) if place not in kept)


def _whole_rows(rows: Rows, left_out: list[str]) -> list[tuple[int, tuple[str, ...]]]:
    """The rows with a cell for each column that is needed."""
    width = len(rows.header)
    needed = 1 + max(place for place, name in enumerate(rows.header) if name in ("step", "seed", *VALUES))
    headers = [line for line, cells in rows.cells if tuple(cell.casefold() for cell in cells) == rows.header]
    short = [line for line, cells in rows.cells if len(cells) < needed]
    for line, cells in rows.cells:
        if any(cells[width:]):
            raise UserError(
                f"line {line} has {len(cells)} cells, the header {width}: quote numbers with thousands separators, "
                "and give all rows the same columns"
            )
    if headers:
        left_out.append(f"{len(headers)} repeated headers, first in line {headers[0]}")
    if short:
        left_out.append(f"{len(short)} torn rows, first in line {short[0]}")
    return [(line, cells) for line, cells in rows.cells if line not in {*headers, *short}]


def _decimal_mark(steps: Iterable[str], values: Iterable[str]) -> str:
    """What stands before decimals, `.` or `,`, told by the numbers that can be read in one way only.

    Raises:
        UserError: both do, or no number decides what "1,234" is.
    """
    found: dict[str, str] = {}
    open_: dict[str, str] = {}
    for cells, whole in ((steps, True), (values, False)):
        for cell in dict.fromkeys(cells):
            mark = _mark_of(cell)
            if mark is not None:
                found.setdefault(mark, cell)
            elif (one := ONE_MARK.fullmatch(cell)) is not None and (whole or one["mark"] == ","):
                if whole and one["mark"] == ",":
                    found.setdefault(".", cell)  # a step has no decimals: the comma is between thousands
                else:
                    open_.setdefault(one["mark"], cell)
    if len(found) > 1:
        raise UserError(f"'{found['.']}' and '{found[',']}' do not have the same decimal mark: write all numbers alike")
    if open_ and not found:
        cell = next(iter(open_.values()))
        raise UserError(f"'{cell}' can be read with decimals or with thousands: write it without a separator")
    return next(iter(found), ".")


def _mark_of(cell: str) -> str | None:
    """The decimal mark of a number, where there is one way to read it."""
    if (one := ONE_MARK.fullmatch(cell)) is not None:
        grouped = len(one["rest"]) == 3 and len(one["whole"]) <= 3 and one["whole"][0] != "0" and not one["exponent"]
        return None if grouped else one["mark"]
    return next((decimal for decimal, pattern in MARKED_GROUPS.items() if pattern.fullmatch(cell)), None)


def _numbers(cells: Sequence[str], lines: Sequence[int], decimal: str) -> Floats:
    """(rows,), NaN where a cell says that there is no number.

    Raises:
        UserError: a cell holds something else.
    """
    known: dict[str, float] = {}
    for line, cell in zip(lines, cells, strict=True):
        if cell not in known:
            known[cell] = _number(cell, line, decimal)
    return np.array([known[cell] for cell in cells], dtype="float64")


def _number(cell: str, line: int, decimal: str) -> float:
    text = cell
    if text.casefold() in NO_NUMBER:
        return float("nan")
    if GROUPS.fullmatch(text):
        text = re.sub(r"[' ’_\u00a0\u2009\u202f]", "", text)
    if MARKED_GROUPS[decimal].fullmatch(text):
        text = text.replace("," if decimal == "." else ".", "")
    if decimal == ",":
        text = text.replace(".", "?").replace(",", ".")
    if not NUMBER.fullmatch(text):
        raise UserError(f"line {line}: '{cell}' is no number")
    return float(text)


def _steps(cells: Sequence[str], lines: Sequence[int], decimal: str) -> Floats:
    steps = _numbers(cells, lines, decimal)
    for bad, what in ((steps < 0, "negative"), (steps > MAX_STEP, "too large"), (steps % 1 > 0, "no whole number")):
        if bad.any():
            place = int(np.argmax(bad))
            raise UserError(f"line {lines[place]}: step {cells[place]} is {what}: steps are env steps from 0")
    return steps


def _seeds(cells: Sequence[str]) -> Ints:
    known = {cell: SEED.fullmatch(cell) for cell in dict.fromkeys(cells)}
    for cell, match in known.items():
        if match is None or len(match[1]) > 18:
            raise UserError(f"column seed must hold whole numbers from 0, so that runs can be told apart, not '{cell}'")
    return np.array([int(known[cell][1]) for cell in cells], dtype="int64")  # type: ignore[index]
