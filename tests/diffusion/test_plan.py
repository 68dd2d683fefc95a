"""Plans and their loop: JSON, validation, resuming, aliasing, memory, noise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from unfog.diffusion.denoisers import MixtureDenoiser
from unfog.diffusion.grids import make_grid
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import Plan, Row, State, advance, begin, run, sample
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import SAMPLERS, make_plan
from unfog.diffusion.schedules import Cosine
from unfog.errors import UserError

SCHEDULE = Cosine()
samplers = pytest.mark.parametrize("name", SAMPLERS)


def denoiser():
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]])
    return MixtureDenoiser(Gaussian(SCHEDULE), torch.tensor([0.2, 0.5, 0.3]), means, stds=torch.tensor([0.2, 0.3, 0.4]))


def plan_of(name: str, steps: int = 20) -> Plan:
    return make_plan(name, SCHEDULE, make_grid("logsnr", SCHEDULE, steps))


@samplers
def test_json_keeps_every_bit(name):
    plan = plan_of(name)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    for field in ("t", "a", "b", "c", "A", "B"):
        assert np.array_equal(getattr(plan, field), getattr(again, field))
    assert again.to_dict() == plan.to_dict()
    x = Noise([1, 2]).normal((2,), 0)
    assert torch.equal(sample(plan, denoiser(), x, Noise([1, 2])), sample(again, denoiser(), x, Noise([1, 2])))


@samplers
@pytest.mark.parametrize("cut", [1, 2, 7, 10])
def test_twenty_steps_are_ten_and_ten_more(name, cut):
    """Stopping anywhere, saving the state and going on gives the same bits, with noise and memory too."""
    plan, noise = plan_of(name), Noise([11, 12, 13])
    x = noise.normal((2,), 0)
    whole = list(run(plan, denoiser(), x, noise))
    part = run(plan, denoiser(), x, noise)
    for _ in range(cut):
        state = next(part)
    saved = State(state.index, state.total, state.t, state.x.clone(), state.base.clone(), tuple(state.history), state.x0)
    rest = list(run(plan, denoiser(), saved, Noise([11, 12, 13])))
    assert len(rest) == len(whole) - cut
    for a, b in zip(rest, whole[cut:], strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.x0, b.x0) and a.index == b.index
    assert torch.equal(sample(plan, denoiser(), saved, noise), whole[-1].x)


@samplers
def test_an_item_alone_is_the_item_in_a_batch(name):
    plan = plan_of(name)
    seeds = [4, 5, 6]
    whole = sample(plan, denoiser(), Noise(seeds).normal((2,), 0), Noise(seeds))
    for i, seed in enumerate(seeds):
        alone = sample(plan, denoiser(), Noise([seed]).normal((2,), 0), Noise([seed]))
        assert torch.equal(alone[0], whole[i])


@samplers
def test_states_tell_the_truth(name):
    plan = plan_of(name, 6)
    calls = []
    exact = denoiser()

    def look(x, t):
        calls.append((x.clone(), t))
        return exact(x, t)

    noise = Noise([1])
    states = list(run(plan, look, noise.normal((2,), 0), noise))
    assert len(calls) == len(states) == plan.nfe == states[0].total
    assert [state.index for state in states] == list(range(plan.nfe))
    assert [state.nfe for state in states] == list(range(1, plan.nfe + 1))
    for state, (x, t) in zip(states[:-1], calls[1:], strict=True):
        assert torch.equal(state.x, x) and state.t == t
    for state, (x, t) in zip(states, calls, strict=True):
        assert torch.equal(state.x0, exact(x, t))
    assert states[-1].done and not states[-2].done and states[-1].t == plan.end == 0.0
    assert all(len(state.history) <= plan.b.shape[1] for state in states)


@samplers
def test_nothing_that_was_yielded_changes_later(name):
    plan, noise = plan_of(name, 8), Noise([1, 2])
    x = noise.normal((2,), 0)
    kept, copies = [x], [x.clone()]
    for state in run(plan, denoiser(), x, noise):
        kept += [state.x, state.x0, state.base]
        copies += [state.x.clone(), state.x0.clone(), state.base.clone()]
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


class Forbidden:
    def normal(self, *args, **kwargs):
        raise AssertionError("a row without noise drew noise")


@samplers
def test_noise_is_drawn_only_where_a_row_has_it(name):
    plan = plan_of(name)
    x = Noise([1]).normal((2,), 0)
    if not plan.stochastic:
        sample(plan, denoiser(), x, Forbidden())
        sample(plan, denoiser(), x)
        return
    drawn = []

    class Counting(Noise):
        def normal(self, shape, stream, **kwargs):
            drawn.append(stream)
            return super().normal(shape, stream, **kwargs)

    sample(plan, denoiser(), x, Counting([1]))
    assert drawn == [1 + i for i in range(plan.nfe) if plan.c[i] != 0]
    if name == "ddpm":  # one draw a step, none in the last, which lands on clean data
        assert drawn == list(range(1, plan.nfe))
    with pytest.raises(UserError, match="Noise"):
        sample(plan, denoiser(), x)


def test_a_server_may_interleave_plans():
    """Two requests with different samplers share each evaluation; the results are those of separate runs."""
    exact = denoiser()
    plans = [plan_of("heun", 5), plan_of("dpmpp_2m", 8)]
    noises = [Noise([1]), Noise([2])]
    states = [begin(plan, noise.normal((2,), 0)) for plan, noise in zip(plans, noises, strict=True)]
    while not all(state.done for state in states):
        live = [k for k in (0, 1) if not states[k].done]
        times = torch.tensor([states[k].t for k in live], dtype=torch.float64)
        out = exact(torch.cat([states[k].x for k in live]), times)
        for row, k in enumerate(live):
            states[k] = advance(plans[k], states[k], out[row : row + 1], noises[k])
    for plan, noise, state in zip(plans, noises, states, strict=True):
        torch.testing.assert_close(state.x, sample(plan, exact, noise.normal((2,), 0), noise), rtol=1e-5, atol=1e-6)


def test_gradient_mode():
    plan = plan_of("dpmpp_2m", 4)
    weight = torch.tensor(0.5, requires_grad=True)
    x = torch.ones(1, 2)
    states = run(plan, lambda x, t: x * weight, x)
    next(states)
    assert torch.is_grad_enabled()  # the loop's no_grad does not leak to its consumer
    assert not sample(plan, lambda x, t: x * weight, x).requires_grad
    sample(plan, lambda x, t: x * weight, x, grad=True).sum().backward()
    step = 1e-3
    high, low = (sample(plan, lambda x, t, w=w: x * w, x.double()).sum() for w in (0.5 + step, 0.5 - step))
    assert weight.grad.item() == pytest.approx(((high - low) / (2 * step)).item(), rel=1e-4)


def test_corrector_stage_and_rising_times():
    """What the samplers to come need: a corrector row, a stage that leaves base, a raised level."""
    rows = [
        Row(1.0, a=0.5, b=(2.0,), A=3.0, B=(0.25,)),
        Row(0.4, a=0.1, b=(1.0, -1.0), A=1.0, B=(0.0, 4.0)),
        Row(0.6, A=0.0, B=(1.0,), c=0.5),
    ]
    plan = Plan.of("made up", rows, end=0.2)
    draws = iter([torch.full((1, 1), value) for value in (10.0, 20.0, 30.0)])

    class Given:
        def normal(self, shape, stream, device="cpu", dtype=torch.float32):
            assert stream == 3
            return torch.full((1, *shape), 7.0)

    states = list(run(plan, lambda x, t: next(draws), torch.ones(1, 1), Given()))
    base0 = 0.5 * 1 + 2 * 10
    base1 = 0.1 * base0 + 20 - 10
    assert states[0].x.item() == pytest.approx(3 * base0 + 0.25 * 10)
    assert states[1].x.item() == pytest.approx(base1 + 4 * 10)
    assert states[2].base.item() == pytest.approx(base1 + 0.5 * 7)
    assert states[2].x.item() == 30.0
    assert [state.t for state in states] == [0.4, 0.6, 0.2]


def test_all_zero_row_gives_zero():
    plan = Plan.of("zero", [Row(1.0, a=0.0)], end=0.0)
    assert torch.equal(sample(plan, lambda x, t: x, torch.ones(2, 3)), torch.zeros(2, 3))


def test_validation():
    good = plan_of("dpmpp_2m", 3).to_dict()
    bad = [
        {**good, "t": [1.0, 0.5]},
        {**good, "a": [1.0, float("nan"), 1.0]},
        {**good, "b": [[float("inf"), 0.0]] * 3},
        {**good, "b": [1.0, 2.0, 3.0]},
        {**good, "b": [[1.0, 0.5]] * 3},
        {**good, "b": [[1.0], [1.0, 2.0], [1.0]]},
        {**good, "end": -0.1},
        {**good, "end": None},
        {**good, "t": [1.0, 0.5, 1.5]},
        {**good, "t": []},
        {**good, "extra": 1},
        {key: value for key, value in good.items() if key != "c"},
        [],
    ]
    for values in bad:
        with pytest.raises(UserError) as error:
            Plan.from_dict(values)
        assert "\n" not in str(error.value)
    plan = Plan.from_dict(good)
    with pytest.raises(ValueError):
        plan.t[0] = 0.3
    with pytest.raises(UserError, match="rows"):
        next(run(plan, denoiser(), begin(plan_of("dpmpp_2m", 4), torch.ones(1, 2))))
    with pytest.raises(ValueError, match="shape"):
        sample(plan, lambda x, t: x[:, :1], torch.ones(1, 2))
