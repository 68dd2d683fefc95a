"""Bugs 7 to 24 that happened elsewhere: each check is true of ours, and false of the same thing with the bug planted.

Each docstring says where it happened. 1 to 6: test_history_steps.py; bugs of training and evaluation are tested there.
"""

import dataclasses
import json
import math
import socket

import numpy as np
import pytest
import torch

from unfog.diffusion.denoisers import GaussianDenoiser, MixtureDenoiser, Preconditioned
from unfog.diffusion.grids import make_grid
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.guidance.infill import Infill
from unfog.diffusion.likelihood import bits_per_dim, log_likelihood
from unfog.diffusion.losses import MinSNR
from unfog.diffusion.nodes import Nodes
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import advance, begin, sample
from unfog.diffusion.predictions import Prediction, prediction_from_config
from unfog.diffusion.processes import Gaussian, process_from_config
from unfog.diffusion.samplers import make_plan
from unfog.diffusion.schedules import EDM, VP, Cosine, Table
from unfog.errors import UserError
from unfog.modalities.image.codec import RGBACodec
from unfog.model import load

TABLE = Table.scaled_linear()


def mixture(schedule):
    means = torch.tensor([[1.0, -0.5], [-0.8, 0.6]])
    return MixtureDenoiser(Gaussian(schedule), torch.tensor([0.4, 0.6]), means, stds=torch.tensor([0.3, 0.4]))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a, b, tolerance=1e-9):
    return bool(torch.isfinite(a).all()) and bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance))


# 7, 8, 10, 14: what the network means, and numbers that do not fit


def test_7_a_v_network_read_as_eps():
    """InvokeAI#7495: the file does not say what the network predicts, so the tool takes what is usual."""
    schedule = Cosine()
    exact, x, t = mixture(schedule), normal(4, 2), 0.4
    v = Prediction("v")

    def network(given, level, cond):
        return v.of_x0(exact(given, t), given, schedule.alpha(t), schedule.sigma(t))

    def gives_x0(read):
        return close(Preconditioned(network, exact.process, read(json.dumps(v.config())))(x, t), exact(x, t))

    assert gives_x0(lambda file: prediction_from_config(json.loads(file)))
    assert not gives_x0(lambda file: Prediction("eps"))


def test_8_zero_snr_betas_after_the_table_and_division_by_it():
    """sd-scripts#1263, #934: log-SNR is still that of the betas before; min-SNR weights divide by an SNR of 0."""

    def consistent(table):
        bar = np.cumprod(1.0 - np.array(table.betas))
        times = np.arange(1, table.count) / table.count
        return np.allclose(table.logsnr(times), np.log(bar[:-1] / (1.0 - bar[:-1])), rtol=1e-6) and (
            table.logsnr(1.0) == -math.inf
        )

    changed = TABLE.zero_terminal_snr()
    stale = Table(TABLE.betas)
    assert stale.logsnr(1.0) > -10.0  # made by now
    object.__setattr__(stale, "betas", changed.betas)
    assert consistent(changed) and not consistent(stale)
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.betas = TABLE.betas

    def weighs(weight, times=(0.2, 0.7, 1.0)):
        """v-weights min(SNR, 5)/(SNR + 1), which go to 0 where no data is left."""
        t = torch.tensor(times, dtype=torch.float64)
        alpha, sigma = changed.alpha(t), changed.sigma(t)
        snr = (alpha / sigma) ** 2
        return close(weight(alpha, sigma), snr.clamp(max=5.0) / (snr + 1.0))

    def through_eps(alpha, sigma):
        snr = (alpha / sigma) ** 2
        return snr.clamp(max=5.0) / snr * (snr / (snr + 1.0))

    assert weighs(lambda alpha, sigma: MinSNR(5.0)(Prediction("v"), alpha, sigma))
    assert weighs(through_eps, (0.2, 0.7)) and not weighs(through_eps)


def test_10_default_betas_for_a_pretrained_model():
    """keras-cv#2049: a model is sampled with the library's betas, as its own are not in the file."""
    own = Gaussian(Table.linear(500, 2e-4, 0.03))
    file = json.dumps(own.config())

    def has_its_levels(read):
        t = np.linspace(0.0, 1.0, 41)
        return np.array_equal(read(file).schedule.alpha(t), own.schedule.alpha(t))

    assert has_its_levels(lambda file: process_from_config(json.loads(file)))
    assert not has_its_levels(lambda file: Gaussian(Table.linear(500)))
    with pytest.raises(UserError, match="schedule"):
        process_from_config({"name": "gaussian"})


