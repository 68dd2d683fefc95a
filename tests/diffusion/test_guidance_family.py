"""Every guidance beyond plain classifier-free: its formula, its switch, exact posteriors, items apart."""

from __future__ import annotations

import math

import pytest
import torch

from unfog.diffusion import guidance as package
from unfog.diffusion.denoisers import GaussianDenoiser, MixtureDenoiser
from unfog.diffusion.grids import make_grid
from unfog.diffusion.guidance import GUIDANCES, guide
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import sample
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import make_plan
from unfog.diffusion.schedules import VP, Cosine, Linear
from unfog.errors import UserError

SCHEDULES = [Cosine(), Linear(), VP()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


class Classes:
    """Each class is one Gaussian; class 2 is both. Counts its calls and items."""

    def __init__(self, schedule=None):
        self.process = Gaussian(schedule or Linear())
        self.means = torch.tensor([[1.0, -0.5, 0.3, 2.0], [-0.8, 0.9, 0.1, -1.0]], dtype=torch.float64)
        self.items = 0

    def __call__(self, x_t, t, cond=None):
        self.items += len(x_t)
        out = torch.empty_like(x_t)
        for i, label in enumerate(cond["class"].tolist()):
            means = self.means if label == 2 else self.means[label : label + 1]
            exact = MixtureDenoiser(self.process, torch.ones(len(means)), means, stds=torch.full((len(means),), 0.4))
            time = float(t[i]) if isinstance(t, torch.Tensor) and t.ndim else float(t)
            out[i : i + 1] = exact(x_t[i : i + 1], time)
        return out


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
COND = {"class": torch.tensor([0, 1, 0])}
NONE = {"class": torch.tensor([2])}
PAIRED = {"rescale": {"amount": 0.7}, "zero_star": {}, "apg": {"eta": 0.2, "norm": 0.8}}


def both(base, t):
    return base(X, t, COND), base(X, t, {"class": torch.full((3,), 2)})


@pytest.mark.parametrize(("name", "options"), PAIRED.items())
def test_scale_one_is_off_and_calls_once(name, options):
    base = Classes()
    out = guide(name, base, scale=1.0, uncond=NONE, **options)(X, 0.5, COND)
    assert base.items == 3 and torch.equal(out, Classes()(X, 0.5, COND))


@pytest.mark.parametrize(("name", "options"), PAIRED.items())
def test_items_do_not_mix(name, options):
    scales, t = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    out = guide(name, Classes(), scale=scales, uncond=NONE, **options)(X, t, COND)
    for i in range(3):
        cond = {"class": COND["class"][i : i + 1]}
        alone = guide(name, Classes(), scale=float(scales[i]), uncond=NONE, **options)(X[i : i + 1], t[i : i + 1], cond)
        torch.testing.assert_close(out[i : i + 1], alone)


@pytest.mark.parametrize(
    ("name", "off"), [("rescale", {"amount": 0.0}), ("apg", {"eta": 1.0}), ("apg", {"eta": 1.0, "momentum": 0.0})]
)
def test_switched_off_it_is_plain_guidance(name, off):
    plain = guide("cfg", Classes(), scale=4.0, uncond=NONE)(X, 0.6, COND)
    torch.testing.assert_close(guide(name, Classes(), scale=4.0, uncond=NONE, **off)(X, 0.6, COND), plain)


@pytest.mark.parametrize("space", ["x0", "eps", "v"])
def test_rescale_is_the_published_formula(space):
    """Lin et al., in the network's own output: here written with ε, v and x0 by hand."""
    schedule = VP()
    t = 0.5
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    with_cond, without = both(Classes(schedule), t)

    def out(x0):
        eps = (X - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[space]

    mixed = out(without) + 6.0 * (out(with_cond) - out(without))
    factor = out(with_cond).std(1, keepdim=True) / mixed.std(1, keepdim=True)
    wanted = 0.7 * mixed * factor + 0.3 * mixed
    got = guide("rescale", Classes(schedule), scale=6.0, uncond=NONE, space=space)(X, t, COND)
    torch.testing.assert_close(out(got), wanted, rtol=1e-9, atol=1e-9)


def test_zero_star_is_the_published_formula():
    with_cond, without = both(Classes(), 0.5)
    v_c, v_u = (X - with_cond) / 0.5, (X - without) / 0.5
    s = (v_c * v_u).sum(1, keepdim=True) / (v_u * v_u).sum(1, keepdim=True)
    v = (1 - 4.0) * s * v_u + 4.0 * v_c
    guided = guide("zero_star", Classes(), scale=4.0, uncond=NONE)
    torch.testing.assert_close(guided(X, 0.5, COND), X - 0.5 * v)
    torch.testing.assert_close(guided(X, 0.97, COND), X)  # no velocity: x0 is x itself
    assert not torch.equal(guided(X, 0.95, COND), X)


def test_apg_parts():
    with_cond, without = both(Classes(), 0.5)
    change = with_cond - without
    got = guide("apg", Classes(), scale=3.0, uncond=NONE)(X, 0.5, COND) - with_cond
    assert (got * with_cond).sum(1).abs().max() < 1e-12  # nothing along D_c
    torch.testing.assert_close((got * change).sum(1), (got * got).sum(1) / 2.0)  # twice the orthogonal part of Δ
    short = guide("apg", Classes(), scale=2.0, uncond=NONE, eta=1.0, norm=0.1)(X, 0.5, COND) - with_cond
    torch.testing.assert_close(short.norm(dim=1), change.norm(dim=1).clamp(max=0.1))
    assert short.norm(dim=1)[1:].allclose(torch.tensor(0.1).double())  # the first item's change is shorter


def test_apg_momentum_belongs_to_one_falling_run():
    options = {"scale": 3.0, "uncond": NONE, "eta": 1.0, "momentum": -0.5}
    guided = guide("apg", Classes(), **options)
    first, second = guided(X, 0.8, COND), guided(X, 0.6, COND)
    fresh = guide("apg", Classes(), **options)(X, 0.6, COND)
    plain = guide("cfg", Classes(), scale=3.0, uncond=NONE)
    torch.testing.assert_close(first, plain(X, 0.8, COND))
    torch.testing.assert_close(fresh, plain(X, 0.6, COND))
    before = both(Classes(), 0.8)
    torch.testing.assert_close(second, fresh + 2.0 * -0.5 * (before[0] - before[1]))
    torch.testing.assert_close(guided(X, 0.8, COND), first)  # a new run starts anew


def test_threshold():
    class Wide:
        process = Gaussian(Linear())

        def __call__(self, x_t, t, cond=None):
            return x_t

    x = torch.linspace(-3, 3, 601, dtype=torch.float64)[None].repeat(2, 1)
    x[1] *= 0.2
    static = guide("threshold", Wide(), limit=1.0, quantile=None)(x, 0.5)
    assert torch.equal(static, x.clamp(-1, 1))
    out = guide("threshold", Wide(), limit=1.0, quantile=0.9)(x, 0.5)
    s = x[0].abs().sort().values[round(0.9 * 600)]
    torch.testing.assert_close(out[0], x[0].clamp(-s, s) / s)
    assert torch.equal(out[1], x[1])  # what lies inside is left alone
    assert out.abs().max() <= 1.0


def test_autoguidance():
    strong, weak = Classes(), Classes()
    weak.means = weak.means * 0.5
    a, b = strong(X, 0.5, COND), weak(X, 0.5, COND)
    torch.testing.assert_close(guide("auto", strong, weak=weak, scale=2.5)(X, 0.5, COND), b + 2.5 * (a - b))
    weak.items = 0
    assert torch.equal(guide("auto", strong, weak=weak, scale=1.0)(X, 0.5, COND), a) and weak.items == 0
    guide("auto", strong, weak=weak, scale=3.0, interval=(10.0, 20.0))(X, 0.5, COND)
    assert weak.items == 0


def test_autoguidance_is_exact_where_both_err_alike():
    """The weak model's error is twice the strong one's: scale 2 takes it away."""
    exact, strong, weak = Classes(), Classes(), Classes()
    wrong = torch.sin(3 * X)
    strong.__class__ = type("S", (Classes,), {"__call__": lambda self, x, t, c=None: Classes.__call__(self, x, t, c) + wrong})
    weak.__class__ = type("W", (Classes,), {"__call__": lambda self, x, t, c=None: Classes.__call__(self, x, t, c) + 2 * wrong})
    out = guide("auto", strong, weak=weak, scale=2.0)(X, 0.5, COND)
    torch.testing.assert_close(out, exact(X, 0.5, COND))


def test_composed():
    base = Classes()
    zero, one, none = (base(X, 0.5, {"class": torch.full((3,), k)}) for k in (0, 1, 2))
    conds = [{"class": torch.tensor([0])}, {"class": torch.tensor([1])}]
    out = guide("composed", base, conds=conds, scales=[2.0, -0.5], uncond=NONE)(X, 0.5)
    torch.testing.assert_close(out, none + 2.0 * (zero - none) - 0.5 * (one - none))
    single = guide("composed", base, conds=conds[:1], scales=[3.0], uncond=NONE)(X, 0.5)
    cfg = guide("cfg", base, scale=3.0, uncond=NONE)(X, 0.5, {"class": torch.zeros(3, dtype=torch.long)})
    torch.testing.assert_close(single, cfg)
    base.items = 0
    guide("composed", base, conds=conds, scales=[1.0, 0.0], uncond=NONE)(X, 0.5)
    assert base.items == 3  # scale 0 asks nothing, and with weights that sum to 1 the empty condition counts nothing


@every_schedule
@pytest.mark.parametrize("on", ["x_t", "x0"])
def test_energy_with_an_exact_classifier_is_the_conditional_model(schedule, on):
    """p(class | x_t) of two Gaussians is known; by Bayes' rule it turns the mixture into one of them."""
    base = Classes(schedule)
    t = 0.4
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)

    def log_prob(x, t, cond):
        distance = ((x[:, None] - alpha * base.means) ** 2).sum(-1) / (alpha**2 * 0.4**2 + sigma**2)
        return torch.log_softmax(-0.5 * distance, dim=1)[:, 0]

    both_classes = {"class": torch.full((3,), 2)}
    out = guide("energy", base, log_prob=log_prob, on=on)(X, t, both_classes)
    if on == "x_t":
        torch.testing.assert_close(out, base(X, t, {"class": torch.zeros(3, dtype=torch.long)}))
    else:  # another function, of D; but as many numbers, and towards the class
        assert out.shape == X.shape and torch.isfinite(out).all()
    base.items = 0
    off = guide("energy", base, log_prob=None, scale=0.0)(X, t, both_classes)
    assert base.items == 3 and torch.equal(off, base(X, t, both_classes))


@every_schedule
@pytest.mark.parametrize(("jacobian", "noise"), [(True, 0.3), (False, 0.3), (True, 0.0)])
def test_posterior_is_exact_for_isotropic_gaussians(schedule, jacobian, noise):
    """x0 ~ N(m, s²·I), y = A·x0 + noise·z: the guided denoiser is the conjugate one."""
    m, s = torch.tensor([0.5, -1.0, 0.2, 0.8], dtype=torch.float64), 0.7
    matrix = torch.randn(2, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    y = torch.tensor([[1.0, -2.0]], dtype=torch.float64).expand(3, 2)
    base = GaussianDenoiser(Gaussian(schedule), m, std=s)
    options = {"measure": lambda x: x @ matrix.T, "y": y, "noise": noise, "data_std": s, "jacobian": jacobian}
    guided = guide("posterior", base, **options)
    gain = s**2 * matrix.T @ torch.linalg.inv(s**2 * matrix @ matrix.T + noise**2 * torch.eye(2).double())
    cov = s**2 * torch.eye(4).double() - s**2 * gain @ matrix
    exact = GaussianDenoiser(Gaussian(schedule), m + gain @ (y[0] - matrix @ m), cov=cov)
    for t in (0.05, 0.4, 0.95):
        torch.testing.assert_close(guided(X, t), exact(X, t), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(guided(X, 1.0), exact(X, 1.0), rtol=1e-4, atol=1e-4)


@every_schedule
def test_dps_pulls_towards_the_measurement_and_is_exact_at_low_noise(schedule):
    """As σ → 0 the likelihood of D is that of x0, so DPS is Bayes' rule to first order in the noise."""
    base = GaussianDenoiser(Gaussian(schedule), torch.zeros(4, dtype=torch.float64), std=1.0)
    y = torch.ones(3, 2, dtype=torch.float64)
    guided = guide("dps", base, measure=lambda x: x[:, :2], y=y, noise=0.5)
    t = float(schedule.time(9.0))
    cov = torch.diag(torch.tensor([0.2, 0.2, 1.0, 1.0], dtype=torch.float64))
    exact = GaussianDenoiser(Gaussian(schedule), torch.tensor([0.8, 0.8, 0.0, 0.0], dtype=torch.float64), cov=cov)
    plain = base(X, t)
    assert (guided(X, t) - exact(X, t)).norm() < 0.02 * (plain - exact(X, t)).norm()
    with torch.inference_mode():  # as pictures are made
        torch.testing.assert_close(guided(X, t), guided(X.clone(), t))


def deterministic_and_not():
    return ["ddim", "euler", "heun", "dpmpp_2m", "unipc", "deis", "ddpm", "dpmpp_2m_sde", "restart", "repaint", "lcm"]


@pytest.mark.parametrize("name", deterministic_and_not())
def test_infill_keeps_what_is_known_to_the_bit(name):
    schedule = Cosine()
    exact = MixtureDenoiser(Gaussian(schedule), torch.ones(2), torch.randn(2, 4), stds=torch.tensor([0.4, 0.6]))
    known = torch.tensor([[0.3, -2.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False, False]])
    x = Noise([1, 2]).normal((4,), 0)
    plan = make_plan(name, schedule, make_grid("logsnr", schedule, 8))
    for _ in range(10):  # ten edits in a row: nothing drifts
        guided = guide("infill", exact, known=known, mask=mask)
        out = sample(plan, guided, x, Noise([1, 2]))
        assert torch.equal(out[:, :2], known[:, :2].expand(2, 2))
        assert torch.isfinite(out).all() and not torch.equal(out[0, 2:], out[1, 2:])
        known = torch.cat([known[:, :2], out[:1, 2:]], dim=1)


def test_infill_of_a_correlated_gaussian_comes_near_the_conditional():
    """x = (a, b), correlation 0.9: b given a = 1.5 has mean 1.35. Walking steps again lets b see a."""
    schedule = Cosine()
    cov = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    exact = GaussianDenoiser(Gaussian(schedule), torch.zeros(2, dtype=torch.float64), cov=cov)
    guided = guide("infill", exact, known=torch.tensor([[1.5, 0.0]], dtype=torch.float64), mask=torch.tensor([[True, False]]))
    seeds = list(range(400))
    x = Noise(seeds).normal((2,), 0, dtype=torch.float64)
    grid = make_grid("logsnr", schedule, 20)
    gaps = []
    for repeats in (0, 4, 16):
        out = sample(make_plan("repaint", schedule, grid, repeats=repeats), guided, x, Noise(seeds))
        gaps.append(abs(out[:, 1].mean().item() - 1.35))
    assert gaps[2] < 0.1 and gaps[2] < 0.5 * gaps[1] < 0.4 * gaps[0], gaps


def test_a_full_chain_in_the_stated_order():
    base = Classes()
    guided = guide("cfg", base, scale=2.0, uncond=NONE)
    guided = guide("posterior", guided, measure=lambda x: x[:, :1], y=torch.ones(3, 1).double(), noise=0.1, jacobian=False)
    guided = guide("threshold", guided, limit=1.5)
    guided = guide("infill", guided, known=torch.full((1, 4), 0.25).double(), mask=torch.tensor([[False, False, False, True]]))
    plan = make_plan("dpmpp_2m", Linear(), make_grid("logsnr", Linear(), 10))
    out = sample(plan, lambda x, t: guided(x, t, COND), X)
    assert (out[:, 3] == 0.25).all() and out.abs().max() <= 1.5 and guided.process is base.process


def test_every_guidance_says_what_is_wrong_in_one_line():
    base, mask = Classes(), torch.zeros(1, 4, dtype=torch.bool)
    wrong = {
        "perturbed": {"scale": math.nan},
        "rescale": {"scale": 2.0, "uncond": NONE, "amount": 2.0},
        "zero_star": {"scale": 2.0, "uncond": NONE, "zero": 1.0},
        "apg": {"scale": 2.0, "uncond": NONE, "momentum": 1.0},
        "auto": {"weak": base, "scale": math.nan},
        "composed": {"conds": [NONE], "scales": [1.0, 2.0], "uncond": NONE},
        "energy": {"log_prob": None, "on": "eps"},
        "dps": {"measure": None, "y": X, "noise": 0.0},
        "posterior": {"measure": None, "y": X, "noise": -1.0},
        "threshold": {"quantile": 1.0},
        "infill": {"known": X, "mask": mask.float()},
        "cfg": {"scale": math.nan, "uncond": NONE},
    }
    assert set(wrong) == set(GUIDANCES)
    for name, options in wrong.items():
        with pytest.raises(UserError) as error:
            guide(name, base, **options)
        assert "\n" not in str(error.value) and "guidance" in str(error.value)
    with pytest.raises(UserError, match="not finite"):
        guide("infill", base, known=X / 0, mask=~mask)
    assert package.__doc__ is not None and all(name in package.__doc__ for name in GUIDANCES)
