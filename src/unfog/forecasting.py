"""Forecasts and filled tables from a model: what `unfog forecast` and Python callers share.

unfog.forecasting.forecast("table.csv", horizon=24)                # quantiles as a list of rows
unfog.forecasting.forecast(frame, horizon=24).frame()              # pandas in and out
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError, unknown
from unfog.modalities.series.data import from_frame, read_tables
from unfog.modalities.series.forecast import Sampler, fill
from unfog.modalities.series.forecast import forecast as sampled
from unfog.modalities.series.scores import LEVELS, crps, inside, seasonal_naive, usual_step
from unfog.modalities.series.show import number
from unfog.modalities.series.space import SeriesSpace
from unfog.modalities.series.table import AHEAD, Table
from unfog.modalities.series.window import VARIATES
from unfog.requests import ForecastRequest, check

Floats = NDArray[np.float64]
LARGEST = 200_000_000  # numbers that all samples of a table may have


@dataclass(frozen=True)
class Part:
    """One table answered: samples (S, H, V) of rows `first` to first + H of its columns."""

    table: Table
    columns: tuple[str, ...]
    first: int
    samples: Floats

    @property
    def times(self) -> list[str]:
        return [self.table.clock.text(n) for n in range(self.first, self.first + self.samples.shape[1])]


@dataclass(frozen=True)
class Answer:
    """All tables of a request, the quantiles that were asked for, and why how many series were left out."""

    parts: list[Part]
    quantiles: Sequence[float]
    filled: bool = False
    skipped: Mapping[str, int] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)

    def frame(self) -> Any:
        """A pandas DataFrame: series, time, column and a column a quantile; or, filled, the table with medians in its gaps.

        Raises UserError where pandas is missing.
        """
        pandas = _pandas()
        if self.filled:
            from unfog.modalities.series.data import to_frame

            return to_frame(filled_table(self.parts[0]))
        rows = [row for part in self.parts for row in quantile_rows(part, self.quantiles)]
        return pandas.DataFrame(rows, columns=["series", "time", "column", *map(str, self.quantiles)])


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise UserError("pandas is not installed; pip install 'unfog[series]'") from None
    return pandas


def forecast(table: Any, **fields: Any) -> Answer:
    """The answer to a `ForecastRequest` whose table is a path or a pandas DataFrame.

    Raises UserError in one line for whatever is wrong with table, options or model.
    """
    if isinstance(table, (str, Path)):
        return answer(check(ForecastRequest, {"table": Path(table), **fields}))
    _pandas()
    request = check(ForecastRequest, {"table": Path("table"), **fields})
    return answer(request, [from_frame(table, request.time)])


def answer(request: ForecastRequest, tables: Sequence[Table] | None = None) -> Answer:
    """Samples, or scores, of every table of a request. Raises UserError before anything is made."""
    skipped: Counter[str] = Counter()
    if tables is None:
        tables = _read(request, skipped)
    asked = [_asked(table, request) for table in tables]
    sampler = _sampler(request)
    if request.score:
        rows = [row for table, horizon in asked for row in _scored(sampler, table, horizon, request)]
        return Answer([], request.quantiles, False, dict(skipped), rows)
    parts = []
    for i, (table, horizon) in enumerate(asked):
        seed = (request.seed + i * request.samples) % 2**62
        if request.fill:
            parts.append(Part(table, table.columns, 0, fill(sampler, table, request.samples, seed)))
        else:
            targets = tuple(c for c in table.columns if c not in table.covariates)
            first = len(table) - horizon if table.covariates else len(table)
            parts.append(Part(table, targets, first, sampled(sampler, table, horizon, request.samples, seed)))
    return Answer(parts, request.quantiles, request.fill, dict(skipped))


def _read(request: ForecastRequest, skipped: Counter[str]) -> list[Table]:
    try:
        data = request.table.read_bytes()
    except OSError as error:
        raise UserError(f"{request.table}: {error.strerror or error}; give a CSV file") from None
    only = [*request.target, *request.covariates] if request.target else []
    found = read_tables(data, str(request.table), request.time, skipped, only)
    if not found:
        why = ", ".join(f"{n} {word}" for word, n in skipped.items())
        raise UserError(f"{request.table}: no series can be used ({why})")
    return found


def _asked(table: Table, request: ForecastRequest) -> tuple[Table, int]:
    """The table with what is asked for, and the horizon."""
    for name, columns in (("target", request.target), ("covariates", request.covariates)):
        for column in columns:
            if column not in table.columns:
                raise unknown(name, column, table.columns)
    both = set(request.target) & set(request.covariates)
    if both:
        raise UserError(f"covariates: {sorted(both)[0]} is a target too; give it once")
    targets = request.target or [c for c in table.columns if c not in request.covariates]
    if not targets:
        raise UserError(f"{table.name}: every column is a covariate; leave one to be forecast")
    if len(request.covariates) >= VARIATES:
        raise UserError(f"covariates: {len(request.covariates)} are given, a window holds {VARIATES - 1} beside a target")
    table = replace(table.of([*targets, *request.covariates]), covariates=tuple(request.covariates))
    if request.seasons:
        table = replace(table, seasons=tuple(sorted(request.seasons)))
    horizon = request.horizon or min(AHEAD[table.frequency], max(1, len(table) // 2))
    if request.limit is not None and horizon > request.limit:
        raise UserError(f"horizon: {horizon} steps are more than the limit of {request.limit}; ask for fewer")
    if request.samples * max(horizon, len(table) if request.fill else 0) * len(table.columns) > LARGEST:
        raise UserError(f"samples: {request.samples} of {horizon} steps are more than memory should hold; give fewer")
    goal = ~table.covered
    empty = [c for i, c in enumerate(table.columns) if not np.isfinite(table.values[:, i]).any()]
    if empty:
        raise UserError(f"{table.name}: column {empty[0]} holds no values; leave it out with --target")
    if table.covariates and not request.fill:
        rest = np.isfinite(table.values[max(len(table) - horizon, 0) :])
        if len(table) <= horizon or rest[:, goal].any() or not rest[:, ~goal].all():
            raise UserError(
                f"covariates: the last {horizon} rows must hold them and no target; append the rows that are to be forecast"
            )
    known = len(table) - (horizon if table.covariates and not request.fill else 0) - (horizon if request.score else 0)
    if known < 3:
        raise UserError(f"{table.name}: has {len(table)} rows, too few for a horizon of {horizon}; 3 known rows are needed")
    return replace(table, ahead=min(horizon, 48)), horizon


def _sampler(request: ForecastRequest) -> Sampler:
    from unfog.model import load

    model = load(request.model)
    if not isinstance(model.space, SeriesSpace):
        raise UserError(f"model: {model.name} is of the kind {model.kind.name}; give one of the kind series")
    return Sampler.of(model.denoiser, model.space, steps=int(model.defaults.get("steps", 16)))


def _scored(sampler: Sampler, table: Table, horizon: int, request: ForecastRequest) -> list[dict[str, Any]]:
    """CRPS and MASE (both in mean absolute seasonal steps of the past) and coverage of the last rows, beside seasonal naive."""
    if table.covariates:
        raise UserError("score: of a table with covariates is not measured; leave them out")
    past, truth = table.upto(len(table) - horizon), table.values[len(table) - horizon :]
    made = sampled(sampler, past, horizon, request.samples, request.seed)
    season, rows = max(table.seasons) if len(past) >= 2 * max(table.seasons) else min(table.seasons), []
    for v, column in enumerate(table.columns):
        there, unit = np.isfinite(truth[:, v]), usual_step(past.values[:, v], season)
        if not there.any() or not np.isfinite(unit):
            continue
        naive = seasonal_naive(past.values[:, v], season, horizon, request.samples, np.random.default_rng(request.seed))
        for name, own in (("model", made[:, :, v]), ("seasonal naive", naive)):
            own, seen = own[:, there], truth[there, v]
            row = {"series": table.name, "column": column, "method": name, "crps": crps(own, seen).mean() / unit,
                   "mase": np.abs(np.median(own, 0) - seen).mean() / unit}  # fmt: skip
            row |= {f"inside_{round(100 * level)}": inside(own, seen, level).mean() for level in LEVELS}
            rows.append({key: round(float(value), 4) if isinstance(value, (float, np.floating)) else value
                         for key, value in row.items()})  # fmt: skip
    return rows


def quantile_rows(part: Part, quantiles: Sequence[float]) -> list[list[Any]]:
    """series, time, column, and a number a quantile, of each step and column."""
    found = np.quantile(part.samples, quantiles, axis=0)
    return [[part.table.name, time, column, *found[:, h, v].tolist()]
            for v, column in enumerate(part.columns) for h, time in enumerate(part.times)]  # fmt: skip


def filled_table(part: Part) -> Table:
    """The table with the samples' medians where values were missing, all else as it was."""
    median = np.median(part.samples, axis=0)
    return replace(part.table, values=np.where(np.isfinite(part.table.values), part.table.values, median))


