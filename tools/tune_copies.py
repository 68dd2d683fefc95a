"""Fit the weights by which evaluation/copies.py tells a copy from a picture that is merely alike; writes copies.json.

    python tools/tune_copies.py                 about 5 minutes on one thread; needs scipy

Innocent are pictures of emoji-64's training split that have no twin there, each held against all others of it; copies are
pictures of it, changed in up to three of CHANGES at once. Held-out pictures are never read, so that thresholds can be taken
and measured on them.

    loss = mean over copies p and the likeliest 4 % of innocents n of log(1 + exp(score_n − score_p))       a share of the AUC

The weights on differences are held negative by a softplus. SEEDS fits are averaged, as one wider network.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from unfog.data import path
from unfog.evaluation.aligned import planes
from unfog.evaluation.copies import CHUNK, NETWORK, Known, compared
from unfog.modalities.image.data import PictureSet

Picture = NDArray[np.uint8]
Change = Callable[[Picture, np.random.Generator], Picture]
PICTURES, UNITS, SEEDS, STEPS, HARD, DECAY = 5_000, 16, 4, 1_500, 0.04, 1e-4
READINGS = ("l0", "l1", "l2", "c1", "c0", "edges", "structure", "colour", "worst", "odd", "odd_strong", "odd_many",
            "brightness", "hue", "soft", "size", "move", "apart", "context", "rest", "rough")  # fmt: skip
# Below these a difference says nothing more: saving a picture anew makes as large a one.
FLOOR = {"l0": 1e-5, "l1": 2e-6, "l2": 1e-6, "c1": 4e-6, "c0": 1e-5, "worst": 1e-5, "odd": 3e-3, "odd_strong": 1e-3,
         "odd_many": 1e-3, "brightness": 1e-5, "hue": 1e-5, "apart": 5e-3, "rough": 1e-5, "edges": 1e-5,
         "structure": 1e-5, "colour": 1e-5, "rest": 1e-5}  # fmt: skip
FALLS = ("l0", "l1", "l2", "c1", "c0", "worst", "odd", "odd_strong", "odd_many", "brightness", "hue", "apart", "rough")


def opened(x: Picture) -> NDArray[np.float32]:
    y = x.astype(np.float32) / 255
    y[..., :3] *= y[..., 3:]
    return y


def closed(y: NDArray[np.float32]) -> Picture:
    alpha = y[..., 3:]
    colours = np.where(alpha > 1e-3, y[..., :3] / np.maximum(alpha, 1e-3), 0)
    return np.clip(np.rint(np.concatenate([colours, alpha], -1) * 255), 0, 255).astype(np.uint8)


def edge(x: Picture) -> str:
    return "nearest" if (x[..., 3] == 255).all() else "constant"


def bytes_(x: NDArray[np.float64]) -> Picture:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def over(x: Picture, back: Sequence[int]) -> Picture:
    y = opened(x)
    flat = y[..., :3] + (1 - y[..., 3:]) * np.asarray(back, np.float32) / 255
    return np.concatenate([bytes_(flat * 255), np.full_like(x[..., 3:], 255)], -1)


def shift(x: Picture, r: np.random.Generator) -> Picture:
    return closed(ndimage.shift(opened(x), (*r.uniform(-4, 4, 2), 0), order=1, mode=edge(x)))


def whole_shift(x: Picture, r: np.random.Generator) -> Picture:
    return closed(ndimage.shift(opened(x), (*r.integers(-4, 5, 2), 0), order=0, mode=edge(x)))


def scale(x: Picture, r: np.random.Generator) -> Picture:
    f, c = r.uniform(0.93, 1.07), (np.array(x.shape[:2]) - 1) / 2
    return closed(ndimage.affine_transform(opened(x), [1 / f, 1 / f, 1], [*(c - c / f), 0], order=1, mode=edge(x)))


def turn(x: Picture, r: np.random.Generator) -> Picture:
    return closed(ndimage.rotate(opened(x), r.uniform(-4, 4), reshape=False, order=1, mode=edge(x)))


def hsv(x: Picture, hue: float, rich: float) -> Picture:
    y = np.asarray(Image.fromarray(x[..., :3]).convert("HSV")).astype(int)
    y[..., 0] = (y[..., 0] + round(hue * 255)) % 256
    y[..., 1] = np.clip(y[..., 1] * rich, 0, 255)
    return np.concatenate([np.asarray(Image.fromarray(y.astype(np.uint8), "HSV").convert("RGB")), x[..., 3:]], -1)


def hue(x: Picture, r: np.random.Generator) -> Picture:
    return hsv(x, r.choice([-1, 1]) * r.uniform(0.02, 0.06), 1)


def richness(x: Picture, r: np.random.Generator) -> Picture:
    return hsv(x, 0, r.choice([r.uniform(0.6, 0.85), r.uniform(1.15, 1.4)]))


def colours(x: Picture, made: NDArray[np.float64]) -> Picture:
    return np.concatenate([bytes_(made), x[..., 3:]], -1)


def brightness(x: Picture, r: np.random.Generator) -> Picture:
    return colours(x, x[..., :3] * r.choice([r.uniform(0.75, 0.92), r.uniform(1.08, 1.25)]))


def contrast(x: Picture, r: np.random.Generator) -> Picture:
    return colours(x, (x[..., :3] - 128.0) * r.choice([r.uniform(0.7, 0.9), r.uniform(1.1, 1.3)]) + 128)


def gamma(x: Picture, r: np.random.Generator) -> Picture:
    return colours(x, (x[..., :3] / 255) ** r.uniform(0.75, 1.3) * 255)


def saved(x: Picture, kind: str, **how: int) -> Picture:
    handle = io.BytesIO()
    Image.fromarray(x).save(handle, kind, **how)
    return np.asarray(Image.open(io.BytesIO(handle.getvalue())).convert("RGBA"))


def jpeg(x: Picture, r: np.random.Generator) -> Picture:
    return saved(over(x, (255, 255, 255))[..., :3], "JPEG", quality=int(r.integers(40, 92)))


def jpeg_kept_alpha(x: Picture, r: np.random.Generator) -> Picture:
    return np.concatenate([jpeg(x, r)[..., :3], x[..., 3:]], -1)


def jpeg_on_any(x: Picture, r: np.random.Generator) -> Picture:
    return saved(on_any(x, r)[..., :3], "JPEG", quality=int(r.integers(40, 92)))


def webp(x: Picture, r: np.random.Generator) -> Picture:
    return saved(x, "WEBP", quality=int(r.integers(20, 70)))


def on_any(x: Picture, r: np.random.Generator) -> Picture:
    return over(x, r.integers(0, 256, 3).tolist())


def on_black(x: Picture, r: np.random.Generator) -> Picture:
    return over(x, (0, 0, 0))


def on_white(x: Picture, r: np.random.Generator) -> Picture:
    return over(x, (255, 255, 255))


def resize(x: Picture, r: np.random.Generator) -> Picture:
    high, wide, share = *x.shape[:2], r.uniform(0.4, 0.8)
    ways = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX]
    small = Image.fromarray(x).resize((round(wide * share), round(high * share)), ways[r.integers(4)])
    return np.asarray(small.resize((wide, high), ways[r.integers(3)]))


def soften(x: Picture, r: np.random.Generator) -> Picture:
    sigma = r.uniform(0.6, 1.6)
    return closed(ndimage.gaussian_filter(opened(x), (sigma, sigma, 0), mode=edge(x)))


def sharpen(x: Picture, r: np.random.Generator) -> Picture:
    return colours(x, np.asarray(Image.fromarray(x[..., :3]).filter(ImageFilter.UnsharpMask(1.5, 80, 2))).astype(float))


def few_colours(x: Picture, r: np.random.Generator) -> Picture:
    return colours(x, np.asarray(Image.fromarray(over(x, (255, 255, 255))[..., :3]).quantize(24).convert("RGB")).astype(float))


def noise(x: Picture, r: np.random.Generator) -> Picture:
    return bytes_(x + r.normal(0, 16, x.shape) * (x[..., 3:] > 8))


CHANGES: list[Change] = [shift, whole_shift, hue, brightness, contrast, gamma, richness, jpeg, jpeg_kept_alpha, jpeg_on_any,
                         on_black, on_white, on_any, resize, soften, noise, scale, turn, sharpen, few_colours, webp]  # fmt: skip


@torch.inference_mode()
def read(pictures: Sequence[Picture], known: Known, own: NDArray[np.int64] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Readings (N, C, R) and rows (N, C) of pictures' nearest ones."""
    values, rows = [], []
    for i in range(0, len(pictures), CHUNK):
        skip = None if own is None else torch.from_numpy(own[i : i + CHUNK])
        found = compared(planes(np.stack(pictures[i : i + CHUNK])), known.planes, known.vectors.float(), skip)
        values.append(found[0])
        rows.append(found[1])
    return torch.cat(values), torch.cat(rows)


