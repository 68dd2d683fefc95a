"""A GAN beside diffusion: all runs of the claims `gan` and `gan-pictures`, kept one by one.

    python benchmarks/gan.py --work DIR                  what is not in DIR yet is run; then everything is put together
    python benchmarks/gan.py --work DIR --only ring-gan-1  one part, so that parts can run in several processes

DIR/tried.json, if there, is what tuning tried.

Writes benchmarks/results/gan.json (settings, every run, both claims as `unfog claims` would state them) and
docs/claims/gan-{mixtures,faces}.png (needs matplotlib: the extra "bench").
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unfog import __version__
from unfog.claims import gan, gan_pictures
from unfog.claims.claim import Found, Statement, decide
from unfog.claims.modes import COUNTABLE
from unfog.files import write_atomic

ROOT = Path(__file__).parents[1]
RESULT, PLOTS = ROOT / "benchmarks" / "results" / "gan.json", ROOT / "docs" / "claims"
SEEDS = list(range(5))
PARTS = [
    *(f"{name}-{side}-{i}" for name in COUNTABLE for side in gan.SIDES for i in range(len(gan.RATES))),
    *(f"faces-{side}-{s}" for s in SEEDS for side in gan.SIDES),
]


def run(part: str, work: Path) -> None:
    """One part's rows, and of faces the first 64 pictures."""
    name, side, number = part.split("-")
    if name != "faces":
        rows = gan.outcomes(side, name, gan.TUNED[side], SEEDS, SEEDS[: gan.OTHERS], [gan.RATES[int(number)]])
    else:
        row, pictures = gan_pictures.outcome(side, int(number), gan_pictures.TUNED[side])
        np.save(work / f"{part}.npy", pictures[:64])
        rows = [row]
    write_atomic(work / f"{part}.json", json.dumps(rows).encode())
    print(part, [{k: v for k, v in row.items() if k not in ("curve", "points")} for row in rows], flush=True)


def claim(name: str, statement: Statement, found: Found) -> dict[str, Any]:
    """As `unfog.claims.run.measure` states it, of rows that are there."""
    from unfog.claims.claim import Claim

    checks, verdict = decide(statement.tests, found.values)
    stated = {key: getattr(statement, key) for key in ("title", "says", "source", "how")}
    shown = {"figures": list(found.figures), "plots": list(found.plots), "notes": list(found.notes)}
    measured = Claim(name=name, **stated, quick=False, seed=0, version=__version__, checks=checks, verdict=verdict, **shown)
    return measured.model_dump(mode="json")


def scatter(rows: list[dict[str, Any]], out: Path) -> None:
    """The first seed's samples of both sides on both mixtures."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(COUNTABLE), 2, figsize=(7, 7), layout="constrained")
    for line, (name, mixture) in zip(axes, COUNTABLE.items(), strict=True):
        means = mixture().means.numpy()
        for axis, side in zip(line, gan.SIDES, strict=True):
            row = next(r for r in rows if (r["mixture"], r["side"]) == (name, side) and r.get("points"))
            points = np.array(row["points"])
            axis.scatter(*means.T, s=90, facecolors="none", edgecolors="#bbbbbb")
            axis.scatter(*points.T, s=3, color="#2f6fb5" if side == "diffusion" else "#d1622b")
            axis.set(xlim=(-2, 2), ylim=(-2, 2), xticks=[], yticks=[], aspect="equal")
            found = f"{row['recovered']} of {row['modes']} modes, {row['quality']:.0%} near one"
            axis.set_title(f"{name}, {gan.LABEL[side]}: {found}", fontsize=9)
    figure.savefig(out, dpi=80)


def faces(work: Path, out: Path) -> None:
    """Real pictures, the diffusion model's and the GAN's, of the first seed, side by side."""
    from PIL import Image

    from unfog.modalities.image.show import save_png

    some = np.random.default_rng(0).permutation(len(gan_pictures.faces()))[:64]
    blocks: list[NDArray[np.uint8]] = []
    for pictures in (gan_pictures.faces()[some], *(np.load(work / f"faces-{side}-0.npy") for side in gan.SIDES)):
        gan_pictures.sheet(pictures, work / "one.png")
        block = np.asarray(Image.open(work / "one.png"))
        blocks += [block, np.full((len(block), 24, 3), 255, np.uint8)]
    save_png(Image.fromarray(np.concatenate(blocks[:-1], 1)), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=PARTS, help="run these parts alone, and put nothing together")
    parser.add_argument("--collect", action="store_true", help="run nothing: put together what is there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    for part in [] if given.collect else given.only or PARTS:
        if not (given.work / f"{part}.json").exists():
            run(part, given.work)
    if given.only:
        return
    PLOTS.mkdir(parents=True, exist_ok=True)
    rows = {part: json.loads(file.read_text()) for part in PARTS if (file := given.work / f"{part}.json").exists()}
    mixtures = [row for part, found in rows.items() if not part.startswith("faces") for row in found]
    seeds = [seed for seed in SEEDS if all(f"faces-{side}-{seed}" in rows for side in gan.SIDES)]
    pictures = [rows[f"faces-{side}-{seed}"][0] for side in gan.SIDES for seed in seeds]
    claims = [claim("gan", gan.STATEMENT, gan.found_of(mixtures))]
    if len(seeds) > 1:
        claims.append(claim("gan-pictures", gan_pictures.STATEMENT, gan_pictures.found_of(pictures)))
        faces(given.work, PLOTS / "gan-faces.png")
    for row in mixtures:
        if row["seed"] or row["rate"] != 1:
            del row["points"]
        if not math.isfinite(row["distance"]):
            row["distance"] = None  # JSON has no infinity
    tried = json.loads((given.work / "tried.json").read_text()) if (given.work / "tried.json").exists() else {}
    found = {"version": __version__, "torch": torch.__version__, "threads": 1,
             "tuned": {"mixtures": {k: asdict(v) for k, v in gan.TUNED.items()},
                       "faces": {k: asdict(v) for k, v in gan_pictures.TUNED.items()}},
             "tried": tried, "mixtures": mixtures, "faces": pictures, "claims": claims}  # fmt: skip
    write_atomic(RESULT, (json.dumps(found) + "\n").encode())
    scatter(mixtures, PLOTS / "gan-mixtures.png")
    for stated in claims:
        print(stated["title"], "->", stated["verdict"])
        for figure in stated["figures"]:
            print(f"  {figure['what']}: {figure['value']} [{figure['low']}, {figure['high']}] n {figure['n']}")
        for check in stated["checks"]:
            print(f"  {check['says']}: {check['found']} {check['op']} {check['bound']} {check['passed']}")


if __name__ == "__main__":
    main()