def written(made: Answer) -> str:
    """CSV: series,time,column and the quantiles; of filled tables series,time,column,value,missing and the quantiles."""
    import csv

    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    extra = ["value", "missing"] if made.filled else []
    writer.writerow(["series", "time", "column", *extra, *(f"q{q:g}" for q in made.quantiles)])
    for part in made.parts:
        whole = filled_table(part).values if made.filled else None
        rows = quantile_rows(part, made.quantiles)
        for i, row in enumerate(rows):
            h, v = i % part.samples.shape[1], i // part.samples.shape[1]
            own = [] if whole is None else [number(whole[h, v]), int(not np.isfinite(part.table.values[h, v]))]
            writer.writerow([*row[:3], *own, *(number(value) for value in row[3:])])
    return handle.getvalue()


def drawn(made: Answer, most: int = 6) -> bytes:
    """A PNG of the first columns: the past, the median, and the bands between outer quantiles.

    Raises UserError where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib is not installed; pip install 'unfog[plot]'") from None
    shown = [(part, v) for part in made.parts for v in range(len(part.columns))][:most]
    if not shown:
        raise UserError("plot: there is nothing to draw; leave out --score")
    figure = Figure(figsize=(9, 2.6 * len(shown)), layout="constrained")
    for axis, (part, v) in zip(np.atleast_1d(figure.subplots(len(shown), 1)), shown, strict=True):
        y, own = part.table.values[:, part.table.columns.index(part.columns[v])], part.samples[:, :, v]
        steps = part.first + np.arange(own.shape[1])
        begin = 0 if made.filled else max(0, part.first - max(4 * own.shape[1], 48))
        for low, high in zip(made.quantiles, reversed(made.quantiles), strict=True):
            if low < high:
                edges = np.quantile(own, [low, high], axis=0)
                shade = 0.12 + 0.35 * (1 - (high - low))  # what holds less lies nearer to the median, and darker
                axis.fill_between(steps, *edges, color="#1f5fbf", alpha=shade, linewidth=0, label=f"{100 * (high - low):.0f} %")
        axis.plot(np.arange(begin, part.first if not made.filled else len(y)), y[begin : None if made.filled else part.first],
                  color="#333333", linewidth=1)  # fmt: skip
        middle = np.median(own, 0)
        if made.filled:
            middle = np.where(np.isfinite(y), np.nan, middle)
        axis.plot(steps, middle, color="#1f5fbf", linewidth=1.2, marker="." if made.filled else None, label="median")
        marks = np.linspace(begin, steps[-1], 5).astype(int)
        axis.set_xticks(marks, [part.table.clock.text(int(n)) for n in marks], fontsize=8)
        axis.set_title(f"{part.table.name}: {part.columns[v]}", fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=8, frameon=False, loc="upper left")
    handle = io.BytesIO()
    figure.savefig(handle, format="png", dpi=110)
    return handle.getvalue()