def test_14_half_precision_overflows_to_black():
    """A1111#1007, stable-diffusion.cpp#888: beyond 65504 float16 is infinite, and the picture NaN."""
    schedule = EDM(sigma_max=1e5)
    layer = torch.nn.Linear(3, 3, bias=False, dtype=torch.float16).requires_grad_(False)
    torch.nn.init.zeros_(layer.weight)  # in EDM's terms the exact network of N(0, 1)

    class Early(Preconditioned):
        def raw(self, x_t, t, cond=None):
            return super().raw(x_t.half().float(), t, cond)

    def exact(kind):
        denoiser = kind(lambda given, level, cond: layer(given.half()).float(), Gaussian(schedule), "edm")
        x = torch.tensor([[1e5, -2e5, 3e4]])
        return all(
            close(denoiser(x, t), x / (1.0 + schedule.sigma(t) ** 2), 1e-5) for t in (1.0, 0.9, 0.5)
        )  # fmt: skip

    assert exact(Preconditioned)
    assert not exact(Early)


# 15–17, 24: what a run may depend on


class PerBatch(Noise):
    """One stream for the whole batch."""

    def normal(self, shape, stream, device="cpu", dtype=torch.float32):
        generator = torch.Generator().manual_seed(self.seeds[0] + 1000 * stream)
        return torch.randn(len(self.seeds), *shape, generator=generator, dtype=dtype).to(device)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m_sde", "sa_solver", "lcm"])
def test_15_noise_a_batch_instead_of_an_item(name):
    """A1111#376, k-diffusion#25, A1111#5210: a picture alone is another one than in a batch."""
    plan = make_plan(name, VP(), make_grid("logsnr", VP(), 4))

    def an_item_is_itself(kind):
        def made(seeds):
            noise = kind(seeds)
            out = sample(plan, mixture(VP()), noise.normal((2,), 0, dtype=torch.float64), noise)
            return dict(zip(seeds, out, strict=True))

        many, turned = made([5, 6, 7]), made([7, 5])
        return all(torch.equal(made([s])[s], batch[s]) for batch in (many, turned) for s in batch)

    assert an_item_is_itself(Noise)
    assert not an_item_is_itself(PerBatch)


class DevicesOwn(Noise):
    """Starting noise from the seeds, later noise from the generator of the device."""

    def normal(self, shape, stream, device="cpu", dtype=torch.float32):
        if stream == 0:
            return super().normal(shape, stream, device, dtype)
        return torch.randn(len(self.seeds), *shape, device=device, dtype=dtype)


def test_16_first_noise_from_the_cpu_later_noise_from_the_device():
    """stable-diffusion.cpp#978: the same seed gives other pictures on another device, by the later noise alone."""

    def is_of_the_seed_alone(kind):
        """Against Philox and Box–Muller in NumPy, whatever generator the device has, and on each that is here."""
        for stream in (0, 1, 5):
            key, counter = np.array([9, 0x756E666F67], np.uint64), np.array([0, stream, 0, 0], np.uint64)
            raw = (np.random.Philox(key=key, counter=counter).random_raw(6) >> np.uint64(11)).astype(np.float64)
            radius, angle = np.sqrt(-2.0 * np.log((raw[0::2] + 1.0) / 2**53)), 2.0 * np.pi * raw[1::2] / 2**53 - 0.25 * np.pi
            right = torch.from_numpy(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(1, 6))
            for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
                if not close(kind([9]).normal((6,), stream, device, torch.float64).cpu(), right, 1e-12):
                    return False
        return True

    assert is_of_the_seed_alone(Noise)
    assert not is_of_the_seed_alone(DevicesOwn)


class SharedCounter:
    """The step counter belongs to the sampler, not to the run."""

    def __init__(self, plan):
        self.plan, self.index = plan, -1

    def advance(self, state, x0):
        state = dataclasses.replace(state, index=self.index)
        self.index = -1 if self.index + 2 == self.plan.nfe else self.index + 1
        return advance(self.plan, state, x0)


