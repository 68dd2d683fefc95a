"""Model space of series: windows of tables to x0 and what the network is told, and back (window.py has the arithmetic)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfog.errors import UserError, unknown
from unfog.modalities.contract import ANY, Cond, Items
from unfog.modalities.series.table import FREQUENCIES, Clock, Table
from unfog.modalities.series.window import (
    AHEAD,
    CURVE,
    FARTHEST,
    LENGTH,
    NEVER,
    PAST,
    ROW,
    STEPS,
    VARIATES,
    Bools,
    Rows,
    Window,
    ahead_of,
    free,
    rows_of,
    window,
)

FEW = 6  # known values that a training window has at least
VARIED = 0.9  # share of the windows of one long series that are of a series like it
PLAIN, HOLES, FREE = 0.72, 0.20, 0.08  # shares of training: forecasts, gaps, nothing known
_STEP = {"yearly": ("month", 12), "quarterly": ("month", 3), "monthly": ("month", 1), "weekly": ("second", 7 * 86400),
         "daily": ("second", 86400), "hourly": ("second", 3600), "half-hourly": ("second", 1800)}  # fmt: skip


def _holes(rng: np.random.Generator, shape: tuple[int, int], first: int, last: int) -> Bools:
    """What is hidden of rows first to last: single values or stretches, in some columns or all at once."""
    hidden = np.zeros(shape, bool)
    together, length = rng.random() < 0.3, last - first
    for column in range(shape[1]):
        if together and column:
            hidden[:, column] = hidden[:, 0]
        elif rng.random() < 0.4:
            hidden[first:last, column] = rng.random(length) < rng.uniform(0.05, 0.6)
        else:
            for _ in range(rng.integers(1, 4)):
                size = int(rng.integers(1, max(2, min(AHEAD, length // 2))))
                start = first + int(rng.integers(0, max(1, length - size)))
                hidden[start : start + size, column] = True
    return hidden


def chosen(table: Table, rng: np.random.Generator) -> Window:
    """A random window of a table as training sees it: a forecast, gaps or nothing known."""
    if table.values.shape[1] > VARIATES:
        table = table.of([table.columns[i] for i in sorted(rng.choice(table.values.shape[1], VARIATES, replace=False))])
    if table.weight > 1 and table.values.shape[1] == 1 and rng.random() < VARIED:
        table = varied(table, rng)
    rows, draw = len(table), rng.random()
    if draw < FREE:
        column = int(rng.integers(table.values.shape[1]))
        end = int(rng.integers(min(rows, LENGTH), rows + 1))
        if np.isfinite(table.values[max(0, end - LENGTH) : end, column]).sum() >= FEW:
            return free(table, end, column)
    if table.values.shape[1] > 1 and rng.random() < 0.3:  # some variates are known ahead
        told: Bools = np.asarray(rng.random(table.values.shape[1]) < 0.3)
        told[int(rng.integers(len(told)))] = False
        table = replace(table, covariates=tuple(c for c, a in zip(table.columns, told, strict=True) if a))
    if draw < FREE + HOLES and rows >= 3 * FEW:
        origin = int(rng.integers(min(PAST, rows), rows + 1))
        begin, end = max(0, origin - PAST), min(rows, origin + AHEAD)
        hidden = _holes(rng, table.values.shape, begin, end)
        return window(table, origin, end - origin, fill=True, hidden=hidden)
    most = ahead_of(table)
    # late origins are like those that forecasts are made at; a window without a whole horizon counts where it reaches
    first = min(max(FEW, min(2 * table.seasons[0], rows // 2)), rows - 1)
    origin = rows - 1 - int((rows - 1 - first + 1) * rng.random() ** 1.5)
    origin = min(max(origin, 1), max(rows - max(1, min(most, rows // 4)), 1)) if rng.random() < 0.7 else max(origin, 1)
    lost = None
    if rng.random() < 0.15:
        lost = _holes(rng, table.values.shape, max(0, origin - PAST), origin)
    return window(table, origin, min(most, rows - origin) or 1, hidden=lost)


def varied(table: Table, rng: np.random.Generator) -> Table:
    """Another series with this one's seasons and spectrum: what the long season's means leave has its phases drawn anew, and for
    positive values (then all is done to their logarithms) seasons and rest are stretched. One long series, seen often, would be
    learned by heart: what came after each of its weeks. values (T, 1).

    Source: Theiler et al. 1992, doi:10.1016/0167-2789(92)90102-S (surrogates of random phases).
    """
    season, y = max(table.seasons), table.values[:, 0]
    known = np.isfinite(y)
    if len(y) < 2 * season or not known.all():
        return table
    positive = y.min() > 0
    z = np.log(y) if positive else y
    place, size = np.arange(len(z)) % season, np.bincount(np.arange(len(z)) % season)
    usual = (np.bincount(place, weights=z) / size)[place]
    waves = np.fft.rfft(z - usual)
    turned = waves * np.exp(2j * np.pi * rng.random(len(waves)))
    turned[0] = waves[0]  # the mean stays
    rest = np.fft.irfft(turned, len(z))
    tilt, stretch = np.exp(0.3 * rng.normal(size=2)) if positive else (1.0, 1.0)
    level = usual.mean()
    z = level + tilt * (usual - level) + stretch * rest
    return replace(table, values=(np.exp(z) if positive else z)[:, None])


def as_it_stands(table: Table) -> Window:
    """The window that a table is, without chance."""
    table = table.of(table.columns[:VARIATES])
    if 0 < table.ahead < len(table):
        ahead = min(table.ahead, AHEAD)
        return window(table, len(table) - ahead, ahead)
    if np.isfinite(table.values[-LENGTH:]).all():
        return free(table, len(table), 0)
    origin = max(len(table) - AHEAD, 0)
    return window(table, origin, len(table) - origin, fill=True)


@dataclass(frozen=True)
class SeriesSpace:
    """Windows of up to VARIATES series over LENGTH steps; units: by frequency, how large residuals are in spreads.

    lengths: by frequency, how long series are (what a synthesised one is cut to). widths: by frequency, what the
    distance of a forecast's samples from their median is multiplied by (learned on training windows; 1 where none stands).
    """

    units: Mapping[str, float] = field(default_factory=dict)
    lengths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    widths: Mapping[str, float] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return (VARIATES, LENGTH)

    def card(self) -> dict[str, Any]:
        return {"units": dict(self.units), "lengths": {k: list(v) for k, v in self.lengths.items()}, "widths": dict(self.widths)}

    def network(self) -> dict[str, Any]:
        return {"steps": STEPS, "row": ROW, "length": LENGTH}

    def encode(self, raw: Sequence[Table], rngs: Sequence[np.random.Generator] | None = None) -> tuple[Tensor, Cond]:
        """x0 (B, VARIATES, LENGTH) and cond of a window of each table.

        With rngs: drawn. Without: the last `ahead` steps forecast; of a table that says nothing of these, what is missing in
        its last LENGTH rows, or, where nothing is, its first column with nothing told. A table of more variates than VARIATES
        gives its first ones.
        """
        if rngs is not None:
            return self.told([chosen(table, rng) for table, rng in zip(raw, rngs, strict=True)])
        return self.told([as_it_stands(table) for table in raw])

    def told(self, windows: Sequence[Window]) -> tuple[Tensor, Cond]:
        """x0 and cond of windows: given (what is known, in x0's unit), known, mask (what is to be found), steps (B, V, L, STEPS),
        row (B, V, ROW); base, unit, low, high undo the encoding."""
        pairs = [(w, c) for w in windows for c in range(w.values.shape[1])]
        place = [(b, c) for b, w in enumerate(windows) for c in range(w.values.shape[1])]
        rows = rows_of(pairs, dict(self.units))
        at = tuple(np.array(place).T)
        whole = (len(windows), VARIATES)

        def spread(values: Any, fill: float | bool = 0) -> Tensor:
            out = np.full((*whole, *values.shape[1:]), fill, bool if values.dtype == bool else np.float32)
            out[at] = values
            return torch.from_numpy(out)

        cond = {"given": spread(np.where(rows.known, rows.x0, 0.0)), "known": spread(rows.known), "mask": spread(rows.asked),
                "steps": spread(rows.steps), "row": spread(rows.row)}  # fmt: skip
        cond |= self._undone(rows, spread)
        return spread(np.where(rows.real, rows.x0, 0.0)), cond

    @staticmethod
    def _undone(rows: Rows, spread: Callable[..., Tensor]) -> Cond:
        return {"base": spread(rows.base), "unit": spread(rows.unit, 1.0), "low": spread(rows.low, -NEVER),
                "high": spread(rows.high, NEVER)}  # fmt: skip

    def ask(self, prompts: Sequence[str | None], seeds: Sequence[int]) -> Cond:
        """Series of a frequency (the prompt; "any": one drawn) of which nothing is known; their length is drawn from the seed."""
        known = [f for f in FREQUENCIES if f in self.units] or list(FREQUENCIES)
        windows = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            rng = np.random.default_rng([seed, 0x5E1E5])
            drawn = known[int(rng.integers(len(known)))]
            frequency = drawn if prompt in (None, "", ANY) else str(prompt).strip().lower()
            if frequency not in FREQUENCIES:
                raise unknown("prompt", prompt, [*FREQUENCIES, ANY])
            low, high = self.lengths.get(frequency, (LENGTH, LENGTH))
            length = int(rng.integers(low, high + 1))
            unit, step = _STEP.get(frequency, ("count", 1))
            clock = Clock(unit, 2000 * 12 if unit == "month" else 946_684_800 if unit == "second" else 0, step)
            table = Table(frequency, np.zeros((length, 1)), ("value",), clock, clock.seasons, frequency)
            windows.append(free(table, length, 0))
        _, cond = self.told(windows)
        cond["base"], cond["unit"] = torch.zeros_like(cond["base"]), torch.ones_like(cond["unit"])
        blank = torch.tensor([prompt is None for prompt in prompts])
        cond["row"][blank, :, : len(FREQUENCIES)] = 0.0
        return cond

    def decode(self, x0: Tensor, cond: Cond) -> list[Table]:
        """Tables of the steps that are real, one column a variate; steps are counted from 0."""
        y = self.values(x0, cond)
        found = []
        for i, real in enumerate((cond["known"] | cond["mask"]).cpu().numpy()):
            used = real.any(1)
            steps = np.flatnonzero(real.any(0))
            values = np.where(real, y[i], np.nan)[used][:, steps].T
            code = cond["row"][i, 0, : len(FREQUENCIES)].float()
            frequency = FREQUENCIES[int(code.argmax())] if bool(code.any()) else "other"
            names = ("value",) if used.sum() == 1 else tuple(f"value{k + 1}" for k in range(int(used.sum())))
            clock = Clock("count", 0, 1)
            seasons = Clock(*_of(frequency)).seasons
            found.append(Table(frequency, values, names, clock, seasons, frequency))
        return found

    @staticmethod
    def values(x0: Tensor, cond: Cond) -> np.ndarray:
        """y (B, V, L) float64 of x0: base + unit·c·sinh(x0/c), within bounds."""
        x = x0.double().clamp(-FARTHEST, FARTHEST)
        y = cond["base"].double() + cond["unit"].double() * CURVE * torch.sinh(x / CURVE)
        low, high = cond["low"].double()[..., None], cond["high"].double()[..., None]
        return torch.minimum(torch.maximum(y, low), high).cpu().numpy()


def _of(frequency: str) -> tuple[str, int, int]:
    unit, step = _STEP.get(frequency, ("count", 1))
    return unit, 0, step


def fit_space(items: Items, options: Any) -> SeriesSpace:
    """Units and lengths from training items: the root mean square of residuals of forecasts, without the largest hundredth."""
    train = items.split("train")
    if not train:
        raise UserError(f"{items.path}: no series is trained on; leave rows that are not held out")
    rng = np.random.default_rng(0)
    by: dict[str, list[int]] = {}
    for i in train:
        by.setdefault(items.raw[i].frequency, []).append(i)
    units, lengths = {}, {}
    for frequency, own in sorted(by.items()):
        sizes = [min(len(items.raw[i]), LENGTH) for i in own]
        lengths[frequency] = (int(np.quantile(sizes, 0.25)), int(np.quantile(sizes, 0.75)))
        windows = []
        for _ in range(100):
            table = items.raw[own[int(rng.integers(len(own)))]]
            w = chosen(table, rng)
            if not w.free:
                windows.append(w)
        rows = rows_of([(w, c) for w in windows for c in range(w.values.shape[1])], {})
        found = np.abs(CURVE * np.sinh(rows.x0[rows.asked] / CURVE))
        found = found[found <= np.quantile(found, 0.99)] if len(found) else np.ones(1)
        units[frequency] = float(f"{max(float(np.sqrt((found**2).mean())), 0.05):.4g}")
    return SeriesSpace(units, lengths)


def read_space(card: Mapping[str, Any]) -> SeriesSpace:
    """The space that `card()` described."""
    return SeriesSpace(dict(card["units"]), {k: (int(v[0]), int(v[1])) for k, v in card.get("lengths", {}).items()},
                       dict(card.get("widths", {})))  # fmt: skip
