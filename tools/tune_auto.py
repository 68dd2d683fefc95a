"""Learn the table behind the sampler and the grid "auto": python tools/tune_auto.py tiny|small|large [5 8 ...]   rewrites
tuned.json.

A population of random Gaussian mixtures (2 to 256 dimensions, flat to steep spectra, wide and narrow, some next to points, some
large and guided, as pictures are) has exact denoisers. For each number of evaluations, levels of σ/α and consistent weights of
the last four results are learned by Adam, through the whole run, so that it ends where a fine trajectory from the same noise
does:

    min over θ of  Σ_T ¼·ln(1 + (e_T/0.9·bar_T)⁴) + 0.15·ln(e_T/bar_T)      e_T the mean error on target T

which asks to be below the bar everywhere rather than far below it somewhere. bar_T is the least error on T (but no less than
0.006·(5/n)²) of 32 settings that other tools offer (multistep solvers on Karras, exponential, uniform and flow grids), run by
our own plans, which equal theirs (benchmarks/parity.py). Starts: order-3 exponential Adams on several grids, and what the table
holds. None of the targets of benchmarks/samplers.py is in the populations, and no model. A second population of each kind,
never fitted to, is reported. All targets of one dimension go as one batch, in y = x/α from σ/α = 157 on (the DDPM table's end;
a start from pure noise differs by less than 1 %).
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unfog.diffusion import make_grid, make_plan, sample
from unfog.diffusion.samplers import adams
from unfog.diffusion.schedules import EDM, Linear, Table
from unfog.diffusion.tuned import TUNED

TOP = 157.4
MEMORY = 4
DOUBLE = torch.float64
LEARN = {
    "tiny": ((2, 8, 64, 16, 1.0), (3, 10, 128, 24, 1.0), (6, 12, 48, 16, 1.0), (12, 12, 24, 16, 1.0), (24, 16, 16, 12, 1.0),
             (32, 20, 20, 20, 1.0)),
    "small": ((16, 12, 10, 4, 1.0), (48, 12, 8, 10, 1.0), (64, 12, 8, 12, 1.0), (128, 8, 6, 12, 1.0), (256, 6, 6, 12, 1.0)),
    "large": ((32, 24, 8, 8, 4.0), (64, 32, 8, 8, 8.0), (128, 24, 6, 8, 8.0), (64, 32, 8, 8, 16.0)),
}  # fmt: skip
TEST = {
    "tiny": ((2, 8, 96, 4, 1.0), (4, 12, 96, 6, 1.0), (10, 10, 48, 4, 1.0), (28, 20, 24, 4, 1.0)),
    "small": ((48, 10, 8, 5, 1.0), (64, 12, 8, 5, 1.0), (128, 10, 6, 5, 1.0), (200, 8, 4, 4, 1.0), (256, 6, 4, 4, 1.0)),
    "large": ((48, 24, 8, 5, 6.0), (96, 32, 8, 5, 10.0)),
}  # fmt: skip
FLOOR = 0.006  # of a peer's error at 5 evaluations, falling as (5/n)²: below, one trajectory in another mode decides
TABLE = Path(__file__).parent.parent / "src" / "unfog" / "diffusion" / "tuned.json"


@dataclass
class Group:
    """Targets of one dimension: means and variances (T, K, d), log weights (T, K), noise (T, S, d), where it ends.

    guidance (T,): w of D + w·(D of the first quarter of the modes − D); 0 asks for all modes, 1 for that quarter, more
    exaggerates it. scale: the data's standard deviation in these d dimensions.
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor
    z: Tensor
    guidance: Tensor
    scale: float
    fine: Tensor

    def denoise(self, y: Tensor, level: Tensor) -> Tensor:
        """E[x0 | y] for y (P, T, S, d) at σ/α = level (P,)."""
        total = self.variances[None] + (level**2).view(-1, 1, 1, 1)
        inverse, mu = 1.0 / total, self.means[None]
        square = torch.einsum("ptsd,ptkd->ptsk", y * y, inverse) - 2.0 * torch.einsum("ptsd,ptkd->ptsk", y, mu * inverse)
        square = square + (mu * mu * inverse).sum(-1)[:, :, None, :]
        score = self.log_weights[None, :, None, :] - 0.5 * square - 0.5 * total.log().sum(-1)[:, :, None, :]
        share, pull = torch.softmax(score, -1), self.variances[None] * inverse
        first = torch.arange(score.shape[-1]) < (score.shape[-1] + 3) // 4
        asked = torch.softmax(score.masked_fill(~first, -math.inf), -1)
        share = share + self.guidance.view(1, -1, 1, 1) * (asked - share)
        return torch.einsum("ptsk,ptkd->ptsd", share, mu * (1.0 - pull)) + y * torch.einsum("ptsk,ptkd->ptsd", share, pull)

    def errors(self, y: Tensor) -> Tensor:
        """(P, T) mean distance to the fine ends, in the data's standard deviation."""
        return ((y - self.fine).norm(dim=-1) / (self.scale * math.sqrt(y.shape[-1]))).mean(-1)


