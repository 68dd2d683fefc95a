"""From a recipe or a folder of pictures to a model folder: what `unfog train` does."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import unfog.data
from unfog.diffusion import Gaussian, schedule_from_config
from unfog.diffusion.denoisers import Preconditioned
from unfog.errors import UserError
from unfog.files import load_weights, write_atomic
from unfog.modalities.image.data import PictureSet
from unfog.model import WEIGHTS, Model, load, save_model
from unfog.networks import NETWORKS
from unfog.networks.text import TextEncoder
from unfog.precision import fastest
from unfog.requests import TrainRequest
from unfog.training import began
from unfog.training.checkpoint import only_run, saved_steps
from unfog.training.corpus import Corpus, build_corpus
from unfog.training.denoising import Denoising
from unfog.training.ema import PowerEMA
from unfog.training.feed import Feed
from unfog.training.loop import fit
from unfog.training.peers import Peers
from unfog.training.pictures import kept_set
from unfog.training.progress import Shown
from unfog.training.recipe import Recipe, read_recipe
from unfog.training.states import text_states
from unfog.training.watch import held_out_loss, sample_grid

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
    return recipe.model_copy(update=changed), _opened(data, request), model


def _opened(path: Path, request: TrainRequest) -> PictureSet:
    """The data; or, where they are gone and the run that goes on has kept its pictures, those."""
    try:
        return PictureSet.open(path)
    except UserError as error:
        kept = kept_set(path, request.out) if request.resume else None
        if kept is None:
            raise
        print(f"unfog: {error}; going on with the {len(kept)} pictures kept in {request.out / 'pictures'}", file=sys.stderr)
        return kept


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


def run_recipe(request: TrainRequest) -> Path:
    """Train and write: OUT/model (the model folder), OUT/checkpoints, OUT/events.jsonl, OUT/samples.

    Raises UserError before anything is written where the recipe, the data or OUT do not do.
    """
    recipe, data, model = settle(request)
    if saved_steps(request.out) and not request.resume:
        raise UserError(f"{request.out}: already holds a run; add --resume to go on, or choose another --out")
    if int(os.environ.get("RANK", 0)):  # the leader holds the folder for all
        return _run(recipe, request, model, *_corpora(recipe, request, data, model))
    fresh = not request.out.exists()
    with only_run(request.out):
        try:
            corpora = _corpora(recipe, request, data, model)
        except UserError:
            if fresh:  # what this start has just made
                shutil.rmtree(request.out, ignore_errors=True)
            raise
        return _run(recipe, request, model, *corpora)


def _corpora(recipe: Recipe, request: TrainRequest, data: PictureSet, model: Model | None) -> tuple[Corpus, Corpus]:
    """What to learn from and what to watch with. Classes and colours are the model's, or those that the run began with."""
    leads, out = not int(os.environ.get("RANK", 0)), request.out
    before = began.recall(out) if request.resume else None
    if before and leads:
        began.tell_changes(data, before["files"])
    styles, codec = (before["styles"], before["codec"]) if before else (model.styles, model.codec) if model else (None, None)
    corpus = build_corpus(data, recipe, styles=styles, codec=codec, out=out)
    if leads and not before:
        began.remember(out, data, corpus.styles, corpus.codec)
    unknown = sorted(set(data.styles) - set(corpus.styles))
    if unknown and leads:
        whose = f"{recipe.start} does" if model else "the run did"
        print(f"unfog: {whose} not know style {', '.join(unknown)}: learned as of no style", file=sys.stderr)
    splits = [s for s in ("heldout_pair", "heldout_concept") if data.split(s)]
    if not splits:
        return corpus, corpus
    return corpus, build_corpus(data, recipe, splits[0], corpus.styles, corpus.codec, out, corpus.frames)


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
        text_states(part, encoder, out)
        part.to(device)
    if peers.leads:
        peers.wait()
    stepped = torch.compile(network) if recipe.compile else network
    denoiser = Preconditioned(stepped, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    if peers.leads:
        print(f"{recipe.name}: {corpus.plain} pictures, {len(corpus.captions)} captions, {millions:.1f}M parameters, {device} "
              f"{str(dtype).removeprefix('torch.')}, {recipe.steps} steps of {peers.batches} x {recipe.batch}",
              file=sys.stderr)  # fmt: skip

    def report(step: int, ema: PowerEMA) -> None:
        from unfog.modalities.image.show import png_bytes

        averaged = Preconditioned(ema.network, denoiser.process, denoiser.prediction, sigma_min=recipe.sigma_min)
        losses = held_out_loss(averaged, held, dtype, device)
        with open(out / "events.jsonl", "a", encoding="utf-8") as events:
            events.write(json.dumps({"step": step, "held_out": losses}) + "\n")
        write_atomic(out / "samples" / f"{step:07d}.png", png_bytes(sample_grid(averaged, held, recipe, dtype, device)))
        save_model(out / "model", recipe, corpus, ema.network, step, losses, peers.batches)

    task = Denoising(recipe, corpus, denoiser, network, device)
    feed = Feed(task, recipe.workers, peers.batches, recipe.steps * peers.batches)
    with Shown(recipe, peers.leads) as show, feed:
        ema, step = fit(recipe, feed, network, out, resume=request.resume, minutes=request.minutes, dtype=dtype, report=report,
                        show=show, peers=peers)  # fmt: skip
    # else the loop has just written this very model
    if peers.leads and (step % recipe.report_steps or not (out / "model").exists()):
        report(step, ema)
    return out / "model"
