"""Bugs 1 to 6 that happened elsewhere: each check is true of ours, and false of the same thing with the bug planted.

Each docstring says where it happened. The others: test_history.py.
"""

import dataclasses
import inspect
import math
import types

import numpy as np
import pytest
import torch

from unfog.diffusion.denoisers import MixtureDenoiser
from unfog.diffusion.grids import GRIDS, make_grid
from unfog.diffusion.guidance import GUIDANCES, guide
from unfog.diffusion.nodes import Nodes
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import Plan, Row, run, sample
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import SAMPLERS, dpm_solver, euler, make_plan, singlestep, unipc
from unfog.diffusion.schedules import VP, Cosine, Linear, Table
from unfog.errors import UserError

DETERMINISTIC = [name for name, entry in SAMPLERS.items() if not entry.stochastic]
TABLE = Table.scaled_linear()


def mixture(schedule):
    means = torch.tensor([[1.0, -0.5], [-0.8, 0.6]])
    return MixtureDenoiser(Gaussian(schedule), torch.tensor([0.4, 0.6]), means, stds=torch.tensor([0.3, 0.4]))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a, b, tolerance=1e-9):
    return bool(torch.isfinite(a).all()) and bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance))


# 1–4: where a step goes


def on_the_path(plan, schedule):
    """With all data in one point c, D = c, and x at every time is α·c + σ·ε with one and the same ε."""
    c, eps = normal(2, 3), normal(2, 3, seed=1)

    def there(t):
        return schedule.alpha(t) * c + schedule.sigma(t) * eps

    return all(close(state.x, there(state.t)) for state in run(plan, lambda x, t: c, there(plan.start)))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_1_step_size_from_a_formula(name):
    """diffusers#11347, #12633: the step goes to index n − N//steps, which a "linspace" list never visits."""
    steps = 10
    grid = make_grid("linspace", TABLE, steps)
    assert on_the_path(make_plan(name, TABLE, grid), TABLE)
    rows = []
    for t in grid[:-1].tolist():
        index = TABLE.index(t) - TABLE.count // steps
        a, b, _ = Nodes.of(TABLE, [t, TABLE.time_of(index) if index >= 0 else 0.0]).first_order(0)
        rows.append(Row(t, a, (b,)))
    assert not on_the_path(Plan.of("formula", rows, 0.0), TABLE)


def lands_on_data(plan, tolerance=1e-12):
    """With all data in one point, that point is the result."""
    c = normal(2, 3)
    noise = Noise([3, 4])
    x = noise.normal((3,), 0, dtype=torch.float64) * 10.0
    return plan.end == 0.0 and close(sample(plan, lambda x, t: c, x, noise), c, tolerance)


def test_2_last_sigma_is_not_zero():
    """diffusers#5689, #6477: the list of levels ends at its least noise, and that noise stays in the picture."""
    for name in GRIDS:
        options = {"times": [1.0, 0.6, 0.2, 0.0]} if name == "custom" else {}
        grid = make_grid(name, TABLE, 3, **options)
        assert lands_on_data(make_plan("euler", TABLE, grid)), name
        short = make_plan("euler", TABLE, grid[:-1])
        assert not lands_on_data(short) and not lands_on_data(dataclasses.replace(short, end=0.0)), name
    for name in SAMPLERS:
        assert lands_on_data(make_plan(name, VP(), make_grid("karras", VP(), 6)), 1e-9), name


@pytest.mark.parametrize(
    ("name", "module"), [("dpmpp_3s", singlestep), ("dpm_3", singlestep), ("dpmpp_3m", dpm_solver), ("unipc", unipc)]
)
def test_3_log_of_zero_at_the_last_step(name, module, monkeypatch):
    """diffusers#9104: a third-order step to σ = 0 takes log 0, at numbers of evaluations of 3n − 1 alone."""

    def any_number_of_steps():
        try:
            with np.errstate(all="ignore"):
                plans = [make_plan(name, VP(), make_grid("logsnr", VP(), steps)) for steps in range(1, 10)]
        except UserError:  # a plan refuses what is not finite
            return False
        return all(lands_on_data(plan) for plan in plans)

    assert any_number_of_steps()
    unguarded = types.SimpleNamespace(**{**vars(math), "isfinite": lambda value: True})
    monkeypatch.setattr(module, "math", unguarded)
    assert not any_number_of_steps()