class Units(torch.nn.Module):
    """tanh units that fall with every reading of FALLS, summed with positive weights."""

    def __init__(self, count: int, falls: torch.Tensor) -> None:
        super().__init__()
        self.falls = falls
        self.raw = torch.nn.Parameter(torch.randn(count, len(falls)) * 0.3 - falls)
        self.bias = torch.nn.Parameter(torch.randn(count) * 0.5)
        self.out = torch.nn.Parameter(torch.full((count,), -1.0))
        self.constant = torch.nn.Parameter(torch.zeros(1))

    def weight(self) -> torch.Tensor:
        return self.raw * (1 - self.falls) - F.softplus(self.raw) * self.falls

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z @ self.weight().T + self.bias) @ F.softplus(self.out) + self.constant


def fitted(copies: torch.Tensor, innocent: torch.Tensor, falls: torch.Tensor, seed: int) -> Units:
    """Copies (P, R), innocents' candidates (N, C, R), both standardised."""
    torch.manual_seed(seed)
    units = Units(UNITS, falls)
    optimiser = torch.optim.Adam(units.parameters(), 0.02)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * (1 + np.cos(np.pi * step / STEPS))
        p = units(copies[torch.randint(len(copies), (1024,))])
        if step < 300:  # first what is easy, so that there is an order to look for the hard ones in
            n = units(innocent[torch.randint(len(innocent), (1024,))].flatten(0, 1))
            loss = F.softplus(-p).mean() + F.softplus(n).mean()
        else:
            if step % 50 == 0:
                with torch.no_grad():
                    best, which = units(innocent.flatten(0, 1)).reshape(innocent.shape[:2]).max(1)
                    rows = best.topk(int(len(innocent) * HARD)).indices
                    hard = innocent[rows, which[rows]]
            n = units(hard)
            loss = F.softplus(n[None] - p[:, None]).mean() + 0.02 * (F.softplus(-p).mean() + F.softplus(n).mean())
        loss = loss + DECAY * units.weight().square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return units


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(7)
    data = PictureSet.open(path("emoji-64"))
    pictures = np.stack([data.load(i, 64) for i in data.split("train")])
    known = Known.of(pictures[i : i + 256] for i in range(0, len(pictures), 256))
    alone = np.array([not data.records[i].near_duplicates for i in data.split("train")])
    own = rng.permutation(np.flatnonzero(alone))[:PICTURES]
    innocent, _ = read([on_any(pictures[i], rng) if rng.random() < 0.4 else pictures[i] for i in own], known, own)
    print(f"{len(own)} innocents read", flush=True)
    drawn = rng.permutation(len(pictures))[:PICTURES]
    changed = []
    for i in drawn:
        made = pictures[i]
        for k in rng.permutation(len(CHANGES))[: rng.choice([0, 1, 1, 2, 3])]:
            made = CHANGES[k](made, rng)
        changed.append(made)
    values, rows = read(changed, known, None)
    copies = values[rows == torch.from_numpy(drawn)[:, None]]
    print(f"{len(copies)} of {len(drawn)} copies are among their candidates", flush=True)
    fit(copies, innocent)


