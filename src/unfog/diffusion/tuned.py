"""What the sampler and the grid "auto" know: for each number of evaluations, levels of σ/α and weights of past results.

tuned.json is made by tools/tune_auto.py on a population of random mixtures of standard deviation 1; no model and no data set
entered.
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
    int(steps): Tuned(tuple(entry["levels"]), tuple(map(tuple, entry["weights"]))) for steps, entry in _FILE["tables"].items()
}
