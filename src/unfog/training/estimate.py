"""What a run would take on this machine: a few real steps of the very network, batch and data are measured, the rest is counted.

    total = start + (pictures)·decode + (captions)/rate + checks + steps·step + reports·report + checkpoints·checkpoint

step: the median after warm-up, averaging of weights included. Memory: the peak of the phase that needs most (reading the data,
text states, steps, checkpoint), each measured as growth of the process's own peak and scaled to the whole data. Disk: what a
run folder holds at the end.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unfog.diffusion import Gaussian, schedule_from_config
from unfog.diffusion.denoisers import Preconditioned
from unfog.errors import UserError
from unfog.modalities import modality
from unfog.modalities.contract import Items
from unfog.modalities.image.data import PictureSet
from unfog.model import Model
from unfog.networks.text import TOKENS, WIDTH
from unfog.precision import fastest
from unfog.requests import EstimateRequest, TrainRequest
from unfog.training.budget import KEPT, MINUTES, Budget, clock, recorded
from unfog.training.checkpoint import Checkpoints
from unfog.training.denoising import Denoising
from unfog.training.ema import WIDTHS
from unfog.training.estimate_data import Data, measure_data
from unfog.training.gate import FITTED, TRIED, Finding, Scene, examine
from unfog.training.gate_scene import warning
from unfog.training.loop import averages_of, train_step
from unfog.training.machine import Peak, crowded, memory, resident, since_start, start_clock
from unfog.training.optimisers import optimiser_of
from unfog.training.parallel import parallelise
from unfog.training.peers import Peers
from unfog.training.presets import CHOSEN, EPOCHS, LEAST_STEPS, PRESETS
from unfog.training.recipe import Recipe
from unfog.training.tuning import prepare
from unfog.training.watch import COUNT, NOISE_BINS, draw_samples, held_out_loss

STEPS, LONGEST = (3, 12), 6.0  # steps measured, fewest and most, and seconds after which no further one begins
LOSSES = 3  # sets of them in a report: held-out pictures by the average and by the weights themselves, training pictures
SHARE = {"tiny": 0.12}  # of the time for reports; else SHARE_ELSE
SHARE_ELSE = 0.05
FIRST = 50.0  # seconds in which tiny shows its first grid, where the data allow it
FEWEST = 20  # steps that are still called training


@dataclass(frozen=True)
class Speed:
    """What one recipe's steps take; seconds and bytes."""

    parameters: int
    step: float
    report: float
    checkpoint: float
    peak: int
    peak_device: int
    checkpoint_bytes: int
    picture_bytes: int  # of a sample grid


@dataclass(frozen=True)
class Estimate:
    """What a run takes; seconds and bytes."""

    preset: str | None
    network: str
    parameters: int
    size: int  # pixels a side; 0 where the items are no pictures
    batch: int
    steps: int
    pictures: int
    epochs: float
    budget_seconds: float | None
    setup_seconds: float
    step_seconds: float
    seconds_per_1000_steps: float
    report_seconds: float
    reports: int
    total_seconds: float
    first_grid_seconds: float
    memory_bytes: int
    gpu_memory_bytes: int
    disk_bytes: int
    warnings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "warnings": [asdict(finding) for finding in self.warnings]}

    def __str__(self) -> str:
        preset, size = f"{self.preset}: " if self.preset else "", f", {self.size} px" if self.size else ""
        items = "pictures" if self.size else "items"
        rows = [
            ("network", f"{preset}{self.network}, {self.parameters / 1e6:.1f}M parameters{size}"),
            ("run", f"{self.steps} steps of {self.batch}: {self.pictures} {items}, {self.epochs:.3g} times each"),
            ("1,000 steps", clock(self.seconds_per_1000_steps)),
            ("set-up", clock(self.setup_seconds)),
            ("first samples", f"after {clock(self.first_grid_seconds)}"),
            ("total", clock(self.total_seconds) + (f" of {clock(self.budget_seconds)}" if self.budget_seconds else "")),
            ("memory", f"{self.memory_bytes / 2**30:.2f} GiB"
             + (f", GPU {self.gpu_memory_bytes / 2**30:.2f} GiB" if self.gpu_memory_bytes else "")),
            ("disk", f"{self.disk_bytes / 2**20:.0f} MiB"),
        ]  # fmt: skip
        lines = [f"{name:14}{text}" for name, text in rows]
        return "\n".join([*lines, *(f"{finding.degree:14}{finding.text}" for finding in self.warnings)])


