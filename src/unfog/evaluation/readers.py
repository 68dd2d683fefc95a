"""Feature functions: what an item is to a distance. Each says its name, its label in reports and how it resizes.

    reader(name)  raw items (B, ...) ↦ features (B, D) float32

A distance is named after its reader: "FD-lite0" is a Fréchet distance of EfficientNet-lite0 features, and only Inception's
may be called FID. Any function becomes a reader with `given` and gets a name with `register`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError, shown, unknown
from unfog.files import sha256

Features = NDArray[np.float32]
SMALL = 8  # pixels a side of the "pixels" reader: 256 numbers, which a thousand pictures can fill
INCEPTION = "UNFOG_INCEPTION"  # environment variable: the user's own file of Inception weights
# What torch-fidelity and pytorch-fid both publish; a .pth is read by unpickling, so no other may be.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
LITE0_BATCH = 16  # larger batches are slower on a CPU


@dataclass(frozen=True)
class Reader:
    """A feature function; `hash` changes with whatever changes its features, and None means that nothing may be kept."""

    name: str
    label: str = field(metadata={"says": "what a Fréchet distance of these features is called"})
    dim: int | None
    hash: str | None
    resize: str
    function: Callable[[NDArray[Any]], Any] = field(repr=False, compare=False)

    def __call__(self, items: NDArray[Any]) -> Features:
        """Items (B, ...) to features (B, D). Raises UserError where the function gives anything else."""
        found = np.asarray(self.function(items), np.float32)
        if found.ndim != 2 or len(found) != len(items) or (self.dim is not None and found.shape[1] != self.dim):
            wanted = "D" if self.dim is None else self.dim
            raise UserError(f"reader {self.name}: must give ({len(items)}, {wanted}) features, gave shape {found.shape}")
        return found


def given(
    function: Callable[[NDArray[Any]], Any],
    name: str,
    *,
    label: str | None = None,
    dim: int | None = None,
    hash: str | None = None,
    resize: str = "as the function does",
) -> Reader:
    """A reader from any function of raw items (B, ...) that gives (B, D) numbers.

    Args: label, "FD-name" unless said; dim, D, checked if given; hash, text that changes whenever the function does:
        without it nothing is cached, because a function's code does not tell what it depends on.
    """
    kept = None if hash is None else sha256(f"{name} {hash}".encode())[:16]
    return Reader(name, label or f"FD-{name}", dim, kept, resize, function)


def register(made: Reader | Callable[[], Reader], name: str | None = None) -> None:
    """Let `reader(name)` find it. Raises UserError where the name is taken."""
    name = name or (made.name if isinstance(made, Reader) else "")
    if not name or name in READERS:
        raise UserError(f"reader: the name {shown(name)} is empty or taken; choose another")
    READERS[name] = (lambda: made) if isinstance(made, Reader) else made


def reader(name: str) -> Reader:
    """The reader of that name. Raises UserError for an unknown name, or where what it needs is missing."""
    if name not in READERS:
        raise unknown("reader", name, READERS)
    return READERS[name]()


def pictures(items: NDArray[Any], who: str) -> NDArray[np.uint8]:
    """Straight-alpha RGBA (B, H, W, 4) uint8, or a UserError; RGB (B, H, W, 3) is taken as opaque."""
    x = np.asarray(items)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] not in (3, 4) or 0 in x.shape[1:3]:
        raise UserError(f"reader {who}: needs pictures (B, H, W, 4) of bytes, got {x.dtype} {x.shape}")
    return x if x.shape[-1] == 4 else np.concatenate([x, np.full((*x.shape[:3], 1), 255, np.uint8)], -1)


@cache
def lite0() -> Reader:
    """The 1280 pooled features of EfficientNet-lite0, trained on ImageNet photographs; they ship with the package."""
    from unfog.evaluation.scorer import FOLDER, SIDE, WEIGHTS, Scorer, prepare
    from unfog.files import MANIFEST

    resize = f"8-bit pictures over white, bicubic to {SIDE}x{SIDE} in float32 (antialiased where larger), no rounding after"
    network: list[Any] = []

    def read(items: NDArray[Any]) -> Features:
        import torch

        x = pictures(items, "lite0")
        if not network:
            network.append(Scorer.load().lite0)
        with torch.inference_mode():
            found = [network[0](prepare(x[i : i + LITE0_BATCH]))[:, -1280:] for i in range(0, len(x), LITE0_BATCH)]
        return torch.cat(found).numpy() if found else np.zeros((0, 1280), np.float32)

    try:
        weights = sha256((FOLDER / MANIFEST).read_bytes())
    except OSError:
        raise UserError(f"{FOLDER / WEIGHTS}: missing; reinstall unfog") from None
    return Reader("lite0", "FD-lite0", 1280, sha256(f"lite0 1 {weights} {resize}".encode())[:16], resize, read)


@cache
def pixels() -> Reader:
    """The picture itself at 8×8: what a distance sees that knows nothing."""
    resize = f"8-bit pictures, premultiplied RGBA in [0, 1], area means to {SMALL}x{SMALL}"

    def read(items: NDArray[Any]) -> Features:
        import torch
        import torch.nn.functional as F

        x = torch.from_numpy(np.ascontiguousarray(pictures(items, "pixels"))).permute(0, 3, 1, 2).float() / 255
        x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)
        return F.adaptive_avg_pool2d(x, SMALL).flatten(1).numpy()

    return Reader("pixels", "FD-pixels", 4 * SMALL**2, sha256(f"pixels 1 {resize}".encode())[:16], resize, read)


@cache
def values() -> Reader:
    """The numbers themselves, flattened: for points, series and vectors, which are their own features."""

    def read(items: NDArray[Any]) -> Features:
        x = np.asarray(items)
        return x.reshape(len(x), -1).astype(np.float32)

    return Reader("values", "FD-values", None, sha256(b"values 1")[:16], "none", read)


def inception(weights: str | Path | None = None) -> Reader:
    """The 2048 pooled Inception-v3 features of the original FID, through torch-fidelity, with the user's own weights.

    Args: weights, the file (else what the environment variable UNFOG_INCEPTION names); nothing is ever downloaded.
    Raises: UserError where torch-fidelity or the file is missing, or the file is not those weights.
    """
    import importlib.util

    place = str(weights or os.environ.get(INCEPTION, ""))
    if importlib.util.find_spec("torch_fidelity") is None:
        raise UserError("reader inception: torch-fidelity is missing; pip install 'unfog[fidelity]'")
    if not place:
        raise UserError(f"reader inception: no weights; set {INCEPTION} to your own weights-inception-2015-12-05-6726825d.pth")
    try:
        found = sha256(Path(place).read_bytes())
    except OSError as error:
        raise UserError(f"{place}: {error.strerror or 'not readable'}; give torch-fidelity's Inception weights") from None
    if found != INCEPTION_SHA256:
        raise UserError(f"{place}: not the Inception weights that FID means (sha256 differs); get the published file again")
    resize = "8-bit pictures over white, rounded to 8-bit RGB, bilinear to 299x299 as TensorFlow 1 does"
    network: list[Any] = []

    def read(items: NDArray[Any]) -> Features:
        import torch

        x = pictures(items, "inception").astype(np.float32)
        opaque = np.rint(x[..., :3] * (x[..., 3:] / 255) + 255 - x[..., 3:]).astype(np.uint8)
        if not network:
            network.append(_inception(place))
        with torch.inference_mode():
            rows = [torch.from_numpy(opaque[i : i + 16]).permute(0, 3, 1, 2).contiguous() for i in range(0, len(x), 16)]
            found = [network[0](part)[0] for part in rows]
        return torch.cat(found).numpy() if found else np.zeros((0, 2048), np.float32)

    return Reader("inception", "FID", 2048, sha256(f"inception 1 {found} {resize}".encode())[:16], resize, read)


def _inception(place: str) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:
        said = str(error).splitlines()[0][:80] if str(error) else "no reason given"
        raise UserError(f"reader inception: torch-fidelity does not load ({said}); pip install 'unfog[fidelity]'") from None
    return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=place)


READERS: dict[str, Callable[[], Reader]] = {"lite0": lite0, "pixels": pixels, "values": values, "inception": inception}
