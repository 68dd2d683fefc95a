"""Forecasts of series-m beside seasonal naive, ETS, Theta and a linear quantile regression: same series, splits and scores.

    python benchmarks/forecast.py --method naive ets theta regression model      (each is kept in the results; minutes each)
    python benchmarks/forecast.py --plot

M3 and tourism: the competitions' own ends. Weather: the last two months, a forecast of 24 hours each day, seven variables at
three airports. Demand: the last two weeks, a forecast of a day every six hours. Scores are means over series of CRPS (200
samples, or as many quantiles) and of the median's absolute error, both over the mean absolute seasonal step of the past (MASE's
unit), and the share of values inside the middle 80 % and 95 %. ETS and Theta of statsforecast see the last four weeks of hourly
and half-hourly series; of demand, which has two seasons, ETS is fitted to what MSTL leaves and Theta has the week's.
Needs: pip install statsforecast scipy matplotlib.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfog.modalities.series.data import SeriesOptions, open_series
from unfog.modalities.series.scores import LEVELS, crps, inside, seasonal_naive, usual_step
from unfog.modalities.series.table import Table

RESULTS = Path(__file__).parent / "results" / "forecast.json"
DATA = Path(__file__).parent.parent / "src" / "unfog" / "data" / "series-m.zip"
GROUPS = ("m3", "tourism", "weather", "demand")
SAMPLES = 200
LEVEL = [20, 40, 60, 80, 90, 95]
TAUS = np.array([0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.975])
METHODS = ("naive", "ets", "theta", "regression", "model")


@dataclass(frozen=True)
class Case:
    """One forecast to be made: a table up to its origin, what came then (H, V), and the season of naive and of MASE."""

    group: str
    past: Table
    truth: np.ndarray
    season: int


def cases(share: float = 1.0) -> list[Case]:
    items = open_series(DATA, SeriesOptions())
    wholes: dict[str, tuple[Table, int]] = {}
    found = []
    for i in items.split("heldout"):
        table: Table = items.raw[i]
        group = table.name.partition("/")[0]
        if group == "demand":
            if table.name not in wholes or len(table) > len(wholes[table.name][0]):
                wholes[table.name] = (table, table.held)
            continue
        season = min(table.seasons)
        found.append(Case(group, table.upto(len(table) - table.ahead), table.values[-table.ahead :], season))
    for table, held in wholes.values():
        for origin in range(len(table) - held, len(table) - table.ahead + 1, 12):
            found.append(Case("demand", table.upto(origin), table.values[origin : origin + table.ahead], max(table.seasons)))
    if share < 1:
        rng = np.random.default_rng(0)
        found = [c for c in found if rng.random() < (min(1.0, 5 * share) if c.group in ("weather", "demand") else share)]
    return found


def spread_out(levels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """As many equally likely values as there are samples, of quantiles (Q, H): straight lines in the normal's own scale."""
    from scipy.stats import norm

    z, wanted = norm.ppf(levels), norm.ppf((np.arange(SAMPLES) + 0.5) / SAMPLES)
    out = np.empty((SAMPLES, values.shape[1]))
    for h in range(values.shape[1]):
        q = np.maximum.accumulate(values[:, h])
        low, high = (q[1] - q[0]) / (z[1] - z[0]), (q[-1] - q[-2]) / (z[-1] - z[-2])
        middle = np.interp(wanted, z, q)
        middle = np.where(wanted < z[0], q[0] + low * (wanted - z[0]), middle)
        out[:, h] = np.where(wanted > z[-1], q[-1] + high * (wanted - z[-1]), middle)
    return out


def filled(past: np.ndarray) -> np.ndarray:
    at = np.flatnonzero(np.isfinite(past))
    return np.interp(np.arange(len(past)), at, past[at])


def classical(case: Case, column: int, kind: str) -> np.ndarray:
    from statsforecast.models import MSTL, AutoETS, AutoTheta

    y, horizon = filled(case.past.values[:, column]), len(case.truth)
    if case.group in ("weather", "demand"):
        y = y[-28 * min(case.past.seasons) :]
    model: Any
    if kind == "theta":
        model = AutoTheta(season_length=case.season)
    elif case.group == "demand":
        model = MSTL(season_length=list(case.past.seasons), trend_forecaster=AutoETS(model="ZZN"))
    else:
        model = AutoETS(season_length=case.season)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = model.forecast(y=y, h=horizon, level=LEVEL)
    levels, values = [0.5], [made["mean"]]
    for level in LEVEL:
        levels += [0.5 - level / 200, 0.5 + level / 200]
        values += [made[f"lo-{level}"], made[f"hi-{level}"]]
    order = np.argsort(levels)
    return spread_out(np.array(levels)[order], np.array(values)[order])


