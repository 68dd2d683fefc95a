"""ControlNets of Stable Diffusion 3 and Flux: copies of some of the transformer's layers, which read a picture's latents, too.

    layer i of N  +=  strength · residual ⌊i·n/N⌋        Stable Diffusion 3, of n residuals
    layer i of N  +=  strength · residual ⌊i/⌈N/n⌉⌋      Flux, of its two rows of layers each

A union of Flux's is told a kind by a token of its own, and of several pictures says residuals one after the other. A picture
enters as the mean of its latents, not a draw from them. Sources: Zhang et al. 2023, arXiv:2302.05543; InstantX 2024, whose
networks' names and modes these are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unfog.diffusion.denoisers import Preconditioned
from unfog.errors import UserError, shown
from unfog.interop.guides import Follower, Guides
from unfog.interop.joint import SD3, UNIT, Flux, Sizes, nothing, packed
from unfog.interop.looking import Look
from unfog.interop.networks import Autoencoder, built, config_of, filled, package
from unfog.interop.safe import Folder

MADE_BY = {"sd3": ("diffusers.models.controlnets.controlnet_sd3", "SD3ControlNetModel"),
           "flux": ("diffusers.models.controlnets.controlnet_flux", "FluxControlNetModel")}  # fmt: skip
NAMES = {"sd3": "Stable Diffusion 3", "flux": "Flux"}
# What each kind of a union is called; the first name is shown.
KINDS = (("canny", "lineart"), ("tile",), ("depth",), ("blur",), ("pose", "openpose"), ("gray", "grey"), ("low quality", "lq"))
# What of its config a ControlNet must share with the transformer.
SHARED = {"sd3": ("num_attention_heads", "attention_head_dim", "in_channels", "patch_size", "pooled_projection_dim"),
          "flux": ("num_attention_heads", "attention_head_dim", "in_channels", "pooled_projection_dim",
                   "joint_attention_dim")}  # fmt: skip


def latents_of(codec: Autoencoder, picture: Tensor) -> Tensor:
    """Of a picture (3, H, W) in [0, 1], as a folder's autoencoder says them."""
    opaque = torch.cat([picture, torch.ones_like(picture[:1])]).permute(1, 2, 0)
    return codec.encode((opaque * 255).round().to(torch.uint8)[None])[0].cpu()


class JointBranch(Follower):
    """One that follows a picture. network: of diffusers; layers: of the transformer's rows that it adds to."""

    def __init__(self, name: str, strength: float, network: nn.Module, codec: Autoencoder, layers: Sequence[int],
                 kinds: Sequence[Sequence[str]] = ((),)) -> None:  # fmt: skip
        super().__init__(name, "controlnet", strength, codec.channels, kinds=kinds)
        self.network, self.codec, self.layers = network, codec, layers

    @property
    def colours(self) -> int:
        return 3

    def nothing(self, frame: tuple[int, int]) -> Tensor:
        return torch.zeros(self.codec.shape(*frame))

    def seen(self, picture: Tensor) -> Tensor:
        """The latents of a picture (3, H, W) in [0, 1]."""
        found = latents_of(self.codec, picture)
        plain = bool(getattr(self.network.config, "force_zeros_for_pooled_projection", False))
        return found + self.codec.offset * self.codec.scale if plain else found  # those know latents that are not moved


