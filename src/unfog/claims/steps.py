"""Steps against quality for every sampler of the house: distance to the exact end on mixtures, to a fine run on pictures."""

from __future__ import annotations

import numpy as np

from unfog.claims import emoji
from unfog.claims.claim import Figure, Found, Line, Plot, Say, Settings, Statement, Test
from unfog.claims.mixtures import MIXTURES, Draws, Mixture, floor, over_runs, sliced, starts
from unfog.diffusion.grids import make_grid
from unfog.diffusion.plan import Plan, sample
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import SAMPLERS, make_plan
from unfog.diffusion.schedules import Cosine

BUDGETS = (6, 12, 24, 48, 96)  # evaluations; a sampler of k a step makes a k-th of the steps
QUICK_BUDGETS = (6, 12, 96)
PICTURE_BUDGETS = (5, 10, 20, 50)
PICTURE_SAMPLERS = ("ddim", "heun", "dpmpp_2m", "unipc", "deis", "auto")
FINE = 200
NEAR = 1.5  # times the noise floor

STATEMENT = Statement(
    title="More steps, better samples, with diminishing returns",
    says="Every sampler comes nearer to the data with more evaluations, by less and less; solvers of higher order need fewer.",
    source="Song et al. 2021, arXiv:2011.13456; Karras et al. 2022, arXiv:2206.00364; Lu et al. 2022, arXiv:2211.01095",
    how=f"All {len(SAMPLERS)} samplers on two exact mixtures (eight spots in 2 dimensions; a helix in 16), cosine schedule, "
    "sliced Wasserstein distance to exact draws, beside that of two exact clouds (the noise floor). Samplers without a declared "
    f"order are shown, not tested. On pictures: RMS to {FINE} steps from the same noise, deterministic samplers, {emoji.ON}.",
    tests=(
        Test(key="improves", says="share of samplers nearer at 96 evaluations than at 6, on both mixtures", op=">=", bound=1.0),
        Test(
            key="floor", says=f"share of samplers within {NEAR:g} times the noise floor at 96, both mixtures", op=">=", bound=0.9
        ),
        Test(key="less", says="share of samplers that gain more from 6 to 12 than from 48 to 96", op=">=", bound=0.9),
        Test(key="order", says="median distance at 12, deterministic: order 2 and 3 over order 1", op="<=", bound=1.0),
        Test(key="pictures", says="pictures: share of samplers whose RMS falls at every larger budget", op=">=", bound=1.0),
    ),
)


