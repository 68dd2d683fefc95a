"""Build the set of points: two moons and a ring, 2,000 of each class, as a CSV that a user's own could be.

python tools/data/points.py --out src/unfog/data/points.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

COUNT, NOISE, HELD_OUT = 2000, 0.06, 0.1


def points() -> list[tuple[float, float, str, str]]:
    """x, y, label, split of every point."""
    rng = np.random.default_rng(0)
    turn = rng.uniform(0, np.pi, (2, COUNT))
    around = rng.uniform(0, 2 * np.pi, COUNT)
    shapes = {
        "upper": np.stack([np.cos(turn[0]), np.sin(turn[0])], 1),
        "lower": np.stack([1 - np.cos(turn[1]), 0.5 - np.sin(turn[1])], 1),
        "ring": np.stack([0.5 + 2 * np.cos(around), 0.25 + 2 * np.sin(around)], 1),
    }
    rows = []
    for label, clean in shapes.items():
        noisy = clean + NOISE * rng.standard_normal(clean.shape)
        held = rng.random(COUNT) < HELD_OUT
        rows += [(x, y, label, "heldout" if h else "train") for (x, y), h in zip(noisy.tolist(), held, strict=True)]
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    lines = [f"{x:.4f},{y:.4f},{label},{split}" for x, y, label, split in points()]
    parser.parse_args().out.write_text("\n".join(["x,y,label,split", *lines]) + "\n")
