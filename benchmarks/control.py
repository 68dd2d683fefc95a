"""How closely pictures follow hints, by strength, and what that costs their prompts; held-out concepts alone.

    python benchmarks/control.py [--adapter RUN] [--pictures 64] [--kinds lineart ...] [--steps 20] [--grid FILE.png]

Each of so many held-out pictures (drawn by a fixed seed; concepts that neither the model nor the branch saw in any style) gives
a hint of each kind; its name and style are the prompt. Agreement is of unfog.evaluation.follows; retrieval is the independent
judge's R@1 of 65, of the same prompts and seeds at each strength, so strength 0 is the model alone. "exact": OpenMoji's own
black drawings, which no detector of ours made. Writes benchmarks/results/control.json.
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
from unfog.evaluation.follows import AGREEMENTS, agreement, line_f1
from unfog.evaluation.retrieval import draw_distractors, retrieval
from unfog.evaluation.scorer import Scorer, describe
from unfog.files import write_atomic
from unfog.modalities.image.controls import CONTROLS, shown
from unfog.modalities.image.data import PictureSet
from unfog.modalities.image.show import contact_sheet
from unfog.networks.text import TextEncoder
from unfog.steer import Hints
from unfog.training.steering import outlines_of

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--kinds", nargs="*")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--grid", type=Path)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    model = unfog.load("emoji-64", adapters=[given.adapter or unfog.steer.shipped("emoji-64", "control")])
    data = PictureSet.open(unfog.data.path("emoji-64"))
    chosen = np.random.default_rng(7).permutation(data.split("heldout_concept"))[: given.pictures].tolist()
    records = [data.records[i] for i in chosen]
    real = np.stack([data.load(i, model.size) for i in chosen])
    items = [(r.name, r.style, seed) for seed, r in enumerate(records)]
    judge, outlines, kinds = Judge(data), outlines_of("emoji-64-lines"), list(model.controls)
    lines: dict[str, Any] = {"model": model.hash, "branch": model.adapters[-1].hash, "pictures": len(items),
                             "real R@1": judge(real, [r.name for r in records])}  # fmt: skip
    sheet: list[Image.Image] = []
    for kind in given.kinds or kinds:
        hint = CONTROLS[kind].draw(torch.from_numpy(real))
        own = {"control": torch.zeros(len(items), sum(model.controls.values()), *hint.shape[2:])}
        first = sum(list(model.controls.values())[: kinds.index(kind)])
        own["control"][:, first : first + hint.shape[1]] = hint
        rows = []
        for strength in STRENGTHS:
            own["control_strength"] = torch.zeros(len(items), len(kinds))
            own["control_strength"][:, kinds.index(kind)] = strength
            pictures = made(model, items, own, given.steps)
            found = agreement(kind, pictures, hint)
            spread = float(found.std(ddof=1) / len(found) ** 0.5)
            row = {"strength": strength, "agreement": float(found.mean()), "standard error": spread,
                   "R@1": judge(pictures, [r.name for r in records])}  # fmt: skip
            if kind == "lineart" and (places := [i for i, r in enumerate(records) if r.file_name in outlines]):
                ink = torch.stack([1 - torch.from_numpy(outlines[records[i].file_name]).float()[None] / 255 for i in places])
                again = own["control"].clone()
                again[places, first : first + 1] = ink
                drawn = made(model, [items[i] for i in places], {"control": again[places],
                             "control_strength": own["control_strength"][places]}, given.steps)  # fmt: skip
                f1 = line_f1(CONTROLS[kind].draw(torch.from_numpy(drawn)), ink)
                row |= {"exact": float(f1.mean()), "exact pictures": len(places)}
            rows.append(row)
            print(kind, json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True)
            if given.grid:
                sheet += [shown(kind, h).convert("RGBA") for h in hint[:12]] if strength == 0 else []
                sheet += [Image.fromarray(p) for p in pictures[:12]]
        lines[kind] = {"measure": AGREEMENTS.get(kind, ("correlation", None))[0], "rows": rows}
    write_atomic(given.out, (json.dumps(lines, indent=1) + "\n").encode())
    if given.grid:
        contact_sheet(sheet, None, columns=12).save(given.grid)


if __name__ == "__main__":
    main()
