"""Checks at the start of training: what would spoil a run is told before hours are spent, with its mend.

Every check looks at the very network, data, schedule and loss of the run, on copies, with generators of its own: weights and
random states stay as found. An error refuses to train (`--force`: says so and goes on), a warning is only said.

The bugs that happened elsewhere (24 of them), and what covers each; those that touch training are planted in
tests/training/test_gate.py, the others in the tests named.

| bug | covered by |
|---|---|
| 1 step size from a formula, 2 last sigma not zero, 3 log 0 at the last step | sampling: diffusion/test_history_steps.py |
| 4 times and levels disagree | `schedule` (σ, α and log-SNR agree); sampling: test_history_steps.py |
| 5 an option accepted and unused | `conditions`; Recipe and networks refuse unknown fields: test_recipe.py |
| 6 a swapped sampler inherits the solver | sampling: test_history_steps.py |
| 7 v weights read as eps | `declared` |
| 8 zero SNR set after the table; division by zero at SNR 0 | `schedule`, `weight` |
| 9 wrong weight for v | `weight` (equal to its definition by x0 errors) |
| 10 default betas for a pretrained model | `settle` in run.py refuses: test_run.py; `schedule` |
| 11 average never updated, overwrites the weights, or is not what is exported | `overfit`, `settings`; test_run.py |
| 12 resume loses the data order | `draws` (a batch is a function of its number); test_checkpoint.py |
| 13 half-precision master weights | `precision` |
| 14 half precision overflows to black | `precision` (weights fit float16), `values` (codec) |
| 15 noise a batch, not an item | `draws` |
| 16 noise of another device | `draws` (noise of an item alone is its noise in the batch); test_history.py |
| 17 requests share a step counter | sampling: test_history.py |
| 18 scores on one batch, other weights, a double resize | evaluation: test_pictures.py, test_measures.py |
| 19 null class 1000; guidance on three channels | `labels`, `draws` (numbers fit the network); test_history.py |
| 20 kept pixels change through the autoencoder | `values` (round trip); test_history.py |
| 21 bits/dim offset for 8 bits only, 22 adaptive sampler hangs | sampling: test_history.py, test_adaptive.py |
| 23 loading asks the network | test_history.py (training uses the same `load`) |
| 24 times collide in bfloat16; state kept from the last run | `precision` (levels told apart); `draws`; test_history.py |
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from unfog.diffusion.losses import LogNormal
from unfog.diffusion.predictions import PREDICTIONS, Prediction
from unfog.diffusion.processes import expand
from unfog.errors import UserError
from unfog.networks.layers import fourier
from unfog.precision import fastest
from unfog.training.ema import PowerEMA
from unfog.training.gate_data import duplicates, held_out, items, labels, texts, values
from unfog.training.gate_items import encoded, repeated
from unfog.training.gate_scene import Finding, Scene, error, warning
from unfog.training.loop import EMA_EVERY, Batch, part, train_step
from unfog.training.optimisers import optimiser_of
from unfog.training.picture_corpus import PictureCorpus

__all__ = ["Finding", "Scene", "examine", "guard"]

FITTED, TRIED = 8, 4  # items of the batch that is fitted, and steps
HEARD = 1e-4  # of an output's size by which a condition must move it
FAINT = 2e-3  # mean size of a weight that was zero or is hardly trained
LEVELS = 1024  # noise levels that must be told apart
LR = (1e-5, 1e-2)  # usual learning rates of Muon and AdamW here


def settings(scene: Scene) -> Iterator[Finding]:
    """Learning rate, warm-up and average against the length of the run."""
    recipe = scene.recipe
    if not LR[0] <= recipe.lr <= LR[1]:
        yield (error if recipe.lr > 0.3 else warning)(
            "lr", f"lr: {recipe.lr:g} is far from what trains here; take 1e-3 (2e-3 for small networks)"
        )
    if recipe.warm_up >= recipe.steps > 1:
        yield warning(
            "lr",
            f"warm_up: {recipe.warm_up} steps are the whole run of {recipe.steps}, whose learning rate "
            f"never gets to lr; take {max(recipe.steps // 10, 1)} or fewer",
        )
    if recipe.steps < EMA_EVERY:
        yield warning(
            "ema",
            f"steps: {recipe.steps} are fewer than the {EMA_EVERY} after which weights are first "
            f"averaged, so the model would be untrained; take {EMA_EVERY} or more",
        )
    if recipe.ema > 0.2:
        yield warning("ema", f"ema: {recipe.ema:g} averages over nearly the whole run, its untrained start too; take about 0.1")
    if recipe.decay == 0 and recipe.steps > 1:
        yield warning("lr", "decay: 0 never lowers the learning rate, and the last steps stay noisy; take about 0.3")


def schedule(scene: Scene) -> Iterator[Finding]:
    """σ, α and log-SNR agree and fall; training lies inside; the prediction says something at its end."""
    own, prediction = scene.denoiser.process.schedule, scene.denoiser.prediction
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    alpha, sigma, level = own.alpha(t), own.sigma(t), own.logsnr(t)
    finite = torch.isfinite(level)
    if not finite.all() or not (level.diff() < 0).all():
        yield error("schedule", "schedule: log-SNR does not fall strictly with t; take cosine or linear")
    elif float((2 * (alpha.log() - sigma.log()) - level).abs().max()) > 1e-3 or float((own.time(level) - t).abs().max()) > 1e-3:
        yield error(
            "schedule",
            "schedule: alpha, sigma, log-SNR and time say different things; build it anew from its "
            "final betas (zero_terminal_snr before, not after)",
        )
    ones = torch.ones(1, dtype=torch.float64)
    if prediction.name in ("eps", "score") and float(own.alpha(ones)) <= 0:
        yield error(
            "zero SNR",
            f"prediction: {prediction.name} says nothing where the schedule ends in pure noise "
            "(alpha 0); take v, x0 or flow, or a schedule that ends above it, such as vp",
        )
    u = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    wanted = scene.recipe.noise_mean + scene.recipe.noise_std * torch.special.ndtri(u)
    least, most = (-0.5 * float(own.logsnr(end * ones)) for end in (0.0, 1.0))
    beyond = float(((wanted > most) | (wanted < least)).double().mean())
    if beyond > 0.02:
        end = f"{beyond:.0%} of the training noise lies beyond the schedule's end, ln(sigma/alpha) {most:.3g}"
        yield (error if beyond > 0.3 else warning)("noise", f"noise_mean: {end}; lower noise_mean or noise_std, or take cosine")
    elif abs(scene.recipe.noise_mean) > 4 or not 0.3 <= scene.recipe.noise_std <= 4:
        given = f"{scene.recipe.noise_mean:g} with deviation {scene.recipe.noise_std:g}"
        yield warning("noise", f"noise_mean: {given} leaves levels untrained that every picture passes; take about 0.3 and 1.3")


def weight(scene: Scene) -> Iterator[Finding]:
    """The weight is finite and positive at all training noise, and is what it says: the x0 error in that space."""
    _, denoiser, task = scene.copied()
    process, prediction = denoiser.process, denoiser.prediction
    u = ((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS).clamp(1e-4, 1 - 1e-4)
    t = LogNormal(scene.recipe.noise_mean, scene.recipe.noise_std).quantile(u, process.schedule)
    alpha, sigma = process.schedule.alpha(t), process.schedule.sigma(t)
    given = torch.ones_like(t) if task.weight is None else task.weight(prediction, alpha, sigma)
    x0, eps = (torch.randn(len(t), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    target = prediction.target(x0, eps, alpha, sigma)
    if not (torch.isfinite(given).all() and torch.isfinite(target).all() and (given >= 0).all() and given.max() > 0):
        yield error(
            "weight",
            "weight: not finite and positive over the training noise, so the loss would be NaN; take "
            "weight v with a weight_limit, or another prediction",
        )
        return
    x_t = expand(alpha, x0) * x0 + expand(sigma, x0) * eps
    inner = (alpha > 1e-3) & (sigma > 1e-3)
    if float((process.mix(x0, eps, t) - x_t)[inner].abs().max()) > 1e-4:
        yield error("weight", "process: mix is not alpha x0 + sigma eps; mend the process")
    back = prediction.to_x0(target, x_t, alpha, sigma)
    if float((back - x0)[inner].abs().max()) > 1e-3:
        yield error(
            "prediction",
            f"prediction: a perfect {prediction.name} network would not give back x0; mend its p, q, c_skip and c_out",
        )
    if scene.recipe.weight is not None:
        outs = [Prediction(name, prediction.data_std).affine(alpha, sigma)[1] for name in (scene.recipe.weight, prediction.name)]
        expected = ((outs[1] / outs[0]) ** 2).clamp(max=scene.recipe.weight_limit)
        if float(((given - expected).abs() / expected.clamp_min(1e-6))[inner].max()) > 1e-3:
            yield error(
                "weight",
                f"weight: {scene.recipe.weight} on {prediction.name} is not the error in that space; "
                "mend the weight's formula for this prediction",
            )


def precision(scene: Scene) -> Iterator[Finding]:
    """Float32 weights, finite, small enough for float16 files; noise levels told apart in the dtype of computation."""
    network, dtype = scene.network, fastest(scene.device)
    floating = [p for p in network.parameters() if p.is_floating_point()]
    low = {str(p.dtype).removeprefix("torch.") for p in floating if p.dtype in (torch.float16, torch.bfloat16)}
    if low:
        yield error(
            "precision",
            f"weights: kept in {', '.join(sorted(low))}, where small steps are rounded away; keep "
            "them in float32 and let autocast compute in bfloat16",
        )
    if not all(torch.isfinite(p).all() for p in floating):
        yield error("finite", "weights: hold NaN or infinity before the first step; start from another model")
    elif any(float(p.detach().abs().max()) > 3e4 for p in floating if p.numel()):
        yield error("precision", "weights: too large for the float16 that model folders hold (65,504); start from another model")
    spread = 3 * scene.recipe.noise_std
    levels = -2 * (scene.recipe.noise_mean + torch.linspace(-spread, spread, LEVELS, dtype=torch.float64))
    levels = levels[levels.abs() < scene.denoiser.logsnr_limit]
    times = scene.denoiser.process.schedule.time(levels)
    told = scene.denoiser.noise_level(times.float(), len(times), torch.device("cpu"))
    distinct = min(len(told.unique()), len(fourier(told, 64).to(dtype).unique(dim=0)))
    if scene.denoiser.noise_input == "logsnr" and len(levels) and distinct < 0.9 * len(levels):
        yield error(
            "times",
            f"noise levels: only {distinct} of {len(levels)} are told apart in {dtype}; compute log-SNR "
            "and its embedding in float32, and cast after",
        )


def draws(scene: Scene) -> Iterator[Finding]:
    """A batch is a function of its number, an item of its own seeds; numbers of classes fit the network."""
    network, _, task = scene.copied()
    size = scene.recipe.batch
    rows = slice(0, min(size, FITTED))
    first, again, part_of = task.batch(0, rows), task.batch(0, rows), task.batch(0, slice(0, min(size, 2)))
    cond: dict[str, Tensor] = first["cond"]
    room = getattr(getattr(network, "conditioning", None), "classes", len(scene.corpus.styles))
    if "class" in cond and room and not 0 <= int(cond["class"].min()) <= int(cond["class"].max()) <= room:
        found = int(cond["class"].max())  # a network without any room is told of by `conditions`
        yield error("labels", f"labels: style number {found} for {room} styles; no style is number {room}, so mend the corpus")
    for name in ("x0", "t", "noise"):
        if not torch.isfinite(first[name]).all():
            yield error("finite", f"batch: {name} holds NaN or infinity; mend the data or the codec")
        if not torch.equal(first[name], again[name]):
            yield error(
                "draws",
                f"batch: {name} of batch 0, drawn twice, differs, so a resumed run would be another one; "
                "draw it from the seed and the batch's number",
            )
        elif not torch.equal(first[name][: len(part_of[name])], part_of[name]):
            yield error(
                "draws",
                f"batch: {name} of an item depends on what else is drawn with it; draw each item's from a seed of its own",
            )
    noise = first["noise"].flatten(1)
    if len(noise) > 1 and bool((noise[0] == noise[1]).all()):
        yield error("draws", "batch: two items have the same noise; draw each item's from a seed of its own")
    if noise.numel() > 500 and (abs(float(noise.std()) - 1) > 0.15 or abs(float(noise.mean())) > 0.15):
        yield error(
            "draws",
            f"batch: noise has mean {float(noise.mean()):.2g} and deviation {float(noise.std()):.2g}; draw it from a unit normal",
        )
    if scene.recipe.recolour == 0 and scene.corpus.plain >= 2 * size:
        seen = [int(i) for k in range(min(scene.corpus.plain // size, 32)) for i in scene.corpus.chosen(scene.recipe, k)]
        if len(set(seen)) < len(seen):
            yield error(
                "draws",
                "batch: an epoch takes some pictures twice before others once; draw its order as one "
                "permutation of seed and epoch",
            )


def awake(network: nn.Module) -> nn.Module:
    """The network with small values where it starts from zero or is near it, so that every branch has an effect. Changes it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            if p.is_floating_point() and float(p.abs().mean()) < FAINT:
                p.add_((0.05 * torch.randn(p.shape, generator=generator)).to(p))
    return network


