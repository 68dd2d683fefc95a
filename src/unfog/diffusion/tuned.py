"""What the sampler and the grid "auto" know: for each number of evaluations, levels of σ/α and weights of past results.

tuned.json is made by tools/tune_auto.py on two populations of random mixtures of standard deviation 1; no model and no data
set entered the learning. "small": up to 256 dimensions, all alike. "large": thousands, few of which carry most of the
variance, as in pictures, and half of them guided: what an item will be is settled at higher noise levels there. "large" has
no entry for 15, a choice made by looking at one model: learned for itself, it led emoji-64 farther off than its neighbours do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Tuned(NamedTuple):
    """levels: σ/α after the start, falling (n − 1). weights: of D_{i−1}, D_{i−2}, … in row i; D_i has the rest to 1."""

    levels: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]


_FILE = json.loads(Path(__file__).with_name("tuned.json").read_text(encoding="utf-8"))
TOP: float = _FILE["start"]  # σ/α at which the population's runs began; other starts replace it
TUNED = {
    kind: {int(n): Tuned(tuple(entry["levels"]), tuple(map(tuple, entry["weights"]))) for n, entry in _FILE[kind].items()}
    for kind in ("small", "large")
}
LARGE = 1024  # numbers in an item from which the second table holds
