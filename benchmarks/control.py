"""How closely pictures follow hints, by strength, and what that costs their prompts; held-out concepts alone.

    python benchmarks/control.py [--adapter RUN] [--pictures 64] [--kinds lineart ...] [--grid FILE.png] [--maps data]

Each of so many held-out pictures (drawn by a fixed seed; concepts that neither the model nor the branch saw in any style) gives
a hint of each kind; its name and style are the prompt. Agreement is of unfog.evaluation.follows; retrieval is the independent
judge's R@1 of 65, of the same prompts and seeds at each strength, so strength 0 is the model alone. "exact": OpenMoji's own
black drawings, which no detector of ours made. Depth and normals are those of held-out models of furniture, of which no picture
can be asked again (tools/data/furniture.py makes them in the folder that --maps names): agreement is then the F1 of the picture's
lines against those of the true render, and "outline" the overlap of what is there. Writes benchmarks/results/control.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import unfog
import unfog.data
from unfog.evaluation.follows import AGREEMENTS, agreement, line_f1, overlap
from unfog.evaluation.retrieval import draw_distractors, retrieval
from unfog.evaluation.scorer import Scorer, describe
from unfog.files import write_atomic
from unfog.modalities.image.controls import CONTROLS, lineart, shown, silhouette
from unfog.modalities.image.data import PictureSet
from unfog.modalities.image.show import contact_sheet
from unfog.networks.text import TextEncoder
from unfog.steer import Hints
from unfog.training.steering import paired

RESULT = Path(__file__).parent / "results" / "control.json"
STRENGTHS, BATCH = (0.0, 0.5, 1.0), 16


class Judge:
    """R@1 of pictures for the names of records."""

    def __init__(self, data: PictureSet) -> None:
        self.scorer, tags = Scorer.load(), {r.name: r.tags for r in data.records}
        self.names = list(tags)
        self.texts = self.scorer.text_vectors(describe(TextEncoder.load(), self.names, list(tags.values()))).numpy()

    def __call__(self, pictures: np.ndarray, names: list[str]) -> float:
        own = [self.names.index(name) for name in names]
        vectors = self.scorer.picture_vectors(self.scorer.features(pictures)).numpy()
        return float(retrieval(vectors, self.texts, own, draw_distractors(own, len(self.names))).mean())


def made(model: unfog.model.Model, items: list[Any], cond: dict[str, torch.Tensor], steps: int | None) -> np.ndarray:
    """Pictures of (prompt, style, seed) items with hints or references of their own: cond (B, ...)."""
    settings, plan, found = {"scale": model.defaults["scale"]}, model.plan(None, steps), []
    kinds = cond["control_strength"].shape[1] if "control_strength" in cond else 0
    for i in range(0, len(items), BATCH):
        part = Hints({key: value[i : i + BATCH] for key, value in cond.items()}, np.tile([0.0, 1.0], (kinds, 1)))
        for _, pictures in model._sample(items[i : i + BATCH], None, settings, plan, part):
            found += pictures or []
    return np.stack(found)


def steering(model: unfog.model.Model, kind: str, hint: torch.Tensor, strength: float) -> dict[str, torch.Tensor]:
    """cond of one kind's hints (B, c, H, W), each at a strength."""
    kinds, channels = list(model.controls), list(model.controls.values())
    first = sum(channels[: kinds.index(kind)])
    own = torch.zeros(len(hint), sum(channels), *hint.shape[2:])
    own[:, first : first + hint.shape[1]] = hint
    strengths = torch.zeros(len(hint), len(kinds))
    strengths[:, kinds.index(kind)] = strength
    return {"control": own, "control_strength": strengths}


def drawn(data: PictureSet, rows: list[int], size: int, seed: int, count: int) -> tuple[list[Any], np.ndarray]:
    """So many of these rows: (prompt, style, seed) items, and the pictures themselves."""
    chosen = np.random.default_rng(seed).permutation(rows)[:count].tolist()
    records = [data.records[i] for i in chosen]
    return [(r, r.style or None, place) for place, r in enumerate(records)], np.stack([data.load(i, size) for i in chosen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--kinds", nargs="*")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--grid", type=Path)
    parser.add_argument("--maps", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    model = unfog.load("emoji-64", adapters=[given.adapter or unfog.steer.shipped("emoji-64", "control")])
    data = PictureSet.open(unfog.data.path("emoji-64"))
    emoji = drawn(data, data.split("heldout_concept"), model.size, 7, given.pictures)
    judge, outlines = Judge(data), paired("lineart", "emoji-64-lines", model.size)
    lines: dict[str, Any] = {"model": model.hash, "branch": model.adapters[-1].hash, "pictures": len(emoji[0]),
                             "real R@1": judge(emoji[1], [r.name for r, *_ in emoji[0]])}  # fmt: skip
    sheet: list[Image.Image] = []
    for kind in given.kinds or list(model.controls):
        (named, real), hint = emoji, CONTROLS[kind].draw(torch.from_numpy(emoji[1]))
        if mapped := CONTROLS[kind].given:
            if not (path := given.maps / f"furniture-64-{kind}.zip").exists():
                print(f"{kind}: not measured, {path} is not there; python tools/data/furniture.py makes it")
                continue
            furniture, maps = PictureSet.open(given.maps / "emoji-furniture-64.zip"), paired(kind, str(path), model.size)
            held = [i for i in furniture.split("heldout_concept") if furniture.records[i].file_name in maps]
            named, real = drawn(furniture, held, model.size, 7, given.pictures)
            hint = torch.stack([maps[r.file_name].float() / 255 for r, *_ in named])
        items, rows = [(r.name, style, seed) for r, style, seed in named], []
        for strength in STRENGTHS:
            pictures = made(model, items, steering(model, kind, hint, strength), given.steps)
            seen, true = (torch.from_numpy(np.ascontiguousarray(x)) for x in (pictures, real))
            found = line_f1(lineart(seen), lineart(true)) if mapped else agreement(kind, pictures, hint)
            row = {"strength": strength, "agreement": float(found.mean()),
                   "standard error": float(found.std(ddof=1) / len(found) ** 0.5)}  # fmt: skip
            row |= {"outline": float(overlap(silhouette(seen), silhouette(true)).mean())} if mapped else {
                "R@1": judge(pictures, [r.name for r, *_ in named])}  # fmt: skip
            if kind == "lineart" and (places := [i for i, (r, *_) in enumerate(named) if r.file_name in outlines]):
                ink = torch.stack([outlines[named[i][0].file_name].float() / 255 for i in places])
                again = made(model, [items[i] for i in places], steering(model, kind, ink, strength), given.steps)
                f1 = line_f1(lineart(torch.from_numpy(again)), ink)
                row |= {"exact": float(f1.mean()), "exact pictures": len(places)}
            rows.append(row)
            print(kind, json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True)
            if given.grid:
                sheet += [shown(kind, h).convert("RGBA") for h in hint[:12]] if strength == 0 else []
                sheet += [Image.fromarray(p) for p in pictures[:12]]
        measure = "F1 of lines with the render's" if mapped else AGREEMENTS.get(kind, ("correlation", None))[0]
        lines[kind] = {"measure": measure, "rows": rows}
    write_atomic(given.out, (json.dumps(lines, indent=1) + "\n").encode())
    if given.grid:
        contact_sheet(sheet, None, columns=12).save(given.grid)


if __name__ == "__main__":
    main()