def fit(copies: torch.Tensor, innocent: torch.Tensor) -> None:
    """Fit to readings and write the weights."""
    floor = torch.tensor([np.log(FLOOR.get(name, 1e-7)) for name in READINGS], dtype=torch.float32)
    copies, innocent = torch.maximum(copies, floor), torch.maximum(innocent, floor)
    whole = torch.cat([copies, innocent.flatten(0, 1)])
    mean, spread = whole.mean(0), whole.std(0) + 1e-6
    falls = torch.tensor([float(name in FALLS) for name in READINGS])
    parts = [fitted((copies - mean) / spread, (innocent - mean) / spread, falls, seed) for seed in range(SEEDS)]
    with torch.no_grad():
        kept = {
            "readings": list(READINGS),
            "floor": floor,
            "mean": mean,
            "spread": spread,
            "weight": torch.cat([part.weight() for part in parts]),
            "bias": torch.cat([part.bias for part in parts]),
            "out": torch.cat([F.softplus(part.out) for part in parts]) / SEEDS,
            "constant": float(sum(part.constant.item() for part in parts) / SEEDS),
        }
    rounded = {k: np.round(v.numpy(), 5).tolist() if isinstance(v, torch.Tensor) else v for k, v in kept.items()}
    NETWORK.write_text(json.dumps(rounded) + "\n")
    print(f"{NETWORK}: {len(rounded['bias'])} units")


if __name__ == "__main__":
    main()
