"""How closely pictures take the style of a reference, by weight, and what that costs their prompts; held-out concepts alone.

    python benchmarks/style.py [--adapter RUN] [--pictures 80] [--steps 20] [--grid FILE.png]

Prompts are held-out concepts; references are training pictures of other concepts, one a prompt, of each style by turns.
    style          share that the independent classifier says to be of the reference's style, of the styles that were taught
    R@1            the judge's retrieval of the prompt, with references and (weight 0) without any
    surprise       -ln of the probability that the classifier gives the reference's style, by weight: the distance of styles
    looks          from the reference's looks to the picture's (unfog.evaluation.looks, standardised; RMS): of real pictures of
                   one style 1.1, of two 1.3, as most of it is what they show
    named          the same of the model told the style by its name: what a reference can reach
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
from unfog.modalities.image.codec import premultiply
from unfog.modalities.image.data import PictureSet
from unfog.modalities.image.restyle import UNSEEN, restyled
from unfog.modalities.image.show import contact_sheet
from unfog.steer import kinds_of

RESULT = Path(__file__).parent / "results" / "style.json"
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
MEAN_OF = 100  # pictures of each style


def likely(model: unfog.model.Model, references: np.ndarray, kept: dict[bytes, torch.Tensor] = {}) -> torch.Tensor:  # noqa: B006
    """How likely each reference is of each style, (B, 1, K); asked once."""
    key = references.tobytes()
    if key not in kept:
        image = premultiply(torch.from_numpy(references))
        kept[key] = torch.cat([kinds_of(image[i : i + BATCH], model) for i in range(0, len(image), BATCH)])[:, None]
    return kept[key]


def made(model: unfog.model.Model, items: list[Any], references: np.ndarray, weight: float, steps: int | None) -> np.ndarray:
    """Pictures of (prompt, None, seed) items, each in the style of its reference (B, H, W, 4)."""
    image = premultiply(torch.from_numpy(references))[:, None]
    told = {"image": image, "image_mask": torch.full((len(image), 1), weight), "image_named": torch.ones(len(image)),
            "image_kinds": likely(model, references)}  # fmt: skip
    return steered(model, items, told, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter")
    parser.add_argument("--pictures", type=int, default=80)
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

    @torch.inference_mode()
    def surprise(seen: torch.Tensor, styles: list[str]) -> float:
        places = [scorer.style_names.index(style) for style in styles]
        return float(-torch.log_softmax(scorer.style(seen), 1)[range(len(places)), places].mean())

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

    def measured(pictures: np.ndarray) -> dict[str, float]:
        said, seen = scorer.styles(pictures), looks(pictures)
        row = {"style": float(np.mean([a == b for a, b in zip(said, asked, strict=True)])), "R@1": judge(pictures, names),
               "surprise": surprise(seen, asked), "looks": float(apart(seen, shown).mean())}  # fmt: skip
        print(", ".join(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
        return row

    rows, sheet = [], [Image.fromarray(p) for p in references[:12]]
    for weight in WEIGHTS:
        print(f"weight {weight}: ", end="")
        pictures = made(model, items, references, weight, given.steps)
        rows.append({"weight": weight, **measured(pictures)})
        sheet += [Image.fromarray(p) for p in pictures[:12]]
    found["by weight"] = rows
    by_name = [(name, style, seed) for (name, _, seed), style in zip(items, asked, strict=True)]
    print("named: ", end="")
    found["named"] = measured(made(model, by_name, references, 0.0, given.steps))
    if held:
        means = {}
        for style in model.styles:
            chosen = rng.permutation(train[style])[:MEAN_OF]
            means[style] = looks(np.stack([data.load(int(i), model.size) for i in chosen])).mean(0, keepdim=True)
        references = drawn([held] * len(items))
        sheet += [Image.fromarray(p) for p in references[:12]]
        for how, asked_for, weight in (("without", items, 0.0), ("by reference", items, 1.0),
                                       ("by name", [(name, held, seed) for name, _, seed in items], 0.0)):  # fmt: skip
            pictures = made(model, asked_for, references, weight, given.steps)
            seen = looks(pictures)
            nearest = np.array([apart(seen, means[style].expand_as(seen)) for style in model.styles]).argmin(0)
            row = {"nearest": float((nearest == model.styles.index(held)).mean()),
                   "said": float(np.mean([style == held for style in scorer.styles(pictures)])),
                   "surprise": surprise(seen, [held] * len(items)), "R@1": judge(pictures, names)}  # fmt: skip
            found[f"held style {how}"] = row
            sheet += [Image.fromarray(p) for p in pictures[:12]]
            print(f"held style {held} {how}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
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
