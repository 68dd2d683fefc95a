"""Latent against pixel space at equal training cost: the same small U-Net in three spaces.

    codec: each square of 4×4 pixels and 4 channels ↦ its first principal components, to unit variance, and back

Source: Rombach et al. 2022, arXiv:2112.10752 (with a learned autoencoder; a linear one here, which needs no training).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unfog.claims import emoji, tiny
from unfog.claims.claim import Figure, Found, Line, Plot, Say, Settings, Statement, Test
from unfog.claims.mixtures import end
from unfog.modalities.image.codec import RGBACodec

SIDE, SQUARE, KEPT = 32, 4, 16
BATCH = 32
WAYS = ("pixels", "pixels in squares", "latent")

STATEMENT = Statement(
    title="A latent space saves most of the cost",
    says="Diffusion in the latent space of an autoencoder reaches the quality of pixel space at a fraction of its cost.",
    source="Rombach et al. 2022, arXiv:2112.10752",
    how=f"Emoji at {SIDE}×{SIDE} pixels, small U-Nets without conditions, as many multiply-adds of training each: on pixels; "
    f"on pixels with each {SQUARE}×{SQUARE} square made channels inside the network, as emoji-64 has it; on latents of a linear "
    f"codec ({KEPT} principal components a square: a quarter of the numbers). Kernel distance (KID) of lite0 features to "
    "held-out pictures after decoding. A learned, nonlinear autoencoder at 128 px is measured in docs/latent.md.",
    tests=(
        Test(key="cost", says="multiply-adds of one evaluation, latent over pixels", op="<=", bound=0.25),
        Test(key="codec", says="kernel distance that the codec alone costs, over that of the latent model", op="<=", bound=0.25),
        Test(key="pixels", says="kernel distance at equal cost, latent less pixels, upper end", op="<", bound=0.0),
        Test(key="squares", says="kernel distance at equal cost, latent less pixels in squares, upper end", op="<", bound=0.0),
    ),
)


@dataclass(frozen=True)
class Squares:
    """A linear codec: basis (KEPT, n) of principal components of squares (n numbers), their mean (n,) and spread (KEPT,)."""

    basis: Tensor
    mean: Tensor
    spread: Tensor

    @classmethod
    def fit(cls, x0: Tensor) -> Squares:
        """From pictures (N, 4, H, W)."""
        rows = F.pixel_unshuffle(x0, SQUARE).permute(0, 2, 3, 1).flatten(0, 2).double()
        mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        kept = values.argsort(descending=True)[:KEPT]
        return cls(vectors[:, kept].T.float(), mean.float(), values[kept].sqrt().float())

    def encode(self, x0: Tensor) -> Tensor:
        """(N, KEPT, H/4, W/4)."""
        rows = F.pixel_unshuffle(x0, SQUARE).permute(0, 2, 3, 1)
        return (((rows - self.mean) @ self.basis.T) / self.spread).permute(0, 3, 1, 2).contiguous()

    def decode(self, latent: Tensor) -> Tensor:
        """Back to (N, 4, H, W)."""
        rows = (latent.permute(0, 2, 3, 1) * self.spread) @ self.basis + self.mean
        return F.pixel_shuffle(rows.permute(0, 3, 1, 2), SQUARE)


def multiply_adds(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> int:
    """Of one evaluation of one item of this shape."""
    network, counter = tiny.built(build, 0).eval(), FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.zeros(1, *shape), torch.zeros(1))
    return int(counter.get_total_flops()) // 2


def measure(settings: Settings, say: Say) -> Found:
    """Three networks of one budget; quick: no network, only what each costs."""
    # steps of the latent network; the others make as many as cost the same
    steps, n, count = (0, 24, 100) if settings.quick else (1_200, 192, 3_000)
    raw = emoji.real(emoji.rows("train", count, settings.seed), SIDE)
    codec = RGBACodec.fit(raw)
    x0 = codec.encode(raw)
    unseen = emoji.real(emoji.rows("heldout_concept", 24 if settings.quick else 300, settings.seed), SIDE)
    known = emoji.features(unseen)
    squares = Squares.fit(x0)
    builds = {
        "pixels": tiny.picture_network(4, 1, (16, 32, 64)),
        "pixels in squares": tiny.picture_network(4, SQUARE, (32, 64)),
        "latent": tiny.picture_network(KEPT, 1, (32, 64)),
    }
    spaces = {"pixels": x0, "pixels in squares": x0, "latent": squares.encode(x0)}
    cost = {way: multiply_adds(builds[way], tuple(spaces[way].shape[1:])) for way in WAYS}
    budget = steps * cost["latent"]
    kernels, figures = {}, []
    for way in WAYS:
        if settings.quick:
            figures.append(Figure(what=f"{way}: multiply-adds of one evaluation, millions", value=cost[way] / 1e6, n=0))
            continue
        rounds = max(1, round(budget / cost[way]))
        say(f"{way}, {rounds} steps")
        denoiser = tiny.trained(builds[way], spaces[way], rounds, settings.seed, BATCH, say=partial(_say, say, way))
        made = tiny.draw(denoiser, spaces[way].shape[1:], n, settings.seed, steps=20)
        pictures = codec.decode(squares.decode(made) if way == "latent" else made)
        kernels[way] = emoji.Kernel.of(emoji.features(pictures), known)
        figures += [
            Figure(what=f"{way}: multiply-adds of one evaluation, millions", value=cost[way] / 1e6, n=0),
            Figure(what=f"{way}: training steps of batch {BATCH} for the same cost", value=rounds, n=0),
            kernels[way].figure(f"{way}: KID-lite0 to held-out pictures"),
        ]
    rest = emoji.real(emoji.rows("heldout_pair", n, settings.seed), SIDE)
    floor = emoji.Kernel.of(emoji.features(rest), known)
    again = codec.decode(squares.decode(squares.encode(codec.encode(rest))))
    lost = emoji.Kernel.of(emoji.features(again), known)
    figures += [floor.figure("noise floor: KID-lite0 of other real pictures"),
                lost.less(floor, "the codec alone: KID-lite0 of those after encoding and decoding, less the floor")]  # fmt: skip
    if settings.quick:
        note = "With --quick nothing is trained: what a network costs and what the codec loses is all that is measured."
        return Found(tuple(figures), {"cost": cost["latent"] / cost["pixels"]}, (), (note,))
    gaps = {way: apart(kernels["latent"], kernels[way], f"KID-lite0, latent less {way}") for way in WAYS[:2]}
    figures += gaps.values()
    dots = []
    for way, found in kernels.items():
        shown = found.figure("")
        low, high = [end(shown.low)], [end(shown.high)]
        dots.append(Line(name=way, x=[cost[way] / 1e6], y=[found.value], low=low, high=high, dots=True))
    return Found(
        tuple(figures),
        {
            "cost": cost["latent"] / cost["pixels"],
            "codec": max(lost.value - floor.value, 0.0) / max(kernels["latent"].value, 1e-9),
            "pixels": end(gaps["pixels"].high),
            "squares": end(gaps["pixels in squares"].high),
        },
        (Plot(name="quality", title="Quality after the same training cost", lines=dots, log_x=True,
              x_name="million multiply-adds an evaluation", y_name="KID-lite0"),),
        ("Multiply-adds are counted, not timed, so that the result does not depend on the machine; small maps use a processor "
         "worse than large ones, so the time saved is less than the arithmetic.",),
    )  # fmt: skip


def _say(say: Say, way: str, line: str) -> None:
    say(f"{way}, {line}")


def apart(one: emoji.Kernel, other: emoji.Kernel, what: str) -> Figure:
    """The difference of two kernel distances of pictures that were drawn apart."""
    a, b = one.figure(""), other.figure("")
    half = math.hypot(end(a.high) - one.value, end(b.high) - other.value)
    gap = one.value - other.value
    return Figure(what=what, value=gap, low=gap - half, high=gap + half, n=len(one.parts), of="pictures of each")
