"""unfog: diffusion models of any kind of data, trained, sampled, controlled, evaluated, served.

    import unfog
    unfog.load("emoji-64").generate("a red apple", style="openmoji", seed=7)[0].save("apple.png")

torch is loaded by `load`, not by this import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unfog.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from unfog.model import Model

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "load"]


def load(
    name: str | Path,
    device: str | None = None,
    adapters: Sequence[str | Path] = (),
    any_base: bool = False,
    prediction: str | None = None,
) -> Model:
    """A shipped model by name ("emoji-64"), a model folder, a training run's folder, or a folder of Stable Diffusion's.

    adapters: folders of what fine-tuning learned, as PATH or PATH:STRENGTH. any_base: use them on another model than theirs.
    prediction: eps or v, where a folder of Stable Diffusion's does not say what its network predicts.
    """
    from unfog.model import load

    return load(name, device, adapters, any_base, prediction)