def planned(name: str, budget: int, dimension: int) -> Plan:
    """The plan of a sampler that makes at most `budget` evaluations, on the house's own grid for it."""
    steps = max(1, budget // SAMPLERS[name].nfe_per_step)
    grid = "auto" if name == "auto" else "logsnr"
    options = {"dimension": dimension} if name == "auto" else {}
    while True:
        plan = make_plan(name, Cosine(), make_grid(grid, Cosine(), steps, **options))
        if plan.nfe <= budget or steps == 1:
            return plan
        steps -= 1  # one that goes back now and then makes more than its usual number


def distance(mixture: Mixture, plan: Plan, n: int, seed: int) -> float:
    """Of n points that a plan makes with the exact denoiser from exact draws."""
    process, size = Gaussian(Cosine()), mixture.means.shape[1]
    x = starts(process, n, size, seed, plan.start)
    return sliced(sample(plan, mixture.denoiser(process), x, Draws(n, seed)), mixture.draw(n, seed))


def on_mixture(name: str, settings: Settings, say: Say) -> tuple[dict[str, list[list[float]]], list[float]]:
    """Of each sampler: a row of runs for each budget; and the noise floor's runs."""
    runs, n = (2, 500) if settings.quick else (3, 4_000 if name == "ring" else 1_000)
    budgets = QUICK_BUDGETS if settings.quick else BUDGETS
    mixture, table = MIXTURES[name](), {}
    for sampler in SAMPLERS:
        say(f"{name}, {sampler}")
        plans = [planned(sampler, budget, mixture.means.shape[1]) for budget in budgets]
        table[sampler] = [[distance(mixture, plan, n, settings.seed + 100 * k) for k in range(runs)] for plan in plans]
    return table, floor(mixture, n, settings.seed, 10)


def on_pictures(settings: Settings, say: Say) -> dict[str, list[np.ndarray]]:
    """Of each sampler: RMS to the fine run of each picture (N,), for each budget."""
    n = 2 if settings.quick else 8
    budgets, samplers = ((5, 20), ("ddim", "auto")) if settings.quick else (PICTURE_BUDGETS, PICTURE_SAMPLERS)
    chosen = emoji.rows("heldout_pair", n, settings.seed)
    say(f"pictures, {FINE} steps")
    fine = emoji.made(chosen, emoji.plan("dpmpp_2m", 50 if settings.quick else FINE), seed=settings.seed)
    table: dict[str, list[np.ndarray]] = {}
    for sampler in samplers:
        say(f"pictures, {sampler}")
        table[sampler] = []
        for budget in budgets:
            plan = emoji.plan(sampler, max(1, budget // SAMPLERS[sampler].nfe_per_step))
            gap = (emoji.made(chosen, plan, seed=settings.seed) - fine).double().flatten(1)
            table[sampler].append((gap.square().mean(1).sqrt()).numpy())
    return table


def measure(settings: Settings, say: Say) -> Found:
    """Both mixtures, then pictures."""
    budgets = QUICK_BUDGETS if settings.quick else BUDGETS
    tested = [name for name, entry in SAMPLERS.items() if entry.order > 0]
    firm = [name for name in tested if not SAMPLERS[name].stochastic]
    better, near, less = (dict.fromkeys(tested, True) for _ in range(3))
    figures: list[Figure] = []
    plots, ratios = [], []
    for mixture in ("ring", "curve"):
        table, floors = on_mixture(mixture, settings, say)
        low = float(np.mean(floors))
        means = {name: [float(np.mean(row)) for row in rows] for name, rows in table.items()}
        for name in tested:
            d = means[name]
            better[name] &= d[-1] < d[0]
            near[name] &= d[-1] <= NEAR * low
            less[name] &= d[0] - d[1] > d[-2] - d[-1]
        first, higher = ([means[n][budgets.index(12)] for n in firm if chosen(SAMPLERS[n].order)]
                         for chosen in (lambda order: order == 1, lambda order: order > 1))  # fmt: skip
        ratios.append(float(np.median(higher) / np.median(first)))
        points = "4,000" if mixture == "ring" and not settings.quick else "500" if settings.quick else "1,000"
        figures.append(over_runs(f"{mixture}: noise floor", floors, f"two exact clouds of {points}"))
        for name, rows in table.items():
            figures.append(over_runs(f"{mixture}: {name}, {budgets[-1]} evaluations", rows[-1], f"{points} points"))
        shown = ("ddim", "ddpm", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "auto")
        plots.append(Plot(
            name=mixture, title=f"{mixture}: distance to the data", x_name="evaluations", y_name="sliced Wasserstein", log_x=True,
            log_y=True, lines=[Line(name=n, x=[float(b) for b in budgets], y=means[n]) for n in shown]
            + [Line(name="noise floor", x=[float(budgets[0]), float(budgets[-1])], y=[low, low], dashed=True)]))  # fmt: skip
    table_of = on_pictures(settings, say)
    asked = (5, 20) if settings.quick else PICTURE_BUDGETS
    falls = []
    for name, errors in table_of.items():
        rms = [float(e.mean()) for e in errors]
        falls.append(all(b < a for a, b in zip(rms, rms[1:], strict=False)))
        for budget, error in zip(asked, errors, strict=True):
            if budget in (10, 20):
                figures.append(emoji.mean_of(f"pictures: {name}, {budget} evaluations, RMS to the fine run", error))
    lines = [Line(name=n, x=[float(b) for b in asked], y=[float(e.mean()) for e in rows]) for n, rows in table_of.items()]
    title = "emoji-64: RMS to a fine run from the same noise"
    plots.append(Plot(name="pictures", title=title, x_name="evaluations", y_name="RMS", log_x=True, log_y=True, lines=lines))

    def missing(kept: dict[str, bool]) -> str:
        return ", ".join(name for name, ok in kept.items() if not ok) or "none"

    return Found(
        tuple(figures),
        {
            "improves": float(np.mean(list(better.values()))),
            "floor": float(np.mean(list(near.values()))),
            "less": float(np.mean(list(less.values()))),
            "order": max(ratios),
            "pictures": float(np.mean(falls)),
        },
        tuple(plots),
        (
            f"Samplers that did not improve: {missing(better)}. Not within {NEAR:g} times the floor: {missing(near)}. That gain "
            f"no less at the end than at the start: {missing(less)}.",
            "lcm is made for distilled networks; on an exact denoiser it has no law to converge to.",
        ),
    )