def quantile_fit(x: np.ndarray, t: np.ndarray, rounds: int = 80) -> np.ndarray:
    """Coefficients (Q, F) of linear quantile regressions at TAUS of t (N,) on x (N, F), by majorising the pinball loss with a
    parabola at each residual. Source: Hunter & Lange 2000, doi:10.1080/10618600.2000.10474866."""
    ridge = 1e-6 * len(x) * np.eye(x.shape[1])
    beta = np.linalg.solve(x.T @ x + ridge, x.T @ t)[None].repeat(len(TAUS), 0)
    pull = np.outer(2 * TAUS - 1, x.sum(0))
    for k in range(rounds):
        weight = 1 / (max(0.1 * 0.9**k, 1e-4) + np.abs(t - beta @ x.T))
        left = np.einsum("qn,nf,ng->qfg", weight, x, x, optimize=True) + ridge
        beta = np.linalg.solve(left, (np.einsum("qn,nf,n->qf", weight, x, t, optimize=True) + pull)[..., None])[..., 0]
    return beta


class Regression:
    """A linear quantile regression on lags for each frequency, step ahead and (of weather) variable, of training parts alone."""

    def __init__(self, found: list[Case]) -> None:
        items = open_series(DATA, SeriesOptions())
        self.train: dict[str, list[np.ndarray]] = defaultdict(list)
        longest: dict[str, Table] = {}  # of the growing beginnings that one long series is trained on by
        for i in items.split("train"):
            table: Table = items.raw[i]
            if table.weight == 1 or len(table) > len(longest.get(table.name, ())):
                longest[table.name if table.weight > 1 else f"{table.name} {i}"] = table
        for table in longest.values():
            for v in range(table.values.shape[1]):
                self.train[self.key(table, v)].append(table.values[:, v])
        self.fitted: dict[tuple[str, int], Any] = {}

    @staticmethod
    def key(table: Table, column: int) -> str:
        group = table.name.partition("/")[0]
        return f"{group}/{table.columns[column]}" if group in ("weather", "demand") else f"{group}/{table.frequency}"

    @staticmethod
    def lags(seasons: tuple[int, ...]) -> int:
        return {1: 5, 4: 8, 12: 13, 24: 24, 48: 24}[min(seasons)]

    def features(self, y: np.ndarray, h: int, seasons: tuple[int, ...]) -> tuple[np.ndarray, float, float] | None:
        season, p = max(seasons), self.lags(seasons)
        if len(y) < p + 1:
            y = np.concatenate([np.full(p + 1 - len(y), y[0]), y])
        unit = usual_step(y, min(seasons))
        if not np.isfinite(unit):
            return None
        own = [(y[len(y) - 1 - k] - y[-1]) / unit for k in range(1, p)]
        for m in sorted(set(seasons)):
            for cycle in (0, 1):
                back = m * (-(-h // m) + cycle) - h
                own.append((y[len(y) - 1 - back] - y[-1]) / unit if back < len(y) else own[-1] if own else 0.0)
        return np.array([*own, 1.0]), float(y[-1]), unit if season else 1.0

    def model(self, key: str, h: int, seasons: tuple[int, ...]) -> np.ndarray:
        """Coefficients (Q, F)."""
        if (key, h) not in self.fitted:
            rng = np.random.default_rng(h)
            xs, ts = [], []
            pool = [filled(y) for y in self.train[key] if len(y) > h + self.lags(seasons) + 1 and np.isfinite(y).sum() > 3]
            for _ in range(1500 if pool else 0):
                y = pool[int(rng.integers(len(pool)))]
                first = min(max(self.lags(seasons) + 1, min(2 * max(seasons), len(y) // 2)), len(y) - h)
                origin = int(rng.integers(first, len(y) - h + 1))
                got = self.features(y[max(0, origin - 3 * 336) : origin], h, seasons)
                if got is not None:
                    xs.append(got[0])
                    ts.append((y[origin + h - 1] - got[1]) / got[2])
            x, t = np.array(xs), np.clip(ts, -50, 50)
            self.fitted[key, h] = quantile_fit(x, t)
        return self.fitted[key, h]

    def __call__(self, case: Case, column: int) -> np.ndarray:
        y = filled(case.past.values[:, column])[-3 * 336 :]
        out = np.empty((len(TAUS), len(case.truth)))
        for h in range(1, len(case.truth) + 1):
            got = self.features(y, h, case.past.seasons)
            if got is None:
                out[:, h - 1] = y[-1]
                continue
            features, last, unit = got
            out[:, h - 1] = last + unit * np.sort(self.model(self.key(case.past, column), h, case.past.seasons) @ features)
        return spread_out(TAUS, out)


def forecasts(method: str, found: list[Case], model: str, steps: int, samples: int) -> Iterator[tuple[Case, np.ndarray]]:
    """Each case with its samples (S, H, V)."""
    if method == "model":
        yield from by_model(found, model, steps, samples)
        return
    regression = Regression(found) if method == "regression" else None
    for case in found:
        columns = []
        for v in range(case.truth.shape[1]):
            past = case.past.values[:, v]
            if not np.isfinite(past).any():
                columns.append(np.zeros((SAMPLES, len(case.truth))))
            elif method == "naive":
                rng = np.random.default_rng(len(past))
                columns.append(seasonal_naive(past, case.season, len(case.truth), SAMPLES, rng))
            elif regression is not None:
                columns.append(regression(case, v))
            else:
                columns.append(classical(case, v, method))
        yield case, np.stack(columns, 2)


def by_model(found: list[Case], model: str, steps: int, samples: int) -> Iterator[tuple[Case, np.ndarray]]:
    from unfog.modalities.series.forecast import drawn
    from unfog.modalities.series.window import PAST, window

    sampler = load(model, steps)
    for first in range(0, len(found), 8):
        part = found[first : first + 8]
        windows = []
        for case in part:
            whole = replace(case.past, values=np.concatenate([case.past.values, np.full_like(case.truth, np.nan)]))
            windows.append(window(whole, len(case.past), len(case.truth)))
        seeds = [1000 * (first + i) + k for i in range(len(part)) for k in range(samples)]
        y = drawn(sampler, windows, samples, seeds)
        for i, case in enumerate(part):
            own = y[i * samples : (i + 1) * samples, : case.truth.shape[1], PAST : PAST + len(case.truth)]
            yield case, own.transpose(0, 2, 1)


def load(model: str, steps: int) -> Any:
    import unfog
    from unfog.modalities.series.forecast import Sampler

    loaded = unfog.load(model)
    return Sampler.of(loaded.denoiser, loaded.space, steps=steps)


def score(made: Iterator[tuple[Case, np.ndarray]]) -> dict[str, Any]:
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case, samples in made:
        for v in range(case.truth.shape[1]):
            truth, own = case.truth[:, v], samples[:, :, v]
            unit, seen = usual_step(case.past.values[:, v], case.season), np.isfinite(truth)
            if not seen.any() or not np.isfinite(unit):
                continue
            truth, own = truth[seen], own[:, seen]
            names = [case.group, f"{case.group}/{case.past.columns[v] if case.group == 'weather' else case.past.frequency}"]
            row = {"crps": crps(own, truth).mean() / unit, "mase": np.abs(np.median(own, 0) - truth).mean() / unit}
            row |= {f"inside_{int(100 * level)}": inside(own, truth, level).mean() for level in LEVELS}
            for name in names:
                for key, value in row.items():
                    values[name][key].append(float(value))
                values[name]["values"].append(float(len(truth)))
    found = {}
    for name, rows in sorted(values.items()):
        weights = rows.pop("values")
        means = {k: np.average(v, weights=weights if k.startswith("inside") else None) for k, v in rows.items()}
        found[name] = {k: float(f"{v:.4f}") for k, v in means.items()} | {"forecasts": len(weights), "values": int(sum(weights))}
    return found


def plot(results: dict[str, Any], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    methods = [m for m in METHODS if m in results]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    titles = ("CRPS / seasonal step (lower is better)", "inside the 80 % interval", "inside the 95 % interval")
    for axis, key, title in zip(axes, ("crps", "inside_80", "inside_95"), titles, strict=True):
        for i, method in enumerate(methods):
            heights = [results[method]["scores"].get(g, {}).get(key, np.nan) for g in GROUPS]
            axis.bar(np.arange(len(GROUPS)) + (i - len(methods) / 2 + 0.5) * 0.16, heights, 0.15, label=method)
        if key != "crps":
            axis.axhline(int(key[-2:]) / 100, color="black", linewidth=0.8)
            axis.set_ylim(0.5, 1)
        axis.set_xticks(range(len(GROUPS)), GROUPS)
        axis.set_title(title, fontsize=10)
    axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="*", default=[], choices=METHODS)
    parser.add_argument("--group", nargs="*", default=GROUPS, choices=GROUPS, help="others keep what the results have of them")
    parser.add_argument("--model", default="series-m")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the competition series (five times it of weather and demand)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", action="store_true")
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for method in arguments.method:
        began = time.process_time()
        found = [case for case in cases(arguments.share) if case.group in arguments.group]
        scores = score(forecasts(method, found, arguments.model, arguments.steps, arguments.samples))
        kept = results.get(method, {}).get("scores", {}) if set(arguments.group) < set(GROUPS) else {}
        results[method] = {
            "scores": {**kept, **scores},
            "cpu_seconds": round(time.process_time() - began),
            "share": arguments.share,
        }
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(method, json.dumps({g: scores[g] for g in GROUPS if g in scores}), flush=True)
    if arguments.plot:
        plot(results, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
