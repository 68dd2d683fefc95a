"""Discrete diffusion: the posterior by enumeration, sampling of an enumerated joint distribution, the bound."""

import itertools
import math

import numpy as np
import pytest
import torch

from unfog.diffusion.discrete import KINDS, Categorical, discrete_loss, guided, sample_discrete
from unfog.diffusion.noise import Noise
from unfog.diffusion.schedules import EDM, VP, Cosine, Linear, Table
from unfog.errors import UserError

K = 3
JOINT = torch.softmax(1.5 * torch.randn(K, K, K, generator=torch.Generator().manual_seed(3), dtype=torch.float64).flatten(), 0)
CELLS = torch.tensor(list(itertools.product(range(K), repeat=3)))


def exact(process, joint=JOINT, cells=CELLS, calls=None):
    """ln p(x0_i | x_t) of an enumerated joint distribution; cond["joint"] (B, cells) replaces it."""

    def denoise(x_t, t, cond=None):
        if calls is not None:
            calls.append(t)
        weights = cond["joint"] if cond else joint.expand(len(x_t), -1)
        keep = process.keep(t)
        keep = keep.double().reshape(-1, 1, 1) if isinstance(keep, torch.Tensor) else keep
        same = (x_t[:, None] == cells).double()
        if process.kind == "masked":
            same = same + (x_t[:, None] == process.mask)
            weights = weights * same.prod(-1)
        else:
            weights = weights * (keep * same + (1.0 - keep) / process.classes).prod(-1)
        hot = torch.nn.functional.one_hot(cells, process.classes).double()
        p = torch.einsum("bn,nik->bik", weights, hot)
        return torch.log(p / p.sum(-1, keepdim=True))

    return denoise


def final(states):
    return list(states)[-1].x


def index(x):
    return (x * torch.tensor([K**i for i in reversed(range(x.shape[1]))])).sum(1)


def assert_distributed(x, p):
    """χ² of counted cells against p, at about four standard deviations."""
    expected = p * len(x)
    square = ((torch.bincount(index(x), minlength=len(p)) - expected) ** 2 / expected).sum()
    freedom = len(p) - 1
    assert square < freedom + 4.0 * math.sqrt(2 * freedom) + 4.0, (float(square), freedom)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", [None, Linear(), VP(), EDM(), Table.linear().zero_terminal_snr()])
def test_keep_falls_from_one_and_has_an_inverse(kind, schedule):
    process = Categorical(K, kind, schedule)
    t = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    keep = process.keep(t)
    assert keep[0] == 1.0 and keep[-1] < 1e-3 and (keep.diff() < 0.0).all()
    assert torch.allclose(process.time(keep[1:]), t[1:], atol=1e-6)
    assert process.time(0.0) == 1.0 and process.time(1.0) == 0.0
    if schedule is not None:
        assert keep[7] == pytest.approx(
            float(schedule.alpha(0.35) ** 2 / (schedule.alpha(0.35) ** 2 + schedule.sigma(0.35) ** 2))
        )
    assert Categorical(**{k: v for k, v in process.config().items() if k != "name"}) == process


@pytest.mark.parametrize("kind", KINDS)
def test_mix_keeps_the_stated_share(kind):
    process = Categorical(4, kind)
    x0 = torch.full((2, 40_000), 2)
    u = (torch.arange(40_000) + 0.5).expand(2, -1) / 40_000  # every u once
    x_t = process.mix(x0, u, torch.tensor([0.25, 0.8]))
    states = process.classes + (kind == "masked")
    share = torch.stack([torch.bincount(row, minlength=states) for row in x_t]) / 40_000.0
    noise = torch.eye(5)[4] if kind == "masked" else torch.full((4,), 0.25)
    for row, t in zip(share, (0.25, 0.8), strict=True):
        assert torch.allclose(row, (1.0 - t) * torch.eye(states)[2] + t * noise, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("s", "t"), [(0.0, 0.3), (0.2, 0.7), (0.5, 1.0)])
