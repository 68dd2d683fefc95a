"""A window of a table as a network sees it: what is known, the outline of what is not, and the residual to be learned.

    x0 = c·asinh((y − base)/(c·unit)),   base, unit: the outline and its spread (outline.py);   y = base + unit·c·sinh(x0/c)

A window has PAST steps before its origin and AHEAD from it on. asinh keeps rare jumps from ruling the loss. Where nothing at
all is known (synthesis) base and unit are the window's own mean and spread, and a sample stays in these units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfog.modalities.series.outline import LONGEST, RECENT, Seasonal, damped, drift, seasonal, since, smooth, spread
from unfog.modalities.series.table import AHEAD as USUAL
from unfog.modalities.series.table import FREQUENCIES, Table

PAST, AHEAD, VARIATES = 64, 48, 8
LENGTH = PAST + AHEAD
STEPS, ROW = 22, len(FREQUENCIES) + 17  # numbers told of a step, of a row
CURVE = 3.0  # c of the asinh: residuals up to about three times the usual are nearly as they are
FARTHEST = 8.0  # |x0| at most: a jump of 21 usual residuals
NEVER = 1e30  # a bound that bounds nothing

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Window:
    """values, known, real (n, V) of the last n ≤ LONGEST steps up to origin + AHEAD of a table.

    values: NaN where nothing is there; known: what the network is told; real: steps that are data or are asked for. free: nothing
    is known, on purpose.
    """

    table: Table
    origin: int
    values: Floats
    known: Bools
    real: Bools
    free: bool = False


def ahead_of(table: Table) -> int:
    """Steps that one window forecasts of this table at most."""
    return min(AHEAD, max(USUAL[table.frequency], min(table.ahead, AHEAD)))


def window(table: Table, origin: int, ahead: int, fill: bool = False, hidden: Bools | None = None) -> Window:
    """The window whose forecast begins at row `origin` (0 to len(table)) and reaches `ahead` ≤ AHEAD steps.

    fill: what is known from the origin on is told too. hidden (T, V): values that are not told (but stand in `values`).
    """
    count, variates = min(origin + AHEAD, LONGEST), table.values.shape[1]
    begin = origin + AHEAD - count
    values = np.full((count, variates), np.nan)
    there = table.values[begin : origin + AHEAD]
    values[: len(there)] = there
    known = np.isfinite(values)
    real = np.ones((count, variates), bool)
    if hidden is not None:
        part = hidden[begin : origin + AHEAD]
        known[: len(part)] &= ~part
    first = count - AHEAD
    real[first + ahead :] = False
    values[first + ahead :] = np.nan
    known[first + ahead :] = False
    if not fill:
        known[first:, ~table.covered] = False
        real[:first] &= known[:first]  # what is missing before the origin is not asked for
    return Window(table, origin, values, known, real & (known.any(0) | table.covered))


def free(table: Table, end: int, column: int) -> Window:
    """A window of one variate up to row `end` of which nothing is known."""
    begin = max(0, end - LENGTH)
    values = np.full((LENGTH, 1), np.nan)
    values[LENGTH - (end - begin) :] = table.values[begin:end, column : column + 1]
    real = np.isfinite(values)
    return Window(table.of([table.columns[column]]), end - AHEAD, values, np.zeros((LENGTH, 1), bool), real, True)


def shown(x: Floats) -> Floats:
    """Numbers of any size, tamed for a network's input."""
    return np.arcsinh(x)


def tail(array: NDArray, length: int, fill: float) -> NDArray:
    """The last `length` entries, with `fill` before where there are fewer."""
    if len(array) >= length:
        return array[-length:]
    return np.concatenate([np.full(length - len(array), fill, array.dtype), array])


@dataclass
class Rows:
    """What is computed of R rows (variates of windows), each (R, LENGTH) unless said otherwise."""

    x0: Floats
    base: Floats
    unit: Floats
    known: Bools
    real: Bools
    asked: Bools  # what is to be found; where some of it is there (training), only that
    steps: Floats  # (R, LENGTH, STEPS)
    row: Floats  # (R, ROW)
    low: Floats  # (R,)
    high: Floats  # (R,)


