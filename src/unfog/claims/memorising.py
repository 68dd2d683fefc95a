"""With less data a model of the same budget copies it, and covers less of what it has not seen.

    a sample is a copy where its distance to the nearest training picture is below a third of that to the second nearest
    exact denoiser of a finite data set: E[x0 | x_t] = Σ softmax_i(−|x_t − α·d_i|²/2σ²)·d_i, whose samples are the data

Sources: Gu et al. 2023, arXiv:2310.02664 (the ratio; copies against the size of the data); Yoon et al. 2023, "Diffusion
probabilistic models generalize when they fail to memorize" (the same rule).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.claims import emoji, tiny
from unfog.claims.claim import Figure, Found, Line, Plot, Say, Settings, Statement, Test
from unfog.claims.mixtures import end
from unfog.diffusion.denoisers import DataSetDenoiser
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.schedules import Cosine
from unfog.evaluation.coverage import prdc
from unfog.evaluation.statistics import bootstrap_interval
from unfog.modalities.image.codec import RGBACodec

SIDE = 16
SIZES = (50, 200, 800, 3200)
STEPS, BATCH, SAMPLES = 4_000, 32, 200
RATIO = 1 / 3

STATEMENT = Statement(
    title="With little data a model copies, with more it generalises",
    says="Trained on few examples a diffusion model reproduces them; with more data under the same budget copies vanish, the gap "
    "between seen and unseen data closes and more of the unseen data is covered. The exact minimiser of the loss copies always.",
    source="Gu et al. 2023, arXiv:2310.02664; Kadkhodaie et al. 2024, arXiv:2310.02557; Carlini et al. 2023, arXiv:2301.13188",
    how=f"The same small U-Net, steps and seed on {', '.join(f'{n:,}' for n in SIZES)} emoji at {SIDE}×{SIDE} pixels: share of "
    "samples nearer to one training picture than a third of the way to the next (and of real held-out pictures, for which it is "
    "a false alarm), denoising error on unseen less that on seen pictures, coverage of held-out pictures (k = 5, pixels). Beside "
    "it the exact denoiser of each data set.",
    tests=(
        Test(key="few", says="share of copies at the smallest size, lower end", op=">=", bound=0.5),
        Test(key="many", says="share of copies at the largest size less the false alarms, upper end", op="<=", bound=0.05),
        Test(key="falls", says="largest rise of the share of copies from a size to the next larger", op="<=", bound=0.02),
        Test(key="gap", says="gap of unseen to seen error, smallest size less largest, lower end", op=">", bound=0.0),
        Test(key="cover", says="coverage of held-out pictures, largest size less smallest", op=">", bound=0.0),
        Test(key="exact", says="exact denoiser: least share of copies at any size", op=">=", bound=0.95),
    ),
)


def copies(samples: Tensor, data: Tensor) -> NDArray[np.bool_]:
    """Which samples (N, ...) are copies of an item of data (M, ...), M at least 2, by the ratio."""
    distance = torch.cdist(samples.flatten(1).double(), data.flatten(1).double(), compute_mode="donot_use_mm_for_euclid_dist")
    near = distance.topk(2, dim=1, largest=False).values
    return (near[:, 0] < RATIO * near[:, 1]).numpy()


def pictures(split: str, n: int, seed: int, codec: RGBACodec | None = None) -> tuple[Tensor, RGBACodec]:
    """n small pictures of a split in model space (n, 4, 16, 16), and the codec, fitted unless given."""
    raw = emoji.real(emoji.rows(split, n, seed), SIDE)
    codec = codec or RGBACodec.fit(raw)
    return codec.encode(raw), codec


def measure(settings: Settings, say: Say) -> Found:
    """One network for each size; quick: the exact denoisers alone."""
    sizes, samples = (SIZES[:2], 48) if settings.quick else (SIZES, SAMPLES)
    train, codec = pictures("train", sizes[-1], settings.seed)
    unseen, _ = pictures("heldout_concept", samples, settings.seed, codec)
    share: dict[int, Figure] = {}
    alarm: dict[int, Figure] = {}
    exact: dict[int, Figure] = {}
    gap: dict[int, Figure] = {}
    cover: dict[int, float] = {}
    for n in sizes:
        data = train[:n]
        say(f"{n:,} pictures")
        alarm[n] = emoji.mean_of(f"{n:,} pictures: false alarms on real held-out pictures", copies(unseen, data))
        few = 16 if settings.quick else 64
        ideal = tiny.draw(DataSetDenoiser(Gaussian(Cosine()), data), data.shape[1:], few, settings.seed)
        exact[n] = emoji.mean_of(f"{n:,} pictures: share of copies by the exact denoiser", copies(ideal, data), "samples")
        if settings.quick:
            continue
        denoiser = tiny.trained(tiny.picture_network(4, 4, (64, 64)), data, STEPS, settings.seed, BATCH, say=say)
        made = tiny.draw(denoiser, data.shape[1:], samples, settings.seed)
        share[n] = emoji.mean_of(f"{n:,} pictures: share of copies", copies(made, data), "samples")
        seen_error = tiny.errors(denoiser, data[:samples], settings.seed)
        unseen_error = tiny.errors(denoiser, unseen, settings.seed)
        # two different sets of pictures: each side is resampled for itself
        low, high = _difference(unseen_error, seen_error)
        more, what = float(unseen_error.mean() - seen_error.mean()), f"{n:,} pictures: error on unseen less that on seen"
        gap[n] = Figure(what=what, value=more, low=low, high=high, n=len(unseen_error), of="pictures")
        cover[n] = prdc(unseen.flatten(1).numpy(), made.flatten(1).numpy()).coverage
    least = min(end(f.value) for f in exact.values())
    if settings.quick:
        note = "With --quick the exact denoisers alone are measured: a network takes minutes to learn anything by heart."
        return Found(tuple(f for n in sizes for f in (alarm[n], exact[n])), {"exact": least}, (), (note,))
    first, last = sizes[0], sizes[-1]
    values = [end(share[n].value) for n in sizes]
    figures = [f for n in sizes for f in (share[n], alarm[n], exact[n], gap[n])]
    figures += [
        Figure(what=f"{n:,} pictures: coverage of held-out pictures", value=cover[n], n=samples, of="pictures") for n in sizes
    ]
    false = end(alarm[last].value)
    lines = [("the network", share), ("real held-out pictures (false alarms)", alarm), ("exact denoiser", exact)]
    return Found(
        tuple(figures),
        {
            "few": end(share[first].low),
            "many": end(share[last].high) - false,
            "falls": max(b - a for a, b in zip(values, values[1:], strict=False)),
            "gap": end(gap[first].low) - end(gap[last].high),
            "cover": cover[last] - cover[first],
            "exact": least,
        },
        (
            Plot(name="copies", title="Share of copies", x_name="training pictures", y_name="share", log_x=True,
                 lines=[_line(name, by_size) for name, by_size in lines]),
            Plot(name="gap", title="Error on unseen less that on seen pictures", x_name="training pictures", y_name="error",
                 log_x=True, lines=[_line("gap", gap)]),
            Plot(name="coverage", title="Coverage of held-out pictures", x_name="training pictures", y_name="coverage",
                 log_x=True, lines=[Line(name="coverage", x=[float(n) for n in sizes], y=[cover[n] for n in sizes])]),
        ),
    )  # fmt: skip


def _line(name: str, by_size: dict[int, Figure]) -> Line:
    figures = by_size.values()
    return Line(name=name, x=[float(n) for n in by_size], y=[end(f.value) for f in figures], low=[end(f.low) for f in figures],
                high=[end(f.high) for f in figures])  # fmt: skip


def _difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    """The interval of the difference of two independent means: their intervals' half-widths, squared and added."""
    centre = float(one.mean() - other.mean())
    ends = [bootstrap_interval(values) for values in (one, other)]
    half = float(np.sqrt(sum((0.5 * (high - low)) ** 2 for low, high in ends)))
    return centre - half, centre + half