def test_17_two_requests_share_one_step_counter():
    """Qwen-Image#236, diffusers#3672: the second request moves the first one's counter."""
    plan = make_plan("euler", VP(), make_grid("logsnr", VP(), 6))
    exact, starts = mixture(VP()), (normal(2, 2), normal(2, 2, seed=1))

    def each_as_if_alone(forward):
        states = [begin(plan, x) for x in starts]
        for _ in range(plan.nfe):
            states = [forward(state, exact(state.x, state.t)) for state in states]
        return all(torch.equal(state.x, sample(plan, exact, x)) for state, x in zip(states, starts, strict=True))

    assert each_as_if_alone(lambda state, x0: advance(plan, state, x0))
    assert not each_as_if_alone(SharedCounter(plan).advance)


class Remembering:
    """DPM-Solver++ 2M as an object with its last result in it, cleared before a run if `clears`."""

    def __init__(self, nodes, clears):
        self.nodes, self.clears, self.last = nodes, clears, None

    def __call__(self, denoise, x):
        if self.clears:
            self.last = None
        n = self.nodes
        for i in range(n.steps):
            x0 = denoise(x, float(n.t[i]))
            h = n.half[i + 1] - n.half[i]
            slope = 0.0 if self.last is None else (x0 - self.last[0]) / (2.0 * self.last[1]) * h
            x = n.sigma[i + 1] / n.sigma[i] * x - n.alpha[i + 1] * math.expm1(-h) * (x0 + slope)
            self.last = (x0, h)
        return x


def test_24_state_kept_from_the_last_run():
    """PhysicsNeMo#1896: a solver that was used before starts with the results of the run before."""
    schedule = VP()
    grid = make_grid("logsnr", schedule, 6, end=0.1)
    plan, exact = make_plan("dpmpp_2m", schedule, grid), mixture(schedule)

    def a_second_run_is_as_the_first(solve):
        """Against the published recursion from scratch."""
        solve(exact, normal(3, 2, seed=1))
        return close(solve(exact, normal(3, 2)), Remembering(Nodes.of(schedule, grid), True)(exact, normal(3, 2)))

    assert a_second_run_is_as_the_first(lambda denoise, x: sample(plan, denoise, x))
    assert a_second_run_is_as_the_first(Remembering(Nodes.of(schedule, grid), True))
    assert not a_second_run_is_as_the_first(Remembering(Nodes.of(schedule, grid), False))


@pytest.mark.parametrize("kind", ["logsnr", "index"])
def test_24_times_collide_in_bf16(kind):
    """PhysicsNeMo#1896: cast to the network's bfloat16, neighbouring noise levels become one."""
    times = make_grid("trailing", TABLE, 500)[:40].tolist()  # the noisiest, two indices apart
    right = [TABLE.logsnr(t) if kind == "logsnr" else TABLE.index(t) for t in times]

    class Listening(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.heard = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)), []

        def forward(self, x, level, cond):
            assert x.dtype == torch.bfloat16
            self.heard.append(level[0].item())
            return x * self.weight

    class Cast(Preconditioned):
        def noise_level(self, t, batch, device):
            return super().noise_level(t, batch, device).to(torch.bfloat16)

    def hears_each_level(made):
        network = Listening()
        denoiser = made(network, Gaussian(TABLE), "v", kind)
        with torch.no_grad():
            for t in times:
                denoiser(torch.zeros(1, 2), t)
        return len(set(network.heard)) == len(times) and np.allclose(network.heard, right, rtol=1e-6)

    assert hears_each_level(Preconditioned)
    assert len(set(torch.tensor(right, dtype=torch.bfloat16).tolist())) < len(times)
    assert not hears_each_level(Cast)


# 19, 20: guidance and infill


class ByClass:
    """D = 0.3·x + the row of a table: its last row is "no class"."""

    def __init__(self, classes, channels):
        self.process, self.table = Gaussian(VP()), normal(classes + 1, channels, 1, 1)

    def __call__(self, x, t, cond=None):
        return 0.3 * x + self.table[cond["class"]]