@torch.no_grad()
def conditions(scene: Scene) -> Iterator[Finding]:
    """Noise level and each condition move the output of the network (on a copy whose zeros are filled)."""
    network, denoiser, task = scene.copied()
    awake(network).float().eval()
    batch = task.batch(0, slice(0, min(scene.recipe.batch, 4)))
    x_t = denoiser.process.mix(batch["x0"], batch["noise"], batch["t"])
    t = batch["t"]
    cond, changes = scene.corpus.changed(batch["cond"])
    try:
        plain = denoiser.raw(x_t, t, cond)
        heard = {name: denoiser.raw(x_t, t, other) for name, other, _ in changes}
    except (RuntimeError, IndexError) as failed:
        reason = str(failed).split("\n")[0][:100]
        yield error("network", f"network: fails on the first batch ({reason}); mend settings or size in the recipe")
        return
    size = float(plain.abs().mean()) + 1e-12
    for name, _, mend in changes:
        if float((heard[name] - plain).abs().mean()) < HEARD * size:
            chosen = name == "captions" and scene.recipe.settings.get("text_dim") == 0
            yield (warning if chosen else error)(name, f"{name}: change nothing about what the network says; {mend}")
    level = denoiser.process.schedule.time(denoiser.process.schedule.logsnr(t.double()).clamp(-15, 15) + 2).to(t)
    other = denoiser.network(x_t.float(), denoiser.noise_level(level, len(t), t.device), cond)
    same = denoiser.network(x_t.float(), denoiser.noise_level(t, len(t), t.device), cond)
    if float((other - same).abs().mean()) < HEARD * size:
        yield error("noise level", "noise level: changes nothing about what the network says; pass logsnr on in it")


