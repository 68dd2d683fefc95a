"""The training step, and the loop around it that saves, reports and stops: one for every kind of data.

What is learned comes in as a `Task`: batches by number, and the loss of each item of one. The loop knows neither pictures nor
diffusion; a task draws everything from (seed, number), so a run that was cut and resumed is the run that was not.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unfog.errors import UserError
from unfog.training import averages as kept
from unfog.training.checkpoint import Checkpoints
from unfog.training.ema import WIDTHS, PowerEMA
from unfog.training.optimisers import MuonAdamW, optimiser_of
from unfog.training.parallel import clipped, leaders
from unfog.training.peers import Peers
from unfog.training.recipe import LoopSettings
from unfog.training.spikes import Spikes
from unfog.training.telemetry import Telemetry, unmeasured

Batch = dict[str, Any]  # tensors whose first axis is the items, and dictionaries of such
EMA_EVERY = 4  # steps; each would cost a pass over all weights


class Task(Protocol):
    """What is learned. Calls are functions of the seed and their arguments only (and of the weights)."""

    @property
    def extra(self) -> nn.Module | None: ...  # what is trained beside the network: not averaged, not in the model

    def batch(self, index: int, rows: slice) -> Batch: ...  # these rows of batch `index`

    def loss(self, batch: Batch) -> Tensor: ...  # of each item, (B,)

    def names(self, index: int) -> list[str]: ...  # of the items of batch `index`, for an error


def length(batch: Batch) -> int:
    """The number of items in a batch."""
    for value in batch.values():
        return length(value) if isinstance(value, dict) else len(value)
    return 0


def part(batch: Batch, rows: slice) -> Batch:
    """Some items of a batch, in memory of their own: products of a view with gaps in it round otherwise."""
    kept = torch.contiguous_format
    return {k: part(v, rows) if isinstance(v, dict) else v[rows].clone(memory_format=kept) for k, v in batch.items()}


def train_step(
    network: nn.Module,
    loss_fn: Callable[[Batch], Tensor],
    optimiser: MuonAdamW,
    averages: Sequence[PowerEMA],
    batch: Batch,
    *,
    lr: float,
    clip: float,
    step: int,
    dtype: torch.dtype,
    accumulate: int = 1,
    whole: int | None = None,
    peers: Peers | None = None,
    extra: nn.Module | None = None,
    limit: float = math.inf,
    lap: Callable[[str], object] = unmeasured,
) -> tuple[float, float]:
    """One step: loss, backward, clip, descend, average. -> mean loss, gradient norm before clipping.

    batch: this process's share of `whole` items (None: all of them). accumulate: parts that it is worked through in, one after
    the other; the gradient is that of the whole. limit: a gradient whose norm is above it (or no number) leaves everything as
    it was. lap: told the name of each part of the step as it ends.
    """
    optimiser.zero_grad(set_to_none=True)
    items, first_weight = length(batch), next(network.parameters())
    total = torch.zeros((), device=first_weight.device)
    for first in range(min(accumulate, items)):  # every n-th item: n processes with one part each cut the batch alike
        with torch.autocast(first_weight.device.type, dtype, enabled=dtype != torch.float32):
            loss = loss_fn(part(batch, slice(first, None, accumulate))).sum() / (whole or items)
        lap("forward")
        loss.backward()
        lap("backward")
        total += loss.detach()
    parameters = [p for p in (*network.parameters(), *(extra.parameters() if extra else ())) if p.requires_grad]
    if peers is not None:
        total = peers.share(parameters, total)
    norm = clipped(parameters, clip)
    for group in optimiser.param_groups:
        group["lr"] = lr
    if norm <= limit and math.isfinite(norm):  # a broken batch must not reach the weights
        optimiser.step()
        for average in averages:
            average.update(network, step + 1)
    return float(total), norm


def averages_of(settings: LoopSettings, network: nn.Module) -> list[PowerEMA]:
    """The run's own average of the weights, and those that are kept for others to be made of."""
    others = [width for width in WIDTHS if settings.snapshots and width != settings.ema]
    return [PowerEMA(network, width, EMA_EVERY) for width in (settings.ema, *others)]


def keeps(settings: LoopSettings, step: int) -> bool:
    """Whether averages are kept after `step`: evenly over the run `snapshots` times (each step at most once), last at its end."""
    return step * settings.snapshots // settings.steps > (step - 1) * settings.snapshots // settings.steps


