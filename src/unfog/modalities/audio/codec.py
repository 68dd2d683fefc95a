"""Sound <-> log-mel spectrogram, and back with a small network and Griffin and Lim's iteration.

    x0[m, j] = (ln max(Σ_k F[m, k]·|STFT(wave)[k, j]|, FLOOR) − mean_m) / std
    wave = argmin | |STFT(wave)| − lift(x0) |,  lift: 128 mel bands -> 513 frequencies, learned

128 bands resolve the harmonics of a low note up to 1 or 2 kHz, which sets its pitch; above that `lift` (networks of `Lift`,
weights in pretrained/sound-lift, trained by tools/weights/sound_lift.py) puts them where those below say they are. Phases come
from fast Griffin-Lim. benchmarks/audio_codecs.py holds it against the pseudo-inverse and others. Sources: Stevens, Volkmann and
Newman 1937 (mel, with O'Shaughnessy's constants); Griffin and Lim 1984; Perraudin, Balazs and Søndergaard 2013 (fast).
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.modalities.audio.sound import RATE, SAMPLES

WINDOW, HOP = 1024, 256  # samples: 64 and 16 ms
BINS = WINDOW // 2 + 1
BANDS = 128
FRAMES = SAMPLES // HOP
FLOOR = 1e-3  # of a band: about −70 dB below a full-scale tone's
EDGE = (WINDOW - HOP) // 2  # zeros on either side, so that 64 frames cover a clip alike
STEPS, MOMENTUM = 48, 0.99  # of Griffin-Lim
WEIGHTS = Path(__file__).parent.parent.parent / "pretrained" / "sound-lift"


@lru_cache
def window(device: str = "cpu") -> Tensor:
    return torch.hann_window(WINDOW, device=device)


def mel(frequency: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + frequency / 700)


@lru_cache
def filters() -> Tensor:
    """(BANDS, BINS): triangles on the mel scale, 0 to 8 kHz, of height 1; each reaches at least one bin fully."""
    bins = mel(torch.linspace(0, RATE / 2, BINS, dtype=torch.float64))
    centres = torch.linspace(0, float(mel(torch.tensor(RATE / 2.0))), BANDS + 2, dtype=torch.float64)[1:-1]
    step = centres[1] - centres[0]
    width = torch.maximum(step, mel(bins_hz() + RATE / WINDOW)[None] - bins[None])  # no narrower than the bins are apart
    return (1 - (bins[None] - centres[:, None]).abs() / width).clamp(min=0).float()


def bins_hz() -> Tensor:
    return torch.linspace(0, RATE / 2, BINS, dtype=torch.float64)


def stft(wave: Tensor) -> Tensor:
    """(B, SAMPLES) -> complex (B, BINS, FRAMES)."""
    padded = F.pad(wave, (EDGE, EDGE))
    return torch.stft(padded, WINDOW, HOP, window=window(wave.device.type), center=False, return_complex=True)


def istft(spectrum: Tensor) -> Tensor:
    """Least squares: the wave (B, SAMPLES) whose STFT is nearest. Source: Griffin and Lim 1984, eq. 6."""
    frames = torch.fft.irfft(spectrum, WINDOW, dim=1) * window(spectrum.device.type)[None, :, None]
    size = (1, (spectrum.shape[-1] - 1) * HOP + WINDOW)
    fold = {"output_size": size, "kernel_size": (1, WINDOW), "stride": (1, HOP)}
    total = F.fold(frames, **fold)[:, 0, 0]
    squares = window(spectrum.device.type).square()[None, :, None].expand(1, -1, spectrum.shape[-1])
    weight = F.fold(squares, **fold)[:, 0, 0]
    return (total / weight.clamp(min=1e-3))[:, EDGE : EDGE + SAMPLES]


def bands(wave: Tensor) -> Tensor:
    """(B, SAMPLES) in [−1, 1] -> ln of its mel bands (B, BANDS, FRAMES), at least ln FLOOR."""
    return (filters().to(wave.device) @ stft(wave).abs()).clamp(min=FLOOR).log()


def griffin_lim(magnitude: Tensor, known: Tensor | None = None, steps: int = STEPS) -> Tensor:
    """A wave (B, SAMPLES) with this |STFT| (B, BINS, FRAMES), as near as `steps` steps come; the same for each item in any batch.

    known: a wave (SAMPLES,), NaN where it is open: held there from step to step, so that phases in gaps meet it.
    """
    generator = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(1, *magnitude.shape[1:], generator=generator).to(magnitude.device)
    current = torch.polar(magnitude, angle.expand_as(magnitude).contiguous())
    before = torch.zeros_like(current)
    for step in range(steps + 1):
        wave = istft(current)
        if step == steps:
            return wave
        if known is not None:
            wave = torch.where(known.isnan(), wave, known.nan_to_num())
        now = stft(wave)
        ahead = now + MOMENTUM * (now - before)
        before = now
        current = magnitude * ahead / ahead.abs().clamp(min=1e-8)
    raise AssertionError("unreachable")


class _Block(nn.Module):
    """Frames (B, width, T) -> the same: a depthwise convolution over time, then a two-layer map of channels, added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide, self.back = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, y: Tensor) -> Tensor:
        return y + self.back(F.gelu(self.wide(self.norm(self.time(y).transpose(1, 2))))).transpose(1, 2)


class Lift(nn.Module):
    """ln of mel bands (B, BANDS, T) -> ln of magnitudes (B, BINS, T): what a pseudo-inverse gives, plus a learned part.

    Blocks of a depthwise convolution over time and a two-layer map of channels, as Liu et al. 2022, arXiv:2201.03545.
    """

    def __init__(self, width: int = 192, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv1d(BANDS, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BINS)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, values: Tensor) -> Tensor:
        y = self.blocks(self.stem((values + 3) / 3))
        learned = self.head(self.norm(y.transpose(1, 2))).transpose(1, 2)
        return spread(values) + learned


@lru_cache
def _inverse() -> Tensor:
    table = filters().T
    return table / table.sum(1, keepdim=True).clamp(min=1e-6)  # each bin: a mean of the bands that it is in


def spread(values: Tensor) -> Tensor:
    """ln of mel bands to ln of magnitudes by interpolation: a band's sum is shared evenly among its bins."""
    shares = filters().sum(1).clamp(min=1).log().to(values.device)
    return _inverse().to(values.device) @ (values - shares[:, None])


@lru_cache
def lift() -> Lift:
    """The shipped network. Raises UserError where its file is missing or damaged."""
    from unfog.files import load_weights

    with torch.device("meta"):
        network = Lift()
    weights = {k: v.float() for k, v in load_weights(WEIGHTS, "lift.safetensors").items()}
    network.load_state_dict(weights, assign=True)
    return network.eval()


@torch.no_grad()
def wave_of(values: Tensor, known: Tensor | None = None) -> Tensor:
    """ln of mel bands (B, BANDS, FRAMES) -> wave (B, SAMPLES)."""
    magnitude = lift()(values).exp()
    quiet = values.exp().amax(1, keepdim=True) <= FLOOR * 1.5  # a frame at the floor in every band holds nothing
    return griffin_lim(torch.where(quiet, 0.0, magnitude), known)