def test_4_custom_times_ignored_or_at_odds_with_the_levels():
    """diffusers#14011, #14461: given times are dropped for the usual ones; given levels are paired with other times."""
    schedule, times, levels = Cosine(), [1.0, 0.83, 0.31, 0.3, 0.0], [9.0, 2.0, 0.5, 0.02, 0.0]

    def asked(grid):
        seen = []
        sample(make_plan("euler", schedule, grid), lambda x, t: seen.append(t) or x, normal(1, 2))
        return seen

    def keeps_times(make):
        return asked(make(times)) == times[:-1]

    def keeps_levels(make):
        seen = asked(make(levels))
        return np.allclose([schedule.sigma(t) / schedule.alpha(t) for t in seen], levels[:-1], rtol=1e-9)

    assert keeps_times(lambda times: make_grid("custom", schedule, 4, times=times))
    assert not keeps_times(lambda times: make_grid("uniform", schedule, len(times) - 1))
    assert keeps_levels(lambda levels: make_grid("custom", schedule, 4, levels=levels))
    assert not keeps_levels(lambda levels: make_grid("custom", Linear(), 4, levels=levels))
    with pytest.raises(UserError, match="either"):
        make_grid("custom", schedule, 4, times=times, levels=levels)


# 5, 6: options

OTHER = {  # where one step up from the default is no choice, or another option must be on for it to count
    ("heun", "churn"): ({}, 20.0), ("heun", "s_min"): ({"churn": 20.0}, 0.5), ("heun", "s_max"): ({"churn": 20.0}, 1.0),
    ("heun", "s_noise"): ({"churn": 20.0}, 1.1), ("dpmpp_2m", "kind"): ({}, "exact"), ("dpm_2m", "kind"): ({}, "exact"),
    ("dpmpp_2m_sde", "kind"): ({}, "exact"), ("dpmpp_3m", "kind"): ({}, "published"),
    ("dpmpp_3m_sde", "kind"): ({}, "published"), ("unipc", "kind"): ({}, "bh1"), ("exp_adams", "form"): ({}, "flow"),
    ("exp_adams", "variable"): ({}, "own"), ("exp_adams", "name"): ({}, "other"), ("flow", "tokens"): ({}, 4096),
    ("ays", "model"): ({}, "sdxl"), ("auto", "dimension"): ({}, 4096),
}  # fmt: skip


def other_value(name, option, default):
    """(the options that go with it, a value that is not the default)."""
    if (name, option) in OTHER:
        return OTHER[name, option]
    if isinstance(default, bool):
        return {}, not default
    if isinstance(default, int):
        return {}, default + 1
    if isinstance(default, float) and math.isfinite(default):
        return {}, default - 0.3 if default >= 1.0 else default + 0.3
    raise AssertionError(f"{name}: give another value of {option} in OTHER")


def every_option_counts(name, function, skip, make, same):
    """Whether another value of each option gives another result."""
    for option, parameter in list(inspect.signature(function).parameters.items())[skip:]:
        base, value = other_value(name, option, parameter.default)
        if same(make(**base), make(**{**base, option: value})):
            return False
    return True


def test_5_an_option_that_is_accepted_and_not_used():
    """diffusers#380, #635: an argument of the configuration changes nothing, without a word."""
    grid = make_grid("logsnr", Cosine(), 8, start=0.95, end=0.1)

    def plans_count(name, function):
        return every_option_counts(
            name, function, 2,
            lambda **options: function(Cosine(), grid, **options).to_dict(), lambda one, other: one == other,
        )  # fmt: skip

    def idle(schedule, grid, eta=0.0):
        return euler.plan(schedule, grid)

    assert all(plans_count(name, entry.plan) for name, entry in SAMPLERS.items())
    assert not plans_count("idle", idle)
    table = TABLE.zero_terminal_snr()  # infinite at both ends, so that every bound is felt
    for name, function in GRIDS.items():
        if name != "custom":
            assert every_option_counts(
                name, function, 4, lambda name=name, **options: make_grid(name, table, 8, **options), np.array_equal
            ), name
    for name in GUIDANCES:
        with pytest.raises(UserError, match="nonsense"):
            guide(name, mixture(VP()), nonsense=1.0)


def test_6_a_swapped_sampler_inherits_the_solver_type():
    """diffusers#3943: the next sampler is made from the last one's configuration, with its options."""
    schedule = VP()
    grid = make_grid("logsnr", schedule, 6)
    nodes = Nodes.of(schedule, grid)

    def is_the_published_2m(swap):
        """λ of 2211.01095, Alg. 2: b = α_j(1 − e^{−h})·(1 + h/2h₀, −h/2h₀)."""
        plan = swap("dpmpp_3m", {"kind": "exact"}, "dpmpp_2m")
        before, h = np.diff(nodes.half)[1:3]
        whole = -nodes.alpha[3] * np.expm1(-h)
        return np.allclose(plan.b[2, :2], [whole * (1.0 + 0.5 * h / before), -whole * 0.5 * h / before], rtol=1e-9)

    def ours(old, options, new):
        make_plan(old, schedule, grid, **options)
        return make_plan(new, schedule, grid)

    def inherits(old, options, new):
        known = inspect.signature(SAMPLERS[new].plan).parameters
        return make_plan(new, schedule, grid, **{key: value for key, value in options.items() if key in known})

    assert is_the_published_2m(ours)
    assert not is_the_published_2m(inherits)
    with pytest.raises(UserError, match="kind"):
        make_plan("unipc", schedule, grid, kind="exact")
