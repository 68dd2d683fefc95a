"""What a network predicts is found on exact denoisers of fields of many kinds, and never claimed of random weights."""

import sys
from pathlib import Path

import pytest
import torch

from unfog.diffusion import Gaussian
from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.schedules import Table
from unfog.interop.probe import probe

SHAPE = (4, 16, 16)
sys.path.insert(0, str(Path(__file__).parent))


class Field:
    """The exact denoiser of Gaussian fields of a given spectrum, as a network of `kind` on `schedule`: a Wiener filter.

    power falls as (1 + (f/knee)²)^−slope; the field has unit variance.
    """

    def __init__(self, kind, schedule, slope=2.0, knee=1.0):
        self.kind, self.schedule = kind, schedule
        f = torch.fft.fftfreq(16, 1 / 16)
        power = (1 + (f[:, None] ** 2 + f[None] ** 2) / knee**2) ** -slope
        self.power = power / power.mean()

    def __call__(self, x, level, cond=None):
        t = (float(level[0]) + 1) / self.schedule.count
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        x0 = torch.fft.ifft2(torch.fft.fft2(x) * alpha * self.power / (alpha**2 * self.power + sigma**2)).real
        eps = (x - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[self.kind]


FIELDS = [(slope, knee) for slope in (1.5, 2.0, 3.0) for knee in (1.0, 2.0, 4.0)] + [(1.0, 1.0)]


def seen(network, schedule):
    return probe(Preconditioned(network, Gaussian(schedule), "eps", "place"), SHAPE, lambda n: {}, "cpu")


@pytest.mark.parametrize("slope, knee", FIELDS)
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_what_is_predicted(kind, slope, knee):
    schedule = Table.scaled_linear()
    found = seen(Field(kind, schedule, slope, knee), schedule)
    assert found.prediction == kind and not found.zero, found


@pytest.mark.parametrize("slope, knee", FIELDS)
def test_zero_terminal_snr(slope, knee):
    schedule = Table.scaled_linear()
    found = seen(Field("v", schedule.zero_terminal_snr(), slope, knee), schedule)
    assert found.prediction == "v" and found.zero, found


@pytest.mark.parametrize("network", [lambda x, level, cond: torch.zeros_like(x), lambda x, level, cond: x * float("nan"),
                                     lambda x, level, cond: x * 1e9, lambda x, level, cond: 0.3 * x])  # fmt: skip
def test_nothing_is_said_of_what_is_no_denoiser(network):
    found = seen(network, Table.scaled_linear())
    assert found.prediction is None and not found.zero


def test_random_weights_are_never_taken_for_trained_ones():
    pytest.importorskip("diffusers")
    import tiny

    from unfog.interop.networks import UNet

    text, said = torch.zeros(2, 77, 32), []
    for seed in range(40):
        network = UNet(tiny.unet(seed, **({"use_linear_projection": True} if seed % 2 else {})))
        denoiser = Preconditioned(network, Gaussian(Table.scaled_linear()), "eps", "place")
        said.append(probe(denoiser, SHAPE, lambda n: {"text": text[:n]}, "cpu").prediction)
    assert said == [None] * 40
