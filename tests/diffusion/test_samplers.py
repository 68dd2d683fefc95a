"""Samplers: observed order, exact answers, equality with independent statements, finite ends."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from unfog.diffusion import samplers as package
from unfog.diffusion.denoisers import GaussianDenoiser, MixtureDenoiser, Preconditioned
from unfog.diffusion.grids import make_grid
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import sample
from unfog.diffusion.predictions import Prediction
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import SAMPLERS, make_plan, sampler_name
from unfog.diffusion.schedules import EDM, VP, Cosine, Linear, Shifted, Table
from unfog.errors import UserError

SCHEDULES = {
    "cosine": Cosine(),
    "linear": Linear(),
    "vp": VP(),
    "edm": EDM(sigma_max=100.0),
    "table": Table.cosine(),
    "zero_snr": Table.linear().zero_terminal_snr(),
    "shifted": Shifted(Linear(), 3.0),
}
PLANS = [(name, {}) for name in SAMPLERS] + [
    ("ddim", {"eta": 0.5}),
    ("heun", {"churn": 20.0, "s_noise": 1.003}),
    ("dpm_2", {"eta": 0.4}),
    ("dpmpp_2m_sde", {"kind": "exact", "eta": 0.5}),
    ("dpmpp_sde", {"eta": 0.5}),
    ("sa_solver", {"tau": 0.5, "order": 3, "corrector": 4}),
    ("sa_solver", {"corrector": 0}),
]
# Other options, with the order that they have.
VARIANTS = [
    ("dpmpp_2m", {"kind": "exact"}, 2),
    ("dpmpp_3m", {"kind": "published"}, 2),
    ("unipc", {"order": 1}, 2),
    ("unipc", {"order": 3}, 4),
    ("unipc", {"kind": "bh1"}, 3),
    ("unipc", {"order": 3, "corrector": False}, 3),
    ("exp_adams", {"order": 1}, 1),
    ("exp_adams", {"order": 2}, 2),
    ("exp_adams", {"form": "flow"}, 3),
    ("exp_adams", {"variable": "own"}, 3),
    ("deis", {"order": 2}, 2),
    ("lms", {"order": 2}, 2),
    ("flow_adams", {"order": 2}, 2),
    ("sa_solver", {"tau": 0.0, "corrector": 3}, 3),
]
PLANS += [(name, options) for name, options, _ in VARIANTS]
DRAWING = {"eta", "churn"}
DETERMINISTIC = [(name, options) for name, options in PLANS
                 if not (SAMPLERS[name].stochastic and options.get("tau") != 0.0) and not DRAWING & set(options)]  # fmt: skip
ORDER = {(name, str(options)): order for name, options, order in VARIANTS}
every_plan = pytest.mark.parametrize(("name", "options"), PLANS)
deterministic = pytest.mark.parametrize(("name", "options"), DETERMINISTIC)
# Without noise a sampler walks alike in all (test_swapping_the_schedule_changes_nothing), so where it ends is tried in few:
# from pure noise in two ways, and from a finite level. `unfog verify` runs them all.
few_schedules = pytest.mark.parametrize("schedule", [SCHEDULES["linear"], SCHEDULES["zero_snr"], SCHEDULES["edm"]],
                                        ids=["linear", "zero_snr", "edm"])  # fmt: skip
LOW, HIGH = -8.0, 6.0


def mixture(schedule):
    means = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    weights, stds = torch.tensor([0.3, 0.5, 0.2]), torch.tensor([0.3, 0.5, 0.25])
    return MixtureDenoiser(Gaussian(schedule), weights, means, stds=stds)


def levels(steps):
    """Log-SNR from LOW to HIGH in uneven steps."""
    u = np.linspace(0.0, 1.0, steps + 1)
    return LOW + (HIGH - LOW) * (u + 0.08 * np.sin(2 * np.pi * u))


def start(count):
    """y = x/α at log-SNR LOW, the same for all schedules."""
    y = Noise(range(count)).normal((4,), 0, dtype=torch.float64)
    return y * math.sqrt(math.exp(-LOW) + 1.0)


def walk(name, schedule, steps, y, denoise=None, **options):
    """y = x/α at the end of a grid of levels."""
    grid = schedule.time(levels(steps))
    plan = make_plan(name, schedule, grid, **options)
    x = sample(plan, denoise or mixture(schedule), y * schedule.alpha(float(grid[0])))
    return x / schedule.alpha(float(grid[-1]))


@pytest.fixture(scope="module")
def reference():
    """dy/dλ = D − y for λ = logsnr/2, by the classical Runge–Kutta method: no sampler is involved."""
    schedule, y = Linear(), start(100)
    exact = mixture(schedule)

    def slope(half, y):
        t = schedule.time(2.0 * half)
        return exact(y * schedule.alpha(t), t) - y

    steps = 400
    h = 0.5 * (HIGH - LOW) / steps
    for i in range(steps):
        half = 0.5 * LOW + i * h
        k1 = slope(half, y)
        k2 = slope(half + h / 2, y + h / 2 * k1)
        k3 = slope(half + h / 2, y + h / 2 * k2)
        k4 = slope(half + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y


@deterministic
@pytest.mark.parametrize("schedule", [SCHEDULES["linear"], SCHEDULES["table"]], ids=["linear", "table"])
def test_observed_order_is_the_declared_one(name, options, schedule, reference):
    # polynomials in σ/α or α/σ, and the published third order, come to their order later
    slow = name == "lms" or options.get("variable") == "own" or (name, options.get("kind")) == ("dpmpp_3m", "published")
    errors = [
        (walk(name, schedule, steps, start(100), **options) - reference).norm(dim=1).median().item()
        for steps in ((96, 192) if slow else (48, 96))
    ]
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert abs(slopes[-1] - ORDER.get((name, str(options)), SAMPLERS[name].order)) < 0.2, (slopes, errors)


@deterministic
def test_order_holds_for_every_prediction(name, options):
    """An exact network in each prediction walks the path of the exact denoiser, so its order is the same."""
    schedule = Linear()
    exact = mixture(schedule)
    y = start(10)
    direct = walk(name, schedule, 12, y, **options)
    for kind in ("x0", "eps", "v", "flow", "score", "edm"):
        prediction = Prediction(kind)

        def network(given, logsnr, cond, prediction=prediction):
            # The float32 log-SNR is too coarse for this comparison, so the time comes by the side door.
            t = network.t
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            x_t = given / prediction.c_in(alpha, sigma)
            c_skip, c_out, _, _ = prediction.affine(alpha, sigma)
            return (exact(x_t, t) - c_skip * x_t) / c_out

        denoiser = Preconditioned(network, exact.process, prediction)

        def denoise(x, t, network=network, denoiser=denoiser):
            network.t = t
            return denoiser(x, t)

        torch.testing.assert_close(walk(name, schedule, 12, y, denoise, **options), direct, rtol=1e-8, atol=1e-8)


@deterministic
def test_swapping_the_schedule_changes_nothing(name, options):
    """In y = x/α at equal log-SNR all schedules are one."""
    y = start(20)
    results = [walk(name, schedule, 12, y, **options) for schedule in SCHEDULES.values()]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-8, atol=1e-9)


@every_plan
def test_finite_from_pure_noise_to_clean_data(name, options):
    for schedule in SCHEDULES.values():
        exact = mixture(schedule)
        x = Noise([1, 2]).normal((4,), 0) * exact.process.prior_std()
        for grid, steps in (("uniform", 1), ("logsnr", 2), ("karras", 12), ("uniform", 12)):
            plan = make_plan(name, schedule, make_grid(grid, schedule, steps), **options)
            out = sample(plan, exact, x, Noise([1, 2]))
            assert torch.isfinite(out).all(), (schedule, grid, steps)
            # two steps may overshoot; so may, at twelve, a polynomial over a step that is longer than all before it
            if steps != 2 and options.get("variable") != "own":
                assert out.abs().max() < 10, (schedule, grid, steps)
            assert plan.end == 0.0


@every_plan
def test_last_step_lands_on_the_denoised_result(name, options):
    """No noise is left at t = 0: the result is the last D itself, unless a polynomial in σ/α reaches σ = 0."""
    schedule = VP()
    seen = []
    exact = mixture(schedule)

    def look(x, t):
        seen.append(exact(x, t))
        return seen[-1]

    plan = make_plan(name, schedule, make_grid("logsnr", schedule, 9), **options)
    out = sample(plan, look, Noise([1]).normal((4,), 0), Noise([1]))
    assert plan.c[-1] == 0.0
    if name not in ("lms", "ipndm", "flow_adams"):
        torch.testing.assert_close(out, seen[-1])


@every_plan
def test_nfe(name, options):
    each = SAMPLERS[name].nfe_per_step
    for steps in (1, 5, 20):
        landing = make_plan(name, Cosine(), make_grid("logsnr", Cosine(), steps, start=0.95), **options)
        short = make_plan(name, Cosine(), make_grid("logsnr", Cosine(), steps, start=0.95, end=0.1), **options)
        if name != "restart":
            assert short.nfe == steps * each
            assert landing.nfe == (steps - 1) * each + 1


@deterministic
@few_schedules
def test_from_pure_noise_on_a_gaussian(name, options, schedule):
    """The flow of a Gaussian is known: x(0) = μ + s·(x(1) − αμ)/√(α²s² + σ²)."""
    mean, std = torch.tensor([0.4, -0.8], dtype=torch.float64), 0.5
    exact = GaussianDenoiser(Gaussian(schedule), mean, std=std)
    alpha, sigma = schedule.alpha(1.0), schedule.sigma(1.0)
    x = Noise(range(50)).normal((2,), 0, dtype=torch.float64) * math.hypot(alpha, sigma)
    truth = mean + std * (x - alpha * mean) / math.sqrt(alpha**2 * std**2 + sigma**2)
    errors = []
    for steps in (40, 80):
        out = sample(make_plan(name, schedule, make_grid("logsnr", schedule, steps), **options), exact, x)
        errors.append((out - truth).norm(dim=1).median().item())
    # below 1e-4 two error terms of opposite sign may cancel at one number of steps and not at the other
    assert errors[1] < max(0.7 * errors[0], 1e-4) and errors[1] < 0.03


def test_uniform_flow_grid_converges_through_its_infinite_ends():
    schedule = Linear()
    exact, x = mixture(schedule), Noise(range(50)).normal((4,), 0, dtype=torch.float64)
    truth = sample(make_plan("heun", schedule, make_grid("uniform", schedule, 800)), exact, x)
    for name, slope in (("euler", 0.85), ("heun", 1.7), ("dpmpp_2m", 1.2)):
        errors = [
            (sample(make_plan(name, schedule, make_grid("uniform", schedule, n)), exact, x) - truth).norm(dim=1).median().item()
            for n in (40, 80)
        ]
        assert math.log2(errors[0] / errors[1]) > slope


# Statistics of the stochastic samplers


def propagate(plan, schedule, mean, std):
    """Exact mean and variance of the result from the exact start on N(mean, std²).

    There D is affine in x, so every quantity is a vector of weights on (1, the starting noise, z of every row).
    """
    one, unit = np.eye(plan.nfe + 2)[0], np.eye(plan.nfe + 2)[1]

    def level(t):
        return schedule.alpha(float(t)), schedule.sigma(float(t))

    alpha, sigma = level(plan.start)
    x = base = alpha * mean * one + math.hypot(alpha * std, sigma) * unit
    memory = []
    for i, t in enumerate(plan.t):
        alpha, sigma = level(t)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        denoised = mean * one + gain * (x - alpha * mean * one)
        memory = [plan.p[i] * x + plan.q[i] * denoised, *memory][: plan.b.shape[1]]
        base = plan.a[i] * base + sum(w * h for w, h in zip(plan.b[i], memory, strict=False))
        base = base + plan.c[i] * np.eye(plan.nfe + 2)[2 + i]
        x = plan.A[i] * base + sum(w * h for w, h in zip(plan.B[i], memory, strict=False))
    return x[0], (x[1:] ** 2).sum()


STOCHASTIC = [(name, options) for name, options in PLANS if (name, options) not in DETERMINISTIC and name != "lcm"]


@few_schedules
@pytest.mark.parametrize(("name", "options"), STOCHASTIC)
def test_stochastic_samplers_reach_the_exact_gaussian(name, options, schedule):
    mean, std = 0.7, 0.5
    gaps = []
    for steps in (50, 100, 200):
        plan = make_plan(name, schedule, make_grid("logsnr", schedule, steps), **options)
        assert plan.stochastic
        m, v = propagate(plan, schedule, mean, std)
        gaps.append(max(abs(m - mean), abs(math.sqrt(v) - std)))
    # the churn's s_noise of 1.003 is a wanted deviation that no number of steps takes away
    assert gaps[2] < 0.02 and (gaps[2] < 0.75 * gaps[1] < 0.6 * gaps[0] or gaps[0] < 2e-3), gaps


def test_lcm_forgets_x():
    """Each step starts from the denoised result alone, at the level's full noise."""
    schedule = VP()
    grid = make_grid("logsnr", schedule, 4)
    plan = make_plan("lcm", schedule, grid)
    assert not plan.a.any() and plan.c[-1] == 0.0
    np.testing.assert_allclose(plan.b[:, 0], [schedule.alpha(t) for t in grid[1:].tolist()])
    np.testing.assert_allclose(plan.c, [schedule.sigma(t) for t in grid[1:].tolist()])


