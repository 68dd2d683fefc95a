"""From a recipe or a folder of pictures to a model folder: what `unfog train` does."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

import unfog
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
from unfog.requests import EstimateRequest, TrainRequest
from unfog.training import began
from unfog.training.budget import Budget, recorded
from unfog.training.checkpoint import only_run, saved_steps
from unfog.training.corpus import Corpus, build_corpus
from unfog.training.ema import PowerEMA
from unfog.training.feed import Feed
from unfog.training.gate import Scene, guard
from unfog.training.loop import fit
from unfog.training.machine import start_clock
from unfog.training.parallel import parallelise, sharded
from unfog.training.peers import Peers
from unfog.training.pictures import kept_set
from unfog.training.presets import DEFAULT, preset
from unfog.training.progress import Shown
from unfog.training.recipe import Recipe, read_recipe
from unfog.training.report import write_report
from unfog.training.states import text_states
from unfog.training.telemetry import ABOUT, Telemetry
from unfog.training.trackers import Trackers, check_trackers
from unfog.training.tuning import named, prepare, settled, tuned, with_prior
from unfog.training.watch import Watch

# what a recipe shares with the model that it starts from
FIXED = ("size", "network", "settings", "schedule", "prediction", "augment")


def settle(request: TrainRequest | EstimateRequest) -> tuple[Recipe, PictureSet, Model | None]:
    """The recipe of a request (a recipe file, or the defaults for a folder), the data it names, the model it starts from."""
    source, start = request.source, request.start
    if (source / ABOUT).is_file():
        raise UserError(f"{source}: holds a run; add --resume to go on, or give a recipe or pictures")
    if not of_folder(request):
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
        if request.preset is not None:
            raise UserError(f"preset: {source} has settings of its own; leave --preset out, or give a folder of pictures")
    else:
        if isinstance(request, TrainRequest) and request.resume and start is None and (kept := recorded(request.out)):
            start = kept.recipe.start
        own: dict[str, Any] = {"name": source.stem or "my-model", "data": str(source), "recolour": 0.0}
        model, data = load(start) if start else None, source
        if model is not None:  # so many steps at half the rate: enough for some thousand pictures, little is forgotten
            if request.preset is not None:
                raise UserError(f"preset: {start} has a network of its own; leave --preset out, or --start")
            theirs = _recipe_of(model)
            recipe = theirs.model_copy(update={**own, "steps": 2000, "lr": theirs.lr / 2})
        else:
            recipe = preset(request.preset or DEFAULT).recipe(**own)
    changed: dict[str, Any] = {"start": start} | ({} if request.steps is None else {"steps": request.steps})
    recipe = settled(recipe, request, model).model_copy(update=changed)
    return recipe, named(recipe, _opened(data, request)), model


def _opened(path: Path, request: TrainRequest | EstimateRequest) -> PictureSet:
    """The data; or, where they are gone and the run that goes on has kept its pictures, those."""
    try:
        return PictureSet.open(path)
    except UserError as error:
        out = request.out if isinstance(request, TrainRequest) and request.resume else None
        kept = kept_set(path, out) if out else None
        if out is None or kept is None:
            raise
        print(f"unfog: {error}; going on with the {len(kept)} pictures kept in {out / 'pictures'}", file=sys.stderr)
        return kept


def of_folder(request: TrainRequest | EstimateRequest) -> bool:
    """Whether the source is pictures, not a recipe."""
    return request.source.suffix not in (".json", ".py")


def first_network(recipe: Recipe, classes: int, model: Model | None) -> torch.nn.Module:
    """The network before its first step: drawn from the recipe's seed, or the weights of the model that it starts from."""
    network = build_network(recipe, classes)
    if model is not None:
        network.load_state_dict({k: v.float() for k, v in load_weights(model.folder, WEIGHTS).items()})
    return network