@torch.no_grad()
def declared(scene: Scene) -> Iterator[Finding]:
    """Weights to start from, read as what the recipe says they predict, denoise better than read as anything else."""
    if scene.model is None:
        return
    network, denoiser, task = scene.copied()
    network.eval()
    batch = task.batch(0, slice(0, min(scene.recipe.batch, 4)))
    own = denoiser.process.schedule
    t = torch.full_like(batch["t"], float(own.time(0.0)))
    alpha, sigma = own.alpha(t), own.sigma(t)
    x0 = batch["x0"]
    x_t = denoiser.process.mix(x0, batch["noise"], t)
    said = denoiser.raw(x_t, t, batch["cond"])
    stated = denoiser.prediction
    errors = {name: float((Prediction(name, stated.data_std).to_x0(said, x_t, alpha, sigma) - x0).square().mean())
              for name in PREDICTIONS if name != "score"}  # fmt: skip
    best = min(errors, key=lambda name: errors[name])
    if errors[stated.name] > 1.5 * errors[best] and errors[best] < 0.5:
        times = f"{errors[stated.name] / errors[best]:.1f} times better read as {best} than as {stated.name}"
        yield error("prediction", f"prediction: weights of {scene.recipe.start} denoise {times}; set prediction to {best}")


def overfit(scene: Scene) -> Iterator[Finding]:
    """A few real steps on one fixed batch at fixed noise lower its loss, move the weights, and reach their average."""
    network, _, task = scene.copied()
    network.train()
    if not any(p.requires_grad for p in network.parameters()):
        yield error("overfit", "network: all weights are frozen; let some require gradients")
        return
    rows = slice(0, min(scene.recipe.batch, FITTED))
    batch = task.batch(0, rows)
    lr = max(scene.recipe.lr, 1e-4)
    if scene.model is not None:
        lr /= 10  # weights that are trained are first made worse by a full step
    average = PowerEMA(network, scene.recipe.ema)
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimiser, dtype = optimiser_of(scene.recipe, network), fastest(scene.device)

    def loss(some: Batch) -> Tensor:
        return task.loss(part(some, slice(None)) | {"seeds": some["seeds"]})

    try:
        steps = [train_step(network, loss, optimiser, [average], batch, lr=lr, clip=scene.recipe.clip, step=k, dtype=dtype)
                 for k in range(TRIED)]  # fmt: skip
        with torch.no_grad(), torch.autocast(scene.device, dtype, enabled=dtype != torch.float32):
            last = float(task.loss(batch).mean())
    except (RuntimeError, IndexError, ValueError) as failed:
        reason = str(failed).split("\n")[0][:100]
        yield error("overfit", f"network: the first step fails ({reason}); mend settings or size in the recipe")
        return
    losses = [found for found, _ in steps] + [last]
    if not all(math.isfinite(v) for v in (*losses, *(norm for _, norm in steps))):
        yield error("overfit", f"training: loss or gradient is not finite in the first {TRIED} steps; lower lr, or mend the data")
        return
    now = dict(network.named_parameters())
    if min(losses[1:]) >= losses[0] * (1 - 1e-5) or losses[-1] > 10 * losses[0]:
        yield (warning if scene.model is not None and losses[-1] < 2 * losses[0] else error)(
            "overfit",
            f"training: {TRIED} steps on one batch do not lower its loss ({losses[0]:.4g} to "
            f"{losses[-1]:.4g}); lower lr, or mend loss, gradients or optimiser",
        )
    if all(torch.equal(start[name], p) for name, p in now.items()):
        yield error("overfit", "training: no weight moves; let the optimiser have the network's own parameters")
        return
    averaged = dict(average.network.named_parameters())
    if all(torch.equal(averaged[name], start[name]) for name in now):
        yield Finding(
            "error", "ema", "ema: the average is never updated, so the model would be untrained; call update every step"
        )
    elif all(torch.equal(averaged[name], p) for name, p in now.items()):
        yield Finding(
            "error", "ema", "ema: average and weights are one and the same; average a copy, and leave the weights alone"
        )


