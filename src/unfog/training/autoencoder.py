"""Training an autoencoder of pictures: what `unfog train` does with a recipe that says `"learns": "autoencoder"`.

    d = decode(μ + σ·ε) − p        loss = |d| + over·|d_rgb − b·d_α| + edges·|∇d| + kl·KL(N(μ, σ²), N(0, 1)) + preview

p is premultiplied RGBA in [0, 1], b a random background of each item, so that an error of the edge's alpha counts as what is
seen of it. Trained on random crops: nothing in the network sees further than `reach`. The loop, averages, checkpoints, resuming
and several processes are those of every other run (`loop.fit`).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Tensor, nn

import unfog
import unfog.data
from unfog.errors import UserError
from unfog.evaluation.reconstruction import psnr
from unfog.files import write_atomic
from unfog.modalities.image.codec import premultiply
from unfog.modalities.image.data import PictureSet
from unfog.modalities.image.latent import CARD, LatentCodec, write_autoencoder
from unfog.networks.autoencoder import Autoencoder
from unfog.precision import fastest
from unfog.requests import TrainRequest
from unfog.schema import one_line
from unfog.training import began
from unfog.training.checkpoint import only_run, saved_steps
from unfog.training.denoising import mixed
from unfog.training.ema import PowerEMA
from unfog.training.feed import Feed
from unfog.training.loop import Batch, fit
from unfog.training.peers import Peers
from unfog.training.pictures import Decoded
from unfog.training.progress import Shown
from unfog.training.recipe import LoopSettings, Recipe, fields_of
from unfog.training.report import write_report
from unfog.training.telemetry import ABOUT, Telemetry
from unfog.training.trackers import Trackers, check_trackers

if TYPE_CHECKING:
    from PIL.Image import Image

COUNT = 128  # held-out pictures that a report reconstructs
MEASURED = 1_024  # training pictures over which the latents' mean and std are taken
SHOWN = 24  # pictures on a sheet, each beside its reconstruction
PATCHES = 65_536  # of which the straight paths' first values are made


class AutoencoderRecipe(LoopSettings):
    """Settings of one such run; unknown ones are refused."""

    learns: Literal["autoencoder"]
    name: str = "my-autoencoder"
    data: str = Field("emoji-64", description="a shipped data set, or a folder, .zip, .tar, .parquet, .npy or .npz")
    size: int = Field(128, ge=16, le=1024, description="pixels a side that pictures are read at")
    crop: int = Field(64, ge=8, le=1024, description="pixels a side of the parts that are trained on")
    settings: dict[str, Any] = Field(default_factory=dict, description="the network's own (networks/autoencoder.py)")
    over: float = Field(0.5, ge=0, description="weight of errors over a random background")
    edges: float = Field(0.0, ge=0, description="weight of errors of the differences between neighbouring pixels")
    square: float = Field(0.0, ge=0, description="weight of squared errors, beside the absolute ones")
    features: float = Field(0.0, ge=0, description="weight of errors of EfficientNet-lite0's features; a distance of the same "
                            "features, FD-lite0, then says less")  # fmt: skip
    kl: float = Field(1e-4, ge=0, description="weight of the latents' divergence from unit noise, a latent")
    picture_memory: float | None = Field(None, ge=0, exclude=True, description="GiB of memory that pictures may take")
    licences: list[str] = Field(default_factory=list, description="credits that the folder carries on")


def is_autoencoder(source: Path) -> bool:
    """Whether this file is such a recipe; what cannot be read is left to others to refuse."""
    if source.suffix not in (".json", ".py") or not source.is_file():
        return False
    try:
        fields = fields_of(source)
    except UserError:
        return False
    return isinstance(fields, dict) and fields.get("learns") == "autoencoder"


def read_autoencoder_recipe(path: Path) -> AutoencoderRecipe:
    """The recipe of a file. Raises UserError naming the file and the field."""
    try:
        recipe = AutoencoderRecipe.model_validate(fields_of(path))
    except ValidationError as error:
        raise UserError(f"{path}: {one_line(AutoencoderRecipe, error)}") from None
    try:
        with torch.device("meta"):
            factor = Autoencoder(**recipe.settings).factor
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: settings: {str(error)[:100]}; see networks/autoencoder.py") from None
    for field in ("size", "crop"):
        if getattr(recipe, field) % factor:
            raise UserError(f"{path}: {field}: {getattr(recipe, field)} is not a multiple of factor {factor}; choose one")
    if recipe.crop > recipe.size:
        raise UserError(f"{path}: crop: {recipe.crop} is more than size {recipe.size}; lower it")
    for field, plain in (("parallel", "replicate"), ("compile", "none"), ("checkpoint_activations", False)):
        if getattr(recipe, field) != plain:
            raise UserError(f"{path}: {field}: is not for autoencoders; leave it out")
    return recipe


@dataclass
class Reconstruction:
    """Crops of pictures (N, S, S, 4) uint8, there and back through the network, as a `Task`."""

    recipe: AutoencoderRecipe
    pictures: Tensor
    files: Sequence[str]
    network: Autoencoder
    device: str = "cpu"
    extra: nn.Module | None = None

    def __post_init__(self) -> None:
        self.read = _features(self.device) if self.recipe.features else None

    def chosen(self, index: int) -> np.ndarray:
        """Which pictures batch `index` is made of: each once an epoch, in an order of seed and epoch."""
        size, count = self.recipe.batch, len(self.pictures)
        places = np.arange(index * size, (index + 1) * size)
        orders = {e: np.random.default_rng([self.recipe.seed, e]).permutation(count) for e in set((places // count).tolist())}
        return np.array([orders[p // count][p % count] for p in places.tolist()])

    def batch(self, index: int, rows: slice = slice(None)) -> Batch:
        """x (B, 4, crop, crop), noise of the latents, a background (B, 3, 1, 1): of these rows of batch `index`."""
        recipe, crop = self.recipe, self.recipe.crop
        rng = np.random.default_rng([recipe.seed, index, 1])
        corners = rng.integers(recipe.size - crop + 1, size=(recipe.batch, 2))
        mirrored = rng.random(recipe.batch) < 0.5
        back = rng.random((recipe.batch, 3)).astype(np.float32)
        parts = []
        for i, (top, left), mirror in zip(self.chosen(index)[rows], corners[rows], mirrored[rows], strict=True):
            part = self.pictures[int(i), top : top + crop, left : left + crop]
            parts.append(part.flip(1) if mirror else part)
        x = premultiply(torch.stack(parts).to(self.device))
        side, generator = crop // self.network.factor, torch.Generator(self.device)
        noise = torch.empty(len(x), self.network.latent, side, side, device=self.device)
        for item, row in zip(noise, range(recipe.batch)[rows], strict=True):
            item.normal_(generator=generator.manual_seed(mixed(recipe.seed, index, row)))
        return {"x": x, "noise": noise, "back": torch.from_numpy(back[rows])[:, :, None, None].to(self.device)}

    def loss(self, batch: Batch) -> Tensor:
        """Of each item, (B,)."""
        recipe, x = self.recipe, batch["x"]
        mean, spread = self.network.encode(x)
        z = mean + (spread / 2).exp() * batch["noise"]
        made = self.network.decode(z)
        off = made - x
        seen = off[:, :3] - batch["back"] * off[:, 3:]
        loss = off.abs().mean((1, 2, 3)) + recipe.over * seen.abs().mean((1, 2, 3))
        if recipe.square:
            loss = loss + recipe.square * (off.square().mean((1, 2, 3)) + recipe.over * seen.square().mean((1, 2, 3)))
        if recipe.edges:
            across, down = off[..., 1:] - off[..., :-1], off[..., 1:, :] - off[..., :-1, :]
            loss = loss + recipe.edges * (across.abs().mean((1, 2, 3)) + down.abs().mean((1, 2, 3)))
        if self.read is not None:
            loss = loss + recipe.features * self.read(made, x, batch["back"])
        loss = loss + recipe.kl * 0.5 * (mean.square() + spread.exp() - 1 - spread).mean((1, 2, 3))
        small = self.network.preview(z.detach())  # its own affair: what latents are is decided by the rest
        wanted = F.avg_pool2d(x, x.shape[-1] // small.shape[-1])
        return loss + (small - wanted).square().mean((1, 2, 3))

    def names(self, index: int) -> list[str]:
        """The files that batch `index` is made of."""
        return [self.files[i] for i in self.chosen(index)]


def _features(device: str) -> Any:
    """(made, x, background) -> the mean distance of three stages of lite0's features, (B,)."""
    from unfog.evaluation.scorer import Scorer

    network = Scorer.load().lite0.eval().requires_grad_(False).to(device)

    def maps(planes: Tensor, back: Tensor) -> list[Tensor]:
        y, found = F.relu6(network.stem((planes[:, :3] + (1 - planes[:, 3:]) * back) * 2 - 1)), []
        for i, block in enumerate(network.blocks[: network.TAPS[1] + 1]):
            y = block(y)
            if i in (2, *network.TAPS):
                found.append(y)
        return found

    def apart(made: Tensor, x: Tensor, back: Tensor) -> Tensor:
        total = torch.zeros(len(x), device=x.device)
        with torch.no_grad():
            wanted = maps(x, back)
        for ours, theirs in zip(maps(made, back), wanted, strict=True):
            scale = theirs.square().mean((1, 2, 3), keepdim=True).sqrt() + 0.1
            total = total + ((ours - theirs) / scale).abs().mean((1, 2, 3))
        return total / 3

    return apart


