"""Forecasts and filled gaps: many samples of what is unknown, window by window.

A window reaches AHEAD steps (fewer of slow frequencies). What is farther is sampled on from each sample's own past, so the
uncertainty of one window is carried into the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.diffusion import Noise, Plan, Preconditioned, make_grid, make_plan, sample
from unfog.errors import UserError
from unfog.modalities.series.space import SeriesSpace
from unfog.modalities.series.table import Table
from unfog.modalities.series.window import AHEAD, PAST, VARIATES, Window, ahead_of, window

Floats = NDArray[np.float64]
BATCH = 256  # windows sampled at once
APART = 16  # steps between gaps that are filled without knowledge of each other's samples
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Sampler:
    """What makes samples: a denoiser, its space, a plan."""

    denoiser: Preconditioned
    space: SeriesSpace
    plan: Plan

    @staticmethod
    def of(denoiser: Preconditioned, space: SeriesSpace, sampler: str = "dpmpp_2m", steps: int = 16) -> Sampler:
        schedule = denoiser.process.schedule
        grid = make_grid("logsnr", schedule, steps, logsnr_min=-8.0, logsnr_max=6.0)
        return Sampler(denoiser, space, make_plan(sampler, schedule, grid))


class _Streams:
    """Noise whose streams begin later: each window of a sample draws its own."""

    def __init__(self, seeds: Sequence[int], window: int) -> None:
        self.noise, self.first = Noise(seeds), window * 100_000

    def normal(self, shape: Sequence[int], stream: int, device: str | torch.device = "cpu",
               dtype: torch.dtype = torch.float32) -> Tensor:  # fmt: skip
        return self.noise.normal(shape, self.first + stream, device, dtype)


@torch.no_grad()
def drawn(sampler: Sampler, windows: Sequence[Window], copies: int, seeds: Sequence[int], number: int = 0) -> Floats:
    """y (len(windows)·copies, VARIATES, LENGTH): `copies` samples of each window; seeds: one a sample."""
    x0, cond = sampler.space.told(windows)
    told = cond
    network: Any = sampler.denoiser.network
    if hasattr(network, "prepare"):  # what is known is read once for all samples and steps
        first = next(network.parameters())
        shown = {key: value.to(first.device, first.dtype) if value.is_floating_point() else value.to(first.device)
                 for key, value in cond.items()}  # fmt: skip
        told = {"state": network.prepare(shown), **{key: shown[key] for key in ("known", "mask", "given")}}
    kept, width = [], sampler.space.widths
    for first in range(0, len(seeds), BATCH):
        rows = torch.arange(first, min(first + BATCH, len(seeds))) // copies
        own = {key: value[rows] for key, value in told.items()}
        noise = _Streams(seeds[first : first + BATCH], number)
        start = sampler.denoiser.process.prior(noise.normal(x0.shape[1:], 0, told["known"].device), sampler.plan.start)
        kept.append(sample(sampler.plan, partial(sampler.denoiser, cond=own), start, noise))
    x = torch.cat(kept).cpu()
    for i, w in enumerate(windows):
        wide = width.get(w.table.frequency, 1.0)
        if copies > 1 and wide != 1.0:
            part = x[i * copies : (i + 1) * copies]
            middle = part.median(0).values
            x[i * copies : (i + 1) * copies] = middle + wide * (part - middle)
    every = torch.arange(len(seeds)) // copies
    return sampler.space.values(x, {key: cond[key][every] for key in ("base", "unit", "low", "high")})


def groups(table: Table) -> list[Table]:
    """Tables of at most VARIATES columns: some targets with all covariates each. Raises UserError where these fill a window."""
    covered = [c for c, known in zip(table.columns, table.covered, strict=True) if known]
    targets = [c for c in table.columns if c not in covered]
    room = VARIATES - len(covered)
    if room < 1:
        raise UserError(f"covariates: {len(covered)} are given, a window holds {VARIATES - 1} beside a target; give fewer")
    return [table.of([*targets[i : i + room], *covered]) for i in range(0, len(targets), room)]


def forecast(sampler: Sampler, table: Table, horizon: int, samples: int, seed: int,
             told: Callable[[int, int], None] = lambda done, total: None) -> Floats:  # fmt: skip
    """Samples (S, horizon, V) of the rows after a table's last; sample k is a function of seed + k.

    Covariates must be known over the horizon: `table` then has `horizon` more rows, in which only they count.
    V: the columns that are no covariates. told: called with rows done and in all.
    """
    rows = len(table) - horizon if table.covered.any() else len(table)
    if rows < 3:
        raise UserError(f"{table.name}: {max(rows, 0)} rows are known; a forecast needs at least 3")
    seeds = [(seed + k) % LARGEST_SEED for k in range(samples)]
    parts = []
    for part in groups(table):
        goal = ~part.covered
        values = np.full((rows + horizon, len(part.columns)), np.nan)
        values[: min(len(part), rows + horizon)] = part.values[: rows + horizon]
        values[rows:, goal] = np.nan
        whole = replace(part, values=values)
        step = ahead_of(replace(part, ahead=max(part.ahead, min(horizon, AHEAD))) if part.frequency == "other" else part)
        made = np.repeat(values[None], samples, 0)
        for number, first in enumerate(range(0, horizon, step)):
            count = min(step, horizon - first)
            origin = rows + first
            if not number:
                y = drawn(sampler, [window(whole, origin, count)], samples, seeds)
            else:
                each = [window(replace(whole, values=made[k]), origin, count) for k in range(samples)]
                y = drawn(sampler, each, 1, seeds, number)
            there = y[:, : len(part.columns), PAST : PAST + count].transpose(0, 2, 1)
            made[:, origin : origin + count, goal] = there[:, :, goal]
            told(first + count, horizon)
        parts.append(made[:, rows:, goal])
    return np.concatenate(parts, 2)


def fill(sampler: Sampler, table: Table, samples: int, seed: int) -> Floats:
    """Samples (S, T, V) of a table whose missing values are filled; what is there stays as it is, to the bit."""
    seeds = [(seed + k) % LARGEST_SEED for k in range(samples)]
    places, parts = {c: i for i, c in enumerate(table.columns)}, np.repeat(table.values[None], samples, 0)
    for part in groups(table):
        columns = [places[c] for c in part.columns]
        made = np.repeat(part.values[None], samples, 0)
        missing = ~np.isfinite(part.values) & ~part.covered
        row, number, last = 0, 0, -(10**9)
        while (left := np.flatnonzero(missing[row:].any(1))).size:
            origin = row + int(left[0])
            count = min(AHEAD, len(part) - origin)
            if origin - last > APART:
                y = drawn(sampler, [window(part, origin, count, fill=True)], samples, seeds, number)
            else:
                each = [window(replace(part, values=made[k]), origin, count, fill=True) for k in range(samples)]
                y = drawn(sampler, each, 1, seeds, number)
            here = missing[origin : origin + count]
            there = y[:, : len(columns), PAST : PAST + count].transpose(0, 2, 1)
            made[:, origin : origin + count] = np.where(here, there, made[:, origin : origin + count])
            last = origin + int(np.flatnonzero(here.any(1))[-1])
            row, number = origin + count, number + 1
        parts[:, :, columns] = made
    return parts