def test_posterior_is_bayes_rule(kind, s, t):
    process = Categorical(K, kind, Cosine())
    states = K + (kind == "masked")
    noise = torch.eye(K + 1).double()[K] if kind == "masked" else torch.full((K,), 1.0 / K, dtype=torch.float64)

    def transition(keep):
        return keep * torch.eye(states).double() + (1.0 - keep) * noise  # [from, to]

    first, both = transition(process.keep(s)), transition(process.keep(t))
    step = transition(process.keep(t) / process.keep(s))
    assert torch.allclose(first @ step, both)
    for x0, x_t in itertools.product(range(K), range(states)):
        if both[x0, x_t] == 0.0:
            continue
        brute = first[x0] * step[:, x_t]
        got = process.posterior(torch.tensor([[x_t]]), torch.eye(K).double()[x0].reshape(1, 1, K), s, t)
        assert torch.allclose(got[0, 0], brute / brute.sum(), atol=1e-12), (x0, x_t)


def test_posterior_averages_over_x0():
    process = Categorical(K, "uniform")
    p0 = torch.tensor([[[0.2, 0.5, 0.3]]], dtype=torch.float64)
    parts = [process.posterior(torch.tensor([[1]]), torch.eye(K).double()[k].reshape(1, 1, K), 0.2, 0.6) for k in range(K)]
    mean = sum(w * part for w, part in zip(p0.flatten(), parts, strict=True))
    assert torch.allclose(process.posterior(torch.tensor([[1]]), p0, 0.2, 0.6), mean)


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_one_token_a_step_is_exact_in_any_order(order):
    process, calls = Categorical(K, "masked"), []
    grid = torch.linspace(1.0, 0.0, 4).double().numpy()
    states = list(sample_discrete(process, exact(process, calls=calls), (3,), grid, Noise(range(3000)), order=order))
    hidden = [int((state.x == process.mask).sum(1).unique()) for state in states]
    assert hidden == [3, 2, 1, 0] and len(calls) == 3
    assert_distributed(states[-1].x, JOINT)


def test_all_tokens_in_one_step_are_not_the_joint_distribution():
    # What the test above would miss if the tokens were nearly independent.
    process = Categorical(K, "masked")
    x = final(sample_discrete(process, exact(process), (3,), [1.0, 0.0], Noise(range(3000))))
    with pytest.raises(AssertionError):
        assert_distributed(x, JOINT)


@pytest.mark.parametrize(("kind", "schedule", "steps"), [("masked", None, 40), ("uniform", Linear(), 32)])
def test_many_ancestral_steps_give_the_joint_distribution(kind, schedule, steps):
    process, calls = Categorical(K, kind, schedule), []
    grid = torch.linspace(1.0, 0.0, steps + 1).double().numpy()
    *_, last = sample_discrete(process, exact(process, calls=calls), (3,), grid, Noise(range(1000)))
    assert_distributed(last.x, JOINT)
    assert last.nfe == len(calls) <= steps and last.done


def test_one_uniform_token_is_exact_in_few_steps():
    process = Categorical(K, "uniform", Cosine())
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    denoise = exact(process, p, torch.arange(K)[:, None])
    assert_distributed(final(sample_discrete(process, denoise, (1,), [1.0, 0.6, 0.3, 0.0], Noise(range(3000)))), p)


def test_a_step_that_reveals_nothing_asks_nothing():
    process, calls = Categorical(K, "masked"), []
    grid = torch.linspace(1.0, 0.0, 41).double().numpy()
    *_, last = sample_discrete(process, exact(process, calls=calls), (3,), grid, Noise([5]))
    assert last.nfe == len(calls) <= 3


CASES = [("masked", "ancestral"), ("masked", "random"), ("masked", "confidence"), ("masked", "maskgit"), ("uniform", "ancestral")]


