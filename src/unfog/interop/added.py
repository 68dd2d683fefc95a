"""What may be added to a folder of Stable Diffusion: LoRA, learned words (textual inversion), another autoencoder, guides.

    LoRA      W ← W + strength·(alpha/rank)·up·down            names of peft, of diffusers before it, and of kohya
    words     rows after the text encoder's own; the word in a prompt stands for them
    VAE       a folder of AutoencoderKL
    network   a file with the transformer of Stable Diffusion 3 or Flux (`original.py`), in place of the folder's own
    refiner   a folder of Stable Diffusion XL's (`refiner.py`); its number is the base's share of the way
    tokens    a folder of vocab.json and merges.txt, for a single file, which has none
    guides    a ControlNet's folder (of several kinds, too; of SD 3 and Flux, too) or file, a T2I-Adapter's folder, an
              IP-Adapter's file (of SD 3 and Flux, too) and its image encoder's folder

Each is told from what it holds, given as PATH or PATH:STRENGTH, and read as safely as the folder itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unfog.adapters import asked
from unfog.errors import UserError, shown, unknown
from unfog.interop import branches, guides, joint_guides, joint_looking, looking, original
from unfog.interop import layout as layouts
from unfog.interop.layout import identity
from unfog.interop.refiner import SHARE
from unfog.interop.safe import PICKLES, Folder, Weights, as_pickle, header

if TYPE_CHECKING:
    from unfog.interop.joint import SD3, Flux
    from unfog.interop.networks import Autoencoder, UNet
    from unfog.interop.space import Encoder, LatentSpace

DOWN = (".lora_A.weight", ".lora_down.weight", "_lora.down.weight", ".lora.down.weight", ".lora_linear_layer.down.weight")
HINTS = ("input_hint_block.", "controlnet_cond_embedding.")  # what only a ControlNet has
FOLDERS = {"AutoencoderKL": "vae", "ControlNetModel": guides.CONTROLNET, "ControlNetUnionModel": guides.UNION,
           "T2IAdapter": guides.T2I, "CLIPVisionModelWithProjection": "eye", "SiglipVisionModel": "siglip",
           "SiglipModel": "siglip",
           **{name: family for family, (_, name) in joint_guides.MADE_BY.items()}}  # fmt: skip
# As our own of the same use.
TOLD = dict.fromkeys([*branches.MADE_BY, *joint_guides.MADE_BY], "control") | dict.fromkeys(("look", "eye", "siglip"), "style")
UP = (".lora_B.weight", ".lora_up.weight", "_lora.up.weight", ".lora.up.weight", ".lora_linear_layer.up.weight")


@dataclass(frozen=True)
class Told:
    name: str
    kind: str  # as an adapter of our own would say


@dataclass(frozen=True)
class Added:
    """One file as it was asked for; card, hash and strength are what a picture's recipe says of it."""

    path: Path
    strength: float
    kind: str
    hash: str
    weights: Weights | None

    @property
    def card(self) -> Told:
        return Told(self.path.stem if self.weights else _name(self.path), TOLD.get(self.kind, self.kind))


def read(wish: str | Path) -> Added:
    """What PATH[:STRENGTH] is. Raises UserError where it is none of what can be added."""
    path, strength = asked(wish)
    amount = 1.0 if strength is None else strength
    if (path / layouts.INDEX).is_file():
        own = identity(layouts.files(layouts.read(path)))
        return Added(path, SHARE if strength is None else strength, "refiner", own, None)
    if path.is_dir():
        return Added(path, amount, _kind(path), identity(sorted(p for p in path.glob("*") if p.is_file())), None)
    if not path.is_file():
        raise UserError(f"adapter: {path}: is missing; give a .safetensors file, or an autoencoder's folder")
    if path.suffix.lower() in PICKLES:
        raise as_pickle(path)
    weights = Weights(path, header(path))
    kind = "lora" if any(name.endswith(DOWN) for name in weights.entries) else "word"
    kind = guides.CONTROLNET if any(mark in name for name in weights.entries for mark in HINTS) else kind
    kind = (
        "look"
        if any(name.startswith(("image_proj.", "ip_adapter.", "ip_adapter_proj_model.")) for name in weights.entries)
        else kind
    )
    kind = "network" if kind == "word" and original.family(weights.entries) is not None else kind
    return Added(path, amount, kind, identity([path]), weights)