def lr_at(settings: LoopSettings, step: int) -> float:
    """Warm-up, constant, linear fall to zero over the last part: the constant part can be prolonged at any time."""
    falling = settings.decay * settings.steps
    rise = min(1.0, (step + 1) / max(settings.warm_up, 1))
    return settings.lr * min(rise, (settings.steps - step) / falling if falling else 1.0)


def fit(
    settings: LoopSettings,
    task: Task,
    network: nn.Module,
    out: Path,
    *,
    resume: bool,
    minutes: float | None,
    dtype: torch.dtype,
    report: Callable[[int, PowerEMA], None],
    show: Callable[[int, dict[str, Any]], None],
    peers: Peers | None = None,
    plan: Callable[[int], LoopSettings] | None = None,
    telemetry: Telemetry | None = None,
) -> tuple[PowerEMA, int]:
    """Train until `settings.steps`, `minutes`, or an interrupt; always ends with a checkpoint. -> the average, the step.

    plan: the settings that hold at a step, of which only `steps` may differ from `settings`.

    OUT/events.jsonl gets loss, gradient norm and learning rate every ten steps: the same bytes however the run was cut.
    """
    peers = peers or Peers()
    telemetry = telemetry or Telemetry(out, settings, peers.leads, peers.batches)
    averages = averages_of(settings, network)
    optimiser, ema, spikes = optimiser_of(settings, network, task.extra), averages[0], Spikes()
    checkpoints = Checkpoints(out, network, averages, optimiser, peers, {"spikes": spikes.state}, task.extra)
    step = checkpoints.load() if resume else 0
    settings = telemetry.settings = plan(step) if plan is not None else settings
    telemetry.begin(step, checkpoints.sums)
    lap = telemetry.lap if next(network.parameters()).device.type == "cpu" else unmeasured  # elsewhere the clock runs ahead
    stop: list[int] = []
    signals = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    previous = {s: signal.signal(s, lambda number, _frame: stop.append(number)) for s in signals}
    began = saved = time.monotonic()
    network.train()
    try:
        with telemetry:
            while True:
                settings = telemetry.settings = plan(step) if plan is not None else settings
                now = time.monotonic()
                late = minutes is not None and now - began >= minutes * 60
                due = now - saved > settings.checkpoint_minutes * 60
                done, save = peers.meet(step, network, bool(stop) or late, due)
                if done or step >= settings.steps:
                    break
                if save:
                    telemetry.settle()
                    checkpoints.save(step, telemetry.sums)
                    telemetry.lap("checkpoint")
                    saved = now
                start, (index, rows) = time.monotonic(), peers.place(step)
                torch.manual_seed((settings.seed + 1) * 999_983 + index)  # for dropout: a resumed run must drop the same
                telemetry.lap("rest")
                batch = task.batch(index, rows)
                waited = telemetry.lap("data")
                lr = lr_at(settings, step)
                with peers.together():
                    loss, norm = train_step(
                        network, task.loss, optimiser, averages, batch, lr=lr, clip=settings.clip, step=step, dtype=dtype,
                        accumulate=peers.parts(settings.accumulate), whole=settings.batch, peers=peers, extra=task.extra,
                        limit=spikes.limit, lap=lap,
                    )  # fmt: skip
                telemetry.lap("step" if lap is unmeasured else "optimiser")
                skipped = spikes.saw(norm)
                if spikes.broken:
                    if peers.alike:
                        checkpoints.save(step, telemetry.sums)  # the broken batches have not reached the weights
                    named = ", ".join(task.names(index)[:4])
                    raise UserError(
                        f"step {step}: five batches in a row gave no usable gradient (the last one's norm is {norm:.3g}), "
                        f"the last with {named}; look at these, or lower lr (now {lr:g})"
                    )
                step += 1
                event = {"step": step, "loss": loss, "grad": norm, "lr": lr, "skipped": skipped}
                show(step, {**event, "steps": settings.steps, "seconds": time.monotonic() - start, "waited": waited})
                telemetry.step(event)
                if keeps(settings, step):
                    whole = [leaders(average, peers) for average in averages if average.sigma_rel in WIDTHS]
                    if peers.leads:
                        kept.keep(out, step, [average for average in whole if average])
                if step % settings.report_steps == 0 and (averaged := leaders(ema, peers)):
                    telemetry.lap("rest")
                    report(step, averaged)
                    telemetry.lap("report")
                    network.train()
            telemetry.settle()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    checkpoints.save(step, telemetry.sums)
    for module in (network, *(average.network for average in averages)):
        peers.average(module)
    return leaders(ema, peers) or ema, step
