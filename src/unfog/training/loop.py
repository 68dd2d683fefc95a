"""The training step, and the loop around it that saves, reports and stops."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.losses import LogNormal, Weight, denoising_loss, stratified
from unfog.errors import UserError
from unfog.training.checkpoint import Checkpoints, cut_events
from unfog.training.corpus import Corpus
from unfog.training.ema import PowerEMA
from unfog.training.optimisers import MuonAdamW
from unfog.training.peers import Peers
from unfog.training.recipe import Recipe

Cond = dict[str, Tensor]
EMA_EVERY = 4  # steps; each would cost a pass over all weights


def train_step(
    network: nn.Module,
    denoiser: Preconditioned,
    optimiser: MuonAdamW,
    ema: PowerEMA,
    x0: Tensor,
    cond: Cond,
    t: Tensor,
    eps: Tensor,
    *,
    lr: float,
    clip: float,
    step: int,
    dtype: torch.dtype,
    weight: Weight | None = None,
    accumulate: int = 1,
) -> tuple[float, float]:
    """One step: noise, predict, compare, descend, average. -> loss, gradient norm before clipping.

    accumulate: parts that the batch is worked through in, one after the other; the gradient is that of the whole.
    """
    optimiser.zero_grad(set_to_none=True)
    total, size = torch.zeros((), device=x0.device), -(-len(x0) // accumulate)
    for part in (slice(first, first + size) for first in range(0, len(x0), size)):
        with torch.autocast(x0.device.type, dtype, enabled=dtype != torch.float32):
            few = {key: value[part] for key, value in cond.items()}
            loss = denoising_loss(denoiser, x0[part], few, t[part], eps[part], weight).sum() / len(x0)
        loss.backward()
        total += loss.detach()
    parameters = list(network.parameters())
    norm = float(nn.utils.clip_grad_norm_(parameters, clip))
    for group in optimiser.param_groups:
        group["lr"] = lr
    if math.isfinite(norm):  # a broken batch must not reach the weights
        optimiser.step()
        ema.update(network, step + 1)
    return float(total), norm


def lr_at(recipe: Recipe, step: int) -> float:
    """Warm-up, constant, linear fall to zero over the last part: the constant part can be prolonged at any time."""
    falling = recipe.decay * recipe.steps
    rise = min(1.0, (step + 1) / max(recipe.warm_up, 1))
    return recipe.lr * min(rise, (recipe.steps - step) / falling if falling else 1.0)


def draw(recipe: Recipe, denoiser: Preconditioned, shape: torch.Size, index: int, device: str) -> tuple[Tensor, Tensor]:
    """Times (B,) and noise of batch `index`, from (seed, index) alone."""
    # drawn where it is used: a copy of a large batch's noise would cost more than the step
    generator = torch.Generator(device).manual_seed(recipe.seed * 1_000_003 + index)
    u = stratified(torch.rand(shape[0], generator=generator, dtype=torch.float64, device=device))
    t = LogNormal(recipe.noise_mean, recipe.noise_std).quantile(u, denoiser.process.schedule)
    return t.float(), torch.randn(shape, generator=generator, device=device)


def written(file: IO[str]) -> None:
    """Until the disk has it."""
    file.flush()
    if file.name != os.devnull:
        os.fsync(file.fileno())


def fit(
    recipe: Recipe,
    corpus: Corpus,
    network: nn.Module,
    denoiser: Preconditioned,
    out: Path,
    *,
    resume: bool,
    minutes: float | None,
    device: str,
    dtype: torch.dtype,
    report: Callable[[int, PowerEMA], None],
    show: Callable[[int, dict[str, Any]], None],
    weight: Weight | None = None,
    peers: Peers | None = None,
) -> tuple[PowerEMA, int]:
    """Train until `recipe.steps`, `minutes`, or an interrupt; always ends with a checkpoint. -> the average, the step.

    OUT/events.jsonl gets loss, gradient norm and learning rate every ten steps: the same bytes however the run was cut.
    """
    peers = peers or Peers()
    optimiser, ema = MuonAdamW(network, recipe.lr), PowerEMA(network, recipe.ema, EMA_EVERY)
    checkpoints = Checkpoints(out, network, ema, optimiser, peers)
    step = checkpoints.load() if resume else 0
    if peers.leads:
        cut_events(out / "events.jsonl", step)
    stop: list[int] = []
    previous = {s: signal.signal(s, lambda number, _frame: stop.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    began = saved = time.monotonic()
    network.train()
    broken = 0
    try:
        with open(out / "events.jsonl" if peers.leads else os.devnull, "a", encoding="utf-8") as events:
            while True:
                now = time.monotonic()
                late = minutes is not None and now - began >= minutes * 60
                due = now - saved > recipe.checkpoint_minutes * 60
                done, save = peers.meet(step, network, bool(stop) or late, due)
                if done or step >= recipe.steps:
                    break
                if save:
                    written(events)
                    checkpoints.save(step)
                    saved = now
                start, index = time.monotonic(), peers.index(step)
                torch.manual_seed((recipe.seed + 1) * 999_983 + index)  # for dropout: a resumed run must drop the same
                x0, cond = corpus.batch(recipe, index)
                t, eps = draw(recipe, denoiser, x0.shape, index, device)
                lr = lr_at(recipe, step)
                loss, norm = train_step(network, denoiser, optimiser, ema, x0, cond, t, eps, lr=lr, clip=recipe.clip, step=step,
                                        dtype=dtype, weight=weight, accumulate=recipe.accumulate)  # fmt: skip
                broken = 0 if math.isfinite(norm) else broken + 1
                if broken >= 5:
                    if peers.count == 1:
                        checkpoints.save(step)  # the broken batches have not reached the weights
                    named = ", ".join(corpus.names[i] for i in corpus.chosen(recipe, index)[:4])
                    raise UserError(
                        f"step {step}: five batches in a row gave no finite gradient, the last with {named}; "
                        f"look at these pictures, or lower lr (now {lr:g})"
                    )
                step += 1
                event = {"step": step, "loss": loss, "grad": norm, "lr": lr}
                show(step, {**event, "seconds": time.monotonic() - start})
                if step % 10 == 0 or step == recipe.steps:
                    events.write(json.dumps(event) + "\n")
                    events.flush()
                if peers.leads and step % recipe.report_steps == 0:
                    report(step, ema)
                    network.train()
            written(events)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    checkpoints.save(step)
    for part in (network, ema.network):
        peers.average(part)
    return ema, step
