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
from unfog import modalities
from unfog.checks import lookup
from unfog.diffusion import Gaussian, schedule_from_config
from unfog.diffusion.denoisers import Preconditioned
from unfog.errors import UserError
from unfog.files import load_weights, write_atomic
from unfog.modalities import modality
from unfog.modalities.contract import Items
from unfog.modalities.image.data import PictureSet
from unfog.model import WEIGHTS, Model, load, save_model
from unfog.networks.style import StyleReader
from unfog.networks.text import TextEncoder
from unfog.networks.unet import UNet
from unfog.precision import fastest
from unfog.requests import EstimateRequest, TrainRequest
from unfog.training import began
from unfog.training.autoencoder import is_autoencoder, train_autoencoder
from unfog.training.budget import Budget, recorded
from unfog.training.checkpoint import only_run, saved_steps
from unfog.training.corpus import Corpus
from unfog.training.ema import PowerEMA
from unfog.training.feed import Feed
from unfog.training.gate import Scene, guard
from unfog.training.item_corpus import item_corpora
from unfog.training.latents import kept_autoencoder, latent_states
from unfog.training.loop import fit
from unfog.training.machine import start_clock
from unfog.training.parallel import parallelise, sharded
from unfog.training.peers import Peers
from unfog.training.picture_corpus import PictureCorpus, build_corpus
from unfog.training.pictures import kept_set
from unfog.training.presets import DEFAULT, preset
from unfog.training.progress import Shown
from unfog.training.recipe import Recipe, checked, read_recipe
from unfog.training.report import write_report
from unfog.training.states import text_states
from unfog.training.steering import steered_corpora
from unfog.training.styling import StyledCorpus, primed
from unfog.training.telemetry import ABOUT, Telemetry
from unfog.training.trackers import Trackers, check_trackers
from unfog.training.tuning import named, prepare, settled, tuned, with_prior
from unfog.training.watch import Watch

# what a recipe shares with the model that it starts from
FIXED = ("kind", "options", "size", "network", "settings", "schedule", "prediction", "augment")


AS_FOUND = {"recolour": 0.0}  # of pictures of one's own


def settle(request: TrainRequest | EstimateRequest) -> tuple[Recipe, PictureSet | Items, Model | None]:
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
        for field in ("preset", "kind"):
            if getattr(request, field) is not None:
                raise UserError(f"{field}: {source} has settings of its own; leave --{field} out, or give a folder of data")
    else:
        if isinstance(request, TrainRequest) and request.resume and start is None and (kept := recorded(request.out)):
            start = kept.recipe.start
        own: dict[str, Any] = {"name": source.stem or "my-model", "data": str(source)}
        model, data = load(start) if start else None, source
        if model is not None:  # so many steps at half the rate: enough for some thousand pictures, little is forgotten
            if request.preset is not None:
                raise UserError(f"preset: {start} has a network of its own; leave --preset out, or --start")
            theirs = _recipe_of(model)
            if request.kind not in (None, theirs.kind):
                raise UserError(f"kind: {start} is of the kind {theirs.kind}; leave --kind out, or --start")
            recipe = theirs.model_copy(
                update={**own, **(AS_FOUND if theirs.kind == "image" else {}), "steps": 2000, "lr": theirs.lr / 2}
            )
        elif request.kind not in (None, "image"):
            recipe = of_kind(str(request.kind), request.preset, **own)
        else:
            recipe = preset(request.preset or DEFAULT).recipe(**own, **AS_FOUND)
    changed: dict[str, Any] = {"start": start} | ({} if request.steps is None else {"steps": request.steps})
    recipe = settled(recipe, request, model).model_copy(update=changed)
    if recipe.kind != "image":
        return recipe, open_items(recipe, data), model
    return recipe, named(recipe, _opened(data, request)), model