@pytest.mark.parametrize(("kind", "order"), CASES)
def test_an_item_is_a_function_of_its_seed(kind, order):
    process = Categorical(K, kind, Linear())
    grid = torch.linspace(1.0, 0.1, 4).double().numpy()  # ends above 0: nothing may stay hidden all the same
    together = [s.x for s in sample_discrete(process, exact(process), (3,), grid, Noise([4, 9, 2]), order=order)]
    alone = [s.x for s in sample_discrete(process, exact(process), (3,), grid, Noise([9]), order=order)]
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))
    assert int(together[-1].max()) < K


@pytest.mark.parametrize(("kind", "order"), CASES)
def test_infill_leaves_known_tokens(kind, order):
    process = Categorical(K, kind)
    known, mask = torch.tensor([[2, 99, 0]]), torch.tensor([True, False, True])  # what is not known is not read
    grid = torch.linspace(1.0, 0.0, 6).double().numpy()
    *states, last = sample_discrete(process, exact(process), (3,), grid, Noise(range(400)), order=order, known=known, mask=mask)
    assert (last.x[:, 0] == 2).all() and (last.x[:, 2] == 0).all()
    if kind == "masked":
        assert all((state.x[:, 0] == 2).all() and (state.x[:, 2] == 0).all() for state in states)
        p = JOINT.reshape(K, K, K)[2, :, 0]
        if order != "maskgit":  # one unknown token: exact
            assert_distributed(last.x[:, 1:2], p / p.sum())


def test_temperature():
    process = Categorical(K, "masked")
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    denoise = exact(process, p, torch.arange(K)[:, None])
    noise = Noise(range(1000))
    assert (final(sample_discrete(process, denoise, (1,), [1.0, 0.0], noise, temperature=0.0)) == 0).all()
    sharp = p**2 / (p**2).sum()
    assert_distributed(final(sample_discrete(process, denoise, (1,), [1.0, 0.0], noise, temperature=0.5)), sharp)


def test_impossible_tokens_are_never_drawn():
    process = Categorical(K, "masked")
    logits = torch.tensor([-math.inf, 0.0, -math.inf])
    x = final(sample_discrete(process, lambda x, t, c: logits.expand(*x.shape, K), (50,), [1.0, 0.0], Noise(range(20))))
    assert (x == 1).all()


def test_guidance():
    process = Categorical(K, "masked")
    cells = torch.arange(K)[:, None]
    p, q = torch.tensor([[0.5, 0.5, 0.0]]).double(), torch.tensor([[0.2, 0.4, 0.4]]).double()
    calls = []
    denoise = exact(process, cells=cells, calls=calls)
    x = torch.full((2, 1), process.mask)
    cond, uncond = {"joint": p.expand(2, -1)}, {"joint": q}
    assert torch.equal(guided(denoise, 1.0, uncond)(x, 0.5, cond), denoise(x, 0.5, cond)) and len(calls) == 2
    assert torch.allclose(guided(denoise, 0.0, uncond)(x, 0.5, cond).exp(), q.expand(2, -1)[:, None])
    assert len(calls) == 3
    got = torch.softmax(guided(denoise, 2.0, uncond)(x, 0.5, cond), -1)[0, 0]
    expected = torch.tensor([0.5**2 / 0.2, 0.5**2 / 0.4, 0.0]).double()
    assert torch.allclose(got, expected / expected.sum())


def expected_loss(process, denoise):
    """E over x0 ~ JOINT of the loss: all outcomes of the noise, Gauss–Legendre in the chance of noise."""
    place, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(24))
    # u_time = w², so that the logarithm at 0 is tame.
    w, weight = 0.5 * (place + 1.0), 0.5 * weight
    lost, weight = w**2, 2.0 * w * weight
    outcomes = 2 if process.kind == "masked" else K + 1
    patterns = torch.tensor(list(itertools.product(range(outcomes), repeat=3)))
    total = 0.0
    for chance, part in zip(lost.tolist(), weight.tolist(), strict=True):
        # Pattern 0 keeps the token, pattern j > 0 draws outcome j of the noise.
        u = torch.where(patterns == 0, 0.0, (1.0 - chance) + chance * (patterns - 0.5) / (outcomes - 1)).double()
        p = torch.where(patterns == 0, 1.0 - chance, chance / (outcomes - 1)).double().prod(1)
        x0 = CELLS.repeat_interleave(len(patterns), 0)
        u, p = u.repeat(len(CELLS), 1), p.repeat(len(CELLS)) * JOINT.repeat_interleave(len(patterns))
        loss = discrete_loss(process, denoise, x0, torch.full((len(x0),), chance, dtype=torch.float64), u)
        total += part * float((p * loss).sum())
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", [None, VP()])
def test_the_bound_is_the_entropy_for_the_exact_denoiser_and_above_it_for_another(kind, schedule):
    process = Categorical(K, kind, schedule)
    entropy = float(-(JOINT * JOINT.log()).sum())
    right = exact(process)
    assert expected_loss(process, right) == pytest.approx(entropy, abs=2e-3)
    worse = expected_loss(process, lambda x, t, c: 0.7 * right(x, t).clamp_min(-20.0))
    assert worse > entropy + 0.01


