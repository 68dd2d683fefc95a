"""The discrete bound against entropies that are known: near them with the exact denoiser, never below."""

import math

import pytest
import torch

from unfog.diffusion.denoisers import DataSetDenoiser
from unfog.diffusion.discrete_bound import Decoder, Lattice, discrete_bound, fit_decoder
from unfog.diffusion.noise import Noise
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.schedules import Cosine, Linear
from unfog.errors import UserError

COSINE = Gaussian(Cosine())
TIGHT = 0.002  # a time at which the values of these lattices are told apart


def known(n, levels, count, seed):
    """A discrete distribution on a lattice: its atoms with repeats, its denoiser, and −log₂ P of each atom, a dimension."""
    generator = torch.Generator().manual_seed(seed)
    number = (
        (torch.randn(count, n, generator=generator, dtype=torch.float64) * levels / 5 + levels / 2).round().clamp(0, levels - 1)
    )
    lattice = Lattice.of(-1.0, 1.0, levels)
    atoms = lattice.low + lattice.width * number
    kinds, which, times = number.unique(dim=0, return_inverse=True, return_counts=True)
    bits = -(times.double() / count).log2()[which] / n
    return atoms, bits, lattice


class Draws(Noise):
    """Noise from one generator: thousands of items at once, where it need not be an item's own."""

    def __init__(self, count, seed):
        super().__init__(range(count))
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, shape, stream, device="cpu", dtype=torch.float32):
        return torch.randn(len(self.seeds), *shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, shape, stream, device="cpu", dtype=torch.float32):
        return torch.rand(len(self.seeds), *shape, generator=self.generator, dtype=torch.float64)


def bounded(atoms, lattice, end, repeats, points, draws, process=COSINE):
    """Mean over the atoms, each so often with other noise, its standard error, and the whole result."""
    denoiser, many = DataSetDenoiser(process, atoms), atoms.repeat(repeats, 1)
    decoder = fit_decoder(denoiser, many, noise=Draws(len(many), 1), lattice=lattice, end=end)
    got = discrete_bound(denoiser, many, noise=Draws(len(many), 2), lattice=lattice, decoder=decoder, end=end, points=points,
                         draws=draws)  # fmt: skip
    return float(got.items.mean()), float(got.stderr.square().sum().sqrt()) / len(many), got


@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=["cosine", "linear"])
@pytest.mark.parametrize(("n", "levels", "count"), [(1, 16, 60), (2, 4, 50), (6, 8, 40)])
def test_the_bound_is_near_the_entropy(n, levels, count, schedule):
    atoms, bits, lattice = known(n, levels, count, seed=n + levels)
    value, error, got = bounded(atoms, lattice, TIGHT, 1500 // count, 100, 2, Gaussian(schedule))
    assert error < 0.025 and -4 * error < value - float(bits.mean()) < 0.01 + 4 * error
    torch.testing.assert_close(got.path + got.decoder, got.items)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "levels", "count"), [(1, 2, 7), (3, 8, 60)])
def test_the_bound_meets_the_entropy_from_above(n, levels, count):
    atoms, bits, lattice = known(n, levels, count, seed=n + levels)
    value, error, _ = bounded(atoms, lattice, TIGHT, 4000 // count, 150, 2)
    assert error < 0.009 and -3 * error < value - float(bits.mean()) < 0.01 + 2 * error


def test_a_path_that_ends_early_is_a_looser_bound():
    atoms, bits, lattice = known(2, 16, 60, seed=3)
    means = [bounded(atoms, lattice, end, 25, 100, 2)[0] for end in (TIGHT, 0.2, 0.5)]
    assert float(bits.mean()) - 0.06 < means[0] < means[1] < means[2]


def test_a_wrong_denoiser_costs_bits_and_never_saves_any():
    atoms, bits, lattice = known(3, 8, 50, seed=4)
    wrong = DataSetDenoiser(Gaussian(Cosine()), atoms[:25] * 0.8 + 0.1)
    decoder = fit_decoder(wrong, atoms, noise=Noise(range(100, 150)), lattice=lattice, end=0.05)
    got = discrete_bound(wrong, atoms, noise=Noise(range(50)), lattice=lattice, decoder=decoder, end=0.05, points=64, draws=4)
    assert float(got.items.mean()) > float(bits.mean()) + 0.3


def test_the_decoder_is_a_distribution_and_finds_its_scale():
    generator = torch.Generator().manual_seed(0)
    guess = torch.rand(4000, generator=generator, dtype=torch.float64) * 200 + 20
    number = (guess + 2.0 * torch.logit(torch.rand(4000, generator=generator, dtype=torch.float64))).round().clamp(0, 255)
    decoder = Decoder.fit(number, guess, 256)
    every = torch.arange(256, dtype=torch.float64)
    parts = decoder.parts(every[None], guess[:5, None], 256)
    torch.testing.assert_close(parts.sum(-1), torch.ones(len(decoder.scales), 5, dtype=torch.float64), atol=1e-9, rtol=0)
    assert (parts >= 0).all() and abs(float(decoder.weights.sum()) - 1) < 1e-12
    # bits of logistic noise of scale 2: its differential entropy, 2 + ln 2 nats, as a step is 1
    nats = decoder.nats(number[:, None], guess[:, None], 256)
    assert abs(float(nats.mean()) - (2 + math.log(2.0))) < 0.06
    far = decoder.nats(torch.tensor([[255.0]]).double(), torch.tensor([[0.0]]).double(), 256)
    assert bool(torch.isfinite(far).all()) and float(far) < 20


def test_what_is_off_the_lattice_is_refused():
    lattice = Lattice.of(-1.0, 1.0, 5)
    denoiser = DataSetDenoiser(Gaussian(Cosine()), torch.tensor([[0.0], [0.5]]))
    with pytest.raises(UserError, match="not on the lattice"):
        fit_decoder(denoiser, torch.tensor([[0.1]]), noise=Noise([0]), lattice=lattice, end=0.1)
    with pytest.raises(UserError, match="levels"):
        Lattice.of(-1.0, 1.0, 1)
    with pytest.raises(UserError, match="low < high"):
        Lattice.of(1.0, 1.0)
