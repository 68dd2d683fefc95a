"""What a network predicts is found on exact denoisers and on trained networks, and never claimed of random weights."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unfog.diffusion import Gaussian
from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.schedules import Table
from unfog.errors import UserError
from unfog.interop.folder import _denoiser
from unfog.interop.noise import Steps
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
    plain = Table.scaled_linear()
    return probe(Preconditioned(network, Gaussian(schedule), "eps", "place"), SHAPE, lambda n: {}, "cpu", plain)


@pytest.mark.parametrize("slope, knee", FIELDS)
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_what_is_predicted(kind, slope, knee):
    schedule = Table.scaled_linear()
    found = seen(Field(kind, schedule, slope, knee), schedule)
    assert found.prediction == kind and not found.zero, found


@pytest.mark.parametrize("slope, knee", FIELDS)
@pytest.mark.parametrize("stated", [False, True])
def test_zero_terminal_snr(slope, knee, stated):
    plain = Table.scaled_linear()
    told = plain.zero_terminal_snr() if stated else plain
    for zero, schedule in ((False, plain), (True, plain.zero_terminal_snr())):
        found = seen(Field("v", schedule, slope, knee), told)
        assert found.prediction == "v" and found.zero is zero, found


@pytest.mark.parametrize("network", [lambda x, level, cond: torch.zeros_like(x), lambda x, level, cond: x * float("nan"),
                                     lambda x, level, cond: x * 1e9, lambda x, level, cond: 0.3 * x])  # fmt: skip
def test_nothing_is_said_of_what_is_no_denoiser(network):
    found = seen(network, Table.scaled_linear())
    assert found.prediction is None and found.zero is None


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


class Small(nn.Module):
    """A few convolutions that are told the index: quickly trained."""

    def __init__(self, width=24):
        super().__init__()
        self.first, self.last = nn.Conv2d(4, width, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.told = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 7 * width))

    def forward(self, x, level, cond=None):
        phase = level[:, None] / 1000 * math.pi / 2 * 2.0 ** torch.arange(4)
        skip, *told = self.told(torch.cat([phase.sin(), phase.cos()], dim=1))[:, :, None, None].chunk(7, dim=1)
        h = first = self.first(x)
        for block, scale, shift in zip(self.blocks, told[::2], told[1::2], strict=True):
            h = h + F.silu(block(h) * (1 + scale) + shift)
        return self.last(h + first * skip)


def trained(kind, schedule, steps, seed=0):
    """A network of `kind`, trained on blurred noise: power as `Field` has it, on 8 x 8."""
    torch.manual_seed(seed)
    network = Small()
    f = torch.fft.fftfreq(8, 1 / 8)
    gain = (1 + f[:, None] ** 2 + f[None] ** 2) ** -1.0
    gain = gain / gain.square().mean().sqrt()
    optimiser = torch.optim.Adam(network.parameters())
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 5e-3 * min((step + 1) / 20, 1) * (0.05 + 0.95 * math.cos(math.pi / 2 * step / steps))
        x0 = torch.fft.ifft2(torch.fft.fft2(torch.randn(32, 4, 8, 8)) * gain).real
        eps, index = torch.randn(32, 4, 8, 8), torch.randint(1000, (32,))
        t = ((index + 1) / 1000).double()
        alpha, sigma = (value.float()[:, None, None, None] for value in (schedule.alpha(t), schedule.sigma(t)))
        if kind == "flow":
            sigma = ((index + 1) / 1000)[:, None, None, None]
            alpha = 1 - sigma
        goal = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[kind]
        loss = F.mse_loss(network(alpha * x0 + sigma * eps, index.float()), goal)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    return network.eval()


def read(network, prediction=None, zero=False, asked=None):
    """As what a folder with this network and this label is read: prediction and zero SNR."""
    told = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    told |= {"rescale_betas_zero_snr": zero, **({"prediction_type": prediction} if prediction else {})}
    space = SimpleNamespace(codec=SimpleNamespace(channels=4, device="cpu", factor=1), guides=SimpleNamespace(beside=None),
                            both=lambda texts, negative, settings: ({}, {}))  # fmt: skip
    denoiser = _denoiser("m", network, Steps(Path("s"), told), space, asked)
    return denoiser.prediction.name, not math.isfinite(denoiser.process.schedule.logsnr(1.0))


TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


@pytest.mark.parametrize("kind, steps", [("eps", 100), ("v", 150), ("x0", 100), ("flow", 150)])
def test_wrong_labels_of_a_trained_network_are_found(kind, steps):
    network = trained(kind, Table.scaled_linear(), steps)
    for name, label in TYPES.items():
        if name == kind:
            assert read(network, label)[0] == kind
            continue
        with pytest.raises(UserError, match=f"predicts {kind}"):
            read(network, label)
    if kind == "flow":
        with pytest.raises(UserError, match="predicts flow, which is read of Stable Diffusion 3 and Flux only"):
            read(network)
    else:
        assert read(network) == (kind, False)
    if kind == "eps":
        with pytest.raises(UserError, match="where eps says nothing; leave rescale_betas_zero_snr out"):
            read(network, zero=True)


@pytest.mark.parametrize("zero", [False, True])
def test_a_stated_zero_terminal_snr_stands_where_the_network_is_not_trained_well_enough_to_tell(zero):
    plain = Table.scaled_linear()
    network = trained("v", plain.zero_terminal_snr() if zero else plain, 150)
    for stated in (False, True):
        assert read(network, "v_prediction", stated) == ("v", stated)


@pytest.mark.parametrize("zero", [False, True])
def test_zero_terminal_snr_is_mended_where_the_network_shows_it(zero):
    plain = Table.scaled_linear()
    network = Field("v", plain.zero_terminal_snr() if zero else plain)
    for label in ("v_prediction", None):
        for stated in (False, True):
            assert read(network, label, stated) == ("v", zero)
    assert read(network, "v_prediction", True, asked="v") == ("v", True)  # the folder's word, if one insists


def test_what_was_measured_is_saved():
    from unfog.interop.saved import _measured

    plain = Table.scaled_linear()
    for zero in (False, True):
        schedule = plain.zero_terminal_snr() if zero else plain
        model = SimpleNamespace(denoiser=Preconditioned(Field("v", schedule), Gaussian(schedule), "v", "place"))
        for told in ({}, {"rescale_betas_zero_snr": True}, {"rescale_betas_zero_snr": False}):
            saved = told | _measured(model, told)
            assert saved["prediction_type"] == "v_prediction" and saved.get("rescale_betas_zero_snr", False) is zero


def test_random_weights_with_any_label_are_not_refused():
    pytest.importorskip("diffusers")
    import tiny

    from unfog.interop.networks import UNet

    for seed in range(4):
        unet, text = UNet(tiny.unet(seed, layers_per_block=1, block_out_channels=(16, 32))), torch.zeros(4, 77, 32)

        def network(x, level, cond, unet=unet, text=text):
            return unet(x, level, {"text": text[: len(x)]})

        for name, label in (*TYPES.items(), ("eps", None)):
            assert read(network, label) == (name, False)
        for name in ("v", "x0"):
            assert read(network, TYPES[name], zero=True) == (name, True)