def of_kind(kind: str, named: str | None, **own: Any) -> Recipe:
    """A preset of a kind that is not pictures (without a name the first that is not tiny), and `own` settings beside it.

    Raises UserError naming the nearest.
    """
    presets = modality(kind).presets
    name = named or next((name for name in presets if name != "tiny"), "tiny")
    fields = lookup(presets, name, f"preset of the kind {kind}")
    return checked({"kind": kind, **fields, **own}, f"preset {name}")


def open_items(recipe: Recipe, path: Path) -> Items:
    """The items of a recipe's kind at `path`; how many were left out is told once. Raises UserError where there are too few."""
    kind = modality(recipe.kind)
    items = kind.open(path, kind.options.model_validate(recipe.options))
    if items.skipped and not int(os.environ.get("RANK", 0)):
        why = ", ".join(f"{number} {reason}" for reason, number in items.skipped.items())
        print(f"unfog: {path}: left out {why}; {len(items)} items remain", file=sys.stderr)
    return items


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


def first_network(recipe: Recipe, corpus: Corpus, model: Model | None) -> torch.nn.Module:
    """The network before its first step: drawn from the recipe's seed, or the weights of the model that it starts from."""
    network = build_network(recipe, corpus.network_settings(recipe))
    if model is not None:
        network.load_state_dict({k: v.float() for k, v in load_weights(model.folder, WEIGHTS).items()})
    return network