def population(seed: int, spec: Sequence[tuple[int, int, int, int, float]]) -> list[Group]:
    """Random mixtures: (dimension, modes, noises, targets, scale) a group; each of mean 0 and standard deviation `scale`.

    A scale above 1 stands for the d strongest of scale²·d dimensions, as pictures have their variance in few of many.
    """
    rng = np.random.default_rng(seed)
    groups = []
    for d, modes, noises, targets, scale in spec:
        means, variances = np.zeros((targets, modes, d)), np.zeros((targets, modes, d))
        logs = np.zeros((targets, modes))
        rank = np.arange(1, d + 1)
        for t in range(targets):
            slope = rng.uniform(0, 1.2)
            m = rng.standard_normal((modes, d)) * rank**-slope
            if rng.random() < 0.3:  # modes on a shell
                m = m / np.maximum(np.linalg.norm(m, axis=1, keepdims=True), 1e-9) * np.sqrt((rank ** (-2 * slope)).sum())
            if d > 4 and rng.random() < 0.25:  # modes in three dimensions
                m[:, rng.permutation(d)[3:]] *= 0.05
            wide = np.exp(rng.uniform(np.log(0.03), 0.0)) * rank ** (-rng.uniform(0, 1.3))
            if rng.random() < 0.3:  # next to points
                wide = np.exp(rng.uniform(np.log(0.001), np.log(0.05))) * np.ones(d)
            wide = wide * np.exp(rng.uniform(-0.4, 0.4, (modes, 1)))
            weights = rng.dirichlet(np.full(modes, 3.0))
            m = m - (weights[:, None] * m).sum(0)
            unit = (weights[:, None] * (m**2 + wide**2)).sum(0).mean()
            means[t], variances[t], logs[t] = scale * m / np.sqrt(unit), scale**2 * wide**2 / unit, np.log(weights)
        z = rng.standard_normal((targets, noises, d))
        guidance = np.zeros(targets)
        if scale > 1.0:
            guidance = np.where(rng.random(targets) < 0.5, 0.0, rng.uniform(1.0, 4.0, targets))
        arrays = (torch.tensor(v) for v in (means, variances, logs, z, guidance))
        group = Group(*arrays, scale=scale, fine=torch.zeros(0))
        group.fine = fine(group)
        groups.append(group)
    return groups


def fine(group: Group, steps: int = 150) -> Tensor:
    """Runge–Kutta 4 in ln(σ/α) down to 0.001."""
    places = torch.linspace(math.log(TOP), math.log(1e-3), steps + 1, dtype=DOUBLE)
    y = group.z[None] * TOP

    def slope(y: Tensor, u: Tensor) -> Tensor:
        return y - group.denoise(y, u.exp().view(1))

    for a, b in zip(places[:-1], places[1:], strict=True):
        h = b - a
        k1 = slope(y, a)
        k2 = slope(y + h / 2 * k1, a + h / 2)
        k3 = slope(y + h / 2 * k2, a + h / 2)
        k4 = slope(y + h * k3, b)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return group.denoise(y, places[-1].exp().view(1))[0]


