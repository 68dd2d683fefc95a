"""What the sampler and the grid "auto" know: for each number of evaluations, levels of σ/α and weights of past results.

Made by tools/tune_auto.py on a population of random mixtures of standard deviation 1; no model and no data set entered.
"""

from __future__ import annotations

from typing import NamedTuple

TOP = 157.4  # σ/α at which the population's runs began; other starts replace it


class Tuned(NamedTuple):
    """levels: σ/α after the start, falling (n − 1). weights: of D_{i−1}, D_{i−2}, … in row i; D_i has the rest to 1."""

    levels: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]


TUNED: dict[int, Tuned] = {
    5: Tuned(
        (4.9779, 1.2704, 0.47024, 0.092164),
        (
            (),
            (-0.90029,),
            (-1.65218, 0.65773),
            (-0.4023, 0.23104, -0.08221),
            (-1.1917, 0.11421, -0.01431),
        ),
    ),
    8: Tuned(
        (14.258, 3.7034, 1.8248, 0.8689, 0.50901, 0.21412, 0.04159),
        (
            (),
            (-1.15668,),
            (-2.59195, 1.38162),
            (-1.52905, 0.95453, -0.37452),
            (-1.86133, 0.99416, -0.19532),
            (-0.89903, 0.44556, -0.10901),
            (-0.56288, 0.1304, -0.02738),
            (-1.34182, 0.29546, -0.02265),
        ),
    ),
    10: Tuned(
        (32.159, 9.2269, 4.2581, 2.329, 1.2641, 0.86119, 0.39524, 0.17082, 0.029999),
        (
            (),
            (-1.239,),
            (-1.70739, 0.80749),
            (-1.07578, 0.50501, -0.02516),
            (-1.54406, 0.18741, -0.10328),
            (-1.92065, 1.24712, 0.0147),
            (-1.25603, 0.16549, -0.06123),
            (-1.12057, 0.62151, -0.02082),
            (-0.79964, 0.1449, -0.04913),
            (-1.71833, 0.70044, -0.05217),
        ),
    ),
}  # fmt: skip