def _recipe_of(model: Model) -> Recipe:
    try:
        return Recipe.model_validate(model.card["training"]["recipe"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{model.folder}: does not say how it was trained; start from another model") from None


def build_network(recipe: Recipe, settings: dict[str, Any]) -> torch.nn.Module:
    """The recipe's network with what the data decide (`settings`), its first values drawn from the recipe's seed.

    Raises UserError for an unknown setting.
    """
    torch.manual_seed(recipe.seed)
    return modalities.build_network(recipe.kind, recipe.network, {"dropout": recipe.dropout, **settings, **recipe.settings})


def told(corpus: Corpus) -> str:
    """How much there is to learn from, in words."""
    captions = f", {len(corpus.captions)} captions" if isinstance(corpus, PictureCorpus) else ""
    return f"{corpus.plain} {'pictures' if isinstance(corpus, PictureCorpus) else 'items'}{captions}"


def counts(corpus: Corpus) -> dict[str, Any]:
    """The same, for run.json."""
    if isinstance(corpus, PictureCorpus):
        return {"pictures": corpus.plain, "recoloured": len(corpus.pictures) - corpus.plain, "captions": len(corpus.captions),
                "styles": corpus.styles}  # fmt: skip
    return {"items": corpus.plain}


def run_recipe(request: TrainRequest) -> Path:
    """Train and write: OUT/model (the model folder), OUT/checkpoints, OUT/events.jsonl, OUT/samples.

    Raises UserError before anything is written where the recipe, the data or OUT do not do.
    """
    start_clock()
    check_trackers(request.track)
    if request.resume and (request.source / ABOUT).is_file():  # a run's own folder says all
        request = request.model_copy(update={"source": request.source / ABOUT, "out": request.source})
    if is_autoencoder(request.source):
        return train_autoencoder(request)
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


def _corpora(recipe: Recipe, request: TrainRequest, data: PictureSet | Items, model: Model | None) -> tuple[Corpus, Corpus]:
    """What to learn from and what to watch with."""
    if isinstance(data, Items):
        return _of_items(recipe, request, data, model)
    return _of_pictures(recipe, request, data, model)


def _of_items(recipe: Recipe, request: TrainRequest, items: Items, model: Model | None) -> tuple[Corpus, Corpus]:
    """The space is the model's, or the one that the run began with, or fitted to the items."""
    kind = modality(recipe.kind)
    leads, out = not int(os.environ.get("RANK", 0)), request.out
    before = began.recall(out) if request.resume else None
    files = began.digests_of(items)
    if before and leads:
        began.tell_changes(items.path, before["files"], files)
    if before:
        space = kind.space(before["space"])
    else:
        space = model.space if model else kind.fit(items, kind.options.model_validate(recipe.options))
    if leads and not before:
        began.remember(out, files, {"items": len(items), "space": space.card()})
    return item_corpora(kind, items, space)


def _of_pictures(
    recipe: Recipe, request: TrainRequest, data: PictureSet, model: Model | None
) -> tuple[PictureCorpus, PictureCorpus]:
    """What to learn from and what to watch with. Classes and colours are the model's, or those that the run began with."""
    leads, out = not int(os.environ.get("RANK", 0)), request.out
    before = began.recall(out) if request.resume else None
    if before and leads:
        began.tell_changes(data.path, before["files"], began.digests(data))
    styles, codec = began.of_pictures(before) if before else (model.styles, model.codec) if model else (None, None)
    if recipe.autoencoder:
        codec = model.codec if model else kept_autoencoder(recipe.autoencoder, out, leads)
    corpus = build_corpus(data, recipe, styles=styles, codec=codec, out=out)
    if leads and not before:
        codec_ = {"mean": corpus.codec.mean, "std": corpus.codec.std}
        began.remember(out, began.digests(data), {"pictures": len(data), "styles": corpus.styles, **codec_})
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
    network = first_network(recipe, corpus, model)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    network.to(device)
    encoder, peers = TextEncoder.load() if recipe.kind == "image" else None, Peers(recipe.average_steps, device)
    if not peers.leads:
        peers.wait()  # for the leader's text states and pictures
    if isinstance(corpus, PictureCorpus):
        corpus, held = steered_corpora(recipe, [with_prior(recipe, corpus, model, out), held])
    for part in {id(c): c for c in (corpus, held)}.values():
        if isinstance(part, PictureCorpus) and encoder is not None:
            text_states(part, encoder, out)
            latent_states(part, out)
        part.to(device)
    if peers.leads:
        peers.wait()
    process, project = Gaussian(schedule_from_config(recipe.schedule)), modality(recipe.kind).project
    begun = request.resume and bool(saved_steps(out))
    added = recipe.control or recipe.style_reference
    if not (begun or recipe.subject or recipe.word or added):  # few pictures called alike are what these two are for
        plain = Preconditioned(network, process, recipe.prediction, project=project)
        guard(Scene(recipe, corpus, held, plain, network, device, model), request.force, shown=peers.leads)
    way = prepare(recipe, network)
    stepped = parallelise(network.to(device), recipe, peers, device)
    denoiser = Preconditioned(stepped, process, recipe.prediction, project=project)
    tuning = tuned(recipe, network, denoiser, [corpus, held], model, encoder, device)
    if isinstance(corpus, StyledCorpus) and isinstance(tuning.learned, StyleReader) and isinstance(network, UNet) and not begun:
        way += f", styles told by looks in {primed(tuning.learned, network, corpus, recipe.seed):.0%}"
    if peers.leads:
        print(f"{recipe.name}: {told(corpus)}, {millions:.1f}M parameters{way}, "
              f"{device} {str(dtype).removeprefix('torch.')}, {recipe.steps} steps of {peers.batches} x {recipe.batch}",
              file=sys.stderr)  # fmt: skip
        about = {"name": recipe.name, "version": unfog.__version__, "recipe": recipe.model_dump(),
                 "parameters": round(millions * 1e6),
                 "device": device, "dtype": str(dtype).removeprefix("torch."), "processes": peers.count,
                 "held_out": 0 if held is corpus else held.plain, **counts(corpus)}  # fmt: skip
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
        kept, losses, averaged = ema.network, values["held_out"], raw is None or bool(values["kept"])
        if raw is not None and not averaged:  # the average is of too much of the run
            kept, whole, losses = tuning.learned, raw, values["raw"]
        if tuning.model:
            save_model(out / "model", recipe, corpus, whole, step, losses, peers.batches, averaged)
        tuning.keep(out, kept, step, losses)
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