def begun(recipe: AutoencoderRecipe, pictures: np.ndarray) -> Autoencoder:
    """The network before its first step: a patch-wise transform fitted to training pictures, blocks drawn from the seed."""
    torch.manual_seed(recipe.seed)
    network, rng = Autoencoder(**recipe.settings), np.random.default_rng([recipe.seed, 4])
    some = premultiply(torch.from_numpy(pictures[np.sort(rng.permutation(len(pictures))[:256])]))
    patches = F.pixel_unshuffle(some, network.factor).permute(0, 2, 3, 1).flatten(0, 2)
    network.begin(patches[torch.from_numpy(rng.permutation(len(patches))[:PATCHES])])
    return network


def codec_of(recipe: AutoencoderRecipe, network: Autoencoder, pictures: np.ndarray) -> LatentCodec:
    """The codec as it will be read again, of half-precision weights.

    Mean and std of each latent channel are those of what the decoder was trained on, means and noise together, over at most
    MEASURED of these pictures.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(pictures))[:MEASURED])
    device, cells = next(network.parameters()).device, 0
    total, squares = (torch.zeros(network.latent, dtype=torch.float64) for _ in range(2))
    with torch.inference_mode():
        for part in np.array_split(chosen, -(-len(chosen) // 32)):
            mean, spread = network.encode(premultiply(torch.from_numpy(pictures[part]).to(device)))
            total += mean.double().sum((0, 2, 3)).cpu()
            squares += (mean.double().square() + spread.double().exp()).sum((0, 2, 3)).cpu()
            cells += mean.shape[0] * mean.shape[2] * mean.shape[3]
    average = total / cells
    std = (squares / cells - average**2).clamp(min=1e-8).sqrt()
    codec = LatentCodec({"settings": recipe.settings, "mean": average.tolist(), "std": std.tolist()})
    return codec.take({k: v.detach().half() for k, v in network.state_dict().items()}, str(device))


def _sheet(pictures: np.ndarray, made: np.ndarray, decibels: np.ndarray) -> Image:
    from PIL import Image

    from unfog.modalities.image.show import contact_sheet

    items = [Image.fromarray(p) for pair in zip(pictures, made, strict=True) for p in pair]
    labels = [label for value in decibels for label in ("original", f"{value:.1f} dB")]
    return contact_sheet(items, labels, columns=8)


REFUSED = ("budget", "start", "kind", "preset", "lora", "lora_alpha", "lora_targets", "subject", "class_prompt", "prior_weight",
           "prior_count", "word", "word_vectors")  # fmt: skip


def train_autoencoder(request: TrainRequest) -> Path:
    """Train by such a recipe and write OUT/model. Raises UserError before anything is written where something does not do."""
    check_trackers(request.track)
    recipe = read_autoencoder_recipe(request.source)
    for field in REFUSED:
        if getattr(request, field, None) not in (None, [], ()):
            raise UserError(f"{field}: is not for autoencoders; leave --{field.replace('_', '-')} out")
    if request.steps is not None:
        recipe = recipe.model_copy(update={"steps": request.steps})
    if saved_steps(request.out) and not request.resume:
        raise UserError(f"{request.out}: already holds a run; add --resume to go on, or choose another --out")
    shipped = not Path(recipe.data).exists() and "/" not in recipe.data
    data = PictureSet.open(unfog.data.path(recipe.data) if shipped else Path(recipe.data))
    if not data.split("train"):
        raise UserError(f"{data.path}: no picture is for training; give pictures, or a data set with a split named train")
    if int(os.environ.get("RANK", 0)):  # the leader holds the folder for all
        return _run(recipe, request, data)
    with only_run(request.out):
        return _run(recipe, request, data)


def _decoded(data: PictureSet, recipe: AutoencoderRecipe, split: str, out: Path) -> tuple[np.ndarray, list[str]]:
    plain = Recipe(size=recipe.size, recolour=0.0, seed=recipe.seed, picture_memory=recipe.picture_memory)
    found = Decoded(data, split, plain, out)
    return found.finish(), [record.file_name for record in found.records]


def _run(recipe: AutoencoderRecipe, request: TrainRequest, data: PictureSet) -> Path:
    out, device = request.out, "cuda" if torch.cuda.is_available() else "cpu"
    dtype, peers = fastest(device), Peers(recipe.average_steps, device)
    before = began.recall(out) if request.resume else None
    if peers.leads:
        if before:
            began.tell_changes(data.path, before["files"], began.digests(data))
        else:
            began.remember(out, began.digests(data), {"pictures": len(data), "space": {}})
    pictures, files = _decoded(data, recipe, "train", out)
    splits = [s for s in ("heldout_concept", "heldout_pair") if data.split(s)]
    held = np.concatenate([_decoded(data, recipe, s, out)[0] for s in splits]) if splits else pictures
    network = begun(recipe, pictures).to(device)
    task = Reconstruction(recipe, torch.from_numpy(pictures), files, network, device)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    if peers.leads:
        kind = str(dtype).removeprefix("torch.")
        print(f"{recipe.name}: {len(pictures)} pictures, {millions:.2f}M parameters, {device} {kind}, {recipe.steps} steps of "
              f"{peers.batches} x {recipe.batch}", file=sys.stderr)  # fmt: skip
        about = {"name": recipe.name, "version": unfog.__version__, "recipe": recipe.model_dump(),
                 "parameters": round(millions * 1e6), "device": device, "dtype": kind, "processes": peers.count,
                 "held_out": len(held) if splits else 0, "pictures": len(pictures), "styles": data.styles}  # fmt: skip
        write_atomic(out / ABOUT, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
    some = held[np.sort(np.random.default_rng(0).permutation(len(held))[:COUNT])]
    trackers = Trackers(request.track, out, recipe.name, recipe.model_dump())
    telemetry = Telemetry(out, recipe, peers.leads, peers.batches, trackers)

    def report(step: int, ema: PowerEMA) -> None:
        from unfog.modalities.image.show import png_bytes

        start = time.monotonic()
        average = ema.network.eval()
        assert isinstance(average, Autoencoder)
        codec = codec_of(recipe, average, pictures)
        made = codec.decode(codec.encode(some))
        decibels = psnr(some, made)
        error = float(decibels.std() / max(len(decibels) - 1, 1) ** 0.5)
        values: Mapping[str, Any] = {"held_out": {"psnr": float(decibels.mean())}, "held_out_se": {"psnr": error}}
        sheet = _sheet(some[:SHOWN], made[:SHOWN], decibels[:SHOWN])
        telemetry.report(step, values, sheet)
        write_atomic(out / "samples" / f"{step:07d}.png", png_bytes(sheet))
        card = {**codec.card(), "name": recipe.name, "kind": "autoencoder", "licences": recipe.licences,
                "training": {"data": recipe.data, "steps": step, "processes": peers.batches, "recipe": recipe.model_dump(),
                             "pictures_seen": step * recipe.batch * peers.batches, "held_out": values["held_out"]}}  # fmt: skip
        write_autoencoder(out / "model", average, card)
        write_report(out)
        show.report(step, values, time.monotonic() - start)

    feed = Feed(task, recipe.workers, peers.batches, recipe.steps * peers.batches)
    with trackers, telemetry, Shown(recipe, peers.leads, recipe.name, peers.batches) as show, feed, peers.together():
        ema, step = fit(recipe, feed, network, out, resume=request.resume, minutes=request.minutes, dtype=dtype,
                        report=report, show=show, peers=peers, telemetry=telemetry)  # fmt: skip
        if peers.leads and (step % recipe.report_steps or not (out / "model" / CARD).exists()):
            report(step, ema)
    return out / "model"
