"""A GAN and a diffusion model on real pictures: the same pictures, resolutions and widths, and the same processor time.

Pictures: emoji-64's faces (category smileys-emotion, training split, five styles) at 16×16. The steps of each side are fixed, so
that both took about the same processor time where this was written; a seed gives the same pictures anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from unfog.claims import emoji
from unfog.claims.claim import Figure, Found, Line, Plot, Say, Settings, Statement, Test
from unfog.claims.gan import LABEL, SIDES
from unfog.claims.mixtures import end, over_runs
from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.grids import make_grid
from unfog.diffusion.losses import LogNormal, Space
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import sample
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import make_plan
from unfog.diffusion.schedules import Cosine
from unfog.evaluation.coverage import diversity, prdc
from unfog.evaluation.distances import kernel_distance
from unfog.evaluation.readers import reader
from unfog.modalities.image.codec import RGBACodec
from unfog.modalities.image.show import save_png
from unfog.networks.adversarial import Critic, Generator
from unfog.networks.unet import UNet
from unfog.training import gan

SIDE, LATENT = 16, 64
UNET, GAN = (2, (24, 48)), (2, (24, 48))  # pixels a side that become channels, widths
SAMPLER, STEPS = "auto", 20
EVERY = 8  # steps from one penalised step of the GAN to the next


@dataclass(frozen=True)
class Tuned:
    """What the sweep found for a side, and its steps."""

    steps: int
    batch: int
    lr: float
    other: float  # gamma of the GAN; mean of ln(sigma/alpha) of the diffusion model, whose deviation is 1.4
    kind: str  # loss of the GAN; prediction of the diffusion model


TUNED = {"diffusion": Tuned(480, 64, 3e-3, 0.0, "x0"), "gan": Tuned(480, 64, 3e-3, 0.1, "relativistic")}


@lru_cache(maxsize=1)
def faces() -> NDArray[np.uint8]:
    """The training pictures, straight RGBA (N, SIDE, SIDE, 4)."""
    data = emoji.data()
    return np.stack([data.load(i, SIDE) for i in data.split("train") if data.records[i].category == "smileys-emotion"])


@lru_cache(maxsize=1)
def codec() -> RGBACodec:
    return RGBACodec.fit(faces())


@dataclass(frozen=True)
class Run:
    """A trained side: `draw` n pictures from a seed; the loss curve; processor seconds it took; weights trained, and kept."""

    draw: Callable[[int, int], NDArray[np.uint8]]
    curve: list[list[float]]
    seconds: float
    weights: int
    kept: int


def trained(side: str, seed: int, tuned: Tuned) -> Run:
    """One run of "diffusion" or "gan"."""
    x0 = codec().encode(faces())

    def data(n: int, generator: torch.Generator) -> Tensor:
        return x0[torch.randint(len(x0), (n,), generator=generator)]

    settings = gan.Settings(tuned.steps, tuned.batch, (tuned.lr,), (seed,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = Generator(LATENT, SIDE, 4, *GAN) if side == "gan" else UNet(4, *UNET, (1, 1), (False, True), 64, 0)
        critic = Critic(SIDE, 4, *GAN) if side == "gan" else None
    kept = sum(p.numel() for p in network.parameters())
    if critic is not None:
        adversary = gan.Adversary((tuned.other,), LATENT, tuned.kind == "relativistic", EVERY)
        found = gan.train_gan(network, critic, data, settings, adversary)

        def made(n: int, seed: int) -> NDArray[np.uint8]:
            with torch.no_grad():
                return codec().decode(found.network(Noise(range(seed, seed + n)).normal((LATENT,), 0)))

        return Run(made, found.curve, found.seconds, kept + sum(p.numel() for p in critic.parameters()), kept)
    process, levels = Gaussian(Cosine()), LogNormal(tuned.other, 1.4)
    denoiser = Preconditioned(network, process, tuned.kind)
    found = gan.train_denoiser(denoiser, data, settings, [levels], Space("v", limit=30.0))
    denoiser = Preconditioned(found.network, process, tuned.kind, sigma_min=math.exp(tuned.other - 3 * 1.4))
    plan = make_plan(SAMPLER, process.schedule, make_grid("auto", process.schedule, STEPS))

    def walked(n: int, seed: int) -> NDArray[np.uint8]:
        noises = [Noise(range(first, min(first + 64, seed + n))) for first in range(seed, seed + n, 64)]
        return codec().decode(torch.cat([sample(plan, denoiser, noise.normal((4, SIDE, SIDE), 0), noise) for noise in noises]))

    return Run(walked, found.curve, found.seconds, kept, kept)


STATEMENT = Statement(
    title="In the same training time diffusion covers more of a picture set than a GAN",
    says="At equal cost a diffusion model's pictures cover the data better than a GAN's, which keep to a part of it.",
    source="Dhariwal & Nichol 2021, arXiv:2105.05233, §1 and table 5 (higher recall)",
    how="739 faces of emoji-64 in five styles at 16×16, no conditions. A U-Net, and a generator and a critic of its widths "
        "(R3GAN's loss and penalties), each tuned over a few settings on another seed, five seeds each, the same processor time: "
        "some 40 seconds, which is little for either. The U-Net has twice the GAN's weights: it attends and merges. "
        "EfficientNet-lite0 features of as many pictures made as there are real ones.",
    tests=(
        Test(key="coverage", says="coverage: diffusion less the GAN, mean of the seeds, lower end", op=">=", bound=0.0),
        Test(key="recall", says="recall: diffusion less the GAN, mean of the seeds, lower end", op=">=", bound=0.0),
        Test(key="distance", says="KID-lite0: the GAN's less diffusion's, lower end", op=">=", bound=0.0),
        Test(key="spread", says="spread of KID-lite0 over seeds: the GAN's over diffusion's", op=">=", bound=1.0),
    ),
)  # fmt: skip
MEASURED = {
    "distance": "KID-lite0",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "diversity": "mean distance of two pictures, over that of real ones",
}


@lru_cache(maxsize=1)
def real() -> NDArray[np.float32]:
    """Features of the training pictures."""
    return reader("lite0")(faces())


def measured(pictures: NDArray[np.uint8], against: NDArray[np.float32]) -> dict[str, float]:
    """The figures of MEASURED for pictures against real features (N, 1280)."""
    made = reader("lite0")(pictures)
    found = asdict(prdc(against, made))
    return {"distance": kernel_distance(against, made), **found, "diversity": diversity(made) / diversity(against)}


def outcome(side: str, seed: int, tuned: Tuned, n: int | None = None) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """One run's figures, as plain values, and its pictures (n of them; as many as are real)."""
    run = trained(side, seed, tuned)
    pictures = run.draw(n or len(faces()), 10_000)
    row = {"side": side, "seed": seed, "n": len(pictures), **{k: round(v, 5) for k, v in measured(pictures, real()).items()}}
    row |= {"steps": tuned.steps, "seconds": round(run.seconds, 1), "weights": run.weights, "kept": run.kept,
            "nfe": 1 if side == "gan" else STEPS, "curve": [[int(p[0]), round(p[1], 4)] for p in run.curve]}  # fmt: skip
    return row, pictures


