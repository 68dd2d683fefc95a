"""From a recipe or a folder of pictures to a model folder: what `unfog train` does."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import unfog.data
from unfog.diffusion import Gaussian, Noise, make_grid, make_plan, sample, schedule_from_config
from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.losses import Space, denoising_loss
from unfog.errors import UserError
from unfog.files import load_weights, write_atomic
from unfog.modalities.image.data import PictureSet
from unfog.model import WEIGHTS, Model, load, save_model
from unfog.networks import NETWORKS
from unfog.networks.text import TextEncoder
from unfog.precision import fastest
from unfog.requests import TrainRequest
from unfog.training.checkpoint import only_run, saved_steps
from unfog.training.corpus import Corpus, build_corpus
from unfog.training.ema import PowerEMA
from unfog.training.loop import fit
from unfog.training.peers import Peers
from unfog.training.recipe import Recipe, read_recipe

NOISE_BINS = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # ln(sigma/alpha) at which held-out loss is measured


FIXED = ("size", "network", "settings", "schedule", "prediction")  # what a recipe shares with the model that it starts from


def settle(request: TrainRequest) -> tuple[Recipe, PictureSet, Model | None]:
    """The recipe of a request (a recipe file, or the defaults for a folder), the data it names, the model it starts from."""
    source, start = request.source, request.start
    if source.suffix in (".json", ".py"):
        recipe = read_recipe(source)
        start = start or recipe.start
        shipped = not Path(recipe.data).exists() and "/" not in recipe.data
        data = unfog.data.path(recipe.data) if shipped else Path(recipe.data)
        model = load(start) if start else None
        if model is not None:
            theirs = _recipe_of(model)
            for field in FIXED:
                if getattr(theirs, field) != getattr(recipe, field):
                    told = f"{getattr(theirs, field)!r}, not {getattr(recipe, field)!r}"
                    raise UserError(f"{source}: {field}: {start} has {told}; take the model's, or leave start out")
    else:
        own: dict[str, Any] = {"name": source.stem or "my-model", "data": str(source), "recolour": 0.0}
        model, data = load(start) if start else None, source
        recipe = Recipe(**own)
        if model is not None:  # so many steps at half the rate: enough for some thousand pictures, little is forgotten
            theirs = _recipe_of(model)
            recipe = theirs.model_copy(update={**own, "steps": 2000, "lr": theirs.lr / 2})
    changed: dict[str, Any] = {"start": start} | ({} if request.steps is None else {"steps": request.steps})
    return recipe.model_copy(update=changed), PictureSet.open(data), model


def _recipe_of(model: Model) -> Recipe:
    try:
        return Recipe.model_validate(model.card["training"]["recipe"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{model.folder}: does not say how it was trained; start from another model") from None


def build_network(recipe: Recipe, classes: int) -> torch.nn.Module:
    """The recipe's network, its first values drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    settings = {"channels": 4, "classes": classes, "dropout": recipe.dropout, **recipe.settings}
    try:
        return NETWORKS[recipe.network](**settings)
    except TypeError as error:
        raise UserError(f"recipe: settings do not fit network {recipe.network!r} ({error}); remove the unknown one") from None