def test_drawn_samples_have_the_propagated_moments():
    schedule, mean, std, n = VP(), 0.7, 0.5, 4000
    exact = GaussianDenoiser(Gaussian(schedule), torch.full((n,), mean), std=std)
    seeds = list(range(5))
    for steps in (3, 12):
        plan = make_plan("ddpm", schedule, make_grid("logsnr", schedule, steps))
        x = Noise(seeds).normal((n,), 0, dtype=torch.float64)
        out = sample(plan, exact, x, Noise(seeds))
        m, v = propagate(plan, VP(), mean, std)
        total = out.numel()
        assert out.mean().item() == pytest.approx(m, abs=4 * math.sqrt(v / total))
        assert out.var().item() == pytest.approx(v, rel=4 * math.sqrt(2 / total))


def same(one, other):
    """Whether two plans walk the same way, shown on a denoiser that is not linear."""
    x = Noise(range(5)).normal((4,), 0, dtype=torch.float64)
    for schedule in SCHEDULES.values():
        grid = make_grid("logsnr", schedule, 9)
        first, second = (
            sample(make_plan(name, schedule, grid, **options), mixture(schedule), x, Noise(range(5)))
            for name, options in (one, other)
        )
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ddim", {}), ("euler", {})),
        (("ddim", {"eta": 1.0}), ("ddpm", {})),
        (("exp_adams", {"order": 1}), ("euler", {})),
        (("deis", {"order": 1}), ("euler", {})),
        (("lms", {"order": 1}), ("euler", {})),
        (("flow_adams", {"order": 1}), ("euler", {})),
        (("unipc", {"order": 1, "corrector": False}), ("euler", {})),
        (("exp_adams", {"order": 2}), ("dpmpp_2m", {"kind": "exact"})),
        (("exp_adams", {"order": 3}), ("dpmpp_3m", {})),
        (("unipc", {"order": 2, "corrector": False}), ("dpmpp_2m", {})),
        (("deis", {"order": 2}), ("dpm_2m", {"kind": "exact"})),
        (("dpmpp_2m_sde", {"eta": 0.0}), ("dpmpp_2m", {})),
        (("dpmpp_3m_sde", {"eta": 0.0}), ("dpmpp_3m", {})),
        (("sa_solver", {"tau": 0.0, "order": 2, "corrector": 0}), ("exp_adams", {"order": 2})),
        (("dpm_2_a", {"eta": 0.0}), ("dpm_2", {})),
        (("dpmpp_2s_a", {"eta": 0.0}), ("dpmpp_2s", {})),
        (("dpmpp_sde", {"eta": 0.0}), ("dpmpp_2s", {})),
        (("restart", {"repeats": 0}), ("heun", {})),
        (("heun", {"churn": 0.0}), ("heun", {})),
    ],
)
def test_equal_by_algebra(one, other):
    same(one, other)