def _name(path: Path) -> str:
    """A folder's name; in the hub's cache, whose snapshots are named by a hash, that of its repository."""
    place = path.resolve()
    return place.parent.parent.name.rpartition("--")[2] if place.parent.name == "snapshots" else place.name


def _kind(path: Path) -> str:
    """What a folder holds: by its config's class, or that it is a tokenizer's. Raises UserError for any other."""
    if (path / "config.json").is_file():
        told = Folder(path.resolve()).json("config.json")
        named = told.get("architectures")
        name = told.get("_class_name", named[0] if isinstance(named, list) and named else "AutoencoderKL")
        if not isinstance(name, str) or name not in FOLDERS:
            raise UserError(f"adapter: {path / 'config.json'}: {unknown('class', name, FOLDERS)}")
        return FOLDERS[name]
    if (path / "vocab.json").is_file():
        return "tokens"
    what = "an autoencoder's, ControlNet's, T2I-Adapter's or image encoder's folder, or a .safetensors file"
    raise UserError(f"adapter: {path}: no config.json there; give {what}")


def read_all(wishes: Sequence[str | Path]) -> list[Added]:
    """All of them, each once; those of strength 0 are left out, but for guides, whose pictures are asked for by name."""
    found = [read(wish) for wish in wishes]
    for place, one in enumerate(found):
        if one.hash in [other.hash for other in found[:place]]:
            raise UserError(f"adapter: {one.path} is given twice; give it once, with the strength that you want")
    return [one for one in found if one.strength or one.kind in TOLD]


def autoencoder_of(added: Sequence[Added]) -> tuple[Folder, str] | None:
    """Where the autoencoder lies that takes the place of the folder's own."""
    found = [one.path.resolve() for one in added if one.kind == "vae"]
    if len(found) > 1:
        raise UserError("adapter: two autoencoders are given; give one")
    return (Folder(found[0].parent), found[0].name) if found else None


def apply(added: Sequence[Added], network: nn.Module, space: LatentSpace) -> None:
    """Change networks and words in place. Raises UserError naming what does not fit."""
    for one in added:
        if one.kind == "lora":
            _lora(one, network, space.encoders)
        elif one.kind == "word":
            _word(one, space.encoders)


def guided(added: Sequence[Added], where: str, network: UNet, codec: Autoencoder, own: Folder | None, device: str,
           dtype: torch.dtype) -> tuple[UNet | guides.Guided, guides.Guides]:  # fmt: skip
    """The network with its guides, and what they are. own: the folder whose image_encoder serves where none is given.

    Raises UserError where one is damaged or made for another family.
    """
    config: Any = network.unet.config
    count, beside = codec.channels, {2 * codec.channels + 1: guides.INPAINT, codec.channels + 1: guides.DEPTH}
    followers = []
    for one in added:
        if one.kind == guides.CONTROLNET and one.weights is not None:
            followers.append(branches.branch_of_file(one.path, one.weights, one.strength, network, count, codec.factor, device,
                                                     dtype))  # fmt: skip
        elif one.kind in branches.MADE_BY:
            place = one.path.resolve()
            follower = branches.branch(Folder(place.parent), place.name, one.kind, one.strength, network, count, codec.factor,
                                       device, dtype)  # fmt: skip
            follower.name = _name(one.path)
            followers.append(follower)
        elif one.kind in joint_guides.MADE_BY:
            raise _other(one)
    look, found = None, _reference(added, "eye", own)
    if found is not None:
        one, file, at, name = found
        look = looking.look(one.path, file, one.strength, looking.image_encoder(at, name, device), network.unet, device,
                            dtype)  # fmt: skip
    found_beside = beside.get(int(config.in_channels))
    told = guides.Guides(where, followers, look, found_beside, codec.factor)
    if not followers and look is None and found_beside is None:
        return network, told
    return guides.Guided(network, followers, look), told


EYES = {"eye": "CLIP", "siglip": "SigLIP"}


