"""What prior preservation keeps: emoji-64 learns six pictures of one blue cat, with and without pictures of its class.

    python benchmarks/prior_preservation.py            two runs of 240 steps (low-rank branches of rank 8), then 96 pictures

Both runs see eight of the subject's pictures a step; one sees eight of the start model's own cats beside them. Compared are
pictures of "a cat" (is it still the class?) and of "a sks cat" (is it the subject?), same seeds and styles, by

    pixels     mean |difference| of premultiplied RGBA in [0, 1] from the start model's picture of that seed and style
    features   1 − cosine of the independent scorer's picture vectors, from the same
    subject    1 − cosine to the nearest of the six pictures
    blue       mean of blue − red over the picture, premultiplied, in [−1, 1]

with 95 % bootstrap intervals over the 24 pictures (one run each: the intervals say nothing about other runs).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import unfog
import unfog.data
from unfog.evaluation import bootstrap_interval
from unfog.evaluation.scorer import Scorer
from unfog.files import write_atomic
from unfog.modalities.image.colours import turn_hue
from unfog.modalities.image.data import PictureSet
from unfog.requests import TrainRequest
from unfog.training import run_recipe

RESULT = Path(__file__).parent / "results" / "prior_preservation.json"
START, STEPS, RANK = "emoji-64", 240, 8
PLACES = ((0, 64, 0, 0, 0), (15, 56, 0, 2, 0), (-20, 60, 2, 0, 1), (8, 48, -6, 6, 0), (-10, 52, 5, -3, 1), (0, 58, 0, 3, 1))
STYLES = [None, "noto", "twemoji", "openmoji", "fluent-3d", "fluent-flat"] * 4
SEEDS = list(range(1000, 1024))  # none of the prior's


def subject_pictures(folder: Path) -> None:
    """Noto's cat in blue: turned (degrees), sized, moved (pixels), mirrored."""
    data = PictureSet.open(unfog.data.path(START))
    index = next(i for i, r in enumerate(data.records) if r.name == "cat" and r.style == "noto")
    cat = Image.fromarray(turn_hue(data.load(index), 0.42)).convert("RGBa")
    folder.mkdir(parents=True)
    for number, (degrees, size, x, y, mirrored) in enumerate(PLACES):
        small = cat.resize((size, size), Image.Resampling.LANCZOS)
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else small
        canvas = Image.new("RGBa", (64, 64))
        canvas.paste(small, ((64 - size) // 2 + x, (64 - size) // 2 + y))
        canvas = canvas.rotate(degrees, Image.Resampling.BICUBIC) if degrees else canvas
        canvas.convert("RGBA").save(folder / f"{number}.png")


def train(pictures: Path, out: Path, prior: bool) -> None:
    """One run: with the prior half of sixteen pictures a step are the subject's, without it all of eight."""
    theirs = unfog.load(START).card["training"]["recipe"]
    fields = {**theirs, "name": out.name, "data": str(pictures), "start": START, "steps": STEPS, "warm_up": 20, "accumulate": 1,
              "lr": 2 * theirs["lr"], "recolour": 0.0, "lora": RANK, "subject": "sks cat", "class_prompt": "cat"}  # fmt: skip
    fields |= {"batch": 16, "prior_count": 36} if prior else {"batch": 8, "prior_weight": 0.0}
    recipe = out.with_suffix(".json")
    recipe.write_text(json.dumps(fields))
    run_recipe(TrainRequest(source=recipe, out=out))


def premultiplied(pictures: np.ndarray) -> np.ndarray:
    planes = pictures.astype(np.float64) / 255
    return np.concatenate([planes[..., :3] * planes[..., 3:], planes[..., 3:]], -1)


def blue(pictures: np.ndarray) -> float:
    planes = premultiplied(pictures)
    return round(float((planes[..., 2] - planes[..., 0]).mean()), 3)


def figure(values: np.ndarray) -> dict[str, object]:
    return {"mean": round(float(values.mean()), 4), "interval": [round(v, 4) for v in bootstrap_interval(values)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with", dest="kept", type=Path, help="a run with the prior that is there already")
    parser.add_argument("--without", type=Path, help="a run without it")
    parser.add_argument("--pictures", type=Path, help="the subject's pictures of these runs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        pictures = given.pictures or Path(place) / "pictures"
        if given.pictures is None:
            subject_pictures(pictures)
        runs = {"with": given.kept or Path(place) / "with", "without": given.without or Path(place) / "without"}
        for name, out in runs.items():
            if not (out / "adapter").is_dir():
                train(pictures, out, name == "with")
        found = measure(pictures, runs)
    write_atomic(RESULT, (json.dumps(found, indent=1) + "\n").encode())
    print(json.dumps(found, indent=1))


def measure(pictures: Path, runs: dict[str, Path]) -> dict[str, object]:
    scorer = Scorer.load()

    def vectors(made: np.ndarray) -> np.ndarray:
        return scorer.picture_vectors(scorer.features(made)).detach().numpy()

    own = np.stack([np.asarray(Image.open(path).convert("RGBA")) for path in sorted(pictures.glob("*.png"))])
    models = {"start": unfog.load(START), **{name: unfog.load(START, adapters=[out]) for name, out in runs.items()}}
    made = {(name, prompt): np.stack(model.make([prompt] * len(SEEDS), STYLES, SEEDS, batch=8, steps=10))
            for name, model in models.items() for prompt in ("a cat", "a sks cat")}  # fmt: skip
    first = made["start", "a cat"]
    found: dict[str, object] = {"model": START, "model_hash": models["start"].hash, "steps": STEPS, "rank": RANK, "n": len(SEEDS)}
    distances = {}
    for name in models:
        cats, subjects = made[name, "a cat"], made[name, "a sks cat"]
        pixels = np.abs(premultiplied(cats) - premultiplied(first)).mean((1, 2, 3))
        features = 1 - (vectors(cats) * vectors(first)).sum(1)
        near = 1 - (vectors(subjects) @ vectors(own).T).max(1)
        distances[name] = {"pixels": pixels, "features": features}
        found[name] = {"a cat": {"pixels": figure(pixels), "features": figure(features), "blue": blue(cats)},
                       "a sks cat": {"subject": figure(near), "blue": blue(subjects)}}  # fmt: skip
    found["without minus with"] = {
        key: figure(distances["without"][key] - distances["with"][key]) for key in ("pixels", "features")
    }
    found["blue of the six pictures"] = blue(own)
    return found


if __name__ == "__main__":
    main()
