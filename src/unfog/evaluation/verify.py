"""The certified matrix: what each sampler, prediction and guidance declares against what exact denoisers show.

    order    slope of log error over log steps, on a mixture, in y = x/α at uneven levels of log-SNR, against the classical
             Runge–Kutta solution of dy/dλ = D − y, λ = logsnr/2, in which no sampler takes part
    moments  the same for samplers that draw noise, by the exact mean and deviation of their result on a Gaussian; the
             declared order is that of the path, so the moments' may be higher
    limits   a sampler that draws noise, without its noise, is the one it comes from
    same     an exact network in each prediction walks where the exact denoiser walks

Orders are measured on the denoiser itself, once a sampler and schedule: the predictions differ from it by rounding, which
"same" shows for every sampler, so their orders are equal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser, GaussianDenoiser, MixtureDenoiser, Preconditioned
from unfog.diffusion.guidance import guide
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import Plan, sample
from unfog.diffusion.predictions import PREDICTIONS
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import SAMPLERS, make_plan
from unfog.diffusion.schedules import EDM, VP, Cosine, Linear, Schedule, Shifted, Table
from unfog.requests import VerifyRequest

TOLERANCE = 0.2  # of an observed order
ROUNDING = 1e-9  # of results that differ by float64 rounding only
SINGLE = 1e-6  # where a guidance takes α and σ in float32
LOW, HIGH = -8.0, 6.0  # log-SNR from almost pure noise to almost clean
WINDOWS = (48, 56, 64)  # steps, each against twice as many; lms comes within 0.2 of its order from 48 on
ITEMS, DIMENSIONS = 24, 4

MATRIX: dict[str, Callable[[], Schedule]] = {
    "linear": Linear,
    "cosine": Cosine,
    "vp": VP,
    "edm": lambda: EDM(sigma_max=100.0),  # the default ends above LOW
    "scaled linear": lambda: Shifted(Table.scaled_linear(), 6.0),  # as it is, it ends above LOW
    "table cosine": Table.cosine,
    "zero SNR": lambda: Table.linear().zero_terminal_snr(),
    "shifted": lambda: Shifted(Linear(), 3.0),
}
# name -> its options without noise, and the sampler and options that it then is
LIMITS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "ddim": ({"eta": 1.0}, "ddpm", {}),
    "repaint": ({"repeats": 0}, "ddpm", {}),
    "restart": ({"repeats": 0}, "heun", {}),
    "dpm_2_a": ({"eta": 0.0}, "dpm_2", {}),
    "dpmpp_2s_a": ({"eta": 0.0}, "dpmpp_2s", {}),
    "dpmpp_sde": ({"eta": 0.0}, "dpmpp_2s", {}),
    "dpmpp_2m_sde": ({"eta": 0.0}, "dpmpp_2m", {}),
    "dpmpp_3m_sde": ({"eta": 0.0}, "dpmpp_3m", {}),
    "sa_solver": ({"tau": 0.0, "corrector": 0}, "exp_adams", {"order": 2}),
}


class Row(BaseModel):
    """One check: in which part, what of, where (a schedule; empty for none), what was declared, what was seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    what: str
    where: str = ""
    declared: str
    observed: str
    ok: bool


