"""A table of time series: equal steps of time down, variates across, NaN where a value is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError, shown

Floats = NDArray[np.float64]
FREQUENCIES = ("yearly", "quarterly", "monthly", "weekly", "daily", "hourly", "half-hourly", "other")
AHEAD = {"yearly": 8, "quarterly": 12, "monthly": 24, "weekly": 26, "daily": 28, "hourly": 48, "half-hourly": 48, "other": 16}
START = datetime(1970, 1, 1, tzinfo=UTC)
MOST_MISSING = 0.5  # share of the rows of an even clock that a file may lack
_MONTHS = {1: "monthly", 3: "quarterly", 12: "yearly"}
_SECONDS = {7 * 86400: "weekly", 86400: "daily", 3600: "hourly", 1800: "half-hourly"}
_SEASONS = {"yearly": (1,), "quarterly": (4,), "monthly": (12,), "weekly": (52,), "daily": (7,), "hourly": (24, 168),
            "half-hourly": (48, 336), "other": (1,)}  # fmt: skip


@dataclass(frozen=True)
class Clock:
    """Even steps of time: the n-th is first + n·step months, seconds, or plain counts.

    unit: "month", "second" or "count". day: of the month, of a monthly clock; 31 where it is each month's last.
    """

    unit: str = "count"
    first: int = 0
    step: int = 1
    day: int = 1

    @property
    def frequency(self) -> str:
        known = {"month": _MONTHS, "second": _SECONDS}.get(self.unit, {})
        return known.get(self.step, "other")

    @property
    def seasons(self) -> tuple[int, ...]:
        """Usual seasons in steps, the shorter first: of steps below a day, the day and the week."""
        if self.unit == "second" and self.step < 86400 and 86400 % self.step == 0 and 86400 // self.step <= 288:
            return (86400 // self.step, 7 * 86400 // self.step)
        return _SEASONS[self.frequency]

    def index(self, n: int) -> int:
        """Steps from a fixed date (or from 0) to the n-th time; its rest by a season is the place in the season."""
        return self.first // self.step + n

    def text(self, n: int) -> str:
        """The n-th time as a file holds it: ISO, or a whole number."""
        value = self.first + n * self.step
        if self.unit == "count":
            return str(value)
        if self.unit == "second":
            day = np.datetime64(value, "s")
            return str(day.astype("datetime64[D]")) if value % 86400 == 0 and self.step % 86400 == 0 else str(day)
        month = np.datetime64(value - 1970 * 12, "M")
        last = int(((month + 1).astype("datetime64[D]") - month.astype("datetime64[D]")).astype(int))
        return f"{month}-{min(self.day, last):02d}"


@dataclass(frozen=True)
class Table:
    """values (T, V) float64, NaN where missing; columns: V names; covariates: those of them that are known ahead.

    seasons: in steps, the shorter first, (1,) for none. ahead: steps that are usually asked for. held: rows at the end that
    are held out of training. weight: how often it comes in training.
    """

    name: str
    values: Floats
    columns: tuple[str, ...]
    clock: Clock = field(default_factory=Clock)
    seasons: tuple[int, ...] = (1,)
    frequency: str = "other"
    covariates: tuple[str, ...] = ()
    ahead: int = 0
    held: int = 0
    weight: int = 1

    def __len__(self) -> int:
        return len(self.values)

    @property
    def covered(self) -> NDArray[np.bool_]:
        """(V,) True for covariates."""
        return np.array([c in self.covariates for c in self.columns])

    def upto(self, row: int) -> Table:
        """The first `row` rows."""
        return replace(self, values=self.values[:row])

    def of(self, columns: Sequence[str]) -> Table:
        """Some of the columns, in this order."""
        chosen = [self.columns.index(c) for c in columns]
        kept = tuple(c for c in self.covariates if c in columns)
        return replace(self, values=self.values[:, chosen], columns=tuple(columns), covariates=kept)

    def times(self, first: int = 0, last: int | None = None) -> list[str]:
        return [self.clock.text(n) for n in range(first, len(self) if last is None else last)]


def _read(text: str, where: str) -> tuple[str, int]:
    """(unit, value) of one time: a whole number or an ISO date, month or time."""
    text = text.strip()
    if text.lstrip("-").isdecimal() and len(text) <= 18:
        return "count", int(text)
    try:
        if len(text) == 7:
            text += "-01"
        stamp = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{where}: time {shown(text)} is no whole number and no ISO date such as 2024-05-01T13:00") from None
    stamp = stamp.replace(tzinfo=UTC) if stamp.tzinfo is None else stamp.astimezone(UTC)
    return "second", int((stamp - START).total_seconds())


def newest_first(times: Sequence[str], where: str) -> bool:
    """Whether a file's rows go back in time. Raises UserError for an end that is no time."""
    return len(times) > 1 and _read(times[0], where)[1] > _read(times[-1], where)[1]


def even(times: Sequence[str], where: str) -> tuple[Clock, NDArray[np.int64]]:
    """The clock of times as written, and the row that each one has on it; rows that lack are told by the gaps.

    Raises UserError, naming the place, where times do not rise, or their steps are no multiples of one step.
    """
    if not times:
        raise UserError(f"{where}: holds no rows")
    try:
        unit, values = "count", np.array(list(map(int, times)), np.int64)
    except (ValueError, OverflowError):
        read = [_read(text, where) for text in times]
        units = {unit for unit, _ in read}
        if len(units) > 1:
            raise UserError(f"{where}: some times are whole numbers and some are dates; give one kind") from None
        unit, values = units.pop(), np.array([value for _, value in read], np.int64)
    day = 1
    if unit == "second" and len(values) > 1:
        monthly = _monthly(values)
        if monthly is not None:
            unit, day, values = "month", *monthly
    steps = np.diff(values)
    if len(steps) and steps.min() <= 0:
        row = int(np.argmax(steps <= 0)) + 1
        what = "comes twice" if steps[row - 1] == 0 else f"comes after {times[row - 1]}"
        raise UserError(f"{where}: time {times[row]} {what}; each series needs rising times")
    sizes, counts = np.unique(steps, return_counts=True)
    step = int(sizes[np.argmax(counts)]) if len(steps) else 1
    if len(steps) and (steps % step).any():
        row = int(np.argmax(steps % step != 0)) + 1
        raise UserError(f"{where}: unequal time steps: {times[row]} after {times[row - 1]} is no whole number of the usual step; "
                        "resample to even steps")  # fmt: skip
    places = (values - values[0]) // step
    if places[-1] + 1 > len(places) / (1 - MOST_MISSING):
        raise UserError(f"{where}: {len(places)} rows over {places[-1] + 1} time steps; more than half are missing")
    return Clock(unit, int(values[0]), step, day), places


def _monthly(seconds: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]] | None:
    """Day and months since year 0 where all times are the same day (or the last day) of months; else None."""
    if (seconds % 86400).any():
        return None
    days = seconds.astype("datetime64[s]").astype("datetime64[D]")
    months = days.astype("datetime64[M]")
    day = (days - months.astype("datetime64[D]")).astype(int) + 1
    last = ((months + 1).astype("datetime64[D]") - days).astype(int) == 1
    number = months.astype(np.int64) + 1970 * 12
    if len(set(number.tolist())) < len(number) or (np.diff(days).astype(int) < 28).any():
        return None
    if last.all() and not (day == day[0]).all():
        return 31, number
    return (int(day[0]), number) if (day == day[0]).all() else None
