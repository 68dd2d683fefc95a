"""What claims measure with, against closed forms: information, partial correlation, distances, copies, codecs."""

import math

import numpy as np
import pytest
import torch

from unfog.claims import few_steps, forward, guided, latent, markov, memorising, steps, tiny
from unfog.claims.claim import Settings
from unfog.claims.emoji import Kernel
from unfog.claims.mixtures import MIXTURES, Mixture, floor, over_runs, sliced
from unfog.diffusion.denoisers import DataSetDenoiser, MixtureDenoiser
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import SAMPLERS
from unfog.diffusion.schedules import Cosine, Table
from unfog.evaluation.distances import kernel_distance
from unfog.modalities.image.codec import RGBACodec

DOUBLE = torch.float64


def quiet(line):
    """No progress."""


# Information


def test_the_integral_is_the_gaussian_closed_form():
    logsnr = np.linspace(-14, 10, 200)
    snr = np.exp(logsnr)
    assert forward.integrated(logsnr, 1 / (1 + snr)) == pytest.approx(0.5 * np.log1p(snr), abs=2e-3)
    both = forward.integrated(logsnr, np.stack([1 / (1 + snr), 4 / (1 + 4 * snr)], 1))
    assert both[:, 1] == pytest.approx(0.5 * np.log1p(4 * snr), abs=2e-3)


def test_information_of_a_gaussian_both_ways():
    """½·log(1 + snr·s²) a dimension."""
    one = Mixture(
        torch.ones(1, dtype=DOUBLE), torch.zeros(1, 3, dtype=DOUBLE), torch.full((1,), 0.7, dtype=DOUBLE), torch.zeros(1)
    )
    logsnr = np.linspace(-12, 6, 80)
    by_mmse, direct = forward.information(one, logsnr, 4_000, 0)
    exact = 1.5 * np.log1p(0.49 * np.exp(logsnr))
    assert by_mmse == pytest.approx(exact, abs=0.1) and direct == pytest.approx(exact, abs=0.1)


def test_the_classifier_tells_pictures_from_noise_and_noise_not():
    rng = torch.Generator().manual_seed(0)
    x0 = torch.randn(300, 4, 8, 8, generator=rng) * torch.linspace(0.1, 3, 8) + 1.0
    telling = forward.Telling(x0[:200], 20)
    schedule = Table.linear()
    assert forward.accuracy(telling, x0[200:], schedule, 0.3, 2, 0).mean() > 0.99
    assert forward.accuracy(telling, x0[200:], Cosine(), 1.0, 2, 0).mean() == 0.5  # α is 0: every answer is a tie
    assert np.mean([forward.accuracy(telling, x0[200:], schedule, t, 2, 0).mean() for t in (0.6, 0.8)]) > 0.6


# The chain


def test_partial_correlation_is_that_of_the_precision_matrix():
    x = np.random.default_rng(0).standard_normal((500, 3)) @ np.array([[1, 0.5, 0.2], [0, 1, 0.7], [0, 0, 1]])
    inverse = np.linalg.inv(np.cov(x.T))
    assert markov.partial(x[:, 0], x[:, 1], x[:, 2]) == pytest.approx(-inverse[0, 1] / math.sqrt(inverse[0, 0] * inverse[1, 1]))


def test_steps_are_the_direct_law_and_a_chain():
    for schedule in (Cosine(), Table.linear()):
        worst, gap = markov.exact(schedule, 1.3, 200)
        assert worst < 1e-9 and gap < 1e-9
    x0 = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1), dtype=DOUBLE) * 1.5
    _, x_s, x_t = markov.walked(x0, Cosine(), (0.0, 0.4, 0.8), 0)
    a, s = Cosine().alpha(0.8), Cosine().sigma(0.8)
    assert float(x_t.var()) == pytest.approx(a * a * 2.25 + s * s, rel=0.05)
    assert abs(markov.partial(x0[:, 0].numpy(), x_t[:, 0].numpy(), x_s[:, 0].numpy())) < 0.03
    assert abs(float(np.corrcoef(x0[:, 0].numpy(), x_t[:, 0].numpy())[0, 1])) > 0.3


# Mixtures and distances


