"""Guidance: what it computes, how often it calls, and that items stay apart."""

from __future__ import annotations

import pytest
import torch

from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.grids import make_grid
from unfog.diffusion.guidance import GUIDANCES, guide
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.plan import run
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import make_plan
from unfog.diffusion.schedules import Linear
from unfog.errors import UserError


class Counter:
    """D = class value·(1 + x/10): each item's answer depends on its own x, t and class only."""

    def __init__(self):
        self.process = Gaussian(Linear())
        self.batches = []

    def __call__(self, x_t, t, cond=None):
        self.batches.append(len(x_t))
        time = t[:, None] if isinstance(t, torch.Tensor) and t.ndim else t
        text = cond["text"].sum((1, 2))[:, None] if "text" in cond else 0.0
        return cond["class"][:, None].to(x_t) * (1 + x_t / 10) + time + text


X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
COND = {"class": torch.tensor([1.0, 2.0, 3.0])}
EMPTY = {"class": torch.tensor([9.0])}


def direct(scale, t=0.5):
    base = Counter()
    with_cond = base(X, t, COND)
    without = base(X, t, {"class": torch.full((3,), 9.0)})
    return without + scale * (with_cond - without)


def test_scale_one_is_off_and_calls_once():
    base = Counter()
    out = ClassifierFree(base, 1.0, EMPTY)(X, 0.5, COND)
    assert base.batches == [3]
    assert torch.equal(out, Counter()(X, 0.5, COND))


@pytest.mark.parametrize("batched", [True, False])
def test_formula_and_calls(batched):
    base = Counter()
    out = ClassifierFree(base, 4.0, EMPTY, batched=batched)(X, 0.5, COND)
    torch.testing.assert_close(out, direct(4.0))
    assert base.batches == ([6] if batched else [3, 3])


def test_scale_zero_is_the_negative_alone():
    base = Counter()
    torch.testing.assert_close(ClassifierFree(base, 0.0, EMPTY)(X, 0.5, COND), direct(0.0))
    assert base.batches == [3]


def test_items_do_not_mix():
    base = Counter()
    scales = torch.tensor([1.0, 3.0, 0.0])
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    out = ClassifierFree(base, scales, EMPTY)(X, t, COND)
    assert base.batches == [5]  # the first item needs no second look
    for i in range(3):
        cond = {"class": COND["class"][i : i + 1]}
        alone = ClassifierFree(Counter(), float(scales[i]), EMPTY)(X[i : i + 1], t[i : i + 1], cond)
        torch.testing.assert_close(out[i : i + 1], alone)


@pytest.mark.parametrize("unit", ["logsnr", "t"])
def test_interval_saves_the_calls_outside_it(unit):
    base = Counter()
    schedule = base.process.schedule
    low, high = 0.25, 0.65
    interval = (schedule.logsnr(high), schedule.logsnr(low)) if unit == "logsnr" else (low, high)
    guided = ClassifierFree(base, 3.0, EMPTY, interval=interval, interval_in=unit)
    plan = make_plan("euler", schedule, make_grid("uniform", schedule, 10))
    for _ in run(plan, lambda x, t: guided(x, t, COND), X):
        pass
    inside = sum(low <= t <= high for t in plan.t)
    assert inside == 4
    assert base.batches.count(6) == inside and base.batches.count(3) == 10 - inside
    # Items of one batch may stand on different sides of the interval.
    times = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    out = guided(X, times, COND)
    assert base.batches[-1] == 4
    plain = Counter()(X, times, COND)
    assert torch.equal(out[[0, 2]], plain[[0, 2]]) and not torch.equal(out[1], plain[1])


def test_conditions_of_other_length_take_two_calls():
    base = Counter()
    cond = {**COND, "text": torch.ones(3, 5, 2, dtype=torch.float64)}
    empty = {**EMPTY, "text": torch.zeros(1, 1, 2, dtype=torch.float64)}
    ClassifierFree(base, 2.0, empty)(X, 0.5, cond)
    assert base.batches == [3, 3]


def test_guidance_on_x0_equals_guidance_on_the_network_output():
    """For an affine prediction the two are one; here with v."""
    process = Gaussian(Linear())

    def network(x, logsnr, cond):
        return torch.sin(x) * cond["class"][:, None]

    guided = ClassifierFree(Preconditioned(network, process, "v"), 5.0, EMPTY)(X, 0.4, COND)

    def mixed(x, logsnr, cond):
        one, nine = network(x, logsnr, cond), torch.sin(x) * 9.0
        return nine + 5.0 * (one - nine)

    torch.testing.assert_close(guided, Preconditioned(mixed, process, "v")(X, 0.4, COND))


def test_errors():
    base = Counter()
    with pytest.raises(UserError, match="same keys"):
        ClassifierFree(base, 2.0, EMPTY)(X, 0.5, None)
    with pytest.raises(UserError, match="same keys"):
        ClassifierFree(base, 2.0, {"text": torch.zeros(1, 1, 2)})(X, 0.5, COND)
    with pytest.raises(UserError, match="interval"):
        ClassifierFree(base, 2.0, EMPTY, interval=(3.0, 1.0))
    with pytest.raises(UserError, match="finite"):
        ClassifierFree(base, float("nan"), EMPTY)
    with pytest.raises(ValueError, match="2 scales for 3 items"):
        ClassifierFree(base, torch.tensor([2.0, 3.0]), EMPTY)(X, 0.5, COND)
    with pytest.raises(UserError, match="did you mean cfg"):
        guide("cfgg", base, scale=2.0, uncond=EMPTY)
    with pytest.raises(UserError, match="uncond"):
        guide("cfg", base, scale=2.0)
    assert guide("cfg", base, scale=2.0, uncond=EMPTY).process is base.process
    assert "cfg" in GUIDANCES
