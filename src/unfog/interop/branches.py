"""ControlNets and T2I-Adapters of U-Nets, made of their folders and files: diffusers builds them from the config.

Weights are read and checked as those of the folder itself, and a branch must be made for the family of the network beside it.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch

from unfog.errors import UserError, shown
from unfog.interop import union
from unfog.interop.guides import CONTROLNET, T2I, UNION, Branch
from unfog.interop.lean import lean
from unfog.interop.looking import fit
from unfog.interop.networks import UNet, built, config_of, filled, package
from unfog.interop.safe import Folder, Weights
from unfog.interop.single import held, unet_name

MADE_BY = {CONTROLNET: ("controlnets.controlnet", "ControlNetModel"), T2I: ("adapter", "T2IAdapter"),
           UNION: ("controlnets.controlnet_union", "ControlNetUnionModel")}  # fmt: skip
# What of its config a ControlNet must share with the U-Net whose copy it is.
SHARED = ("block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type", "class_embed_type",
          "addition_time_embed_dim", "projection_class_embeddings_input_dim", "encoder_hid_dim_type")  # fmt: skip


def branch(folder: Folder, component: str, kind: str, strength: float, base: UNet, channels: int, factor: int,
           device: str, dtype: torch.dtype) -> Branch:  # fmt: skip
    """A ControlNet's (of several kinds, too) or T2I-Adapter's folder, made for this U-Net, whose latents have `channels` and are
    `factor` smaller.

    Raises UserError naming the file that is damaged, or what does not fit.
    """
    where = folder.root / component / "config.json"
    config = config_of(folder, component)
    module, name = MADE_BY[kind]
    kinds = union.kinds_of(where, config) if kind == UNION else ((),)
    for key in ("conditioning_embedding_out_channels", "channels"):
        value = config.get(key)
        if value is not None and not (isinstance(value, list) and 0 < len(value) <= 12
                                      and all(type(v) is int and 0 < v <= 32_768 for v in value)):  # fmt: skip
            raise UserError(f"{where}: {key} must be a list of whole numbers, got {shown(value)}; get the folder again")
    for key, most in (("conditioning_channels", 16), ("num_res_blocks", 32), ("downscale_factor", 64)):
        if key in config and not (type(config[key]) is int and 0 < config[key] <= most):
            raise UserError(f"{where}: {key} must be a whole number from 1 to {most}, got {shown(config[key])}")
    network = built(where, package(f"diffusers.models.{module}", name), config)
    own: Any = network.config
    _fits(where, own, kind, base.unet.config, channels, factor)
    read = int(own.in_channels if kind == T2I else own.conditioning_channels)
    if read not in (1, 3):
        raise UserError(f"{where}: reads {read} channels, which no picture has; give a ControlNet or T2I-Adapter of pictures")
    filled(network, folder.weights(component, "diffusion_pytorch_model"), dtype)
    network = lean(network).to(device).to(memory_format=torch.channels_last)
    alone = kind != T2I and bool(own.global_pool_conditions)
    return Branch(component, kind, strength, network, read, alone, int(own.downscale_factor) if kind == T2I else 1, kinds)


def branch_of_file(path: Path, weights: Weights, strength: float, base: UNet, channels: int, factor: int, device: str,
                   dtype: torch.dtype) -> Branch:  # fmt: skip
    """A ControlNet's single file (of several kinds, too), under the first code's names or diffusers'; without a config it is the
    copy of this U-Net.

    Raises UserError where it is not.
    """
    config: Any = base.unet.config
    layers = config.layers_per_block
    if not isinstance(layers, int):
        raise UserError(f"{path}: is for no network whose levels differ as this model's do; give a folder with a config.json")
    count = len([name for name in weights.entries if re.fullmatch(r".*input_hint_block\.\d+\.weight", name)])
    tensors = held(path, {_control_name(name, layers, count): tensor for name, tensor in weights.load().items()})
    if len(tensors.entries) < len(weights.entries):
        raise UserError(f"{path}: holds some weights under two names; get the file again")
    hint = "controlnet_cond_embedding."
    try:
        widths = [tensors.entries[f"{hint}conv_in.weight"].shape[0]]
        while f"{hint}blocks.{2 * len(widths) - 1}.weight" in tensors.entries:
            widths.append(tensors.entries[f"{hint}blocks.{2 * len(widths) - 1}.weight"].shape[0])
        read = tensors.entries[f"{hint}conv_in.weight"].shape[1]
        several = union.settings_of({name: entry.shape for name, entry in tensors.entries.items()})
    except (KeyError, IndexError, ValueError):
        raise UserError(f"{path}: is laid out as no known ControlNet; give a folder with a config.json") from None
    kind = UNION if several else CONTROLNET
    kinds = union.kinds_of(path, several) if several else ((),)
    module, name = MADE_BY[kind]
    make = package(f"diffusers.models.{module}", name)
    own = {key: value for key, value in config.items() if key in inspect.signature(make.__init__).parameters}
    own |= {"in_channels": channels, "conditioning_channels": read, "conditioning_embedding_out_channels": widths}
    network = built(path, make, own | several)
    fit(path, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}, tensors, "a ControlNet")
    _fits(path, network.config, kind, config, channels, factor)
    if read not in (1, 3):
        raise UserError(f"{path}: reads {read} channels, which no picture has; give a ControlNet of pictures")
    filled(network, tensors, dtype)
    network = lean(network).to(device).to(memory_format=torch.channels_last)
    return Branch(path.stem, kind, strength, network, int(read), kinds=kinds)


def _control_name(name: str, layers: int, count: int) -> str:
    """diffusers' name of a ControlNet's weight; count: layers that make its picture as small as latents."""
    name = name.removeprefix("control_model.")
    hint = re.fullmatch(r"input_hint_block\.(\d+)\.(.+)", name)
    if hint:
        place = int(hint[1]) // 2  # an activation after each
        inner = "conv_in" if place == 0 else "conv_out" if place == count - 1 else f"blocks.{place - 1}"
        return f"controlnet_cond_embedding.{inner}.{hint[2]}"
    name = re.sub(r"^zero_convs\.(\d+)\.0\.", r"controlnet_down_blocks.\1.", name)
    name = re.sub(r"^middle_block_out\.0\.", "controlnet_mid_block.", name)
    return unet_name(name, layers)


def _fits(where: Any, own: Any, kind: str, base: Any, channels: int, factor: int) -> None:
    """Raises UserError where a branch is made for another family of networks."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, (list, tuple)) else value

    def other(key: str, has: Any, wanted: Any) -> UserError:
        return UserError(f"{where}: {key} is {shown(plain(has))}, the model's {shown(plain(wanted))}; give one made for this "
                         "model's family")  # fmt: skip

    if kind != T2I:
        for key in SHARED:
            has, wanted = plain(getattr(own, key)), plain(getattr(base, key))
            if has != wanted:
                raise other(key, has, wanted)
        if own.in_channels != channels:
            raise other("in_channels", own.in_channels, channels)
        if own.controlnet_conditioning_channel_order not in ("rgb", "bgr"):
            raise other("controlnet_conditioning_channel_order", own.controlnet_conditioning_channel_order, "rgb")
        shrinks = 2 ** (len(own.conditioning_embedding_out_channels) - 1)
        if shrinks != factor:
            raise UserError(f"{where}: shrinks its picture {shrinks} times, the autoencoder {factor} times; give one made for "
                            "this model's family")  # fmt: skip
        return
    large = own.adapter_type == "full_adapter_xl"
    # of XL's the first level is at half the latents' size
    if own.downscale_factor != factor * (2 if large else 1):
        raise other("downscale_factor", own.downscale_factor, factor * (2 if large else 1))
    light = own.adapter_type == "light_adapter"
    wanted = list(base.block_out_channels)
    has = [*own.channels, own.channels[-1]] if light else list(own.channels)
    if has != wanted and not large:
        raise other("channels", has, wanted)
