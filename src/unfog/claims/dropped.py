"""Conditions dropped while training: one network with and without its condition, which guidance needs."""

from __future__ import annotations

import numpy as np
import torch

from unfog.claims import emoji, tiny
from unfog.claims.claim import Found, Line, Plot, Say, Settings, Statement, Test
from unfog.claims.guided import Classes
from unfog.claims.mixtures import MIXTURES, Mixture, end, floor, over_runs, sliced
from unfog.diffusion.denoisers import Denoiser
from unfog.diffusion.guidance import guide

DROPS = (0.0, 0.1, 0.3)
USUAL = 0.1
SCALE = 2.0
NONE = 2  # the class that stands for no condition

STATEMENT = Statement(
    title="Conditions dropped now and then make guidance possible",
    says="Dropping the condition in about a tenth of the training cases teaches one network both the conditional and the "
    "unconditional score, which guidance needs, at little cost to conditional samples.",
    source="Ho and Salimans 2022, arXiv:2207.12598, §3.2 and table 1",
    how=f"A small network on two classes with known densities, trained with drop rates {', '.join(f'{d:g}' for d in DROPS)}, "
    "several seeds: sliced Wasserstein distance of its conditional samples, its unconditional ones, and those guided at scale "
    f"{SCALE:g}, to the exact ones of each kind. Pictures: {emoji.ON}, trained with 10 % dropped: its error on held-out "
    "pictures with their caption and without.",
    tests=(
        Test(key="none", says="unconditional distance, drop 0 less drop 0.1, lower end", op=">", bound=0.0),
        Test(key="guided", says="guided samples' distance, drop 0 less drop 0.1, lower end", op=">", bound=0.0),
        Test(key="cost", says="conditional distance, drop 0.1 less drop 0, over the noise floor, upper end", op="<=", bound=1.0),
        Test(key="pictures", says="pictures: error with the caption less that without, upper end", op="<", bound=0.0),
    ),
)


def distances(denoiser: Denoiser, mixture: Mixture, n: int, seed: int) -> tuple[float, float, float]:
    """Of conditional, unconditional and guided samples to the exact ones."""
    label = (torch.arange(n) % 2).long()
    exact = torch.cat([mixture.draw(n // 2, seed + k, k) for k in (0, 1)])
    none = torch.full((n,), NONE)
    uncond = {"class": torch.tensor([NONE])}

    def made(asked: Denoiser, cls: torch.Tensor) -> torch.Tensor:
        return tiny.draw(asked, (2,), n, seed, {"class": cls}).double()

    def by_class(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[label == 0], x[label == 1]])

    def both(x: torch.Tensor, y: torch.Tensor) -> float:
        half = n // 2
        return float(np.mean([sliced(x[:half], y[:half]), sliced(x[half:], y[half:])]))

    guided, truth = (guide("cfg", d, scale=SCALE, uncond=uncond) for d in (denoiser, Classes(mixture)))
    return (
        both(by_class(made(denoiser, label)), exact),
        sliced(made(denoiser, none), mixture.draw(n, seed)),
        both(by_class(made(guided, label)), by_class(made(truth, label))),
    )


def measure(settings: Settings, say: Say) -> Found:
    """Networks of every rate and seed, then the shipped model."""
    seeds, steps, n = (2, 300, 500) if settings.quick else (4, 2_000, 2_000)
    drops = DROPS[:2] if settings.quick else DROPS
    mixture = MIXTURES["clouds"]()
    data = mixture.draw(20_000, settings.seed, 0), mixture.draw(20_000, settings.seed + 1, 1)
    x0, label = torch.cat(data).float(), torch.arange(2).repeat_interleave(20_000)
    table: dict[float, list[tuple[float, float, float]]] = {}
    for drop in drops:
        table[drop] = []
        for k in range(seeds):
            say(f"drop {drop:g}, seed {k}")
            denoiser = tiny.trained(lambda: tiny.PointNetwork(2, 3), x0, steps, settings.seed + 10 * k, 256, label, drop, NONE)
            table[drop].append(distances(denoiser, mixture, n, settings.seed + 1000 * k))
    of = f"a network, {n:,} points"
    floors = floor(mixture, n // 2, settings.seed, 10, 0)
    low = float(np.mean(floors))
    kinds = ("conditional", "unconditional", f"guided at {SCALE:g}")
    rows = {
        (d, i): over_runs(f"drop {d:g}: {kind} distance", [r[i] for r in table[d]], of)
        for i, kind in enumerate(kinds)
        for d in drops
    }

    def gap(i: int, high: float, unit: float, what: str) -> tuple[float, float, object]:
        other = USUAL if high == 0.0 else 0.0
        figure = over_runs(what, [(a[i] - b[i]) / unit for a, b in zip(table[high], table[other], strict=True)], of)
        return end(figure.low), end(figure.high), figure

    none = gap(1, 0.0, 1.0, f"unconditional distance, drop 0 less drop {USUAL:g}")
    aimed = gap(2, 0.0, 1.0, f"guided distance, drop 0 less drop {USUAL:g}")
    cost = gap(0, USUAL, low, f"conditional distance, drop {USUAL:g} less drop 0, over the floor")
    say("pictures")
    chosen = emoji.rows("heldout_pair", 8 if settings.quick else 64, settings.seed)
    x0, model = emoji.encoded(chosen), emoji.model()
    with_caption = tiny.errors(model.denoiser, x0, settings.seed, emoji.conditions(chosen))
    without = tiny.errors(model.denoiser, x0, settings.seed, emoji.empty(len(x0)))
    less = emoji.mean_of("pictures: error with the caption less that without", with_caption - without)
    figures = [
        over_runs("noise floor of one class", floors, f"two exact clouds of {n // 2:,}"),
        *rows.values(), none[2], aimed[2], cost[2],
        emoji.mean_of("pictures: error with the caption", with_caption), emoji.mean_of("pictures: error without", without), less,
    ]  # fmt: skip
    lines = [Line(name=kind, x=list(drops), y=[end(rows[d, i].value) for d in drops], low=[end(rows[d, i].low) for d in drops],
                  high=[end(rows[d, i].high) for d in drops]) for i, kind in enumerate(kinds)]  # fmt: skip
    return Found(
        tuple(figures),  # type: ignore[arg-type]
        {"none": none[0], "guided": aimed[0], "cost": cost[1], "pictures": end(less.high)},
        (Plot(name="distance", title="Distance to the exact samples of each kind", lines=lines,
              x_name="share of conditions dropped", y_name="sliced Wasserstein"),),
    )  # fmt: skip
