"""How closely pictures take the style of a reference, by weight, and what that costs their prompts; held-out concepts alone.

    python benchmarks/style.py [--adapter RUN] [--pictures 40] [--steps 20] [--grid FILE.png]

Prompts are held-out concepts; references are training pictures of other concepts, one a prompt, of each style by turns.
    style          share that the independent classifier says to be of the reference's style, of the styles that were taught
    R@1            the judge's retrieval of the prompt, with references and (weight 0) without any
    distance       from the reference's looks to the picture's (unfog.evaluation.looks, standardised; RMS), by weight
    held style     `held_style` of the reader's recipe, which the reader was not taught (the model itself was, by name): share
                   whose looks are nearer to the mean of that style's training pictures than to that of any taught style
    unseen filters references filtered as neither the reader nor the model was ever shown (restyle.UNSEEN): share whose looks are
                   nearer to the filtered reference than to the same reference unfiltered, and than without a reference
Writes benchmarks/results/style.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from control import BATCH, Judge
from control import made as steered
from PIL import Image

import unfog
import unfog.data
from unfog.evaluation import looks as looks_
from unfog.evaluation.scorer import sized
from unfog.files import write_atomic
from unfog.modalities.image.controls import planes
from unfog.modalities.image.data import PictureSet
from unfog.modalities.image.restyle import UNSEEN, restyled
from unfog.modalities.image.show import contact_sheet

RESULT = Path(__file__).parent / "results" / "style.json"
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
MEAN_OF = 100  # pictures of each style


def made(model: unfog.model.Model, items: list[Any], references: np.ndarray, weight: float, steps: int | None) -> np.ndarray:
    """Pictures of (prompt, None, seed) items, each in the style of its reference (B, H, W, 4)."""
    image = planes(torch.from_numpy(references))[:, None]
    return steered(model, items, {"image": image, "image_mask": torch.full((len(image), 1), weight)}, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--grid", type=Path)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    model = unfog.load("emoji-64", adapters=[given.adapter or unfog.steer.shipped("emoji-64", "style")])
    held = model.adapters[-1].card.training["recipe"]["held_style"]
    data, rng = PictureSet.open(unfog.data.path("emoji-64")), np.random.default_rng(9)
    concepts = {data.records[i].name for i in data.split("heldout_concept")}
    names = rng.permutation(sorted(concepts))[: given.pictures].tolist()
    items = [(name, None, seed) for seed, name in enumerate(names)]
    train = {style: [i for i in data.split("train") if data.records[i].style == style] for style in model.styles}
    judge = Judge(data)
    scorer = judge.scorer

    @torch.inference_mode()
    def looks(pictures: np.ndarray) -> torch.Tensor:
        parts = [looks_.looks(scorer.lite0, sized(pictures[i : i + BATCH], looks_.SIDE)) for i in range(0, len(pictures), BATCH)]
        return scorer.standardise_looks(torch.cat(parts))

    def apart(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
        return (a - b).square().mean(1).sqrt().numpy()

    def drawn(styles: list[str]) -> np.ndarray:
        places = [train[style][int(rng.integers(len(train[style])))] for style in styles]
        return np.stack([data.load(i, model.size) for i in places])

    taught = [style for style in model.styles if style != held]
    asked = [taught[i % len(taught)] for i in range(len(items))]
    references = drawn(asked)
    shown = looks(references)
    found: dict[str, Any] = {"model": model.hash, "reader": model.adapters[-1].hash, "pictures": len(items), "held style": held}
    rows, sheet = [], [Image.fromarray(p) for p in references[:12]]
    for weight in WEIGHTS:
        pictures = made(model, items, references, weight, given.steps)
        said = scorer.styles(pictures)
        row = {"weight": weight, "style": float(np.mean([a == b for a, b in zip(said, asked, strict=True)])),
               "R@1": judge(pictures, names), "distance": float(apart(looks(pictures), shown).mean())}  # fmt: skip
        rows.append(row)
        sheet += [Image.fromarray(p) for p in pictures[:12]]
        print(json.dumps({key: round(value, 4) for key, value in row.items()}), flush=True)
    found["by weight"] = rows
    if held:
        means = {}
        for style in model.styles:
            chosen = rng.permutation(train[style])[:MEAN_OF]
            means[style] = looks(np.stack([data.load(int(i), model.size) for i in chosen])).mean(0, keepdim=True)
        references = drawn([held] * len(items))
        pictures = made(model, items, references, 1.0, given.steps)
        seen = looks(pictures)
        nearest = np.array([apart(seen, means[style].expand_as(seen)) for style in model.styles]).argmin(0)
        found["held style nearest"] = float((nearest == model.styles.index(held)).mean())
        found["held style said"] = float(np.mean([style == held for style in scorer.styles(pictures)]))
        sheet += [Image.fromarray(p) for part in (references[:12], pictures[:12]) for p in part]
        print(f"held style {held}: nearest {found['held style nearest']:.3f}, said {found['held style said']:.3f}", flush=True)
    plain = looks(made(model, items, references, 0.0, given.steps))
    for name, filter_ in UNSEEN.items():
        before = drawn(asked)
        filtered = np.concatenate([restyled(p[None], seed, {name: filter_}) for seed, p in enumerate(before)])
        pictures = made(model, items, filtered, 1.0, given.steps)
        seen, wanted = looks(pictures), looks(filtered)
        near = apart(seen, wanted)
        found[f"unseen {name}"] = {"nearer than to it unfiltered": float((near < apart(seen, looks(before))).mean()),
                                   "nearer than without": float((near < apart(plain, wanted)).mean())}  # fmt: skip
        sheet += [Image.fromarray(p) for part in (filtered[:12], pictures[:12]) for p in part]
        print(name, found[f"unseen {name}"], flush=True)
    write_atomic(given.out, (json.dumps(found, indent=1) + "\n").encode())
    if given.grid:
        contact_sheet(sheet, None, columns=12).save(given.grid)


if __name__ == "__main__":
    main()