def test_a_constant_denoiser_is_reached_by_any_plan():
    """Σ of the weights is exact: if D is a constant c, then x(s) = (σ_s/σ_t)·x + (α_s − α_t·σ_s/σ_t)·c."""
    for schedule in SCHEDULES.values():
        grid = make_grid("logsnr", schedule, 7, end=0.1)
        c, x = torch.full((1, 2), 1.7).double(), torch.full((1, 2), -0.4).double()
        keep = schedule.sigma(0.1) / schedule.sigma(1.0)
        expected = keep * x + (schedule.alpha(0.1) - schedule.alpha(1.0) * keep) * c
        for name, options in DETERMINISTIC:
            out = sample(make_plan(name, schedule, grid, **options), lambda x, t, c=c: c, x)
            torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


# The registry


def test_names_from_other_tools():
    assert sampler_name("DPMSolverMultistepScheduler") == "dpmpp_2m"
    assert sampler_name("DPM++ 2M") == "dpmpp_2m"
    assert sampler_name("euler_discrete") == "euler"
    assert sampler_name("Euler a") == "ddpm"
    assert sampler_name("DPM++ 2M SDE") == "dpmpp_2m_sde"
    assert sampler_name("uni_pc") == "unipc"
    for key, entry in SAMPLERS.items():
        assert all(sampler_name(name) == key for name in (key, *entry.aliases))
    with pytest.raises(UserError, match="did you mean heun"):
        make_plan("huen", VP(), [1.0, 0.0])