def unpack(theta: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """θ (P, n): logarithms of the gaps, then the weights of older results → levels (P, steps), weights (P, steps, 4)."""
    count = len(theta)
    logs = math.log(TOP) - torch.cumsum(theta[:, : steps - 1].exp(), 1)
    levels = torch.cat([torch.full((count, 1), TOP, dtype=DOUBLE), logs.exp()], 1)
    weights, place = torch.zeros(count, steps, MEMORY, dtype=DOUBLE), steps - 1
    for i in range(steps):
        older = min(i + 1, MEMORY) - 1
        weights[:, i, 1 : 1 + older] = theta[:, place : place + older]
        place += older
        weights[:, i, 0] = 1.0 - weights[:, i, 1:].sum(1)
    return levels, weights


def simulate(group: Group, theta: Tensor, steps: int, chunk: int = 24) -> Tensor:
    """Where θ (P, n) leads the group's noises: (P, T, S, d)."""
    levels, weights = unpack(theta, steps)
    ends = []
    for first in range(0, len(theta), chunk):
        s, w = levels[first : first + chunk], weights[first : first + chunk]
        y = (group.z[None] * TOP).expand(len(s), -1, -1, -1)
        kept: list[Tensor] = []
        for i in range(steps):
            kept = [group.denoise(y, s[:, i]), *kept[: MEMORY - 1]]
            mean = sum((w[:, i, k].view(-1, 1, 1, 1) * h for k, h in enumerate(kept)), torch.zeros(()))
            ratio = (s[:, i + 1] / s[:, i]).view(-1, 1, 1, 1) if i + 1 < steps else 0.0
            y = ratio * y + (1.0 - ratio) * mean
        ends.append(y)
    return torch.cat(ends)


def exponential_adams(spread: np.ndarray) -> np.ndarray:
    """θ of the order-3 sampler on levels of σ/α."""
    schedule, steps = EDM(sigma_max=TOP), len(spread)
    times = np.append(schedule.time(-2.0 * np.log(spread)), 0.0)
    times[0] = 1.0
    made = adams.plan(schedule, times, 3)
    theta = list(np.log(-np.diff(np.log(spread))))
    for i in range(steps):
        row = np.zeros(MEMORY)
        row[: made.b.shape[1]] = made.b[i] / made.b[i].sum()
        theta += list(row[1 : min(i + 1, MEMORY)])
    return np.array(theta)


def peers(steps: int) -> list[tuple[str, str, object]]:
    """(sampler, grid, plan) of what other tools offer."""
    schedule, table = EDM(sigma_max=TOP), Table.linear()
    grids = {"karras": np.linspace(TOP ** (1 / 7), 0.01 ** (1 / 7), steps) ** 7, "exponential": np.geomspace(TOP, 0.01, steps),
             "linspace": np.exp(-0.5 * table.logsnr(make_grid("linspace", table, steps)[:-1]))}  # fmt: skip
    for shift in (1.0, 2.0, 3.0):
        inner = make_grid("flow", Linear(), steps, shift=shift)[1:-1]
        grids[f"flow {shift:g}"] = np.append(TOP, np.exp(-0.5 * Linear().logsnr(inner)))
    rows: list[tuple[str, str, object]] = []
    for name, levels in grids.items():
        times = np.append(schedule.time(-2.0 * np.log(levels)), 0.0)
        times[0] = 1.0
        samplers = [("dpmpp_2m", {}), ("unipc", {"order": 2}), ("unipc", {"order": 3}), ("dpmpp_3m", {"kind": "published"})]
        if not name.startswith("flow"):
            samplers += [("deis", {"order": 2}), ("deis", {"order": 3})]
        if name in ("karras", "exponential"):
            samplers.append(("lms", {"order": 4}))
        rows += [(sampler, name, make_plan(sampler, schedule, times, **options)) for sampler, options in samplers]
    return rows


def bars(groups: list[Group], steps: int) -> Tensor:
    """The least error of the peers on each target, (targets,)."""
    schedule, plans, out = EDM(sigma_max=TOP), peers(steps), []
    for group in groups:

        def ask(y: Tensor, t: float, group: Group = group) -> Tensor:
            return group.denoise(y[None], torch.tensor([schedule.sigma(t)], dtype=DOUBLE))[0]

        ends = [group.errors(sample(made, ask, group.z * TOP)[None])[0] for *_, made in plans]  # type: ignore[arg-type]
        out.append(torch.stack(ends).nan_to_num(9.0).min(0).values)
    return torch.cat(out).clamp_min(FLOOR * (5.0 / steps) ** 2)


def ratios(groups: list[Group], bar: Tensor, theta: np.ndarray, steps: int) -> Tensor:
    given = torch.tensor(theta)[None]
    return torch.cat([group.errors(simulate(group, given, steps))[0] for group in groups]) / bar


def objective(groups: list[Group], bar: Tensor, theta: Tensor, steps: int) -> Tensor:
    """(P,) for θ (P, n)."""
    logs = (torch.cat([group.errors(simulate(group, theta, steps)) for group in groups], 1) / bar).log()
    return (torch.nn.functional.softplus(4.0 * (logs - math.log(0.9))) / 4.0 + 0.15 * logs).mean(1)


def improve(groups: list[Group], bar: Tensor, starts: list[np.ndarray], steps: int, rounds: int) -> np.ndarray:
    """Adam from the best two starts, from a third of the rounds on with the better one only."""
    theta = torch.tensor(np.array(starts))
    for share, count in ((0.0, 2), (1 / 3, 1)):
        with torch.no_grad():
            theta = theta.detach()[objective(groups, bar, theta, steps).argsort()[:count]].clone()
        optimizer = torch.optim.Adam([theta.requires_grad_()])
        for i in range(round(rounds * share), rounds if count == 1 else rounds // 3):
            optimizer.param_groups[0]["lr"] = 0.01 * (1.02 + math.cos(math.pi * i / rounds))
            optimizer.zero_grad()
            objective(groups, bar, theta, steps).sum().backward()
            torch.nn.utils.clip_grad_norm_([theta], 3.0)
            optimizer.step()
    return theta.detach().numpy()[0]


def known(kind: str, steps: int) -> list[np.ndarray]:
    """θ of the table's entry, if there is one."""
    entry = TUNED[kind].get(steps)
    if entry is None:
        return []
    gaps = np.log(-np.diff(np.log([TOP, *entry.levels])))
    return [np.array([*gaps, *(w for i, row in enumerate(entry.weights) for w in row[: min(i + 1, MEMORY) - 1])])]


def write(kind: str, steps: int, theta: np.ndarray) -> None:
    """Put θ into tuned.json; a row of weights a line."""
    held = json.loads(TABLE.read_text())
    levels, weights = unpack(torch.tensor(theta)[None], steps)
    rows = [[round(w, 5) for w in weights[0, i, 1 : min(i + 1, MEMORY)].tolist()] for i in range(steps)]
    entry = {"levels": [float(f"{level:.5g}") for level in levels[0, 1:].tolist()], "weights": rows}
    held.setdefault(kind, {})[str(steps)] = entry
    held[kind] = dict(sorted(held[kind].items(), key=lambda pair: int(pair[0])))
    text = json.dumps(held, indent=1)
    tidy = re.sub(r"\[[^\[\]]*\]", lambda row: re.sub(r"\s+", " ", row[0]).replace("[ ", "[").replace(" ]", "]"), text)
    TABLE.write_text(tidy + "\n")


def main() -> None:
    torch.set_num_threads(1)
    kind, schedule = sys.argv[1], EDM(sigma_max=TOP)
    learn, test = population(1, LEARN[kind]), population(2, TEST[kind])
    for steps in [int(word) for word in sys.argv[2:]] or [5, 8, 10, 12, 15, 20, 30]:
        bar, other = bars(learn, steps), bars(test, steps)
        ends = (0.02, 0.05, 0.1, 0.2, 0.3)
        spreads = [np.geomspace(TOP, end, steps) for end in ends]
        spreads += [np.linspace(TOP ** (1 / 7), end ** (1 / 7), steps) ** 7 for end in ends]
        spreads.append(np.exp(-0.5 * schedule.logsnr(make_grid("auto", schedule, steps)[:-1])))
        theta = improve(learn, bar, [*map(exponential_adams, spreads), *known(kind, steps)], steps, rounds=480)
        for name, groups, level in (("learned on", learn, bar), ("held out", test, other)):
            found = ratios(groups, level, theta, steps)
            print(
                f"{kind} {steps:>3} {name:>10}: error/best peer, geometric mean {found.log().mean().exp():.3f}, at most 1 on "
                f"{int((found <= 1).sum())} of {len(found)}, worst {found.max():.2f}", flush=True,
            )  # fmt: skip
        write(kind, steps, theta)


if __name__ == "__main__":
    main()