class SD3Branch(JointBranch):
    def added(self, base: SD3, x: Tensor, level: Tensor, cond: Mapping[str, Tensor], hint: Tensor, strength: Tensor,
              sums: list[list[Tensor] | None]) -> None:  # fmt: skip
        """Add what is said of a hint (B, C, h, w) at strength (B, 1) to the sums of each row of layers."""
        own: Any = self.network.config
        theirs: Any = base.transformer
        found = self.network(
            hidden_states=x if own.use_pos_embed else theirs.pos_embed(x),
            controlnet_cond=hint, encoder_hidden_states=None if own.joint_attention_dim is None else cond["text"],
            pooled_projections=torch.zeros_like(cond["pooled"]) if own.force_zeros_for_pooled_projection else cond["pooled"],
            timestep=level * UNIT, return_dict=False,
        )[0]  # fmt: skip
        sums[0] = spread(sums[0], found, strength, [i * len(found) // self.layers[0] for i in range(self.layers[0])])


class FluxBranch(JointBranch):
    def added(self, base: Flux, x: Tensor, level: Tensor, cond: Mapping[str, Tensor], hint: Tensor, strength: Tensor,
              sums: list[list[Tensor] | None]) -> None:  # fmt: skip
        """As SD3Branch; hint (B, kinds·C, h, w), strength (B, kinds)."""
        own: Any = self.network.config
        tokens, places, words = packed(x, cond["text"])
        for kind, picture in enumerate(hint.split(self.channels, dim=1)):
            if not bool((strength[:, kind] != 0).any()):
                continue
            mode = torch.full((len(x), 1), kind, device=x.device) if own.num_mode is not None else None
            found = self.network(
                hidden_states=tokens, controlnet_cond=packed(picture, cond["text"])[0], controlnet_mode=mode, timestep=level,
                guidance=cond["guidance"] if own.guidance_embeds else None, encoder_hidden_states=cond["text"],
                pooled_projections=cond["pooled"], img_ids=places, txt_ids=words, return_dict=False,
            )  # fmt: skip
            for row, (residuals, layers) in enumerate(zip(found, self.layers, strict=True)):
                if residuals is not None and layers:
                    each = math.ceil(layers / len(residuals))
                    sums[row] = spread(sums[row], residuals, strength[:, kind : kind + 1], [i // each for i in range(layers)])


def spread(before: list[Tensor] | None, residuals: Sequence[Tensor], strength: Tensor, which: Sequence[int]) -> list[Tensor]:
    """One a layer, each at its strength (B, 1), and what others said of the layer before."""
    scaled = [strength[..., None] * one for one in residuals]
    return [scaled[k] if before is None else before[i] + scaled[k] for i, k in enumerate(which)]


class GuidedJoint(nn.Module):
    """A transformer with what steers it. cond, beside its own: "control" (B, c, h, w), the latents of all pictures in their
    order; "control_strength" (B, K); "image" and "image_mask" of `looking.py`. Where no strength differs from 0 the transformer
    alone is asked."""

    def __init__(self, base: SD3 | Flux, branches: Sequence[JointBranch], look: Look | None = None) -> None:
        super().__init__()
        self.base, self.look = base, look
        self.branches = nn.ModuleList(branches)

    @property
    def transformer(self) -> nn.Module:
        return self.base.transformer

    def forward(self, x: Tensor, level: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        own = ("control", "control_strength", "image", "image_mask")
        told: dict[str, Any] = {key: value for key, value in cond.items() if key not in own}
        if "control" in cond and bool((cond["control_strength"] != 0).any()):
            told["extra"] = self._added(x, level, cond, told)
        if self.look is None or "image" not in cond or not bool((cond["image_mask"] != 0).any()):
            return self.base(x, level, told)
        with self.look.at(cond["image"], cond["image_mask"], level):
            return self.base(x, level, told)

    def _added(self, x: Tensor, level: Tensor, cond: Mapping[str, Tensor], told: Mapping[str, Tensor]) -> list[Any]:
        """What the branches add to each layer of the transformer's rows."""
        branches: list[Any] = list(self.branches)
        hints = cond["control"].to(x.dtype).split([one.channels * len(one.kinds) for one in branches], dim=1)
        strengths = cond["control_strength"].to(x.dtype).split([len(one.kinds) for one in branches], dim=1)
        sums: list[list[Tensor] | None] = [None, None]
        for branch, hint, strength in zip(branches, hints, strengths, strict=True):
            if bool((strength != 0).any()):
                branch.added(self.base, x, level, told, hint, strength, sums)
        return sums


def branch(folder: Folder, component: str, name: str, strength: float, family: str, base: SD3 | Flux, codec: Autoencoder,
           device: str, dtype: torch.dtype) -> JointBranch:  # fmt: skip
    """A ControlNet's folder, made for this transformer. Raises UserError naming what is damaged, or does not fit."""
    where = folder.root / component / "config.json"
    config = config_of(folder, component)
    for key, least, most in (("num_mode", 1, 64), ("num_single_layers", 0, 256)):
        value = config.get(key)
        if value is not None and not (type(value) is int and least <= value <= most):
            raise UserError(
                f"{where}: {key} must be a whole number from {least} to {most}, got {shown(value)}; get the folder again"
            )
    network = built(where, package(*MADE_BY[family]), config)
    own: Any = network.config
    theirs: Any = base.transformer.config
    for key in SHARED[family]:
        wanted = getattr(theirs, key)
        if key == "in_channels" and family == "flux":
            wanted = theirs.out_channels or wanted  # of latents; it knows nothing of what else the transformer reads
        if getattr(own, key) != wanted:
            raise UserError(f"{where}: {key} is {shown(getattr(own, key))}, the model's {shown(wanted)}; give one made for this "
                            "model")  # fmt: skip
    odd = "extra_conditioning_channels" if family == "sd3" else "conditioning_embedding_channels"
    if getattr(own, odd, None):
        raise UserError(f"{where}: reads {odd} beside latents, which is not read yet; give a ControlNet that reads latents alone")
    filled(network, folder.weights(component, "diffusion_pytorch_model"), dtype)
    network = network.to(device)
    if family == "sd3":
        return SD3Branch(name, strength, network, codec, [theirs.num_layers])
    kinds: Sequence[Sequence[str]] = ((),) if own.num_mode is None else KINDS[: own.num_mode]
    return FluxBranch(name, strength, network, codec, [theirs.num_layers, theirs.num_single_layers], kinds)


@torch.no_grad()
def trial(denoiser: Preconditioned, told: Guides, sizes: Sizes) -> None:
    """Ask once with every branch, on two patches a side. Raises UserError naming one whose layers do not fit the network's."""
    network: Any = denoiser.network
    weight = next(network.parameters())
    side, places = 2 * sizes.patch, told.places
    cond = nothing(sizes, weight, 2, side)
    for one in told.branches:
        strengths = torch.tensor([[float(branch is one) for branch, _ in places]]).to(weight)
        hints = torch.zeros(1, sizes.channels * len(places), side, side).to(weight)
        x = torch.zeros(1, sizes.channels, side, side).to(weight)
        try:
            network(x, torch.full((1,), 0.5).to(weight), {**cond, "control": hints, "control_strength": strengths})
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            reason = " ".join(str(error).split())[:100]
            raise UserError(f"adapter: {one.name} does not fit this model's network ({reason}); give one made for it") from None