def _reference(added: Sequence[Added], kind: str, own: Folder | None) -> tuple[Added, Weights, Folder, str] | None:
    """The IP-Adapter that is given, its tensors, and where its image encoder (of EYES) lies; None where there is none.

    own: the folder whose image_encoder serves where none is given. Raises UserError where one of them is missing or too many.
    """
    looks, eyes = [one for one in added if one.kind == "look"], [one for one in added if one.kind in EYES]
    for pair in (looks, eyes):
        if len(pair) > 1:
            raise UserError(f"adapter: {pair[0].path} and {pair[1].path} are both for a reference picture; give one")
    if eyes and not looks:
        raise UserError(f"adapter: {eyes[0].path} is an image encoder, which an IP-Adapter needs; give that file with it")
    if not looks:
        return None
    if eyes and eyes[0].kind != kind:
        raise UserError(f"adapter: {eyes[0].path} is {EYES[eyes[0].kind]}'s image encoder, IP-Adapters of this family read "
                        f"{EYES[kind]}'s; give that one")  # fmt: skip
    places = [(Folder(eye.path.resolve().parent), eye.path.resolve().name) for eye in eyes]
    places += [(own, "image_encoder")] if own is not None else []
    if not places:
        raise UserError(f"adapter: {looks[0].path} is an IP-Adapter; give the folder of its image encoder with --adapter, too")
    assert looks[0].weights is not None
    return looks[0], looks[0].weights, *places[0]


def guided_jointly(added: Sequence[Added], where: str, network: SD3 | Flux, family: str, codec: Autoencoder, own: Folder | None,
                   device: str,
                   dtype: torch.dtype) -> tuple[SD3 | Flux | joint_guides.GuidedJoint, guides.Guides]:  # fmt: skip
    """As `guided`, of Stable Diffusion 3 and Flux."""
    followers = []
    for one in added:
        if one.kind == family:
            place = one.path.resolve()
            followers.append(joint_guides.branch(Folder(place.parent), place.name, _name(one.path), one.strength, family, network,
                                                 codec, device, dtype))  # fmt: skip
        elif one.kind in TOLD and one.kind not in ("look", *EYES):
            raise _other(one)
    look, found = None, _reference(added, "eye" if family == "flux" else "siglip", own)
    if found is not None:
        one, file, at, name = found
        encoder = joint_looking.encoder_of(at, name, family, device)
        look = joint_looking.look(one.path, file, one.strength, encoder, network.transformer, device, dtype)
    config: Any = network.transformer.config
    made = config.out_channels or config.in_channels
    beside = {made: None, 2 * made: guides.MAP}.get(config.in_channels, guides.INPAINT)
    latents = partial(joint_guides.latents_of, codec) if beside == guides.MAP else None
    told = guides.Guides(where, followers, look, beside, codec.factor, latents)
    return (joint_guides.GuidedJoint(network, followers, look) if followers or look else network), told


def _other(one: Added) -> UserError:
    """Of a guide that is made for another family."""
    made = joint_guides.NAMES.get(one.kind, "Stable Diffusion 1, 2 and XL")
    return UserError(f"adapter: {one.path} steers {made} only; leave it out")


@dataclass(frozen=True)
class Target:
    """Layers whose weights, one below the other, a LoRA changes; turned: its two halves are the other way round there."""

    layers: Sequence[Any]
    turned: bool = False


NETWORK = ("unet", "lora_unet", "transformer", "lora_transformer", "base_model.model", "diffusion_model")


def _targets(network: nn.Module, encoders: Sequence[Encoder]) -> dict[str, Target]:
    """Every layer that has a weight, under the names that LoRA files have for it, dots and underlines alike; those of Stable
    Diffusion 3 and Flux also under the names of their first code, where several may be one."""
    found: dict[str, Target] = {}

    def add(prefixes: Sequence[str], module: nn.Module) -> None:
        for name, layer in module.named_modules():
            if isinstance(getattr(layer, "weight", None), Tensor):
                for prefix in prefixes:
                    found[_plain(f"{prefix}.{name}")] = Target([layer])

    if hasattr(network, "transformer_blocks"):
        for name, (parts, turned) in original.stacks(network).items():
            for prefix in NETWORK:
                found[_plain(f"{prefix}.{name}")] = Target([network.get_submodule(part) for part in parts], turned)
    add(NETWORK, network)
    for place, encoder in enumerate(encoders):
        number = f"{place + 1}"
        names = [f"lora_te{number}.text_model", f"text_encoder_{number}.text_model", f"text_encoder_{number}"]
        names += ["lora_te.text_model", "text_encoder.text_model", "text_encoder"] if place == 0 else []
        add(names, encoder.network)
    return found


