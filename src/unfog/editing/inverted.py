"""An item changed through its own noise: down the probability-flow ODE, changed there or on the way back.

    reworded    back under the new prompt, with what the old one's guided estimate lacked of the item added to each estimate
    varied      noise ← slerp(noise, fresh noise, amount)
    led         noise ← slerp(a's, b's, w), D ← (1 − w)·D_a + w·D_b, for w from 0 to 1

Guidance is off (scale 1) on the way down, and on the way back of the latter two unless asked for, so that without a change the
item comes back: exactly, as the way back takes D + r with what the two ways differ by,

    r_i = D(x_{i−1}, t_{i−1}) − D(x_i, t_i)        x_i: the item on its way, t_{i−1} < t_i

since a step up by DDIM from t_{i−1} is undone by one down with the same D. All of these are known from the way down.
Sources: Song et al. 2021, arXiv:2010.02502, §4.3 and D.5; Ju et al. 2023 (direct inversion, there a difference of states),
arXiv:2310.01506; Liu et al. 2022, arXiv:2206.01714 (mixed estimates).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unfog.diffusion import Noise, State, begin, make_grid, make_plan, run
from unfog.diffusion.denoisers import Cond
from unfog.diffusion.editing import inversion, slerp
from unfog.diffusion.processes import Process
from unfog.editing.work import Work, followed, open_item
from unfog.errors import UserError
from unfog.prompts import Prompt
from unfog.script import Script

SAMPLER, STEPS = "ddim", 30
LOWEST = 0.002  # the level σ/α from which the way down begins, where the model was trained so far


@dataclass
class Noisy:
    """Where an item's way down ends, x (1, *D), and of each row of the way back: what is to be added to D (rows, 1, *D), and
    where the item itself is then."""

    x: Tensor
    rest: Tensor
    path: tuple[Tensor, ...] = ()
    exact: tuple[Tensor, ...] = ()  # the estimates that lead along it


class Mended:
    """D + r of the script's row."""

    def __init__(self, script: Script, rest: Tensor) -> None:
        self.script, self.rest = script, rest

    @property
    def process(self) -> Process:
        return self.script.process

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """x0 (B, *D)."""
        return self.script(x_t, t) + self.rest[self.script.row]


class _Through:
    """What the three share: two plans over one grid, and the way down."""

    def __init__(self, work: Work, strength: float = 1.0, usual: float = 1.0) -> None:
        request, model = work.request, work.model
        if request.sampler not in (None, SAMPLER):
            raise UserError(f"sampler: an item goes through its own noise by {SAMPLER}; leave {request.sampler!r} out")
        schedule = model.denoiser.process.schedule
        end = float(schedule.time(-2.0 * math.log(max(model.denoiser.sigma_min, LOWEST))))
        steps = request.steps or STEPS
        grid = make_grid("logsnr", schedule, steps, end=end)[-1 - max(round(strength * steps), 1) :]
        self.sampler = SAMPLER
        self.down, self.plan = inversion(SAMPLER, schedule, grid), make_plan(SAMPLER, schedule, grid)
        self.work, self.alpha = work, float(schedule.alpha(end))
        self.scale = float(usual if request.scale is None else request.scale)
        self.each, self.count = self.plan.nfe, request.n
        self.before = self.down.nfe + 1

    def _down(self, work: Work, prompt: Prompt, steered: bool = True) -> Iterator[tuple[int, Noisy | None]]:
        """Evaluations done, and at last where it ends."""
        rows = self.each
        script = work.script(prompt, None, work.request.seed or 0, self.plan, rows, 1.0, steered)
        script.row, found, path = rows - 1, [], []
        for state in run(self.down, script, begin(self.down, self.alpha * work.x0)):
            script.row = min(rows - state.nfe, rows - 1)  # the row of the way back that is at this level
            found.append(state.x0)
            path.append(state.x)
            yield state.nfe, None
        script.row = 0
        found.append(script(state.x, self.plan.start))
        rest = torch.stack([found[k - 1] - found[k] for k in range(rows, 0, -1)])
        yield rows + 1, Noisy(state.x, rest, tuple(path[::-1]), tuple(found[-2::-1]))

    def _back(self, noisy: Noisy, prompt: Prompt, negative: Prompt | None, seed: int) -> Iterator[State]:
        script = self.work.script(prompt, negative, seed, self.plan, self.each, self.scale)
        denoiser = self.work.around(Mended(script, noisy.rest))
        return followed(run(self.plan, denoiser, begin(self.plan, noisy.x), Noise([seed])), script)

    def last(self, state: State) -> Tensor:
        return state.x / self.alpha


