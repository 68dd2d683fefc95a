"""The judge: a small network that names the class of a clip, trained apart from every diffusion model, on other features.

It hears 40 bands of 25 ms windows (`ears.forty`), not the codec's spectrogram, and learned from the training clips of both
shipped sets alone (tools/weights/sound_judge.py; weights in pretrained/sound-judge).
Among the classes of the data at hand it chooses the
likeliest; classes that it does not know it cannot judge.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unfog.modalities.audio.ears import forty
from unfog.modalities.audio.sound import Wave, fitted

FOLDER = Path(__file__).parent.parent.parent / "pretrained" / "sound-judge"
QUIETEST = 1e-5  # of a band's power, relative to a clip's loudest
WIDTHS = (24, 48, 64, 96)


class Judge(nn.Module):
    """Clips (B, N) at 16 kHz -> features (B, 192) and logits (B, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        sizes = list(zip((1, *WIDTHS), WIDTHS, strict=False))
        self.convs = nn.ModuleList(nn.Conv2d(c_in, c_out, 3, padding=1) for c_in, c_out in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c_out) for _, c_out in sizes)
        self.head = nn.Linear(2 * WIDTHS[-1], classes)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        return self.heard(self.bands(waves))

    @staticmethod
    def bands(waves: Tensor) -> Tensor:
        """(B, 1, 40, T): ln powers over each clip's loudest, about zero mean and unit deviation."""
        powers = forty(waves)
        loudest = powers.amax((1, 2), keepdim=True).clamp(min=1e-12)
        return ((powers / loudest).clamp(min=QUIETEST).log() / 4 + 1.8)[:, None]

    def heard(self, y: Tensor) -> tuple[Tensor, Tensor]:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = F.relu(norm(conv(y)))
            y = F.max_pool2d(y, 2) if i < len(WIDTHS) - 1 else y
        features = torch.cat([y.mean((2, 3)), y.amax(3).mean(2)], 1)
        return features, self.head(F.dropout(features, 0.3, self.training))


@lru_cache
def judge() -> tuple[Judge, tuple[str, ...]]:
    """The shipped judge and its classes. Raises UserError where its files are missing or damaged."""
    from unfog.files import load_weights, read_checked

    classes = tuple(json.loads(read_checked(FOLDER, "judge.json"))["classes"])
    network = Judge(len(classes))
    weights = {k: v.float() if v.is_floating_point() else v for k, v in load_weights(FOLDER, "judge.safetensors").items()}
    network.load_state_dict(weights)
    return network.eval(), classes


@torch.no_grad()
def judged(waves: Sequence[Wave], among: Sequence[str]) -> tuple[list[str], NDArray[np.float64]]:
    """The likeliest of `among` for each clip, all of which the judge must know; and the clips' features (N, 192)."""
    network, classes = judge()
    places = [classes.index(name) for name in among]
    words, features = [], []
    for first in range(0, len(waves), 32):
        x = torch.from_numpy(np.stack([fitted(np.asarray(wave, np.float32)) for wave in waves[first : first + 32]]))
        heard, logits = network(x)
        words += [among[i] for i in logits[:, places].argmax(1).tolist()]
        features.append(heard.double().numpy())
    return words, np.concatenate(features)