def _plain(name: str) -> str:
    return re.sub(r"[._]+", "_", name.replace(".processor", ""))


def _lora(one: Added, network: nn.Module, encoders: Sequence[Encoder]) -> None:
    assert one.weights is not None
    tensors, targets = one.weights.load(), _targets(network, encoders)
    used: set[str] = set()
    for name, down in tensors.items():
        end = next((end for end in DOWN if name.endswith(end)), None)
        if end is None:
            continue
        stem = name.removesuffix(end)
        other = stem + UP[DOWN.index(end)]
        if other not in tensors:
            raise UserError(f"{one.path}: {shown(other, 90)} is missing; get the file again")
        target = targets.get(_plain(stem)) or targets.get(_plain(stem + ".0"))  # an old name of to_out.0 is to_out
        if target is None:
            raise UserError(f"{one.path}: {shown(stem, 90)} is no layer of this model; give a LoRA of its own family")
        alpha = tensors.get(stem + ".alpha")
        rank = down.shape[0]
        scale = one.strength * (float(alpha) / rank if alpha is not None else 1.0)
        if not math.isfinite(scale):
            raise UserError(f"{one.path}: the alpha of {shown(stem, 90)} is not finite; get the file again")
        _change(one, stem, target, down, tensors[other], scale)
        used |= {name, other, stem + ".alpha"}
    left = [name for name in tensors if name not in used]
    if left:
        raise UserError(f"{one.path}: {shown(left[0], 90)} is of a kind that unfog does not read; give a plain LoRA")


def _change(one: Added, stem: str, target: Target, down: Tensor, up: Tensor, scale: float) -> None:
    """W += scale·up·down, in float32; a convolution's `down` holds the kernel, or `up` and `down` are 1×1."""
    weights = [layer.weight for layer in target.layers]
    rank, rows = down.shape[0], [len(weight) for weight in weights]
    fits = down.ndim in (2, 4) and up.ndim in (2, 4) and up[0].numel() == rank == up.shape[1] and up.shape[0] == sum(rows)
    if not fits or any(down[0].numel() != weight[0].numel() for weight in weights):
        raise UserError(f"{one.path}: {shown(stem, 90)} is {list(up.shape)}·{list(down.shape)}, the layer "
                        f"{[sum(rows), *weights[0].shape[1:]]}; give a LoRA of this model's family")  # fmt: skip
    change = up.float().flatten(1) @ down.float().flatten(1)
    change = original.turned(change) if target.turned else change
    for layer, part in zip(target.layers, change.split(rows), strict=True):
        weight = layer.weight
        weight.data = (weight.float() + scale * part.reshape(weight.shape).to(weight.device)).to(weight.dtype)


def _word(one: Added, encoders: Sequence[Encoder]) -> None:
    assert one.weights is not None
    tensors = one.weights.load()
    names = list(tensors)
    pairs: Mapping[str, Any]
    if set(names) <= {"clip_l", "clip_g"} and len(names) == len(encoders):
        word, pairs = one.path.stem, {"0": tensors.get("clip_l"), "1": tensors.get("clip_g")}
    elif len(names) == 1 and len(encoders) == 1:
        word = names[0] if names[0].startswith("<") else one.path.stem
        pairs = {"0": tensors[names[0]]}
    else:
        listed = ", ".join(shown(name, 40) for name in names[:3])
        raise UserError(f"{one.path}: holds {listed}; give a LoRA or a learned word of this model's family")
    for place, encoder in enumerate(encoders):
        vectors = pairs[str(place)]
        vectors = vectors[None] if vectors is not None and vectors.ndim == 1 else vectors
        table = encoder.network.embeddings["token_embedding"]
        if vectors is None or vectors.ndim != 2 or vectors.shape[1] != encoder.network.width or len(vectors) > 75:
            raise UserError(f"{one.path}: is no learned word of {encoder.network.width} numbers; give one of this model's family")
        if word in encoder.tokens.own:
            raise UserError(f"{one.path}: {shown(word)} is there already; rename one of the two files")
        rows: Tensor = table.weight  # type: ignore[assignment]
        encoder.tokens.own[word] = list(range(len(rows), len(rows) + len(vectors)))
        table.weight = nn.Parameter(torch.cat([rows, vectors.to(rows) * one.strength]), requires_grad=False)
