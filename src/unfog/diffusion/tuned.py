"""What the sampler and the grid "auto" know: for each number of evaluations, levels of σ/α and weights of past results.

tuned.json is made by tools/tune_auto.py on populations of random mixtures of standard deviation 1; no model and no data
set entered the learning. What an item will be is settled at higher noise levels the more numbers it has, so there are
three. "tiny": up to 32 dimensions (points, poses, rows of a table). "small": up to 256, all alike. "large": thousands, few
of which carry most of the variance, as in pictures, and half of them guided. "large" has no entry for 15, a choice made by
looking at one model: learned for itself, it led emoji-64 farther off than its neighbours do. Of two runs of the tool the entry
kept is the one nearer on two populations that neither learned from (tiny 8, small 15 and 20 come from one half as large).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Tuned(NamedTuple):
    """levels: σ/α after the start, falling (n − 1). weights: of D_{i−1}, D_{i−2}, … in row i; D_i has the rest to 1."""

    levels: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]


_FILE = json.loads(Path(__file__).with_name("tuned.json").read_text(encoding="utf-8"))
TOP: float = _FILE["start"]  # σ/α at which the population's runs began; other starts replace it
TUNED = {
    kind: {int(n): Tuned(tuple(entry["levels"]), tuple(map(tuple, entry["weights"]))) for n, entry in _FILE[kind].items()}
    for kind in ("tiny", "small", "large")
}


def table(dimension: int) -> dict[int, Tuned]:
    """The one for items of this many numbers; 0, not known, is taken as a few hundred."""
    return TUNED["large" if dimension >= 1024 else "tiny" if 0 < dimension < 48 else "small"]


def tuned_levels(learned: dict[int, Tuned], steps: int) -> np.ndarray:
    """ln(σ/α) at the places where a run of `steps` evaluations asks, (steps,) falling: the table's, or read off it by rule."""

    def curve(count: int) -> np.ndarray:
        return np.log([TOP, *learned[count].levels])

    known, u = sorted(learned), np.linspace(0.0, 1.0, steps)
    if steps in learned:
        return curve(steps)
    if steps < known[0]:
        return np.interp(u, np.linspace(0.0, 1.0, known[0]), curve(known[0]))
    below = max(count for count in known if count < steps)
    under = np.interp(u, np.linspace(0.0, 1.0, below), curve(below))
    if steps > known[-1]:
        return under + u * 2.0 * math.log(below / steps)
    above = min(count for count in known if count > steps)
    over = np.interp(u, np.linspace(0.0, 1.0, above), curve(above))
    return under + (over - under) * (steps - below) / (above - below)


def neighbours(learned: dict[int, Tuned], steps: int) -> list[tuple[int, float]]:
    """(learned number of steps, share) pairs by which corrections to the weights are read off; none below a table."""
    known = sorted(learned)
    if not known or steps < known[0]:
        return []
    if steps > known[-1]:
        return [(known[-1], (known[-1] / steps) ** 2)]  # as many steps, so little to correct
    below = max(count for count in known if count <= steps)
    above = min(count for count in known if count >= steps)
    part = (steps - below) / max(above - below, 1)
    return [(below, 1.0 - part), (above, part)] if part else [(below, 1.0)]