@pytest.mark.parametrize(("classes", "channels"), [(3, 3), (3, 4), (1000, 4), (12, 7)])
def test_19_the_null_class_is_1000_and_guidance_is_for_three_channels(classes, channels):
    """DiT#108 and its models.py:259: two numbers of one data set written into the code."""
    denoiser = ByClass(classes, channels)
    x, chosen = normal(2, channels, 2, 2), torch.tensor([0, 2])

    def guided(null):
        return ClassifierFree(denoiser, 4.0, {"class": torch.tensor([null])})(x, 0.5, {"class": chosen})

    def right(make):
        try:
            made = make()
        except IndexError:
            return False
        with_class, without = denoiser.table[chosen], denoiser.table[-1]
        return close(made, 0.3 * x + without + 4.0 * (with_class - without))

    def three_channels():
        return torch.cat([guided(classes)[:, :3], denoiser(x, 0.5, {"class": chosen})[:, 3:]], dim=1)

    assert right(lambda: guided(classes))
    assert right(lambda: guided(1000)) == (classes == 1000)
    assert right(three_channels) == (channels == 3)


class Averaging(RGBACodec):
    """What an autoencoder does to a picture: detail is lost."""

    def encode(self, pictures):
        small = torch.nn.functional.avg_pool2d(super().encode(pictures), 2)
        return small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@pytest.mark.parametrize("name", ["dpmpp_2m", "ddpm"])
def test_20_kept_pixels_change(name):
    """diffusers#4782: what lies outside the mask goes through the autoencoder too and comes out changed."""
    pictures = np.random.default_rng(0).integers(40, 240, (2, 4, 4, 4), dtype=np.uint8)
    pictures[0, ..., 3] = 255
    mask = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.6

    def keeps(codec):
        process = Gaussian(VP())
        known = codec.encode(pictures)
        denoiser = Infill(lambda x, t, cond=None: 0.3 * x, known, mask)
        noise = Noise([1, 2])
        x = process.prior(noise.normal((4, 4, 4), 0))
        made = codec.decode(sample(make_plan(name, VP(), make_grid("logsnr", VP(), 5)), denoiser, x, noise))
        kept = mask[:, 0].numpy()
        return bool((made[kept] == pictures[kept]).all()) and not bool((made[~kept] == pictures[~kept]).all())

    assert keeps(RGBACodec())
    assert not keeps(Averaging())


# 21, 23: likelihood and loading


@pytest.mark.parametrize("levels", [4, 256])
def test_21_an_offset_of_bits_that_holds_for_eight_bits_only(levels):
    """score_sde_pytorch#51: 7 is added to −log₂ p/n whatever values the data takes: −log₂ of 1/128, the step of 8 bits."""
    width, std = 2.0 / (levels - 1), 0.8
    x0 = (-1.0 + width * torch.arange(0, levels, levels // 4).double())[:, None].expand(-1, 3)
    denoiser, noise = GaussianDenoiser(Gaussian(VP()), torch.zeros(3), std=std), Noise(range(len(x0)))

    def is_the_bound(bits):
        """E_u of −log₂ N(x0 + (u − ½)·w) − log₂ w, the mean square of x0 + (u − ½)·w being x0² + w²/12."""
        exact = (x0.square() + width**2 / 12.0) / (2.0 * std**2) + 0.5 * math.log(2.0 * math.pi * std**2) - math.log(width)
        return abs(float(bits) - float(exact.mean()) / math.log(2.0)) < 0.15

    def eight_bits():
        result = log_likelihood(denoiser, x0, noise=noise, steps=8)
        return 7.0 - result.log_prob.mean() / (3 * math.log(2.0))

    assert is_the_bound(bits_per_dim(denoiser, x0, noise=noise, levels=levels, draws=8, steps=8).value)
    assert is_the_bound(eight_bits()) == (levels == 256)


def test_23_loading_asks_the_network(monkeypatch):
    """diffusers#3729: a model that is all there asks for a configuration elsewhere."""

    def refuse(*_):
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    def works(ask):
        try:
            return load("emoji-64").condition(ask("a red apple"), [None])["text"].shape[0] == 1
        except OSError:
            return False

    assert works(lambda prompt: [prompt])
    assert not works(lambda prompt: [prompt, socket.create_connection(("127.0.0.1", 9), timeout=1)])
