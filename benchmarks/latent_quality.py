"""What quality a model of 128 px reaches for its training time: in latents against in pixels, from the same start.

    python tools/weights/carried.py latents src/unfog/pretrained/emoji-64 START-LATENTS --data data/emoji-128.zip
    python tools/weights/carried.py pixels src/unfog/pretrained/emoji-64 START-PIXELS --data data/emoji-128.zip
    unfog train recipes/emoji_128.py --out LATENTS --start START-LATENTS --minutes M           # one core each, side by side
    unfog train recipes/baselines/emoji_128_pixels.py --out PIXELS --start START-PIXELS --minutes M
    python benchmarks/latent_quality.py LATENTS PIXELS [--n 384] [--points 3]     writes benchmarks/results/latent_quality.json

Both are emoji-64's U-Net with its weights; what is left to train is what differs. Of so many of the averages that each run kept
(width 0.05): FD-lite0 to the training pictures at 128 px, the independent judge's R@1, the time that training had taken and the
processor time of a picture. The same captions and seeds for all. The time to an equal FD is read between points, in logarithms.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import unfog
from unfog.evaluation.run import measure
from unfog.evaluation.samples import Asked, data_at, made_by
from unfog.requests import AverageRequest
from unfog.training.averages import average, kept

RESULT = Path(__file__).parent / "results" / "latent_quality.json"
WIDTH = 0.05


def minutes_at(run: Path) -> dict[int, float]:
    """Minutes of training behind each step that the clock was read at."""
    spent, total = {}, 0.0
    for line in (run / "timing.jsonl").read_text().splitlines():
        told = json.loads(line)
        total += told.get("seconds", 0.0) / 60
        spent[told["step"]] = total
    return spent


def points(run: Path, count: int, n: int, data: Any) -> list[dict[str, float]]:
    """Figures of `count` of the averages that a run kept, evenly spread, the last one among them."""
    steps, spent, found = kept(run), minutes_at(run), []
    for step in [steps[round((k + 1) * len(steps) / count) - 1] for k in range(count)]:
        with tempfile.TemporaryDirectory() as place:
            average(AverageRequest(run=run, ema=WIDTH, at=step, out=Path(place) / "model"))
            model = unfog.load(Path(place) / "model")
            start = time.process_time()
            samples = made_by(model, data, Asked(n=n, batch=16))
            seconds = (time.process_time() - start) / n
        report = measure(samples, data, force=True).report
        row = {"step": step, "minutes": spent[max(s for s in spent if s <= step)], "seconds a picture": seconds}
        row |= {f"{m.name}, {m.of}": float(m.figure.value) for m in report.measures
                if m.name == "FD-lite0" or m.name.startswith("R@1 of") or m.name == "wrong style"}  # fmt: skip
        found.append(row)
        print(run.name, json.dumps({k: round(v, 3) for k, v in row.items()}), flush=True)
    return found


def reached(rows: list[dict[str, float]], wanted: float, name: str) -> float | None:
    """Minutes after which a run's FD was `wanted`, between its points; None where it never was."""
    for before, after in zip([None, *rows], rows, strict=False):
        if after[name] <= wanted:
            if before is None:
                return after["minutes"]
            share = math.log(before[name] / wanted) / math.log(before[name] / after[name])
            return before["minutes"] * (after["minutes"] / before["minutes"]) ** share
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs=2)
    parser.add_argument("--data", default="data/emoji-128.zip")
    parser.add_argument("--n", type=int, default=384)
    parser.add_argument("--points", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = data_at(given.data)
    both = {way: points(run, given.points, given.n, data) for way, run in zip(("latents", "pixels"), given.runs, strict=True)}
    fd = next(name for name in both["latents"][0] if name.startswith("FD-lite0"))
    worst = max(rows[-1][fd] for rows in both.values())  # what both reached
    told = {way: reached(rows, worst, fd) for way, rows in both.items()}
    cost = {way: float(np.median([row["seconds a picture"] for row in rows])) for way, rows in both.items()}
    print(f"FD-lite0 {worst:.0f} after {told['latents']:.1f} minutes in latents, {told['pixels']:.1f} in pixels; "
          f"a picture takes {cost['latents']:.2f} and {cost['pixels']:.2f} s")  # fmt: skip
    lines = {"n": given.n, "threads": 1, "runs": both, "FD reached by both": worst, "minutes to it": told,
             "seconds a picture": cost}  # fmt: skip
    given.out.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
