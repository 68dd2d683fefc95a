"""Series from files: long CSV (series,time,value), wide CSV (time and a column a variate), a folder or a zip of such.

A zip or folder may hold `sets.csv` (file,group,frequency,season,horizon,held_out,train and perhaps weight), which says of each
file what no time stamp can.
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import Field

from unfog.errors import UserError, shown, unknown
from unfog.modalities.contract import Items, Options
from unfog.modalities.series.table import AHEAD, FREQUENCIES, Clock, Table, even, newest_first

MISSING = {"", "na", "nan", "null", "none", "n/a", "-"}
TIME, NAME, VALUE = ("time", "date", "datetime", "timestamp", "ds"), ("series", "id", "unique_id", "name"), ("value", "y")
SHORTEST = 8  # rows of a series that training can use
LARGEST = 512 * 2**20  # bytes of one file
MOST_EMPTY = 0.5  # share of a table's values
LARGEST_VALUE = 1e30  # squares of it are numbers still


class SeriesOptions(Options):
    """What a user says of his own series."""

    season: list[int] | None = Field(None, description="seasons in steps, such as [24, 168]; None: by the time stamps")
    horizon: int | None = Field(None, ge=1, le=10_000, description="steps ahead that are usually asked for; None: by frequency")
    held_out: int | None = Field(None, ge=0, description="rows at the end of each series to test on; None: one horizon")
    time: str | None = Field(None, description="the column of times; None: time, date, timestamp, ...")
    covariates: list[str] = Field(default_factory=list, description="columns of wide files that are known ahead")


def read_number(text: str) -> float:
    """A number, NaN where it is missing. Raises ValueError for anything else, infinities too."""
    text = text.strip()
    if text.lower() in MISSING:
        return math.nan
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is infinite")
    return value


def _rows(data: bytes, where: str) -> tuple[list[str], list[list[str]]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{where}: not a text file in UTF-8; give a CSV file") from None
    head = text[: text.find("\n") + 1] or text
    separator = max(",;\t", key=head.count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if row]
    except csv.Error as error:
        raise UserError(f"{where}: not a CSV file ({error})") from None
    if len(rows) < 2:
        raise UserError(f"{where}: holds no rows; give a CSV file with a header")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        raise UserError(f"{where}: two columns have one name in its header ({', '.join(header)[:60]})")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise UserError(f"{where}: line {number} has {len(row)} fields, the header {len(header)}")
    return header, rows[1:]


def _column(header: Sequence[str], given: str | None, usual: Sequence[str], where: str, what: str) -> str | None:
    if given is not None:
        if given not in header:
            raise unknown(f"{where}: {what} column", given, header)
        return given
    lower = {name.lower(): name for name in header}
    return next((lower[name] for name in usual if name in lower), None)


def _table(name: str, times: Sequence[str], cells: Sequence[Sequence[str]], columns: Sequence[str], where: str) -> Table:
    try:
        values = np.array(cells, dtype=np.float64).reshape(len(times), len(columns))
    except ValueError:  # something is missing, or wrong
        values = np.full((len(times), len(columns)), math.inf)
    for i, j in np.argwhere(np.isinf(values)) if np.isinf(values).any() else ():
        try:
            values[i, j] = read_number(cells[i][j])
        except ValueError:
            line = f"{where}: {columns[j]} at {times[i]} is {shown(cells[i][j])}"
            decimal = cells[i][j].count(",") == 1 and cells[i][j].replace(",", "").strip("+- ").isdigit()
            mend = (
                "write a point for decimals" if decimal else "leave it empty where it is missing, or choose columns with --target"
            )
            raise UserError(f"{line}, not a finite number ({mend})") from None
    if len(large := np.argwhere(np.abs(values) > LARGEST_VALUE)):
        i, j = large[0]
        raise UserError(f"{where}: {columns[j]} at {times[i]} is too large; give it in a larger unit, below {LARGEST_VALUE:g}")
    if newest_first(times, where):
        times, values = times[::-1], values[::-1]
    clock, places = even(times, where)
    whole = np.full((int(places[-1]) + 1, len(columns)), math.nan)
    whole[places] = values
    return Table(name, whole, tuple(columns), clock, clock.seasons, clock.frequency)


def read_tables(data: bytes, where: str, time: str | None = None, skipped: Counter[str] | None = None,
                only: Sequence[str] = ()) -> list[Table]:  # fmt: skip
    """The tables of one CSV file, long or wide; rows may also be given newest first.

    skipped: of a long file, series that cannot be used are counted there by their fault; without it they are an error.
    only: of a wide file, the columns to read; none: all.
    Raises UserError naming the place and what is wrong.
    """
    header, rows = _rows(data, where)
    clock = _column(header, time, TIME, where, "time")
    series = _column(header, None, NAME, where, "series")
    value = _column(header, None, VALUE, where, "value")
    if series is None or value is None or clock is None or len(header) != 3:
        columns = [name for name in header if name != clock]
        if not columns:
            raise UserError(f"{where}: has no column beside {clock}; give one column a variate")
        for name in only:
            if name not in columns:
                raise unknown(f"{where}: column", name, columns)
        columns = [name for name in columns if not only or name in only]
        places = [header.index(name) for name in columns]
        times = [row[header.index(clock)] for row in rows] if clock is not None else [str(i) for i in range(len(rows))]
        return [_table(Path(where).stem, times, [[row[i] for i in places] for row in rows], columns, where)]
    at, own, cell = (header.index(name) for name in (clock, series, value))
    parts: dict[str, list[list[str]]] = defaultdict(list)
    for row in rows:
        parts[row[own]].append(row)
    found = []
    for name, lines in parts.items():
        try:
            one = _table(name, [r[at] for r in lines], [[r[cell]] for r in lines], [value], f"{where}: series {shown(name)}")
        except UserError as error:
            if skipped is None:
                raise
            skipped[fault(str(error))] += 1
            continue
        found.append(one)
    return found


def fault(message: str) -> str:
    """The kind of a reading error, to count by."""
    for part, word in (("finite number", "values that are no numbers"), ("unequal", "unequal time steps"),
                       ("twice", "a time that comes twice"), ("comes after", "times that do not rise"),
                       ("more than half", "more than half of the rows missing"), ("too large", "values above 1e30")):  # fmt: skip
        if part in message:
            return word
    return "unreadable"


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*.csv")):
            if file.stat().st_size > LARGEST:
                raise UserError(f"{file}: larger than {LARGEST >> 20} MiB; cut it into several files")
            yield str(file.relative_to(path)), file.read_bytes()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in sorted(archive.infolist(), key=lambda i: i.filename):
                if not info.is_dir() and info.filename.lower().endswith(".csv"):
                    if info.file_size > LARGEST:
                        raise UserError(f"{path}: {info.filename} is larger than {LARGEST >> 20} MiB")
                    yield info.filename, archive.read(info)
    elif path.is_file():
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: larger than {LARGEST >> 20} MiB; cut it into several files")
        yield path.name, path.read_bytes()
    else:
        raise UserError(f"{path}: does not exist; give a CSV file, or a folder or zip of CSV files")


def _said(sets: bytes, where: str) -> dict[str, dict[str, str]]:
    header, rows = _rows(sets, where)
    if "file" not in header:
        raise UserError(f"{where}: has no column file")
    found = {}
    for row in rows:
        entry = dict(zip(header, row, strict=True))
        if entry.get("frequency") and entry["frequency"] not in FREQUENCIES:
            raise unknown(f"{where}: frequency", entry["frequency"], FREQUENCIES)
        for key in ("season", "horizon", "held_out", "weight"):
            if not all(part.isdecimal() for part in entry.get(key, "").split()):
                raise UserError(f"{where}: {key} of {entry['file']} is {shown(entry[key])}, not whole numbers")
        found[entry["file"]] = entry
    return found


def _dressed(table: Table, options: SeriesOptions, said: Mapping[str, str]) -> Table:
    """The table with what options and sets.csv say of it."""
    seasons = tuple(int(s) for s in said["season"].split()) if said.get("season") else table.seasons
    seasons = tuple(sorted(options.season)) if options.season else seasons
    frequency = said.get("frequency") or table.frequency
    ahead = options.horizon or int(said.get("horizon") or 0) or min(AHEAD[frequency], max(1, len(table) // 4))
    held = options.held_out if options.held_out is not None else int(said["held_out"]) if said.get("held_out") else ahead
    name = f"{said['group']}/{table.name}" if said.get("group") else table.name
    covered = tuple(c for c in options.covariates if c in table.columns)
    return replace(table, name=name, seasons=seasons, frequency=frequency, ahead=ahead, held=min(held, len(table)),
                   covariates=covered, weight=int(said.get("weight") or 1))  # fmt: skip


def open_series(path: Path, options: SeriesOptions) -> Items:
    """Items of a file, folder or zip: each series' training part, and held-out windows that end in `ahead` steps to be forecast.

    Raises UserError where nothing can be used; single series that cannot are skipped with a count.
    """
    skipped: Counter[str] = Counter()
    tables: list[tuple[Table, bool]] = []
    files = dict(_files(path))
    sets = next((name for name in files if Path(name).name == "sets.csv"), None)
    said = _said(files.pop(sets), f"{path}: {sets}") if sets else {}
    one = len(files) == 1
    for name, data in files.items():
        try:
            found = read_tables(data, str(path) if path.name == name else name, options.time, skipped)
        except UserError as error:
            if one:
                raise
            skipped[fault(str(error))] += 1
            continue
        entry = said.get(name, {})
        tables += [(_dressed(table, options, entry), entry.get("train", "yes") != "no") for table in found]
    given = {c for table, _ in tables for c in table.columns}
    for wanted in options.covariates:
        if tables and wanted not in given:
            raise unknown("covariates", wanted, given)
    raw: list[Table] = []
    splits: list[str] = []
    for table, train in tables:
        known = np.isfinite(table.values)
        if len(table) < SHORTEST or known.sum(0).max() < SHORTEST:
            skipped[f"shorter than {SHORTEST}"] += 1
            continue
        if known.sum() < known.size * (1 - MOST_EMPTY):
            skipped["more than half of the values missing"] += 1
            continue
        own = table.upto(len(table) - table.held)
        if train and len(own) < SHORTEST:
            skipped[f"shorter than {SHORTEST} before what is held out"] += 1
        elif train:
            raw += cuts(own)
            splits += ["train"] * table.weight
        for end in range(len(own) + table.ahead, len(table) + 1, table.ahead):
            if len(own):
                raw.append(table.upto(end))
                splits.append("heldout")
    if splits.count("train") < 1:
        why = ", ".join(f"{n} {word}" for word, n in skipped.items())
        raise UserError(f"{path}: holds no series to train on" + (f" ({why})" if why else "; give CSV with time and values"))
    return Items(path, raw, [table.frequency for table in raw], splits, [table.name for table in raw], dict(skipped))


def cuts(table: Table) -> list[Table]:
    """As many beginnings of a table as it weighs, the last one whole: few long series give many different items."""
    least = min(max(len(table) // 4, 3 * max(table.seasons), SHORTEST), len(table))
    ends = np.linspace(least, len(table), table.weight + 1)[1:].round().astype(int)
    return [table.upto(int(end)) for end in ends]


def from_frame(frame: object, time: str | None = None, name: str = "table") -> Table:
    """A Table of a pandas DataFrame: times from a column or from its index, each other column a variate.

    Raises UserError for columns that hold no numbers, or uneven times.
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise UserError(f"table: expected a pandas DataFrame or the path of a CSV file, got {type(frame).__name__}")
    clock = _column([str(c) for c in frame.columns], time, TIME, name, "time")
    stamps = frame[clock] if clock is not None else frame.index.to_series()
    if isinstance(stamps.dtype, pd.PeriodDtype):
        stamps = stamps.dt.to_timestamp()
    times = [t.isoformat() if hasattr(t, "isoformat") else str(t) for t in stamps]
    columns = [c for c in frame.columns if c != clock]
    values = np.full((len(frame), len(columns)), math.nan)
    for j, column in enumerate(columns):
        numbers = pd.to_numeric(frame[column], errors="coerce").to_numpy(float)
        wrong = np.isinf(numbers) | (np.isnan(numbers) & frame[column].notna().to_numpy())
        if wrong.any():
            raise UserError(f"{name}: column {column} at row {int(np.argmax(wrong))} is no finite number")
        values[:, j] = numbers
    made, places = even(times, name)
    whole = np.full((int(places[-1]) + 1, len(columns)), math.nan)
    whole[places] = values
    return Table(name, whole, tuple(map(str, columns)), made, made.seasons, made.frequency)


def to_frame(table: Table) -> object:
    """A pandas DataFrame: an index of times, a column a variate."""
    import pandas as pd

    times = table.times()
    index = pd.Index([int(t) for t in times]) if table.clock.unit == "count" else pd.DatetimeIndex(pd.to_datetime(times))
    return pd.DataFrame(table.values, index=index.rename("time"), columns=list(table.columns))


def counted(clock: Clock, rows: int) -> Clock:
    """The clock from its row `rows` on."""
    return replace(clock, first=clock.first + rows * clock.step)