def _recipe_of(model: Model) -> Recipe:
    try:
        return Recipe.model_validate(model.card["training"]["recipe"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{model.folder}: does not say how it was trained; start from another model") from None


def build_network(recipe: Recipe, classes: int) -> torch.nn.Module:
    """The recipe's network, its first values drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    settings = {"dropout": recipe.dropout, **recipe.network_settings(classes)}
    try:
        return NETWORKS[recipe.network](**settings)
    except TypeError as error:
        raise UserError(f"recipe: settings do not fit network {recipe.network!r} ({error}); remove the unknown one") from None


def run_recipe(request: TrainRequest) -> Path:
    """Train and write: OUT/model (the model folder), OUT/checkpoints, OUT/events.jsonl, OUT/samples.

    Raises UserError before anything is written where the recipe, the data or OUT do not do.
    """
    start_clock()
    check_trackers(request.track)
    if request.resume and (request.source / ABOUT).is_file():  # a run's own folder says all
        request = request.model_copy(update={"source": request.source / ABOUT, "out": request.source})
    recipe, data, model = settle(request)
    if saved_steps(request.out) and not request.resume:
        raise UserError(f"{request.out}: already holds a run; add --resume to go on, or choose another --out")
    from unfog.training.estimate import begin

    recipe, budget = begin(request, recipe, data, model)
    if int(os.environ.get("RANK", 0)):  # the leader holds the folder for all
        return _run(recipe, request, model, *_corpora(recipe, request, data, model), budget)
    fresh = not request.out.exists()
    with only_run(request.out):
        try:
            corpora = _corpora(recipe, request, data, model)
        except UserError:
            if fresh:  # what this start has just made
                shutil.rmtree(request.out, ignore_errors=True)
            raise
        if budget is not None:
            budget.write()
        return _run(recipe, request, model, *corpora, budget)


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


def _run(recipe: Recipe, request: TrainRequest, model: Model | None, corpus: Corpus, held: Corpus, budget: Budget | None) -> Path:
    out = request.out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = fastest(device)
    network = first_network(recipe, len(corpus.styles), model)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    network.to(device)
    encoder, peers = TextEncoder.load(), Peers(recipe.average_steps, device)
    if not peers.leads:
        peers.wait()  # for the leader's text states and pictures
    corpus = with_prior(recipe, corpus, model, out)
    for part in {id(c): c for c in (corpus, held)}.values():
        text_states(part, encoder, out)
        part.to(device)
    if peers.leads:
        peers.wait()
    process = Gaussian(schedule_from_config(recipe.schedule))
    begun = request.resume and bool(saved_steps(out))
    if not (begun or recipe.subject or recipe.word):  # few pictures called alike are what the latter two are for
        plain = Preconditioned(network, process, recipe.prediction)
        guard(Scene(recipe, corpus, held, plain, network, device, model), request.force, shown=peers.leads)
    way = prepare(recipe, network)
    stepped = parallelise(network.to(device), recipe, peers, device)
    denoiser = Preconditioned(stepped, process, recipe.prediction)
    tuning = tuned(recipe, network, denoiser, [corpus, held], model, encoder, device)
    if peers.leads:
        print(f"{recipe.name}: {corpus.plain} pictures, {len(corpus.captions)} captions, {millions:.1f}M parameters{way}, "
              f"{device} {str(dtype).removeprefix('torch.')}, {recipe.steps} steps of {peers.batches} x {recipe.batch}",
              file=sys.stderr)  # fmt: skip
        about = {"name": recipe.name, "version": unfog.__version__, "recipe": recipe.model_dump(),
                 "parameters": round(millions * 1e6),
                 "device": device, "dtype": str(dtype).removeprefix("torch."), "processes": peers.count,
                 "pictures": corpus.plain, "recoloured": len(corpus.pictures) - corpus.plain,
                 "held_out": 0 if held is corpus else held.plain, "captions": len(corpus.captions),
                 "styles": corpus.styles}  # fmt: skip
        write_atomic(out / ABOUT, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
    watch = Watch(recipe, corpus, held, denoiser.process, dtype, device)
    trackers = Trackers(request.track, out, recipe.name, recipe.model_dump())
    telemetry = Telemetry(out, recipe, peers.leads, peers.batches, trackers)

    def report(step: int, ema: PowerEMA) -> None:
        from unfog.modalities.image.show import png_bytes

        began = time.monotonic()
        whole = tuning.whole(ema.network)
        # of a sharded network the others would have to lend their parts
        raw = None if recipe.word or sharded(network) else tuning.whole(tuning.learned)
        values, sheet = watch(whole, raw)
        telemetry.report(step, values, sheet)
        write_atomic(out / "samples" / f"{step:07d}.png", png_bytes(sheet))
        if tuning.model:
            save_model(out / "model", recipe, corpus, whole, step, values["held_out"], peers.batches)
        tuning.keep(out, ema.network, step, values["held_out"])
        write_report(out)
        show.report(step, values, time.monotonic() - began)

    feed = Feed(tuning.task, recipe.workers, peers.batches, recipe.steps * peers.batches)
    made = out / ("model" if tuning.model else "adapter")
    # a sharded network meets in its own passes, too
    with trackers, telemetry, Shown(recipe, peers.leads, recipe.name, peers.batches) as show, feed, peers.together():
        ema, step = fit(recipe, feed, tuning.learned, out, resume=request.resume, minutes=request.minutes, dtype=dtype,
                        report=report, show=show, peers=peers, plan=budget, telemetry=telemetry)  # fmt: skip
        # else the loop has just reported on this very model
        if peers.leads and (step % recipe.report_steps or not made.exists()):
            report(step, ema)
    return made
