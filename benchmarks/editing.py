"""What editing and prompt weights do to emoji-64's pictures, in figures, and a sheet of them.

    python benchmarks/editing.py                          prints the figures, about three minutes on one core
    python benchmarks/editing.py --sheet docs/editing.png

Distances are mean absolute differences of premultiplied RGBA, in levels of 255.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import unfog
from unfog.editing import edit
from unfog.edits import EditRequest
from unfog.modalities.image.show import contact_sheet
from unfog.requests import GenerateRequest, Result

STEPS = 12
COLOURS = {"red": 0, "green": 1, "blue": 2}
WEIGHED = [("a (red:{}) apple and a green leaf", "red"), ("a blue heart with a (red:{}) ribbon", "red"),
           ("a cat with a (blue:{}) hat", "blue"), ("a (green:{}) and red bird", "green")]  # fmt: skip
WEIGHTS = (0.5, 1, 1.5)
PAIRS = [("a red apple", "a green apple"), ("a cat", "a dog"), ("a red heart", "a blue heart"), ("a yellow star", "a red star")]


def planes(pixels: np.ndarray) -> np.ndarray:
    """Premultiplied RGBA, float64."""
    p = pixels.astype(float)
    return np.concatenate([p[..., :3] * p[..., 3:] / 255, p[..., 3:]], -1)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(planes(a) - planes(b)).mean())


def seam(pixels: np.ndarray) -> float:
    """Differences of neighbours over the edge, against those inside."""
    p = planes(pixels)
    inner = np.abs(np.diff(p, axis=0)).mean() + np.abs(np.diff(p, axis=1)).mean()
    return float((np.abs(p[0] - p[-1]).mean() + np.abs(p[:, 0] - p[:, -1]).mean()) / inner)


def share(pixels: np.ndarray, channel: int) -> float:
    """How much more of a channel than of the other two the drawn pixels have, in [-1, 1]."""
    p = planes(pixels) / 255
    other = [k for k in range(3) if k != channel]
    return float((p[..., channel] - p[..., other].mean(-1)).sum() / max(p[..., 3].sum(), 1.0))


def made(model: Any, prompts: list[str], seed: int, n: int = 1) -> list[np.ndarray]:
    request = GenerateRequest(prompts=prompts, seed=seed, n=n, steps=STEPS, batch=8)
    return [np.asarray(event.item) for event in model.stream(request) if isinstance(event, Result)]


def edited(model: Any, raw: np.ndarray, **fields: Any) -> list[np.ndarray]:
    request = EditRequest(item=Path("a.png"), **{"steps": STEPS, "seed": 5, **fields})
    return [np.asarray(event.item) for event in edit(model, raw, request) if isinstance(event, Result)]


def weights(model: Any) -> None:
    rows, seeds = [], 2
    for prompt, colour in WEIGHED:
        found = made(model, [prompt.format(w) for w in WEIGHTS], 0, seeds)
        values = np.array([share(p, COLOURS[colour]) for p in found]).reshape(len(WEIGHTS), seeds).T
        rows += list(values)
        print(f"weights {prompt}: {' '.join(f'{v:+.3f}' for v in values.mean(0))}", flush=True)
    table = np.array(rows)
    rising = (np.diff(table, axis=1) > -0.005).all(1).sum()
    print(f"weights {WEIGHTS}: mean {table.mean(0).round(3)}, rising in {rising} of {len(table)}, "
          f"1.5 above 0.5 in {(table[:, -1] > table[:, 0]).sum()}", flush=True)  # fmt: skip


def masks(model: Any, folder: Path) -> None:
    y, x = np.mgrid[:150, :200]
    wheel = np.stack([x, y, 255 - x, np.where(x > 100, 255, 100)], -1).astype(np.uint8)
    for name, raw in (("64x64", made(model, ["a cat"], 2)[0]), ("200x150 half-clear", wheel)):
        free = np.zeros(raw.shape[:2], bool)
        free[raw.shape[0] // 3 :, raw.shape[1] // 2 :] = True
        Image.fromarray(free).save(folder / "mask.png")
        last = raw
        for k in range(10):
            last = edited(model, last, prompt="a dog", mask=str(folder / "mask.png"), strength=0.8, seed=k, steps=4)[0]
        outside = np.abs(last.astype(int) - raw)[~free].max()
        print(
            f"mask {name}: ten edits, largest change outside {outside}, mean inside {apart(last[free], raw[free]):.1f}",
            flush=True,
        )


def tiles(model: Any) -> list[np.ndarray]:
    y, x = np.mgrid[:64, :64]
    raw = np.stack([4 * x, 4 * y, 255 - 4 * x, np.full_like(x, 255)], -1).astype(np.uint8)
    shown = []
    for prompt in ("a stone wall", "blue water waves", "green leaves"):
        plain, tile = (edited(model, raw, prompt=prompt, strength=0.7, tile=t)[0] for t in (False, True))
        print(f"tile {prompt}: seam/inside {seam(raw):.1f} before, {seam(plain):.2f} without, {seam(tile):.2f} with", flush=True)
        shown.append(np.tile(tile, (2, 2, 1)))
    return shown


def through(model: Any, folder: Path) -> list[np.ndarray]:
    shown = []
    for old, new in PAIRS:
        (raw,) = made(model, [old], 1)
        same = edited(model, raw, prompt=old, variations=0.0)[0]
        (diff,) = edited(model, raw, prompt=new, original=old)
        fresh = made(model, [new], 5)[0]
        outline = [float(np.abs(p[..., 3].astype(float) - raw[..., 3]).mean()) for p in (diff, fresh)]
        back, near, far = apart(same, raw), apart(diff, raw), apart(fresh, raw)
        print(f"from {old!r} to {new!r}: back {back:.3f}; picture {near:.1f} (fresh {far:.1f}), ", end="")
        print(f"outline {outline[0]:.1f} (fresh {outline[1]:.1f})", flush=True)
        shown += [raw, diff]
    Image.fromarray(shown[2]).save(folder / "cat.png")
    frames = edited(model, shown[0], prompt="a red apple", towards=folder / "cat.png", towards_prompt="a cat", frames=7)
    steps = [apart(a, b) for a, b in zip(frames, frames[1:], strict=False)]
    print(f"frames: steps {np.round(steps, 1)}, largest/mean {max(steps) / np.mean(steps):.2f}", flush=True)
    some = [edited(model, shown[0], prompt="a red apple", variations=v)[0] for v in (0.1, 0.3, 0.6)]
    print(f"variations 0.1, 0.3, 0.6: {[round(apart(v, shown[0]), 1) for v in some]} from the picture", flush=True)
    return [*shown, *some, *frames]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheet", type=Path)
    sheet, model = parser.parse_args().sheet, unfog.load("emoji-64")
    with tempfile.TemporaryDirectory() as name:
        weights(model)
        masks(model, Path(name))
        shown = through(model, Path(name))
        tiled = tiles(model)
        if sheet is not None:
            (wide,) = edited(model, shown[2], prompt="a cat in a garden", canvas="24,0,24,0")
            labels = [word for pair in PAIRS for word in pair]
            labels += [
                "vary 0.1",
                "vary 0.3",
                "vary 0.6",
                *(f"{k + 1} of 7" for k in range(7)),
                "stone",
                "water",
                "leaves",
                "canvas",
            ]
            pictures = [Image.fromarray(p) for p in (*shown, *tiled, wide)]
            contact_sheet([p.resize((64, 64 * p.height // p.width)) for p in pictures], labels, columns=11, scale=1).save(sheet)


if __name__ == "__main__":
    main()
