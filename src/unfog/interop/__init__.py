"""Other people's models: folders in the layout of diffusers, read without running anything in them.

diffusers builds the denoising network and the autoencoder; schedule, prediction, solver, guidance, seeds and previews are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from unfog.model import Model


def load(path: Path, device: str | None = None, adapters: Sequence[str | Path] = (), prediction: str | None = None,
         dtype: torch.dtype | None = None) -> Model:  # fmt: skip
    """A model of a folder with a model_index.json, or of a single checkpoint in safetensors.

    Raises UserError for a folder that is damaged, unknown, or wants code to be run.
    """
    from unfog.interop import folder

    return folder.load(path, device, adapters, prediction, dtype)


def save(model: Model, folder: str | Path, half: bool = True) -> None:
    """Write a model that `load` read, with what was added to it, as a folder that diffusers loads; half: in float16."""
    from unfog.interop import saved

    saved.save(model, folder, half)