@pytest.mark.parametrize("name", MIXTURES)
def test_the_fast_denoiser_is_the_exact_one(name):
    mixture, process = MIXTURES[name](), Gaussian(Cosine())
    size = mixture.means.shape[1]
    assert float(mixture.draw(200_000, 0).square().mean()) == pytest.approx(1.0, abs=0.02)
    for label in (None, 0, 1):
        kept = slice(None) if label is None else mixture.label == label
        slow = MixtureDenoiser(process, mixture.weights[kept], mixture.means[kept], stds=mixture.stds[kept])
        fast = mixture.denoiser(process, label)
        for t in (0.0, 1e-4, 0.1, 0.6, 1.0):
            x = process.mix(
                mixture.draw(50, 1), torch.randn(50, size, generator=torch.Generator().manual_seed(2), dtype=DOUBLE), t
            )
            assert float((slow(x, t) - fast(x, t)).abs().max()) < 1e-9


def test_the_density_integrates_to_one():
    mixture, line = MIXTURES["ring"](), torch.linspace(-5, 5, 401, dtype=DOUBLE)
    grid = torch.cartesian_prod(line, line)
    for alpha, sigma in ((1.0, 0.0), (0.6, 0.8)):
        mass = mixture.log_prob(grid, alpha, sigma).logsumexp(1).exp().sum() * (line[1] - line[0]) ** 2
        assert float(mass) == pytest.approx(1.0, abs=1e-3)


def test_sliced_distance():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    assert sliced(x, x.flip(0)) == 0.0
    assert sliced(x, x + torch.tensor([3.0, 0.0, 0.0]), directions=4_000) == pytest.approx(math.sqrt(3.0), rel=0.05)
    floors = floor(MIXTURES["ring"](), 500, 0, 4)
    assert len(set(floors)) == 4 and max(floors) < 0.3


def test_interval_over_runs_is_students():
    figure = over_runs("x", [1.0, 2.0, 3.0], "one")
    assert (figure.value, figure.n) == (2.0, 3)
    assert figure.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-4)
    assert over_runs("x", [1.0], "one").low is None


def test_every_sampler_has_a_plan_for_every_budget():
    for name in SAMPLERS:
        for budget in steps.BUDGETS:
            nfe = steps.planned(name, budget, 2).nfe
            assert nfe <= budget, f"{name}: {nfe} for {budget}"
    assert few_steps.ddpm(1000).nfe == 1000


def test_more_steps_come_nearer():
    ring = MIXTURES["ring"]()
    near, far = (steps.distance(ring, steps.planned("ddim", k, 2), 1_000, 0) for k in (48, 3))
    assert near < 0.5 * far


# Pictures' measures


def test_kernel_and_its_interval():
    rng = np.random.default_rng(0)
    made, known = rng.standard_normal((60, 5)), rng.standard_normal((80, 5)) + 0.5
    found = Kernel.of(made, known)
    assert found.value == pytest.approx(kernel_distance(made, known))
    gap = found.less(found, "nothing")
    assert (gap.value, gap.low, gap.high) == (0.0, 0.0, 0.0)
    # the interval's width is that of repeated draws
    values = [Kernel.of(rng.standard_normal((60, 5)), known) for _ in range(100)]
    spread = float(np.std([v.value for v in values]))
    stated = float(np.mean([v.figure("").high - v.value for v in values])) / 2.0
    assert stated == pytest.approx(spread, rel=0.25)


def test_thresholding_in_colours_only_moves_what_is_outside():
    codec = RGBACodec()
    x0 = codec.encode(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 4), dtype=np.uint8))
    process = Gaussian(Cosine())
    inside = guided.InColours(guided._Fixed(process, x0), codec)
    assert float((inside(x0, 0.5) - x0).abs().max()) < 1e-5
    beyond = guided.InColours(guided._Fixed(process, 5.0 * x0), codec)(x0, 0.5)
    low, high = ((v - torch.tensor(codec.mean)) / torch.tensor(codec.std) for v in (0.0, 1.0))
    assert bool((beyond >= low[:, None, None] - 1e-5).all()) and bool((beyond <= high[:, None, None] + 1e-5).all())