def floor(seed: int) -> dict[str, float]:
    """The same figures of half of the real pictures against the other half."""
    order, half = np.random.default_rng([seed, 71]).permutation(len(real())), len(real()) // 2
    one, other = real()[order[:half]], real()[order[half:]]
    return {"distance": kernel_distance(one, other), **asdict(prdc(one, other)), "diversity": diversity(other) / diversity(one)}


def found_of(rows: Sequence[dict[str, Any]]) -> Found:
    """The claim's figures, values and plots from the rows of all runs."""
    of = {side: [row for row in rows if row["side"] == side] for side in SIDES}
    n, figures, plots = rows[0]["n"], [], []
    for side, runs in of.items():
        for key, what in MEASURED.items():
            figures.append(over_runs(f"{LABEL[side]}: {what}", [row[key] for row in runs], f"{n} pictures"))
        figures += [Figure(what=f"{LABEL[side]}: weights trained", value=runs[0]["weights"], n=0),
                    Figure(what=f"{LABEL[side]}: weights kept", value=runs[0]["kept"], n=0),
                    Figure(what=f"{LABEL[side]}: network evaluations a picture", value=runs[0]["nfe"], n=0)]  # fmt: skip
        lines = [Line(name=f"seed {row['seed']}", x=[p[0] for p in row["curve"]], y=[p[1] for p in row["curve"]]) for row in runs]
        plots.append(Plot(name=f"loss-{side}", title=f"faces: the {'critic' if side == 'gan' else 'denoising'} loss", lines=lines,
                          x_name="step", y_name="loss"))  # fmt: skip
    halves = [floor(seed) for seed in range(5)]
    for key, what in MEASURED.items():
        figures.append(over_runs(f"real halves: {what}", [half[key] for half in halves], f"{len(faces()) // 2} pictures"))
    gaps = {key: end(over_runs(key, [sign * (a[key] - b[key]) for a, b in zip(of["diffusion"], of["gan"], strict=True)], "").low)
            for key, sign in (("coverage", 1), ("recall", 1), ("distance", -1))}  # fmt: skip
    spread = {side: float(np.std([row["distance"] for row in runs], ddof=1)) for side, runs in of.items()}
    return Found(tuple(figures), {**gaps, "spread": spread["gan"] / spread["diffusion"]}, tuple(plots), NOTES)


NOTES = ("KID-lite0 and coverage are of EfficientNet-lite0 features and 16×16 pictures: they compare these two alone.",
         "A picture of the GAN takes one evaluation of its generator.")  # fmt: skip


def sheet(pictures: NDArray[np.uint8], out: Path, zoom: int = 3) -> None:
    """The first 64 pictures on white, eight a row, as a PNG. Raises: UserError where it cannot be written."""
    kept = pictures[: len(pictures[:64]) // 8 * 8].astype(np.float64)
    white = kept[..., :3] * (kept[..., 3:] / 255) + 255 - kept[..., 3:]
    n, side = white.shape[:2]
    tiles = white.round().astype(np.uint8).reshape(n // 8, 8, side, side, 3).swapaxes(1, 2).reshape(n // 8 * side, 8 * side, 3)
    save_png(Image.fromarray(tiles.repeat(zoom, 0).repeat(zoom, 1)), out)


def measure(settings: Settings, say: Say) -> Found:
    """Five seeds of both sides; quick: two seeds of a tenth of the steps, and fewer pictures."""
    rows = []
    for side in SIDES:
        tuned = TUNED[side]
        tuned = replace(tuned, steps=tuned.steps // 10) if settings.quick else tuned
        for seed in range(settings.seed, settings.seed + (2 if settings.quick else 5)):
            say(f"faces: {LABEL[side]}, seed {seed}")
            rows.append(outcome(side, seed, tuned, 100 if settings.quick else None)[0])
    return found_of(rows)
