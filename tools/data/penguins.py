"""Build the table of penguins: 344 rows of the Palmer Station's measurements, some cells missing, 60 rows held out.

    python tools/data/penguins.py --cache CACHE --out src/unfog/data/penguins.csv

Needs `pip` (only to fetch the pinned package, whose sha256 is checked). The data are CC0; NOTICE credits them.
"""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
from packages import PIP, fetch, run

PACKAGES = {
    "penguins": (
        "palmerpenguins==0.1.6",
        "palmerpenguins-0.1.6-py3-none-any.whl",
        "5c3be9af84dd703a25f1aaeadeac6ac770cfd38c1620d00089f581c023129ee0",
    )
}
TABLE = "palmerpenguins/data/penguins.csv"
HELD_OUT = 60


def table(wheel: Path) -> list[list[str]]:
    """Rows of text, the head first; a missing cell is empty. A column `split` is added: 60 rows by a fixed seed are held out."""
    data = zipfile.ZipFile(wheel).read(TABLE)
    head, *rows = csv.reader(io.StringIO(data.decode()))
    held = set(np.random.default_rng(0).permutation(len(rows))[:HELD_OUT].tolist())
    told = [["" if cell == "NA" else cell for cell in row] + ["heldout" if i in held else "train"] for i, row in enumerate(rows)]
    return [[*head, "split"], *told]


def build(cache: Path, out: Path) -> None:
    wheel = fetch(cache, PIP, PACKAGES)["penguins"]
    out.write_text("".join(",".join(row) + "\n" for row in table(wheel)))


if __name__ == "__main__":
    run(build, __doc__, "src/unfog/data/penguins.csv")
