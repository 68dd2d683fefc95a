"""Does a model know pictures that it was trained on from others of their kind? Its denoising loss on both, at fixed noise.

    loss(x, σ) = |network − target|² of x_t = α·x0 + σ·ε, ε of the picture's place only         at six levels of ln(σ/α)
    gap        = mean loss of unseen − mean loss of seen pictures                               0 without memorising
    AUC        = P(a seen picture's loss is below an unseen one's)                              ½ without memorising

Intervals resample pictures on both sides. Unseen pictures of concepts that training lacks are harder, so a small gap need not
be memory. Source: Yeom et al. 2018 (loss thresholds), Carlini et al. 2023, arXiv:2301.13188, section 5 (diffusion models).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from unfog.diffusion.losses import denoising_loss
from unfog.evaluation.shares import LEVEL, Part

LEVELS = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # ln(sigma/alpha)
COUNT = 128  # pictures of each side
RESAMPLES = 2_000
BATCH = 32


class Gap(Part):
    """One noise level: mean losses, their relative difference (unseen/seen − 1) and the AUC, with intervals."""

    level: float | None = Field(description="ln(sigma/alpha); None: all levels, each loss divided by its level's mean")
    seen: float
    unseen: float
    gap: float
    low: float
    high: float
    auc: float
    auc_low: float
    auc_high: float


class Membership(Part):
    """What losses tell of who was in the training set."""

    levels: list[Gap]
    overall: Gap
    n_seen: int
    n_unseen: int

    def __str__(self) -> str:
        o = self.overall
        return (f"loss of unseen pictures {100 * o.gap:+.1f} % [{100 * o.low:.1f}, {100 * o.high:.1f}], "
                f"AUC {o.auc:.3f} [{o.auc_low:.3f}, {o.auc_high:.3f}], n={self.n_seen}+{self.n_unseen}")  # fmt: skip


def membership(
    model: Any,
    seen: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    unseen: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    prompts: tuple[Sequence[str], Sequence[str]],
    styles: tuple[Sequence[str | None], Sequence[str | None]],
    *,
    count: int = COUNT,
    seed: int = 0,
) -> Membership:
    """Compare losses on at most `count` pictures of each side, drawn by the seed.

    Args: model, with codec, denoiser and condition (`unfog.model.Model`); seen, unseen, straight RGBA (H, W, 4) uint8 of a shape
        that the model knows; prompts and styles of both sides; a style that the model lacks is asked as any.
    """
    rng = np.random.default_rng(seed)
    sides = []
    for pictures, texts, kinds in zip((seen, unseen), prompts, styles, strict=True):
        rows = rng.permutation(len(pictures))[:count]
        known = [kinds[i] if kinds[i] in model.styles else None for i in rows]
        sides.append(losses(model, [pictures[i] for i in rows], [texts[i] for i in rows], known, seed))
    return compare_losses(*sides)


def compare_losses(seen: NDArray[np.float64], unseen: NDArray[np.float64]) -> Membership:
    """From losses (N, L) and (M, L) at the levels."""
    typical = np.concatenate([seen, unseen]).mean(0)
    levels: Sequence[float | None] = (*LEVELS, None)
    columns = [(seen[:, k], unseen[:, k]) for k in range(seen.shape[1])]
    columns.append(((seen / typical).mean(1), (unseen / typical).mean(1)))
    gaps = [_gap(level, *pair) for level, pair in zip(levels, columns, strict=True)]
    return Membership(levels=gaps[:-1], overall=gaps[-1], n_seen=len(seen), n_unseen=len(unseen))


def _gap(level: float | None, seen: NDArray[np.float64], unseen: NDArray[np.float64]) -> Gap:
    rng = np.random.default_rng(0)
    below = (seen[:, None] < unseen[None]) + 0.5 * (seen[:, None] == unseen[None])
    draws = [rng.multinomial(len(x), np.full(len(x), 1 / len(x)), RESAMPLES) / len(x) for x in (seen, unseen)]
    means = draws[0] @ seen, draws[1] @ unseen
    tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    low, high = np.quantile(means[1] / means[0] - 1, tails)
    auc_low, auc_high = np.quantile(np.einsum("rn,nm,rm->r", draws[0], below, draws[1], optimize=True), tails)
    return Gap(
        level=level,
        seen=float(seen.mean()),
        unseen=float(unseen.mean()),
        gap=float(unseen.mean() / seen.mean() - 1),
        low=float(low),
        high=float(high),
        auc=float(below.mean()),
        auc_low=float(auc_low),
        auc_high=float(auc_high),
    )


@torch.inference_mode()
def losses(
    model: Any, pictures: Sequence[NDArray[np.uint8]], prompts: Sequence[str], styles: Sequence[str | None], seed: int = 0
) -> NDArray[np.float64]:
    """The loss of each picture at each of LEVELS (N, 6), its noise being of its place alone."""
    found = np.empty((len(pictures), len(LEVELS)))
    denoiser, device = model.denoiser, model.device
    for i in range(0, len(pictures), BATCH):
        x0 = model.codec.encode(torch.from_numpy(np.stack(pictures[i : i + BATCH]))).to(device)
        cond = model.condition(prompts[i : i + BATCH], styles[i : i + BATCH])
        eps = torch.from_numpy(np.stack([np.random.default_rng([seed, i + k]).standard_normal(x0.shape[1:], np.float32)
                                         for k in range(len(x0))])).to(device)  # fmt: skip
        for k, level in enumerate(LEVELS):
            t = torch.full((len(x0),), float(denoiser.process.schedule.time(-2 * level)), device=device)
            found[i : i + BATCH, k] = denoising_loss(denoiser, x0, cond, t, eps).double().cpu().numpy()
    return found
