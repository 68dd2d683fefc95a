"""The training step, and the loop around it that saves, reports and stops."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.losses import LogNormal, Weight, denoising_loss, stratified
from unfog.errors import UserError
from unfog.files import write_atomic
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
) -> tuple[float, float]:
    """One step: noise, predict, compare, descend, average. -> loss, gradient norm before clipping."""
    with torch.autocast(x0.device.type, dtype, enabled=dtype != torch.float32):
        loss = denoising_loss(denoiser, x0, cond, t, eps, weight).mean()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    parameters = list(network.parameters())
    norm = float(nn.utils.clip_grad_norm_(parameters, clip))
    for group in optimiser.param_groups:
        group["lr"] = lr
    if math.isfinite(norm):  # a broken batch must not reach the weights
        optimiser.step()
        ema.update(network, step + 1)
    return float(loss.detach()), norm


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


class Checkpoint:
    """The whole state of a run in one file, written atomically; `load` gives the step to go on from."""

    def __init__(self, path: Path, network: nn.Module, ema: PowerEMA, optimiser: MuonAdamW) -> None:
        self.path, self.network, self.ema, self.optimiser = path, network, ema, optimiser

    def save(self, step: int) -> None:
        state: dict[str, Tensor] = {"step": torch.tensor(step)}
        for prefix, network in (("network", self.network), ("ema", self.ema.network)):
            state |= {f"{prefix}.{k}": v.contiguous() for k, v in network.state_dict().items()}
        for index, p in enumerate(p for g in self.optimiser.param_groups for p in g["params"]):
            state |= {f"optimiser.{index}.{k}": v.contiguous() for k, v in self.optimiser.state.get(p, {}).items()}
        write_atomic(self.path, save(state))

    def load(self) -> int:
        try:
            state = load_file(self.path)
        except Exception as error:
            raise UserError(f"{self.path}: not a readable checkpoint ({str(error)[:80]}); start without --resume") from None
        for prefix, network in (("network", self.network), ("ema", self.ema.network)):
            own = network.state_dict()
            found = {k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(f"{prefix}.")}
            if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in found.items()}:
                raise UserError(f"{self.path}: made with another network; give the recipe it was made with")
            for key, value in own.items():
                value.copy_(found[key])
        parameters = [p for g in self.optimiser.param_groups for p in g["params"]]
        for key, value in state.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".")
                self.optimiser.state[parameters[int(index)]][name] = value.to(parameters[int(index)].device)
        return int(state["step"])


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
    """Train until `recipe.steps`, `minutes`, or an interrupt; always ends with a checkpoint. -> the average, the step."""
    peers = peers or Peers()
    optimiser, ema = MuonAdamW(network, recipe.lr), PowerEMA(network, recipe.ema, EMA_EVERY)
    checkpoint = Checkpoint(out / "checkpoint.safetensors", network, ema, optimiser)
    step = checkpoint.load() if resume and checkpoint.path.exists() else 0
    stop: list[int] = []
    previous = {s: signal.signal(s, lambda number, _frame: stop.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    began = saved = time.monotonic()
    network.train()
    broken = 0
    try:
        with open(out / "events.jsonl" if peers.leads else os.devnull, "a", encoding="utf-8") as events:
            while step < recipe.steps:
                late = minutes is not None and time.monotonic() - began >= minutes * 60
                if peers.meet(step, network, bool(stop) or late):
                    break
                start, index = time.monotonic(), peers.index(step)
                torch.manual_seed((recipe.seed + 1) * 999_983 + index)  # for dropout: a resumed run must drop the same
                x0, cond = corpus.batch(recipe, index)
                t, eps = draw(recipe, denoiser, x0.shape, index, device)
                lr = lr_at(recipe, step)
                loss, norm = train_step(network, denoiser, optimiser, ema, x0, cond, t, eps, lr=lr, clip=recipe.clip, step=step,
                                        dtype=dtype, weight=weight)  # fmt: skip
                broken = 0 if math.isfinite(norm) else broken + 1
                if broken >= 5:
                    checkpoint.save(step)  # whichever process: the broken batches have not reached the weights
                    raise UserError(f"step {step}: five batches in a row gave no finite gradient; lower lr (now {lr:g})")
                step += 1
                event = {"step": step, "loss": loss, "grad": norm, "lr": lr, "seconds": time.monotonic() - start}
                show(step, event)
                if step % 10 == 0 or step == recipe.steps:
                    events.write(json.dumps(event) + "\n")
                    events.flush()
                if not peers.leads:
                    continue
                if time.monotonic() - saved > recipe.checkpoint_minutes * 60:
                    checkpoint.save(step)
                    saved = time.monotonic()
                if step % recipe.report_steps == 0:
                    report(step, ema)
                    network.train()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for part in (network, ema.network):
        peers.average(part)
    if peers.leads:
        checkpoint.save(step)
    return ema, step
