"""What quality a model of 128 px reaches for its training time: in latents against in pixels, from the same start.

    python benchmarks/latent_quality.py WORK --data data/emoji-128.zip [--steps 500] [--n 384] [--points 3]

Both are emoji-64's U-Net with emoji-64's weights, carried over (tools/weights/carried.py), on a 32x32 grid: cells of 8 latents,
or of 4x4 pixels. Both train side by side, on a thread each and for as many steps, by recipes/emoji_128.py, the one in pixels
with more noise, as it takes twice as much to hide four times as many pixels as emoji-64 has (mean 0.9 + ln 2). What is in WORK
already is not made again. Of so many of the averages that each run kept (width 0.05): FD-lite0 to the training pictures at 128
px, the independent judge's R@1, the time that training had taken and the processor time of a picture, with the same captions
and seeds for all. The time to an equal FD is read between points, in logarithms. Writes benchmarks/results/latent_quality.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
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
from unfog.training.recipe import fields_of

HERE = Path(__file__).parent
RESULT, RECIPE = HERE / "results" / "latent_quality.json", HERE.parent / "recipes" / "emoji_128.py"
WIDTH = 0.05
WAYS = ("latents", "pixels")


def trained(work: Path, data: Path, steps: int) -> None:
    """The runs work/latents and work/pixels, where they are not there."""
    work.mkdir(parents=True, exist_ok=True)
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = []
    for way in WAYS:
        if (work / way / "model").is_dir():
            continue
        start = work / f"start-{way}"
        if not start.is_dir():
            carried = [HERE.parent / "tools/weights/carried.py", way, Path(unfog.__file__).parent / "pretrained/emoji-64", start]
            subprocess.run([sys.executable, *map(str, carried), "--data", str(data)], env=one, check=True)
        recipe = {**fields_of(RECIPE), "data": str(data), "steps": steps, "warm_up": steps // 10, "report_steps": steps,
                  "snapshots": 6, "average_steps": 0}  # fmt: skip
        if way == "pixels":
            recipe |= {"name": "emoji-128-pixels", "settings": {**recipe["settings"], "unshuffle": 4}, "noise_mean": 1.6}
            del recipe["autoencoder"]
        (work / f"{way}.json").write_text(json.dumps(recipe))
        command = [sys.executable, "-m", "unfog", "train", work / f"{way}.json", "--out", work / way, "--start", start]
        running.append(subprocess.Popen([*map(str, command)], env=one))
    if sum(process.wait() for process in running):  # of all of them: none is left behind
        sys.exit("training failed")


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
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/emoji-128.zip"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--n", type=int, default=384)
    parser.add_argument("--points", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    if not given.data.exists():
        sys.exit(f"{given.data}: is missing; build it with tools/data/emoji_128.py, or give its place with --data")
    torch.set_num_threads(1)
    trained(given.work, given.data.resolve(), given.steps)
    data = data_at(given.data)
    both = {way: points(given.work / way, given.points, given.n, data) for way in WAYS}
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
