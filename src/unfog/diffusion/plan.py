"""Plans: a sampler as a table of numbers, and the one loop that runs any of them.

Row i evaluates D_i = denoise(x, t_i), remembers H_i and then applies two affine maps:

    H_i  = p_i·x + q_i·D_i                              what is remembered: D (p 0, q 1), ε, a velocity
    base ← a_i·base + Σ_k b_ik·H_{i−k} + c_i·z_i        what is known so far
    x    ← A_i·base + Σ_k B_ik·H_{i−k}                  where the denoiser looks next

The coefficients are float64 on the host, made once from a schedule and a grid. What the two maps carry:

- one evaluation a step (Euler, DDIM, DDPM, DPM-Solver++ multistep, DEIS, LMS): `base` takes the step, x = base;
- predictor–corrector (UniPC, SA): the same, since what the corrector changes is a sum of results, too;
- single-step solvers (Heun, DPM-Solver-2S/3S): a stage leaves `base` and moves x; the last row of a step moves `base`;
- churn and restart: forward noise is a part of the row before, which then lands at the raised level (t rises to it);
- noise inside a single-step stage (SDE-DPM-Solver++): with a = 1 the stage adds its Brownian part to `base`, and the
  closing row scales it on, so the two draws are increments of one path.

Source: the general form follows from Lu et al. 2022, arXiv:2211.01095, and Zhao et al. 2023, arXiv:2302.04867.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unfog.diffusion.noise import NoiseSource
from unfog.errors import UserError

Terms = list[tuple[int, float]]  # (k, coefficient of H_{i−k}), without zeros
Denoise = Callable[[Tensor, float], Tensor]  # denoise(x (B, *D), t) -> x0 (B, *D)


class Row(NamedTuple):
    """One evaluation, what is remembered of it, and its two maps; b[k] and B[k] belong to H_{i−k}."""

    t: float
    a: float = 1.0
    b: Sequence[float] = ()
    c: float = 0.0
    A: float = 1.0
    B: Sequence[float] = ()
    p: float = 0.0
    q: float = 1.0


_ARRAYS = ("t", "p", "q", "a", "b", "c", "A", "B")
_TABLES = ("b", "B")


@dataclass(frozen=True, eq=False)
class Plan:
    """n rows that remember K results.

    t (n,): times at which the denoiser is asked. p, q, a, c, A (n,); b, B (n, K). end: the time at which x
    stands after the last row. sampler: the name it was made under. All arrays are read-only float64.
    """

    sampler: str
    t: np.ndarray
    p: np.ndarray
    q: np.ndarray
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    A: np.ndarray
    B: np.ndarray
    end: float = 0.0

    def __post_init__(self) -> None:
        n = np.shape(self.t)[0] if np.ndim(self.t) == 1 else 0
        memory = np.shape(self.b)[1] if np.ndim(self.b) == 2 else 0
        if n < 1 or memory < 1:
            raise UserError(f"plan {self.sampler!r}: t must hold at least one time, b be a table with at least one column")
        for name in _ARRAYS:
            shape = (n, memory) if name in _TABLES else (n,)
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.shape != shape:
                raise UserError(f"plan {self.sampler!r}: {name} has shape {values.shape}, expected {shape}")
            if not np.isfinite(values).all():
                raise UserError(f"plan {self.sampler!r}: {name} holds a value that is not finite; choose another grid")
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if not self.q.all():
            raise UserError(f"plan {self.sampler!r}: q is 0 in a row, which would then not depend on its evaluation")
        times = [*self.t, self.end]
        if not all(0.0 <= time <= 1.0 for time in times):
            raise UserError(f"plan {self.sampler!r}: times must lie in [0, 1]")
        object.__setattr__(self, "end", float(self.end))
        for i in range(min(n, memory)):
            if self.b[i, i + 1 :].any() or self.B[i, i + 1 :].any():
                raise UserError(f"plan {self.sampler!r}: row {i} uses a result from before the first row")

    @staticmethod
    def of(sampler: str, rows: Sequence[Row], end: float) -> Plan:
        """A plan from its rows; missing trailing b and B are 0."""
        memory = max([1, *(len(row.b) for row in rows), *(len(row.B) for row in rows)])

        def table(name: str) -> np.ndarray:
            return np.array([[*getattr(row, name), *(0.0,) * (memory - len(getattr(row, name)))] for row in rows])

        def column(name: str) -> np.ndarray:
            return np.array([getattr(row, name) for row in rows])

        arrays = {name: table(name) if name in _TABLES else column(name) for name in _ARRAYS}
        return Plan(sampler, end=end, **arrays)

    @property
    def nfe(self) -> int:
        """Network evaluations (without guidance)."""
        return len(self.t)

    @property
    def start(self) -> float:
        """The time at which sampling starts."""
        return float(self.t[0])

    @property
    def stochastic(self) -> bool:
        """Whether any row draws noise."""
        return bool(self.c.any())

    @cached_property
    def _rows(self) -> list[tuple[float, float, Terms, float, float, Terms]]:
        """p/q, a, b, c, A, B as python floats without their zeros: numpy scalars cost more than a small tensor's sum.

        What the loop remembers is H/q, one operation instead of two; b and B make up for it.
        """

        def sparse(i: int, row: np.ndarray) -> list[tuple[int, float]]:
            return [(k, float(value * self.q[i - k])) for k, value in enumerate(row) if value != 0.0]

        tilt, a, c, scale = (values.tolist() for values in (self.p / self.q, self.a, self.c, self.A))
        return [(tilt[i], a[i], sparse(i, self.b[i]), c[i], scale[i], sparse(i, self.B[i])) for i in range(self.nfe)]

    @cached_property
    def _times(self) -> list[float]:
        return [*map(float, self.t), self.end]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and floats; JSON keeps every bit."""
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        return {"sampler": self.sampler, **arrays, "end": self.end}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Plan:
        """The plan that `to_dict` wrote."""
        names = {"sampler", *_ARRAYS, "end"}
        if not isinstance(values, dict) or set(values) != names:
            raise UserError(f"plan: expected exactly the fields {sorted(names)}")
        try:
            arrays = {name: np.array(values[name], dtype=np.float64) for name in _ARRAYS}
            return Plan(sampler=str(values["sampler"]), end=float(values["end"]), **arrays)
        except (TypeError, ValueError) as error:
            raise error if isinstance(error, UserError) else UserError(f"plan: {error}") from error


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands after row `index` (−1: before the first). The loop changes nothing in it in place.

    x (B, *D) stands at time t: where the denoiser looks next, and the result once `done`. base and history
    (H_i/q_i, H_{i−1}/q_{i−1}, …) are what the next row needs; a saved State continues the run bit for bit. x0: D_i
    (B, *D), the denoised result of the row just done (before the first row: x itself).
    """

    index: int
    total: int
    t: float
    x: Tensor
    base: Tensor
    history: tuple[Tensor, ...]
    x0: Tensor

    @property
    def nfe(self) -> int:
        """Network evaluations so far."""
        return self.index + 1

    @property
    def done(self) -> bool:
        return self.index + 1 == self.total


def begin(plan: Plan, x: Tensor) -> State:
    """The state before the first row: x (B, *D) at time plan.start."""
    return State(-1, plan.nfe, plan._times[0], x, x, (), x)


def _combine(weight: float, base: Tensor, terms: Terms, history: tuple[Tensor, ...]) -> Tensor:
    """weight·base + Σ factor·history[k]; changes none of its inputs, and may return one of them."""
    if weight == 1.0:
        out, owned = base, False  # `owned`: a new tensor of ours, to which adding in place is safe
    elif weight != 0.0:
        out, owned = base * weight, True
    elif terms:
        (k, factor), *terms = terms
        out, owned = (history[k], False) if factor == 1.0 else (history[k] * factor, True)
    else:
        return torch.zeros_like(base)
    for k, factor in terms:
        if owned:
            out.add_(history[k], alpha=factor)
        else:
            out, owned = torch.add(out, history[k], alpha=factor), True
    return out


def advance(plan: Plan, state: State, x0: Tensor, noise: NoiseSource | None = None) -> State:
    """The state after one more row, given x0 = denoise(state.x, state.t).

    `run` is this in a loop; a server calls it itself, to denoise requests with different plans in one batch.
    Row i draws noise from stream 1 + i, and only if its c is not 0.
    """
    i = state.index + 1
    if x0.shape != state.x.shape:
        raise ValueError(f"the denoiser returned shape {tuple(x0.shape)} for x of shape {tuple(state.x.shape)}")
    tilt, a, b, c, scale, look = plan._rows[i]
    kept = x0 if tilt == 0.0 else torch.add(x0, state.x, alpha=tilt)
    history = (kept, *state.history[: plan.b.shape[1] - 1])
    base = _combine(a, state.base, b, history)
    if c != 0.0:
        if noise is None:
            raise UserError(f"sampler {plan.sampler!r} draws noise: give run() a Noise with one seed an item")
        shape = tuple(x0.shape[1:])
        base = torch.add(base, noise.normal(shape, 1 + i, device=x0.device, dtype=x0.dtype), alpha=c)
    x = _combine(scale, base, look, history)
    return State(i, state.total, plan._times[i + 1], x, base, history, x0)


def run(
    plan: Plan, denoise: Denoise, x: Tensor | State, noise: NoiseSource | None = None, *, grad: bool = False
) -> Iterator[State]:
    """Run a plan, yielding the State after every evaluation. The only sampling loop.

    denoise(x (B, *D), t) -> x0 (B, *D). x: starting noise at plan.start, as wide as the process's prior; or a
    State of the same plan, to continue from it. noise: one seed an item; rows without noise never touch it.
    grad: keep the graph. To preview, show state.x0; to cancel, stop iterating.
    """
    state = x if isinstance(x, State) else begin(plan, x)
    if state.total != plan.nfe:
        raise UserError(f"the state belongs to a plan of {state.total} rows, this plan has {plan.nfe}")
    for _ in range(state.index + 1, plan.nfe):
        if grad:
            state = advance(plan, state, denoise(state.x, state.t), noise)
        else:
            # Entered anew each row: yielding inside no_grad would switch off the caller's gradients.
            with torch.no_grad():
                state = advance(plan, state, denoise(state.x, state.t), noise)
        yield state


def sample(plan: Plan, denoise: Denoise, x: Tensor | State, noise: NoiseSource | None = None, *, grad: bool = False) -> Tensor:
    """The final x (B, *D) of `run`."""
    last = x if isinstance(x, State) else begin(plan, x)
    for state in run(plan, denoise, last, noise, grad=grad):
        last = state
    return last.x