class Reworded(_Through):
    """From what the item is (`original`) to the prompt, and to what steers: on the way down nothing does."""

    def __init__(self, work: Work) -> None:
        request = work.request
        # half of the model's own guidance: the difference of two prompts is followed, and the item is to be known again
        super().__init__(work, request.strength or 1.0, 0.5 + 0.5 * work.model.defaults["scale"])
        self.prompt, self.original = work.read(request.prompt), work.read(request.original or "")
        self.negative = None if request.negative is None else work.read(request.negative)
        self.before += self.each if self.scale != 1.0 else 0

    def begin(self) -> Iterator[int]:
        for nfe, noisy in self._down(self.work, self.original, steered=False):
            self.noisy = noisy
            yield nfe
        assert self.noisy is not None
        if self.scale == 1.0:
            return
        # what the guided estimate lacks, where the item is, instead of what the unguided one does
        seed, rest = self.work.request.seed or 0, []
        guided = self.work.script(self.original, self.negative, seed, self.plan, self.each, self.scale, steered=False)
        for row, x in enumerate(self.noisy.path):
            guided.row = row
            rest.append(self.noisy.exact[row] - guided(x, float(self.plan.t[row])))
            yield self.each + 2 + row
        self.noisy = replace(self.noisy, rest=torch.stack(rest))

    def make(self, k: int) -> Iterator[State]:
        assert self.noisy is not None
        return self._back(self.noisy, self.prompt, self.negative, (self.work.request.seed or 0) + k)


class Varied(_Through):
    """Some of the item's noise is another's."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.prompt, self.amount = work.read(work.request.prompt), work.request.variations or 0.0

    def begin(self) -> Iterator[int]:
        for nfe, noisy in self._down(self.work, self.prompt):
            self.noisy = noisy
            yield nfe

    def make(self, k: int) -> Iterator[State]:
        assert self.noisy is not None
        seed = (self.work.request.seed or 0) + k
        mixed = Noisy(slerp(self.noisy.x, _fresh(self, seed), self.amount), (1.0 - self.amount) * self.noisy.rest)
        return self._back(mixed, self.prompt, None, seed)


class Led(_Through):
    """Frames from the item to another item, prompt or seed; what is not given stays the item's own."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        request = work.request
        self.prompt = work.read(request.prompt)
        self.goal = self.prompt if request.towards_prompt is None else work.read(request.towards_prompt)
        self.other: Work | None = None
        if request.towards is not None:
            self.other = Work(work.model, open_item(work.model, request.towards), request)
            if self.other.shape != work.shape:
                raise UserError(f"towards: is of shape {self.other.shape}, the item {work.shape}; give one of the same shape")
            self.before *= 2
        self.count = request.frames or 2

    def begin(self) -> Iterator[int]:
        for nfe, noisy in self._down(self.work, self.prompt):
            self.noisy = self.there = noisy
            yield nfe
        assert self.noisy is not None
        if self.other is not None:
            for nfe, noisy in self._down(self.other, self.goal):
                self.there = noisy
                yield self.each + 1 + nfe
        elif self.work.request.towards_seed is not None:
            self.there = Noisy(_fresh(self, self.work.request.towards_seed), torch.zeros_like(self.noisy.rest))

    def make(self, k: int) -> Iterator[State]:
        a, b, share = self.noisy, self.there, k / (self.count - 1)
        assert a is not None and b is not None
        mixed = Noisy(slerp(a.x, b.x, share), torch.lerp(a.rest, b.rest, share))
        return self._back(mixed, _mixed(self.prompt, self.goal, share), None, self.work.request.seed or 0)


def _fresh(way: _Through, seed: int) -> Tensor:
    """Noise of a seed where the way back begins."""
    work = way.work
    return work.model.denoiser.process.prior(Noise([seed]).normal(work.shape, 0), way.plan.start).to(work.x0.device)


def _mixed(a: Prompt, b: Prompt, share: float) -> Prompt:
    """The parts of both, b's with `share` of the weight."""
    if a == b or share == 0.0:
        return a
    if share == 1.0:
        return b
    parts = [replace(part, weight=(1.0 - share) * v) for part, v in zip(a.parts, a.shares, strict=True)]
    parts += [replace(part, weight=share * v) for part, v in zip(b.parts, b.shares, strict=True)]
    return Prompt(f"{a.source} {b.source}", tuple(parts))