def _told(frequency: str) -> Floats:
    return np.array([float(f == frequency) for f in FREQUENCIES])


def _unconditional(w: Window) -> tuple[Floats, ...]:
    y, real = tail(w.values[:, 0], LENGTH, np.nan), tail(w.real[:, 0], LENGTH, False)
    mean = float(np.nanmean(y)) if real.any() else 0.0
    std = float(np.nanstd(y)) if real.any() else 1.0
    return y, real, np.full(LENGTH, mean), np.full(LENGTH, std if std > 0 else 1.0)


def _phase(clock_index: int, season: int) -> Floats:
    place = 2 * np.pi * ((clock_index + np.arange(LENGTH)) % season) / season
    return np.stack([np.sin(place), np.cos(place)], -1)


def _lags(y: Floats, season: int, most: int) -> tuple[Floats, Floats]:
    """Of each of the last LENGTH steps: the newest known value a whole number of seasons ago, and the mean of `most` of them."""
    nothing = np.full(LENGTH, np.nan)
    if season < 2:
        return nothing, nothing
    back = np.arange(1, most + -(-AHEAD // season) + 1)[:, None] * season
    at = len(y) - LENGTH + np.arange(LENGTH) - back
    values = np.where(at >= 0, y[np.maximum(at, 0)], np.nan)
    good = np.isfinite(values)
    rank = good.cumsum(0)
    values = np.where(good & (rank <= most), values, 0.0)
    count = np.minimum(rank[-1], most)
    newest = values[good.argmax(0), np.arange(LENGTH)]
    return np.where(count > 0, newest, np.nan), np.where(count > 0, values.sum(0) / np.maximum(count, 1), np.nan)


def plain(values: Floats) -> Floats:
    """0 where a number is missing."""
    return np.where(np.isfinite(values), values, 0.0)


def rows_of(windows: Sequence[tuple[Window, int]], units: dict[str, float]) -> Rows:
    """All that the network is told of some rows, (window, column) each, and x0.

    units: by frequency, how large a residual usually is, in spreads.
    """
    n = len(windows)
    out = Rows(np.zeros((n, LENGTH)), np.zeros((n, LENGTH)), np.ones((n, LENGTH)), np.zeros((n, LENGTH), bool),
               np.zeros((n, LENGTH), bool), np.zeros((n, LENGTH), bool), np.zeros((n, LENGTH, STEPS)), np.zeros((n, ROW)),
               np.full(n, -NEVER), np.full(n, NEVER))  # fmt: skip
    dressed = [i for i, (w, _) in enumerate(windows) if not w.free]
    if dressed:
        _outlined(out, np.array(dressed), [windows[i] for i in dressed], units)
    for i, (w, column) in enumerate(windows):
        season = max((m for m in w.table.seasons), default=1)
        if w.free:
            y, out.real[i], out.base[i], out.unit[i] = _unconditional(w)
            out.row[i, len(FREQUENCIES)] = 1.0
        else:
            y = tail(w.values[:, column], LENGTH, np.nan)
            out.known[i] = tail(w.known[:, column], LENGTH, False)
            out.real[i] = tail(w.real[:, column], LENGTH, False)
        out.row[i, : len(FREQUENCIES)] = _told(w.table.frequency)
        out.row[i, len(FREQUENCIES) + 1] = np.log(season) / 5
        out.row[i, len(FREQUENCIES) + 2] = float(w.table.covered[column if not w.free else 0])
        if w.table.clock.unit != "count":
            begin = w.table.clock.index(w.origin - PAST)
            out.steps[i, :, 17:19] = _phase(begin, max(min(w.table.seasons), 2))
            out.steps[i, :, 19:21] = _phase(begin, max(season, 2))
        out.asked[i] = out.real[i] & ~out.known[i]
        if (truth := out.asked[i] & np.isfinite(y)).any():
            out.asked[i] = truth
        out.real[i] = out.known[i] | out.asked[i]
        out.x0[i] = np.where(np.isfinite(y), CURVE * np.arcsinh((plain(y) - out.base[i]) / (CURVE * out.unit[i])), 0.0)
    out.x0 = np.clip(out.x0, -FARTHEST, FARTHEST)
    out.steps[..., 0], out.steps[..., 1] = out.known, np.where(out.known, out.x0, 0.0)
    out.steps[..., 21] = out.real
    out.steps *= out.real[..., None]
    return out


def _outlined(out: Rows, at: NDArray[np.int64], windows: Sequence[tuple[Window, int]], units: dict[str, float]) -> None:
    """Fill in rows `at` of `out`: base, unit, bounds, features of steps and rows."""
    rows, longest = len(windows), RECENT + AHEAD
    z, told = np.full((rows, longest), np.nan), []
    parts: list[Seasonal] = []
    for i, (w, column) in enumerate(windows):
        y = np.where(w.known[:, column], w.values[:, column], np.nan)
        told.append(y)
        part = seasonal(y, w.table.seasons, len(y)) if np.isfinite(y).any() else Seasonal(np.ones(len(y)), True, (0.0, 0.0))
        parts.append(part)
        z[i] = tail(y / part.index if part.times else y - part.index, longest, np.nan)
        if not np.isfinite(z[i]).any():  # nothing known, or all of it too long ago
            before = y[np.isfinite(y)]
            z[i, 0] = before[-1] if len(before) else 0.0
    z = z[:, min(np.isfinite(z).any(0).argmax(), longest - LENGTH) :]
    known = np.isfinite(z)
    season = np.array([max(w.table.seasons) for w, _ in windows])
    ahead, model = since(known), smooth(z)
    last, slope = model.level[:, -1], drift(z)
    end, trend, phi = damped(z)
    s = spread(model.error, season)
    every = np.array([np.nanstd(y) if np.isfinite(y).any() else 0.0 for y in told])
    size = np.array([np.nanmean(np.abs(y)) if np.isfinite(y).any() else 0.0 for y in told])
    mult = np.array([part.times for part in parts])
    s = np.maximum(s, np.maximum(1e-3 * every, 1e-6 * size))
    s = np.where(s > 0, s, 1.0)
    h = ahead.astype(float)
    count = known.sum(1)
    late = (1 - (1 - model.alpha) ** np.minimum(count, 500)) / model.alpha
    theta = last[:, None] + 0.5 * slope[:, None] * (h - 1 + late[:, None])
    curve = end[:, None] + trend[:, None] * phi[:, None] * (1 - phi[:, None] ** h) / (1 - phi[:, None])
    outline = 0.5 * (theta + curve)
    near = h
    newest = np.where(known.any(1), known.shape[1] - 1 - known[:, ::-1].argmax(1), -1)
    inner = ~known & (np.arange(z.shape[1]) < newest[:, None])
    bridge = outline
    if inner.any():
        back = since(known[:, ::-1])[:, ::-1].astype(float)
        behind = smooth(z[:, ::-1]).level[:, ::-1]
        share = np.where(ahead > z.shape[1], 1.0, h / np.maximum(h + back, 1))
        bridge = (1 - share) * model.level + share * behind
        outline = np.where(inner, bridge, outline)
        near = np.where(inner, np.minimum(h, back), h)
    outline = np.where(known, last[:, None], outline)
    grown = np.sqrt(1 + model.alpha[:, None] ** 2 * np.maximum(np.minimum(near, 400) - 1, 0))
    cut = slice(-LENGTH, None)
    usual = np.array([units.get(w.table.frequency, 1.0) for w, _ in windows])
    outline, grown, h = outline[:, cut], grown[:, cut], np.where(known, 0, h)[:, cut]
    naive = np.array([y[np.isfinite(y)][-1] if np.isfinite(y).any() else 0.0 for y in z])
    recent_z = z[:, cut]
    features = out.steps
    for i, (w, _) in enumerate(windows):
        part, r, y = parts[i], at[i], told[i]
        index = tail(part.index, LENGTH, 1.0 if part.times else 0.0)
        factor = index if part.times else np.ones(LENGTH)
        unit = s[i] * usual[i] * factor
        base = outline[i] * index if part.times else outline[i] + index
        out.base[r], out.unit[r] = base, unit * grown[i]
        out.low[r], out.high[r] = _bounds(y, part.times)
        short, long = min(w.table.seasons), max(w.table.seasons)
        lag1, mean1 = _lags(y, short, 4)
        lag2, mean2 = _lags(y, long, 3) if long > short else (np.full(LENGTH, np.nan),) * 2
        for place, values in ((3, lag1), (5, lag2), (7, mean1), (8, mean2)):
            features[r, :, place] = shown(plain((values - base) / unit))
        features[r, :, 4], features[r, :, 6] = np.isfinite(lag1), np.isfinite(lag2)
        spare = s[i] * usual[i]
        error = model.error[i, cut]
        features[r, :, 2] = shown(plain(error / spare))
        features[r, :, 9] = shown((theta[i, cut] - outline[i]) / spare)
        features[r, :, 10] = shown((naive[i] - outline[i]) / spare)
        features[r, :, 11] = shown(slope[i] * h[i] / spare)
        features[r, :, 12] = shown((index - 1) * abs(last[i]) / spare if part.times else index / spare)
        features[r, :, 13] = np.log(grown[i])
        features[r, :, 14] = np.log1p(np.minimum(h[i], 500)) / 3
        features[r, :, 15] = np.log1p(np.minimum(near[i, cut], 500)) / 3 * (h[i] > 0)
        features[r, :, 16] = shown(plain((recent_z[i] - last[i]) / spare))
        good = np.isfinite(model.error[i])
        e = model.error[i, good]
        steady = float((e[1:] * e[:-1]).mean() / (e**2).mean()) if len(e) > 3 and (e**2).mean() > 0 else 0.0
        jumps = np.abs(np.diff(y[np.isfinite(y)]))
        apart = np.abs(y[long:] - y[:-long]) if len(y) > long else np.array([np.nan])
        far = float(np.nanmean(apart)) if np.isfinite(apart).any() else s[i]
        tails = float((np.abs(e) > 2.5 * s[i]).mean()) if len(e) else 0.0
        out.row[r, len(FREQUENCIES) + 3 :] = [
            np.log1p(count[i]) / 5, part.strength[0], part.strength[1], float(mult[i]), model.alpha[i],
            np.log(s[i] / max(abs(last[i]), 1e-3 * s[i])) / 3, float(shown(np.array(slope[i] * 8 / spare))), steady,
            np.log((far + 1e-3 * s[i]) / s[i]) / 2, np.log((jumps.mean() + 1e-3 * s[i]) / s[i]) / 2 if len(jumps) else 0.0,
            float(out.low[r] > -NEVER) + float(out.high[r] < NEVER), 10 * tails, float(shown(np.array(trend[i] / spare))),
            np.log(every[i] / s[i] + 1e-3) / 3,
        ]  # fmt: skip


def _bounds(y: Floats, positive: bool) -> tuple[float, float]:
    """Least and largest that a value can be: where a share of the values stands at an end, or 0 where seasons multiply."""
    values = y[np.isfinite(y)]
    if len(values) < 20:
        return (0.0 if positive and len(values) and values.min() > 0 else -NEVER), NEVER
    low, high = values.min(), values.max()
    if low == high:
        return -NEVER, NEVER
    least = low if (values == low).mean() >= 0.03 else 0.0 if positive and low > 0 else -NEVER
    return float(least), float(high) if (values == high).mean() >= 0.03 else NEVER