def test_the_loss_is_finite_with_hard_zeros_and_gives_gradients():
    process = Categorical(K, "masked")
    logits = torch.zeros(2, 4, K, requires_grad=True)
    x0, u = torch.tensor([[0, 1, 2, 0]] * 2), torch.tensor([[0.001, 0.9, 0.2, 0.9999]] * 2)

    def denoise(x, t, cond):
        held = torch.log(torch.nn.functional.one_hot(x.clamp(max=K - 1), K).float())
        return torch.where((x == process.mask)[..., None], logits, held)

    loss = discrete_loss(process, denoise, x0, torch.tensor([1e-9, 0.5]), u)
    assert torch.isfinite(loss).all() and loss[1].item() == pytest.approx(2 * math.log(3.0) / 0.5)
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[1].abs().sum() > 0.0


BAD = {
    "order": ({"order": "confident"}, "did you mean confidence"),
    "uniform": ({"process": Categorical(K, "uniform"), "order": "random"}, "masked kind"),
    "temperature": ({"temperature": -1.0}, "temperature"),
    "half": ({"known": torch.zeros(1, 3, dtype=torch.int64)}, "together"),
    "dtype": ({"known": torch.zeros(1, 3, dtype=torch.int64), "mask": torch.ones(3)}, "bool"),
    "float": ({"known": torch.zeros(1, 3), "mask": torch.ones(3, dtype=torch.bool)}, "int64"),
    "range": ({"known": torch.full((1, 3), K), "mask": torch.ones(3, dtype=torch.bool)}, "0 … 2"),
    "shape": ({"known": torch.zeros(1, 4, dtype=torch.int64), "mask": torch.ones(4, dtype=torch.bool)}, "broadcast"),
    "grid": ({"grid": [0.0, 1.0]}, "fall"),
    "item": ({"shape": ()}, "shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    options, text = BAD[name]
    given = {"process": Categorical(K), "shape": (3,), "grid": [1.0, 0.0], "noise": Noise([0]), **options}
    with pytest.raises(UserError, match=text) as error:
        sample_discrete(denoise=lambda x, t, c: torch.zeros(*x.shape, K), **given)
    assert "\n" not in str(error.value)


def test_bad_process_tokens_and_guidance():
    with pytest.raises(UserError, match="classes"):
        Categorical(1)
    with pytest.raises(UserError, match="did you mean masked"):
        Categorical(3, "mask")
    with pytest.raises(UserError, match="int64"):
        Categorical(3).mix(torch.zeros(2, 3), torch.zeros(2, 3), 0.5)
    with pytest.raises(UserError, match="0 … 2"):
        Categorical(3).mix(torch.full((2, 3), 3), torch.zeros(2, 3), 0.5)
    with pytest.raises(UserError, match="s < t"):
        Categorical(3).posterior(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, 3), 0.5, 0.5)
    with pytest.raises(UserError, match="scale"):
        guided(lambda x, t, c: x, -1.0, {})
    with pytest.raises(UserError, match="u_time"):
        discrete_loss(Categorical(3), lambda x, t, c: x, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3), torch.zeros(2, 3))