class VerifyReport(BaseModel):
    """All checks; `str` gives the tables, `model_dump_json` the JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str = Field(description="unfog, or the model's name and hash")
    rows: list[Row]
    ok: bool
    seconds: float
    version: str

    def __str__(self) -> str:
        """A plain table for each part; a check that fails is marked with !"""
        parts = list(dict.fromkeys(row.part for row in self.rows))
        tables = [f"{part}\n{_table([row for row in self.rows if row.part == part])}" for part in parts]
        bad = [row for row in self.rows if not row.ok]
        last = f"{self.subject}: {len(self.rows) - len(bad)} of {len(self.rows)} checks hold; {self.seconds:.0f} s"
        named = [f"fails: {' '.join(filter(None, (r.what, r.where)))}: declared {r.declared}, seen {r.observed}" for r in bad]
        return "\n\n".join([*tables, "\n".join([*named, last])])


def _table(rows: Sequence[Row]) -> str:
    """Aligned columns; where rows differ only in `where`, that becomes the columns."""
    places = list(dict.fromkeys(row.where for row in rows))
    seen = {(row.what, row.declared, row.where): row.observed + ("" if row.ok else " !") for row in rows}
    lines = [["", "declared", *(place or "observed" for place in places)]]
    for what, declared in dict.fromkeys((row.what, row.declared) for row in rows):
        lines.append([what, declared, *(seen.get((what, declared, place), "—") for place in places)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def verify(request: VerifyRequest) -> VerifyReport:
    """The matrix, or the checks of the model that the request names; written to `request.out` as JSON if that is set.

    Raises: UserError where the model or the file to write is not usable, or where a setting contradicts the network.
    """
    from unfog import __version__
    from unfog.errors import UserError
    from unfog.files import write_atomic

    if request.out is not None and request.out.is_dir():  # before the long work, not after it
        raise UserError(f"out: {request.out} is a folder; give a file to write the report to")
    start = time.perf_counter()
    if request.model is None:
        subject, rows = "unfog", certify(request.quick)
    else:
        from unfog.evaluation.infer import examine

        subject, rows = examine(request.model, request.prediction, request.quick)
    report = VerifyReport(
        subject=subject, rows=rows, ok=all(r.ok for r in rows), seconds=time.perf_counter() - start, version=__version__
    )
    if request.out is not None:
        try:
            write_atomic(request.out, (report.model_dump_json(indent=1) + "\n").encode())
        except OSError as error:
            raise UserError(f"out: {request.out} cannot be written ({error.strerror or error}); choose another place") from None
    return report


def certify(quick: bool = False) -> list[Row]:
    """Every sampler with a declared order, every prediction, every guidance; quick: on the linear schedule only."""
    schedules = {name: build() for name, build in MATRIX.items() if not quick or name == "linear"}
    truth = reference()
    rows = [_order(name, place, schedule, truth) for name in SAMPLERS for place, schedule in schedules.items() if _claims(name)]
    rows += [_moments(name, p, s) for name, entry in SAMPLERS.items() if entry.stochastic and entry.order
             for p, s in schedules.items()]  # fmt: skip
    rows += [_limit(name, place, schedule) for name in LIMITS for place, schedule in schedules.items()]
    rows += [row for place, schedule in schedules.items() for row in _predictions(place, schedule)]
    return rows + list(identities())


def _claims(name: str) -> bool:
    return SAMPLERS[name].order > 0 and not SAMPLERS[name].stochastic


# Samplers


def mixture(schedule: Schedule) -> MixtureDenoiser:
    """Three uneven components in four dimensions: curved paths, no symmetry."""
    means = torch.tensor([[1.4, -0.6, 0.2, 0.9], [-0.9, 0.8, -1.1, 0.1], [0.3, 0.5, 1.2, -1.3]], dtype=torch.float64)
    weights, stds = torch.tensor([0.3, 0.5, 0.2]), torch.tensor([0.3, 0.5, 0.25])
    return MixtureDenoiser(Gaussian(schedule), weights, means, stds=stds)


def levels(steps: int) -> np.ndarray:
    """Log-SNR from LOW to HIGH in uneven steps: on even ones some errors cancel that do not elsewhere."""
    u = np.linspace(0.0, 1.0, steps + 1)
    return LOW + (HIGH - LOW) * (u + 0.08 * np.sin(2.0 * np.pi * u))


def _start(count: int = ITEMS) -> Tensor:
    """y = x/α at LOW, the same for all schedules."""
    return Noise(range(count)).normal((DIMENSIONS,), 0, dtype=torch.float64) * math.sqrt(math.exp(-LOW) + 1.0)


def reference(steps: int = 400) -> Tensor:
    """y at HIGH by the classical Runge–Kutta method."""
    schedule, y = Linear(), _start()
    exact = mixture(schedule)

    def slope(half: float, y: Tensor) -> Tensor:
        t = schedule.time(2.0 * half)
        return exact(y * schedule.alpha(t), t) - y

    h = 0.5 * (HIGH - LOW) / steps
    for i in range(steps):
        half = 0.5 * LOW + i * h
        first = slope(half, y)
        second = slope(half + h / 2, y + h / 2 * first)
        third = slope(half + h / 2, y + h / 2 * second)
        y = y + h / 6 * (first + 2 * second + 2 * third + slope(half + h, y + h * third))
    return y


def _plan(name: str, schedule: Schedule, steps: int, **options: Any) -> Plan:
    return make_plan(name, schedule, schedule.time(levels(steps)), **options)


def _walk(plan: Plan, denoise: Callable[[Tensor, float], Tensor], schedule: Schedule, y: Tensor) -> Tensor:
    """y at the end of a plan; samplers that draw noise draw the same for all callers."""
    x = sample(plan, denoise, y * schedule.alpha(plan.start), Noise(range(len(y))))
    return x / schedule.alpha(plan.end)


def _slope(error: Callable[[int], float]) -> float:
    """Median over WINDOWS of log2(error(n)/error(2n))."""
    return float(np.median([math.log2(error(n) / error(2 * n)) for n in WINDOWS]))


def _order(name: str, place: str, schedule: Schedule, truth: Tensor) -> Row:
    exact, declared = mixture(schedule), SAMPLERS[name].order

    def error(steps: int) -> float:
        gap = _walk(_plan(name, schedule, steps), exact, schedule, _start()) - truth
        return float(gap.norm(dim=1).median())

    seen = _slope(error)
    return Row(part="order", what=name, where=place, declared=str(declared), observed=f"{seen:.2f}",
               ok=abs(seen - declared) < TOLERANCE)  # fmt: skip


def moments(plan: Plan, schedule: Schedule, mean: float, std: float) -> tuple[float, float]:
    """Exact mean and standard deviation of y = x/α at the end of a plan, for data N(mean, std²) and the exact start.

    D is affine in x there, so the state (1, base, x, H_0 … H_{K−1}) is moved by a matrix each row.
    """
    memory = plan.b.shape[1]
    alpha, sigma = (np.append(f(plan.t), f(plan.end)) for f in (schedule.alpha, schedule.sigma))
    size = 3 + memory
    one, base, x = np.eye(size)[:3]
    past = list(np.eye(size)[3:])
    centre = np.zeros(size)
    centre[:3] = 1.0, alpha[0] * mean, alpha[0] * mean
    cov = np.zeros((size, size))
    cov[1:3, 1:3] = (alpha[0] * std) ** 2 + sigma[0] ** 2
    for i in range(plan.nfe):
        gain = alpha[i] * std**2 / ((alpha[i] * std) ** 2 + sigma[i] ** 2)
        denoised = gain * x + (1.0 - gain * alpha[i]) * mean * one
        known = np.stack([plan.p[i] * x + plan.q[i] * denoised, *past[: memory - 1]])
        moved = plan.a[i] * base + plan.b[i] @ known
        move = np.vstack([one, moved, plan.A[i] * moved + plan.B[i] @ known, known])
        drawn = np.zeros(size)
        drawn[1:3] = plan.c[i] * np.array([1.0, plan.A[i]])
        centre, cov = move @ centre, move @ cov @ move.T + np.outer(drawn, drawn)
    return float(centre[2] / alpha[-1]), float(math.sqrt(cov[2, 2]) / alpha[-1])


def _moments(name: str, place: str, schedule: Schedule) -> Row:
    mean, std, declared = 0.7, 0.5, SAMPLERS[name].order
    wanted = math.hypot(std, math.exp(-0.5 * HIGH))

    def error(steps: int) -> float:
        seen = moments(_plan(name, schedule, steps), schedule, mean, std)
        return max(abs(seen[0] - mean), abs(seen[1] - wanted))

    slope = _slope(error)
    return Row(part="moments", what=name, where=place, declared=f"at least {declared}", observed=f"{slope:.2f}",
               ok=slope > declared - TOLERANCE)  # fmt: skip


def _limit(name: str, place: str, schedule: Schedule) -> Row:
    options, other, theirs = LIMITS[name]
    exact, y = mixture(schedule), _start(4)
    one, two = (_walk(_plan(n, schedule, 9, **o), exact, schedule, y) for n, o in ((name, options), (other, theirs)))
    words = " ".join(f"{key} {value:g}" for key, value in options.items())
    known = " ".join([other, *(f"{key} {value:g}" for key, value in theirs.items())])
    return _gap("limits", f"{name}, {words}", place, known, one, two)


def _gap(part: str, what: str, place: str, declared: str, one: Tensor, two: Tensor, bound: float = ROUNDING) -> Row:
    gap = float((one - two).abs().max())
    return Row(part=part, what=what, where=place, declared=declared, observed=f"{gap:.0e}" if gap else "0", ok=gap <= bound)


class ExactNetwork:
    """A network made of an exact denoiser, by what each prediction means, not by the conversions that are under test.

    kind: a name of PREDICTIONS, data_std 1. `t` is set from outside, as the float32 log-SNR is too coarse to compare by.
    """

    t = 0.0

    def __init__(self, exact: Denoiser, kind: str) -> None:
        self.exact, self.kind = exact, kind

    def __call__(self, given: Tensor, level: Tensor, cond: Cond | None = None) -> Tensor:
        schedule = self.exact.process.schedule
        alpha, sigma = schedule.alpha(self.t), schedule.sigma(self.t)
        width = math.hypot(alpha, sigma)
        x_t = given * width if self.kind == "edm" else given
        x0 = self.exact(x_t, self.t)
        eps = (x_t - alpha * x0) / sigma
        meanings = {
            "x0": lambda: x0,
            "eps": lambda: eps,
            "v": lambda: alpha * eps - sigma * x0,
            "flow": lambda: eps - x0,
            "score": lambda: -eps / sigma,
            "edm": lambda: (sigma * x0 - alpha * eps) / width,
        }
        return meanings[self.kind]()


def _predictions(place: str, schedule: Schedule) -> Iterator[Row]:
    exact, y = mixture(schedule), _start(4)
    plans = [_plan(name, schedule, 7) for name in SAMPLERS]
    direct = torch.cat([_walk(plan, exact, schedule, y) for plan in plans])
    for kind in PREDICTIONS:
        network = ExactNetwork(exact, kind)
        denoiser = Preconditioned(network, exact.process, kind)

        def denoise(x: Tensor, t: float, network: ExactNetwork = network, denoiser: Preconditioned = denoiser) -> Tensor:
            network.t = t
            return denoiser(x, t)

        walked = torch.cat([_walk(plan, denoise, schedule, y) for plan in plans])
        yield _gap("same", kind, place, f"{len(plans)} samplers, 1e-09", walked, direct)


# Guidance


class _Classes:
    """Each class is one Gaussian, class 2 is both; counts the items that it is asked for."""

    def __init__(self) -> None:
        self.process = Gaussian(Linear())
        self.means = torch.tensor([[1.0, -0.5, 0.3, 2.0], [-0.8, 0.9, 0.1, -1.0]], dtype=torch.float64)
        self.items = 0

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        assert cond is not None
        self.items += len(x_t)
        out = torch.empty_like(x_t)
        for i, label in enumerate(cond["class"].tolist()):
            means = self.means if label == 2 else self.means[label : label + 1]
            exact = MixtureDenoiser(self.process, torch.ones(len(means)), means, stds=torch.full((len(means),), 0.4).double())
            out[i : i + 1] = exact(x_t[i : i + 1], t)
        return out


def identities() -> Iterator[Row]:
    """What each guidance must be: off where it says so, to the bit and without a second call, or equal to another."""
    base, t, scale = _Classes(), 0.6, 4.0
    x = Noise(range(3)).normal((DIMENSIONS,), 0, dtype=torch.float64)
    cond, none = {"class": torch.tensor([0, 1, 0])}, {"class": torch.tensor([2])}
    both = {"class": torch.full((3,), 2)}
    with_cond, without = base(x, t, cond), base(x, t, both)
    alpha, sigma = base.process.schedule.alpha(t), base.process.schedule.sigma(t)

    def off(name: str, why: str, wanted: Tensor = with_cond, given: Cond | None = cond, **options: Any) -> Row:
        guided, base.items = guide(name, base, **options), 0
        gap = float((guided(x, t, given) - wanted).abs().max())
        seen = f"{base.items} asked, gap {gap:.0e}" if gap else f"{base.items} asked, same bits"
        return Row(part="guidance", what=f"{name}: {why}", declared="3 asked, same bits", observed=seen,
                   ok=gap == 0.0 and base.items == 3)  # fmt: skip

    def same(name: str, why: str, wanted: Tensor, **options: Any) -> Row:
        return _gap("guidance", f"{name}: {why}", "", "equal", guide(name, base, **options)(x, t, cond), wanted)

    plain = guide("cfg", base, scale=scale, uncond=none)(x, t, cond)
    for name in ("cfg", "rescale", "zero_star", "apg"):
        yield off(name, "scale 1 is off", scale=1.0, uncond=none)
        yield off(name, "outside its interval it is off", scale=scale, uncond=none, interval=(50.0, 60.0))
    yield same("cfg", "the formula", without + scale * (with_cond - without), scale=scale, uncond=none)
    yield off("cfg", "scale 0 is the empty condition", without, scale=0.0, uncond=none)
    yield same("rescale", "amount 0 is cfg", plain, scale=scale, uncond=none, amount=0.0)
    yield same("apg", "eta 1 without momentum is cfg", plain, scale=scale, uncond=none, eta=1.0, momentum=0.0)
    yield same("zero_star", "two equal conditions are one", with_cond, scale=scale, uncond=cond)
    yield off("auto", "scale 1 is off", weak=base, scale=1.0)
    yield off("auto", "outside its interval it is off", weak=base, scale=scale, interval=(50.0, 60.0))
    yield same("auto", "weak by an empty condition is cfg", plain, weak=base, scale=scale, weak_cond=both)
    yield off("composed", "no scale is the empty condition", without, conds=[cond], scales=[0.0], uncond=none)
    yield same("composed", "one condition is cfg", plain, conds=[cond], scales=[scale], uncond=none)

    def classifier(x_t: Tensor, t: Any, given: Cond | None) -> Tensor:
        distance = ((x_t[:, None] - alpha * base.means) ** 2).sum(-1) / ((0.4 * alpha) ** 2 + sigma**2)
        return torch.log_softmax(-0.5 * distance, dim=1)[:, 0]

    yield off("energy", "scale 0 is off", log_prob=classifier, scale=0.0)
    first = {"class": torch.zeros(3, dtype=torch.long)}
    bayes = guide("energy", base, log_prob=classifier, on="x_t")(x, t, both)
    yield _gap("guidance", "energy: an exact classifier is Bayes' rule", "", "equal", bayes, base(x, t, first), SINGLE)
    yield off("dps", "scale 0 is off", measure=lambda clean: clean, y=x, scale=0.0)
    m, s, noise = base.means[0], 0.7, 0.3
    gaussian, keep = GaussianDenoiser(base.process, m, std=s), torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    y, gain = torch.tensor([[1.0, -2.0]], dtype=torch.float64).expand(3, 2), s**2 / (s**2 + noise**2)
    shift = torch.cat([gain * (y[0] - m[:2]), torch.zeros(2, dtype=torch.float64)])
    conjugate = GaussianDenoiser(base.process, m + shift, cov=torch.diag(s**2 * (1.0 - gain * keep)))
    posterior = guide("posterior", gaussian, measure=lambda clean: clean[:, :2], y=y, noise=noise, data_std=s)
    yield _gap("guidance", "posterior: on a Gaussian it is exact", "", "equal", posterior(x, t), conjugate(x, t), SINGLE)
    yield off("threshold", "inside its limit it is off", limit=1e3)
    known, mask = torch.full((1, DIMENSIONS), 0.25, dtype=torch.float64), torch.tensor([[True, False, False, False]])
    yield off("infill", "nothing known is off", known=known, mask=torch.zeros_like(mask))
    yield off("infill", "what is known stays", torch.where(mask, known, with_cond), known=known, mask=mask)
    yield off("perturbed", "scale 0 is off", scale=0.0)
    yield same("perturbed", "a network that it does not move is left alone", with_cond, scale=scale)