@torch.inference_mode()
def held_out_loss(denoiser: Preconditioned, corpus: Corpus, dtype: torch.dtype, device: str, count: int = 64) -> dict[str, float]:
    """Mean loss at fixed noise of the first `count` held-out pictures, in each noise bin."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(corpus.plain)[:count]
    x0 = corpus.codec.encode(corpus.pictures[torch.from_numpy(chosen).to(device)])
    cond = corpus.cond(corpus.texts[chosen, 0], corpus.classes[chosen])
    eps = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32)).to(device)
    losses = {}
    for level in NOISE_BINS:
        t = torch.full((len(x0),), float(denoiser.process.schedule.time(-2 * level)), device=device)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            losses[f"{level:g}"] = float(denoising_loss(denoiser, x0, cond, t, eps).mean())
    return losses


@torch.inference_mode()
def sample_grid(denoiser: Preconditioned, corpus: Corpus, recipe: Recipe, dtype: torch.dtype, device: str, rows: int = 8) -> Any:
    """A contact sheet of `rows` captions in every style."""
    from unfog.modalities.image.show import contact_sheet

    columns = max(len(corpus.styles), 1)
    texts = np.repeat(np.random.default_rng(1).permutation(corpus.plain)[:rows], columns)
    label = np.tile(np.arange(columns), rows)
    numbers = corpus.texts[texts, 0]
    cond = corpus.cond(numbers, label)
    uncond = corpus.cond(np.zeros(1, int), np.array([len(corpus.styles)]))
    schedule = denoiser.process.schedule
    plan = make_plan("dpmpp_2m", schedule, make_grid("logsnr", schedule, 12))
    guided = ClassifierFree(denoiser, 2.5, uncond)
    noise = Noise(list(range(len(numbers))))
    x = denoiser.process.prior(noise.normal((4, recipe.size, recipe.size), 0), plan.start).to(device)
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        x0 = sample(plan, lambda x, t: guided(x, t, cond), x, noise)
    labels = [f"{corpus.captions[n]}" for n in numbers]
    from PIL import Image

    return contact_sheet([Image.fromarray(p) for p in corpus.codec.decode(x0)], labels, columns=columns * 2)


def run_recipe(request: TrainRequest) -> Path:
    """Train and write: OUT/model (the model folder), OUT/checkpoints, OUT/events.jsonl, OUT/samples.

    Raises UserError before anything is written where the recipe, the data or OUT do not do.
    """
    recipe, data, model = settle(request)
    if saved_steps(request.out) and not request.resume:
        raise UserError(f"{request.out}: already holds a run; add --resume to go on, or choose another --out")
    corpus = build_corpus(data, recipe, styles=model.styles, codec=model.codec) if model else build_corpus(data, recipe)
    unknown = sorted(set(data.styles) - set(corpus.styles))
    if unknown:
        print(f"unfog: {recipe.start} does not know style {', '.join(unknown)}: learned as of no style", file=sys.stderr)
    splits = [s for s in ("heldout_pair", "heldout_concept") if data.split(s)]
    held = build_corpus(data, recipe, splits[0], corpus.styles, corpus.codec) if splits else corpus
    if int(os.environ.get("RANK", 0)):  # the leader holds the folder for all
        return _run(recipe, request, model, corpus, held)
    with only_run(request.out):
        return _run(recipe, request, model, corpus, held)


def _run(recipe: Recipe, request: TrainRequest, model: Model | None, corpus: Corpus, held: Corpus) -> Path:
    out = request.out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = fastest(device)
    network = build_network(recipe, len(corpus.styles))
    if model is not None:
        network.load_state_dict({k: v.float() for k, v in load_weights(model.folder, WEIGHTS).items()})
    network.to(device)
    encoder, peers = TextEncoder.load(), Peers(recipe.average_steps, device)
    if not peers.leads:
        peers.wait()  # for the leader's text states
    for part in {id(c): c for c in (corpus, held)}.values():
        _states(part, encoder, out)
        part.to(device)
    if peers.leads:
        peers.wait()
    stepped = torch.compile(network) if recipe.compile else network
    denoiser = Preconditioned(stepped, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction)
    weight = Space(recipe.weight, limit=recipe.weight_limit) if recipe.weight else None
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    if peers.leads:
        print(f"{recipe.name}: {corpus.plain} pictures, {len(corpus.captions)} captions, {millions:.1f}M parameters, {device} "
              f"{str(dtype).removeprefix('torch.')}, {recipe.steps} steps of {peers.count} x {recipe.batch}",
              file=sys.stderr)  # fmt: skip

    def report(step: int, ema: PowerEMA) -> None:
        from unfog.modalities.image.show import png_bytes

        averaged = Preconditioned(ema.network, denoiser.process, denoiser.prediction, sigma_min=recipe.sigma_min)
        losses = held_out_loss(averaged, held, dtype, device)
        with open(out / "events.jsonl", "a", encoding="utf-8") as events:
            events.write(json.dumps({"step": step, "held_out": losses}) + "\n")
        write_atomic(out / "samples" / f"{step:07d}.png", png_bytes(sample_grid(averaged, held, recipe, dtype, device)))
        save_model(out / "model", recipe, corpus, ema.network, step, losses, peers.count)

    with _Shown(recipe, peers.leads) as show:
        ema, step = fit(recipe, corpus, network, denoiser, out, resume=request.resume, minutes=request.minutes, device=device,
                        dtype=dtype, report=report, show=show, weight=weight, peers=peers)  # fmt: skip
    # else the loop has just written this very model
    if peers.leads and (step % recipe.report_steps or not (out / "model").exists()):
        report(step, ema)
    return out / "model"


def _states(corpus: Corpus, encoder: TextEncoder, out: Path) -> None:
    """Text states from OUT/text-states if this run made them before (they cost minutes), else made and kept there."""
    import hashlib

    from safetensors.torch import load_file, save

    key = hashlib.sha256("\n".join(corpus.captions).encode()).hexdigest()[:16]
    path = out / "text-states" / f"{key}.safetensors"
    if path.exists():
        kept = load_file(path)
        corpus.states, corpus.masks = kept["states"], kept["masks"]
        return
    corpus.encode_captions(encoder)
    assert corpus.states is not None and corpus.masks is not None
    write_atomic(path, save({"states": corpus.states, "masks": corpus.masks}))


class _Shown:
    """Progress for a person on a terminal (rich), or a JSON line every half minute elsewhere."""

    def __init__(self, recipe: Recipe, leads: bool = True) -> None:
        self.recipe, self.leads, self.last = recipe, leads, 0.0
        self.bar: Any = None

    def __enter__(self) -> _Shown:
        if self.leads and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                                console=Console(stderr=True))  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.recipe.name, total=self.recipe.steps)
        return self

    def __call__(self, step: int, event: dict[str, Any]) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=f"{self.recipe.name} loss {event['loss']:.4f}")
        elif self.leads and time.monotonic() - self.last > 30:
            self.last = time.monotonic()
            left = (self.recipe.steps - step) * event["seconds"]
            rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in event.items()}
            print(json.dumps({**rounded, "eta_seconds": round(left)}), file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
