"""A ControlNet of several kinds in one network (union): it is told which kinds its pictures are of, and mixes those it is given.

    one kind        residual · strength
    several         each picture enters as much as its strength says, the residuals as they are

Names and order of the kinds are those with which the weights of xinsir/controlnet-union-sdxl-1.0 were trained, of six kinds
and of eight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfog.errors import UserError, shown

# What each kind is called; the first name is shown.
KINDS = (("openpose",), ("depth",), ("scribble", "hed", "softedge", "pidinet", "teed"),
         ("canny", "lineart", "anime_lineart", "mlsd"), ("normal",), ("segment",), ("tile",), ("repaint",))  # fmt: skip
HEADS = 8  # of its transformer, which its weights do not tell
SIZES = (("num_trans_channel", 8_192), ("num_trans_head", 256), ("num_trans_layer", 64), ("num_proj_channel", 8_192))


def kinds_of(where: Path, config: Any) -> tuple[tuple[str, ...], ...]:
    """The names of a config's kinds. Raises UserError for a number of them that is not known, and for sizes of no network."""
    count = config.get("num_control_type", 6)
    if type(count) is not int or not 2 <= count <= len(KINDS):
        raise UserError(f"{where}: num_control_type must be a whole number from 2 to {len(KINDS)}, got {shown(count)}")
    for key, most in SIZES:
        if key in config and not (type(config[key]) is int and 0 < config[key] <= most):
            raise UserError(f"{where}: {key} must be a whole number from 1 to {most}, got {shown(config[key])}")
    return KINDS[:count]


def settings_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """What a config says of a union, by the shapes of a single file's weights; nothing where it holds none. Raises KeyError or
    IndexError for a damaged one."""
    if "task_embedding" not in shapes:
        return {}
    count, width = shapes["task_embedding"]
    layers = {name.split(".")[1] for name in shapes if name.startswith("transformer_layes.")}  # sic
    return {"num_control_type": count, "num_trans_channel": width, "num_trans_layer": len(layers),
            "num_trans_head": HEADS, "num_proj_channel": shapes["spatial_ch_projs.weight"][0]}  # fmt: skip


def residuals(network: nn.Module, x: Tensor, level: Tensor, text: Tensor, beside: Any, pictures: Sequence[Tensor],
              strength: Tensor) -> list[Tensor]:  # fmt: skip
    """One a skip, and the middle's, at their strengths. pictures: of all kinds; strength (B, kinds), in each row the same or 0;
    those of strength 0 are as if they were not there."""
    given = strength != 0
    acting, rows = given.any(dim=0).nonzero().flatten().tolist(), given.any(dim=1)
    kinds = torch.zeros_like(strength)
    kinds[:, acting] = 1.0
    inner = [1.0] * len(acting)
    outer = strength[:, acting[0]]
    if len(acting) > 1:
        inner, outer = strength[rows][0, acting].tolist(), rows.to(strength.dtype)
    hints = [pictures[k].contiguous(memory_format=torch.channels_last) for k in acting]
    down, middle = network(x, level, text, hints, kinds, acting, conditioning_scale=inner, added_cond_kwargs=beside,
                           return_dict=False)  # fmt: skip
    return [outer[:, None, None, None] * one for one in (*down, middle)]
