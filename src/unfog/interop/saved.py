"""A model that was read from a folder of diffusers' written as one again, with whatever was added to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfog.errors import UserError
from unfog.files import write_atomic, write_folder
from unfog.interop import layout as layouts
from unfog.interop.joint import JointSpace
from unfog.interop.noise import PREDICTIONS
from unfog.interop.safe import Folder
from unfog.interop.space import LatentSpace
from unfog.model import Model

KEPT = (".json", ".txt", ".model")  # configs, tokenizers: as they were


def save(model: Model, folder: str | Path, half: bool = True) -> None:
    """Write the layout of diffusers, whole or not at all; half: weights in float16. Raises UserError for our own models.

    What was measured and not stated (v-prediction, zero terminal SNR) is stated in the new folder.
    """
    from safetensors.torch import save as as_bytes

    space = model.space
    if not isinstance(space, LatentSpace):
        raise UserError(f"save: {model.name} is no model of Stable Diffusion's; copy its folder")
    if any(one.kind == "refiner" for one in _others(model)):
        raise UserError("save: a refiner is a folder of its own; load the model without it")
    for one in _others(model):
        if one.card.kind in ("control", "style"):
            raise UserError(f"save: {one.path.name} has no place in the layout of diffusers; load the model without it")
    found = layouts.read(model.folder)
    encoders = [name for name in layouts.TEXTS if found.parts.get(name, "T5").startswith("CLIP")]
    network: Any = model.denoiser.network
    part = "transformer" if found.family in layouts.OTHERS else "unet"
    vae = next((one.path.resolve() for one in _others(model) if one.kind == "vae"), None)
    modules: dict[str, tuple[nn.Module, str, str]] = {
        part: (getattr(network, part), "diffusion_pytorch_model", ""),
        "vae": (space.codec.vae, "diffusion_pytorch_model", ""),
    }
    for name, encoder in zip(encoders, space.encoders, strict=True):
        if encoder.tokens.own:
            raise UserError("save: a learned word has no place in the layout of diffusers; load the model without it")
        modules[name] = (encoder.network, "model", "text_model.")
    if isinstance(space, JointSpace) and space.t5 is not None:
        modules |= {name: (space.t5.network, "model", "") for name, kind in found.parts.items() if kind == "T5EncoderModel"}

    def write(place: Path) -> None:
        for part in sorted(found.parts):
            for path in sorted((model.folder / part).glob("*")):
                wanted = KEPT if part in modules else (*KEPT, ".safetensors")  # what is not read here stays as it was
                if path.suffix in wanted and path.is_file() and ".index." not in path.name:
                    write_atomic(place / part / path.name, found.folder.file(f"{part}/{path.name}").read_bytes())
        if vae is not None:
            config = Folder(vae.parent).file(f"{vae.name}/config.json")
            write_atomic(place / "vae/config.json", config.read_bytes())
        told = found.folder.json("scheduler/scheduler_config.json")
        told |= _measured(model, told)
        write_atomic(place / "scheduler/scheduler_config.json", _json(told))
        for part, (module, stem, prefix) in modules.items():
            tensors = {_named(name, prefix): _kept(value, half) for name, value in module.state_dict().items()}
            write_atomic(place / part / f"{stem}.safetensors", as_bytes(tensors, {"format": "pt"}))
        write_atomic(place / layouts.INDEX, _json(found.index))

    write_folder(Path(folder), write)


def _others(model: Model) -> list[Any]:
    return list(model.adapters)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _named(name: str, prefix: str) -> str:
    return name if name.startswith("text_projection") else prefix + name


def _kept(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu()
    if value.is_floating_point():
        value = value.half() if half else value.float()
    return value.contiguous(memory_format=torch.contiguous_format)


def _measured(model: Model, told: dict[str, Any]) -> dict[str, Any]:
    """What was measured, beside or against what the folder told."""
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    found: dict[str, Any] = {}
    if model.denoiser.prediction.name in names:
        found["prediction_type"] = names[model.denoiser.prediction.name]
        zero = float(model.denoiser.process.schedule.logsnr(1.0)) == float("-inf")
        if zero or told.get("rescale_betas_zero_snr"):
            found["rescale_betas_zero_snr"] = zero
    return found