def test_every_file_is_in_the_registry_and_documented():
    folder = Path(package.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    modules = {entry.plan.__module__.rsplit(".", 1)[1] for entry in SAMPLERS.values()}
    assert files == modules
    for entry in SAMPLERS.values():
        text = __import__(entry.plan.__module__, fromlist=["plan"]).__doc__
        for word in ("order", "NFE a step", "also known as", "not to be confused with", "source"):
            assert word in text, (entry.plan.__module__, word)


def test_bad_requests_are_one_line():
    grid = make_grid("logsnr", VP(), 5)
    for call in (
        lambda: make_plan("ddim", VP(), grid, eta=2.0),
        lambda: make_plan("ddim", VP(), grid, etta=0.5),
        lambda: make_plan("euler", VP(), grid, eta=0.5),
        lambda: make_plan("dpmpp_2m", VP(), grid, kind="heun"),
        lambda: make_plan("exp_adams", VP(), grid, order=0),
        lambda: make_plan("exp_adams", VP(), grid, order=2.5),
        lambda: make_plan("exp_adams", VP(), grid, form="v"),
        lambda: make_plan("unipc", VP(), grid, order=True),
        lambda: make_plan("sa_solver", VP(), grid, tau=math.nan),
        lambda: make_plan("restart", VP(), grid, low=2.0),
        lambda: make_plan("restart", VP(), grid, repeats=-1),
        lambda: make_plan("heun", VP(), grid, churn=-1.0),
        lambda: make_plan("dpm_2", VP(), grid, eta=1.5),
        lambda: make_plan("euler", VP(), []),
        lambda: make_plan("euler", VP(), [1.0, math.nan, 0.0]),
        lambda: make_plan("heun", VP(), grid[::-1]),
        lambda: make_plan("heun", VP(), [1.0]),
        lambda: make_plan("heun", VP(), "falling"),
        lambda: make_plan("dpmpp_2m_sde", VP(), grid, eta="half"),
        lambda: make_plan("sa_solver", VP(), grid, tau=None),
        lambda: make_plan("dpmpp_2m", VP(), grid, kind=2),
        lambda: make_plan("unipc", VP(), grid, corrector=1.0),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert "\n" not in str(error.value) and "not supported between" not in str(error.value)
    with pytest.raises(UserError, match="sampler 'dpmpp_2m_sde': eta must be a number, got 'half'"):
        make_plan("dpmpp_2m_sde", VP(), grid, eta="half")