def measure_steps(recipe: Recipe, data: Data, model: Model | None, longest: float = LONGEST) -> Speed:
    """Take a few steps as `fit` takes them, a part of a report, and a checkpoint in a temporary folder."""
    from unfog.training.run import first_network

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, corpus = fastest(device), data.corpus
    with torch.random.fork_rng(), tempfile.TemporaryDirectory(prefix="unfog-") as folder:
        with Peak() as peak:
            network = first_network(recipe, corpus, model).to(device)
            corpus.to(device)
            if recipe.lora:
                prepare(recipe, network)
            stepped = parallelise(network, recipe, Peers(), device)
            denoiser = Preconditioned(stepped, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction,
                                      project=modality(recipe.kind).project)  # fmt: skip
            task = Denoising(recipe, corpus, denoiser, network, device)
            optimiser, averages = optimiser_of(recipe, network, task.extra), averages_of(recipe, network)
            network.train()
            taken: list[float] = []
            began = time.perf_counter()
            for step in range(2 + STEPS[1]):
                start = time.perf_counter()
                if step >= 2 + STEPS[0] and start - began > longest:
                    break
                train_step(network, task.loss, optimiser, averages, task.batch(step), lr=recipe.lr * 1e-3, step=step, dtype=dtype,
                           clip=recipe.clip, accumulate=recipe.accumulate, whole=recipe.batch, extra=task.extra)  # fmt: skip
                taken.append(time.perf_counter() - start)
        with Peak() as peak_saved:
            start = time.perf_counter()
            Checkpoints(Path(folder), network, averages, optimiser).save(0)
            saved = time.perf_counter() - start
        size = sum(p.stat().st_size for p in Path(folder).rglob("*.safetensors"))
        parameters = sum(p.numel() for p in network.parameters())
        report, picture = _report(
            Preconditioned(averages[0].network, denoiser.process, recipe.prediction, project=denoiser.project),
            data,
            recipe,
            dtype,
            device,
        )
        report += saved * 2 * parameters / size  # the model folder, at half precision
    # a checkpoint is made on top of what the steps have left, freed or not: little of it goes back to the system
    most = max(peak.growth, peak_saved.before - peak.before + peak_saved.growth)
    return Speed(parameters, statistics.median(taken[2:]), report, saved, most, peak.device, size, picture)


def _report(denoiser: Preconditioned, data: Data, recipe: Recipe, dtype: torch.dtype, device: str) -> tuple[float, int]:
    """Seconds of a whole report and bytes of its picture, from as much of one as a few seconds allow."""
    from unfog.modalities.image.show import png_bytes

    corpus, held = data.corpus, min(COUNT, data.pictures)
    held_out_loss(denoiser, corpus, dtype, device, count=2)
    start = time.perf_counter()
    held_out_loss(denoiser, corpus, dtype, device, count=16)
    one = (time.perf_counter() - start) / (len(NOISE_BINS) * min(16, corpus.plain))  # seconds of one evaluation of one picture
    start = time.perf_counter()
    made, labels, _ = draw_samples(denoiser, corpus, recipe, dtype, device, rows=2)
    page = png_bytes(corpus.sheet(made, labels))
    shown = len(corpus.asked(recipe, 8)[1]) / len(labels)
    return (time.perf_counter() - start) * shown + one * len(NOISE_BINS) * held * LOSSES, round(len(page) * shown)