def test_classes_answer_for_their_own():
    mixture = MIXTURES["clouds"]()
    both, process = guided.Classes(mixture), Gaussian(Cosine())
    x = mixture.draw(6, 0)
    label = torch.tensor([0, 1, 2, 2, 1, 0])
    found = both(x, 0.4, {"class": label})
    for i, of in enumerate(label.tolist()):
        alone = mixture.denoiser(process, None if of == 2 else of)(x[i : i + 1], 0.4)
        assert float((found[i] - alone[0]).abs().max()) < 1e-12


def test_guidance_at_one_makes_the_class_and_more_makes_it_surer():
    cloud = guided.Cloud(400, 20)
    plain = guided.ways(cloud.limit)["plain"]
    off, on = (cloud.made(plain, scale, 0) for scale in (1.0, 5.0))
    assert off.spread == pytest.approx(1.0, abs=0.1) and off.coverage > 0.85 and off.beyond < 0.02
    assert on.sure > off.sure and on.far > off.far and on.coverage < off.coverage


# Copies, codecs, small networks


def test_copies_by_ratio():
    data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    samples = torch.tensor([[0.01, 0.0], [0.5, 0.0], [0.24, 0.0], [0.26, 0.0]])
    assert memorising.copies(samples, data).tolist() == [True, False, True, False]


def test_the_exact_denoiser_of_a_data_set_copies():
    data = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    made = tiny.draw(DataSetDenoiser(Gaussian(Cosine()), data), (6,), 16, 0)
    assert memorising.copies(made, data).all()
    other = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    assert memorising.copies(other, data).mean() < 0.1


def test_the_linear_codec_projects_to_unit_variance():
    pictures = torch.randn(40, 4, 16, 16, generator=torch.Generator().manual_seed(0)).cumsum(3)
    squares = latent.Squares.fit(pictures)
    z = squares.encode(pictures)
    assert z.shape == (40, latent.KEPT, 4, 4)
    rows = z.permute(1, 0, 2, 3).flatten(1)
    assert float((torch.cov(rows) - torch.eye(latent.KEPT)).abs().max()) < 0.01 and float(rows.mean(1).abs().max()) < 1e-3
    again = squares.decode(z)
    assert float((squares.encode(again) - z).abs().max()) < 1e-3
    assert float((again - pictures).square().mean()) < 0.1 * float(pictures.var())
    assert latent.multiply_adds(lambda: tiny.PointNetwork(2), (2,)) == 9 * 128 + 2 * 128 * 2 + 3 * 128 * 128


def test_small_networks_learn_and_are_the_seeds():
    x0 = 0.5 * torch.randn(2_000, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, -1.0])
    one, two, other = (tiny.trained(lambda: tiny.PointNetwork(2), x0, 80, seed, 64) for seed in (0, 0, 1))
    a, b, c = (tiny.draw(d, (2,), 200, 5, steps=10) for d in (one, two, other))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.mean(0).tolist() == pytest.approx([1.0, -1.0], abs=0.3) and float(a.std(0).mean()) == pytest.approx(0.5, abs=0.25)
    before = tiny.trained(lambda: tiny.PointNetwork(2), x0, 1, 0, 64)
    assert tiny.errors(one, x0[:200], 0).mean() < 0.7 * tiny.errors(before, x0[:200], 0).mean()


def test_a_dropped_condition_becomes_the_empty_one():
    """At drop 1 the network never hears a class; at 0 it never hears the empty one."""
    x0, label = torch.randn(64, 2), torch.zeros(64, dtype=torch.long)
    for drop, touched in ((0.0, 0), (1.0, 2)):
        before = tiny.built(lambda: tiny.PointNetwork(2, 3), 0).classes.weight
        after = tiny.trained(lambda: tiny.PointNetwork(2, 3), x0, 3, 0, 32, label, drop, 2).network.classes.weight
        moved = (after - before).abs().sum(1) > 0
        assert moved.tolist() == [k == touched for k in range(3)]


@pytest.mark.slow
def test_a_quick_run_of_a_whole_claim(tmp_path):
    from unfog.claims.run import measure

    claim = measure("markov", Settings(quick=True), quiet)
    assert claim.verdict == "holds" and len(claim.figures) >= 5 and claim.plots
    assert measure("markov", Settings(quick=True), quiet) == claim