Check = Callable[[Scene], Iterator[Finding]]
OF_PICTURES: tuple[Check, ...] = (items, values, duplicates, held_out, texts, labels)
OF_ITEMS: tuple[Check, ...] = (items, repeated, encoded)
CHECKS: tuple[Check, ...] = (settings, schedule, weight, precision, draws, conditions, declared, overfit)


def examine(scene: Scene) -> list[Finding]:
    """What is wrong, errors first. Nothing of the run changes: not the weights, not their gradients, no random state."""
    devices = [torch.cuda.current_device()] if scene.device == "cuda" else []
    found: list[Finding] = []
    with torch.random.fork_rng(devices):
        for check in (*(OF_PICTURES if isinstance(scene.corpus, PictureCorpus) else OF_ITEMS), *CHECKS):
            found += check(scene)
            if any(finding.about in ("network", "labels") and finding.degree == "error" for finding in found):
                break  # what runs the network would end in the same place
    return sorted(found, key=lambda finding: finding.degree != "error")


def guard(scene: Scene, force: bool = False, shown: bool = True) -> None:
    """Say what is wrong (if `shown`). Raises UserError for an error, which `force` makes a warning."""
    found = examine(scene)
    errors = [finding for finding in found if finding.degree == "error"]
    if errors and not force:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0].text}{more}; --force trains in spite of it")
    for finding in found if shown else ():
        print(f"unfog: warning: {finding.text}", file=sys.stderr)