def reckon(recipe: Recipe, data: Data, speed: Speed, *, start: float, preset: str | None = None,
           budget: float | None = None, findings: tuple[Finding, ...] = ()) -> Estimate:  # fmt: skip
    """The whole run. start: seconds from the start of the process until the data are read, checks included."""
    setup = start + data.seconds
    reports = max(-(-recipe.steps // recipe.report_steps), 1)
    work = recipe.steps * speed.step + reports * speed.report
    checkpoints = 1 + int(work / (recipe.checkpoint_minutes * 60))
    first = min(recipe.steps, recipe.report_steps)
    encoded = data.captions * TOKENS * (WIDTH * 2 + 1)
    gpu = torch.cuda.is_available()
    disk = (min(checkpoints, 2) * speed.checkpoint_bytes + 2 * speed.parameters + encoded + reports * (speed.picture_bytes + 200)
            + min(recipe.snapshots, recipe.steps) * len(WIDTHS) * 2 * speed.parameters + recipe.steps // 10 * 120)  # fmt: skip
    return Estimate(
        preset, recipe.network, speed.parameters, recipe.size if recipe.kind == "image" else 0, recipe.batch, recipe.steps,
        recipe.steps * recipe.batch,
        recipe.steps * recipe.batch / max(data.pictures, 1), budget, setup, speed.step, 1000 * speed.step, speed.report, reports,
        setup + work + checkpoints * speed.checkpoint, setup + first * speed.step + speed.report,
        data.base + max(data.bytes_peak, (0 if gpu else data.bytes_kept) + speed.peak),
        data.bytes_kept + speed.peak_device if gpu else 0, disk, findings,
    )  # fmt: skip


def fitted(recipe: Recipe, data: Data, speed: Speed, seconds: float, start: float, preset: str | None) -> Recipe:
    """The recipe with as many steps as `seconds` hold, and reports that take a small share of them."""
    left = (seconds - start - data.seconds - speed.report - 2 * speed.checkpoint) * KEPT
    changed: dict[str, Any] = {}
    if preset is not None:
        share = SHARE.get(preset, SHARE_ELSE)
        every = max(10, math.ceil(speed.report / (share * speed.step)), 0 if preset in SHARE else int(left / speed.step / 20))
        soon = int((FIRST - start - data.seconds - speed.report) / speed.step) if preset in SHARE else 0
        changed["report_steps"] = max(10, round(min(every, soon) if soon >= 10 else every, -1))
        recipe = recipe.model_copy(update=changed)
    each = speed.step + speed.report / recipe.report_steps + speed.checkpoint * speed.step / (recipe.checkpoint_minutes * 60)
    changed["steps"] = int(left / each)
    if preset is not None:
        changed["steps"] = min(changed["steps"], max(LEAST_STEPS, EPOCHS * data.pictures // recipe.batch))
        changed["warm_up"] = min(recipe.warm_up, max(changed["steps"] // 10, 1))
    return recipe.model_copy(update=changed)


def planned(request: TrainRequest | EstimateRequest, recipe: Recipe, data: PictureSet | Items, model: Model | None) -> tuple[
    Recipe, Estimate | None
]:  # fmt: skip
    """The recipe of a request with its steps, and its preset where none is named, chosen so that a budget is kept.

    -> the recipe, and what it takes: None where nothing had to be measured. Raises UserError where no step fits.
    """
    from unfog.training.run import of_folder

    folder, named = of_folder(request), request.preset
    seconds = request.budget
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if seconds is not None:
            raise UserError("budget: several processes would each measure another pace; give --steps or --minutes")
        return recipe, None
    if seconds is None and folder and model is None and request.steps is None:
        seconds = MINUTES * 60
    if seconds is None and isinstance(request, TrainRequest):
        return recipe, None
    chosen_here = folder and model is None and recipe.kind == "image"
    names: list[Any] = [named] if chosen_here and named else list(CHOSEN) if chosen_here and request.steps is None else [None]
    began, own = since_start(), {"name": recipe.name, "data": recipe.data, "seed": recipe.seed}
    kept: dict[int, Data] = {}
    if len(names) > 1:
        assert seconds is not None
        names = _candidates(names, own, data, kept, seconds)
    for name in names:
        chosen = PRESETS[name].recipe(**own) if name and folder and model is None else recipe
        if request.steps is not None:
            chosen = chosen.model_copy(update={"steps": request.steps})
        read = kept.setdefault(chosen.size, measure_data(data, chosen, model) if chosen.size not in kept else kept[chosen.size])
        speed = measure_steps(chosen, read, model)
        measures = seconds is not None and request.steps is None
        # an estimate's own measuring is no part of the run that it is about, unless that run measures too
        start = (since_start() if measures else began) + 0.5 + TRIED * speed.step * max(FITTED / chosen.batch, 0.3)
        if seconds is not None and request.steps is None:
            chosen = fitted(chosen, read, speed, seconds, start, name if folder and model is None else None)
            wanted = PRESETS[name].wanted if name else 0
            if name != names[-1] and chosen.steps * chosen.batch < wanted:
                continue
        if chosen.steps < FEWEST and seconds is not None:
            least = start + read.seconds + speed.report + 2 * speed.checkpoint + FEWEST * speed.step
            held, setup = f"{clock(seconds)} hold {max(chosen.steps, 0)} steps", clock(start + read.seconds)
            raise UserError(f"budget: {held}, as set-up takes {setup}; give {clock(1.3 * least)} or more, or fewer pictures")
        findings: tuple[Finding, ...] = ()
        if isinstance(request, EstimateRequest):  # a run makes these checks itself, with all its data
            with Peak():
                findings = tuple(examine(scene(chosen, read, data, model)))
        found = reckon(chosen, read, speed, start=start, preset=name, budget=seconds, findings=findings)
        # what was held here for a part of the data is held for all of them too
        found = dataclasses.replace(found, memory_bytes=max(found.memory_bytes, Peak.highest))
        return chosen, with_machine(found)
    raise AssertionError("the last of the names is always taken")


def _candidates(
    names: list[Any], own: dict[str, Any], data: PictureSet | Items, kept: dict[int, Data], seconds: float
) -> list[Any]:
    """Presets that may reach what they want, by a short look at the smallest; the last is always one."""
    recipe = PRESETS[names[-1]].recipe(**own)
    kept[recipe.size] = measure_data(data, recipe)
    speed = measure_steps(recipe, kept[recipe.size], None, longest=1.0)
    left = seconds - since_start() - kept[recipe.size].seconds
    reached = left / (speed.step / recipe.batch)
    return [n for n in names if reached / PRESETS[n].cost * 1.3 >= PRESETS[n].wanted]


def scene(recipe: Recipe, data: Data, found: PictureSet | Items, model: Model | None) -> Scene:
    """What the checks look at: the real network, and the pictures that were read."""
    from unfog.training.run import first_network

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng():
        network = first_network(recipe, data.corpus, model).to(device)
    process, project = Gaussian(schedule_from_config(recipe.schedule)), modality(recipe.kind).project
    denoiser = Preconditioned(network, process, recipe.prediction, project=project)
    count = len(found.split("train"))
    return Scene(recipe, data.corpus, data.corpus, denoiser, network, device, model, count=count)


def with_machine(found: Estimate) -> Estimate:
    """The same with what the machine lacks said."""
    more: list[Finding] = []
    has = memory()
    if has is not None and found.memory_bytes > has + resident():
        needed = f"{found.memory_bytes / 2**30:.1f} GiB are needed and {has / 2**30:.1f} are free"
        more.append(warning("memory", f"memory: {needed}; raise accumulate, lower batch or size, or take fewer pictures"))
    if crowded():
        busy = "machine: other programs hold the cores, where threads that wait for each other lose most"
        more.append(warning("threads", f"{busy}; set OMP_NUM_THREADS=1, or wait for them to end"))
    return dataclasses.replace(found, warnings=(*found.warnings, *more))


def estimate(request: EstimateRequest) -> Estimate:
    """Measure for some seconds what `unfog train` with the same options would take. Raises UserError as that would."""
    from unfog.training.run import settle

    start_clock()
    recipe, data, model = settle(request)
    _, found = planned(request, recipe, data, model)
    assert found is not None
    return found


def begin(request: TrainRequest, recipe: Recipe, data: PictureSet | Items, model: Model | None) -> tuple[Recipe, Budget | None]:
    """The recipe that a run trains by and its plan, which keeps it within a budget; None where a recipe file says it all."""
    import sys

    from unfog.training.run import of_folder

    kept = recorded(request.out) if request.resume else None
    began = time.monotonic() - since_start()
    if kept is not None:
        if request.steps is not None:
            kept.steps = [{"from": 0, "steps": request.steps}]
        kept.seconds, kept.began = request.budget, began
        return kept.recipe, kept
    recipe, found = planned(request, recipe, data, model)
    if found is None:  # without a recipe file, what was chosen must be known when the run is resumed
        alone = of_folder(request) and int(os.environ.get("WORLD_SIZE", 1)) == 1
        return recipe, Budget(request.out, recipe, preset=request.preset) if alone else None
    preset = f"preset {found.preset} ({PRESETS[found.preset].about}), " if found.preset else ""
    steps = f"{recipe.steps} steps of {recipe.batch}, {clock(found.step_seconds)} each"
    times = f"about {clock(found.total_seconds)} of {clock(found.budget_seconds or 0)}"
    first = f"first samples after {clock(found.first_grid_seconds)}"
    print(f"unfog: {preset}{steps}: {times}, {first}; --budget 2h, --preset base or --steps 1000 change that", file=sys.stderr)
    reserve = found.report_seconds + 2.0
    return recipe, Budget(request.out, recipe, found.budget_seconds, began, reserve, found.preset)
