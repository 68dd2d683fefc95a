"""An item made anew from some noise on: all of it, around what is kept, on a larger canvas, or so that it tiles."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from unfog.diffusion import Noise, State, begin, run
from unfog.diffusion.editing import noised
from unfog.editing.work import Work, followed
from unfog.script import read


class Again:
    """strength s: of a grid's steps the last share s, from x_t = α(t)·x0 + σ(t)·ε; 1: from noise alone."""

    def __init__(self, work: Work) -> None:
        request, model = work.request, work.model
        self.work, self.strength = work, 1.0 if request.strength is None else request.strength
        # of 20 steps 0.5 takes the last 10
        self.plan = model.plan(request.sampler, request.steps, self.strength, work.shape)
        self.scale = float(model.defaults["scale"] if request.scale is None else request.scale)
        self.sampler = request.sampler or model.defaults["sampler"]
        self.prompt, self.negative = work.read(request.prompt), read(model.space, request.negative, request.literal)
        self.count, self.each, self.before = request.n, self.plan.nfe, 0

    def begin(self) -> Iterator[int]:
        return iter(())

    def make(self, k: int) -> Iterator[State]:
        work, process = self.work, self.work.model.denoiser.process
        seed = (work.request.seed or 0) + k
        noise = Noise([seed])
        if self.strength < 1.0:
            x = noised(process, work.x0, noise, self.plan.start)
        else:
            x = process.prior(noise.normal(work.shape, 0), self.plan.start).to(work.x0.device)
        script = work.script(self.prompt, self.negative, seed, self.plan, work.request.steps or self.each, self.scale)
        return followed(run(self.plan, work.around(script), begin(self.plan, x), noise), script)

    def last(self, state: State) -> Tensor:
        return state.x
