"""A folder of diffusers' as a `Model` of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unfog.diffusion import Gaussian
from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.schedules import Linear, Table
from unfog.errors import UserError, shown, unknown
from unfog.interop import added, guides, joint, joint_guides, joint_looking, original, single
from unfog.interop import layout as layouts
from unfog.interop.clip import Tokens
from unfog.interop.flows import FlowSteps
from unfog.interop.layout import Layout
from unfog.interop.networks import Autoencoder, UNet, autoencoder, clip_text, package, unet
from unfog.interop.noise import Steps
from unfog.interop.probe import probe
from unfog.interop.refiner import Refined, handed
from unfog.interop.safe import Folder, header
from unfog.interop.space import Encoder, LatentSpace
from unfog.interop.t5 import t5
from unfog.modalities import modality
from unfog.model import Model
from unfog.parts import Parts
from unfog.precision import fastest

DEFAULTS = {"sampler": "auto", "steps": 20, "scale": 7.5}


@dataclass(frozen=True)
class Read:
    """What a folder or a file holds, built. settings: of its LatentSpace."""

    steps: Steps
    encoders: list[Encoder]
    codec: Autoencoder
    network: UNet
    size: int
    settings: dict[str, bool]
    hash: str
    eye: Folder | None = None  # where an image_encoder lies


def load(path: Path, device: str | None, adapters: Sequence[str | Path], prediction: str | None,
         dtype: torch.dtype | None) -> Model:  # fmt: skip
    """See `unfog.interop.load`."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or fastest(device, _bytes(path))
    extra: list[added.Added] = []
    if path.is_dir() and (found := layouts.read(path)).family in layouts.OTHERS:
        return _flowing(found, adapters, prediction, device, dtype)
    if prediction is not None and prediction not in ("eps", "v", "x0"):
        raise unknown("prediction", prediction, ("eps", "v", "x0"))
    if path.is_file():
        header(path)  # refuses pickles before anything else is read
        extra = added.read_all(adapters)
        read = _file(path, extra, device, dtype)
    else:
        read = _folder(found, adapters, extra, device, dtype)
    space = LatentSpace(read.codec, read.encoders, read.size, **read.settings)
    _check(path, read.network, space)
    network, space.guides = added.guided(extra, path.name, read.network, read.codec, read.eye, device, dtype)
    added.apply(extra, read.network.unet, space)
    if any(one.kind == "network" for one in extra):
        raise UserError(f"adapter: a network of Stable Diffusion 3 or Flux is given, which {path.name} is not; leave it out")
    denoiser = _denoiser(path.name, network, read.steps, space, prediction)
    guides.trial(denoiser, space.guides, _nothing(space, 1))
    for one in extra:
        if one.kind == "refiner":
            space, denoiser = _refined(one, space, denoiser, device, dtype)
    return Model.of(Parts(
        name=path.resolve().name, hash=read.hash, kind=modality("image"), space=space, denoiser=denoiser,
        defaults=dict(DEFAULTS), device=device, dtype=dtype, folder=path, card=space.card(),
        grids=read.steps.grid(denoiser.process.schedule), adapters=extra,
    ))  # fmt: skip


def _bytes(path: Path) -> int:
    """Of a folder's network, or of a file."""
    files = [path] if path.is_file() else [*path.glob("unet/*.safetensors"), *path.glob("transformer/*.safetensors")]
    return sum(file.stat().st_size for file in files if file.is_file())


def _flowing(found: Layout, adapters: Sequence[str | Path], prediction: str | None, device: str, dtype: torch.dtype) -> Model:
    """A folder of Stable Diffusion 3 or Flux."""
    root, name, family = found.folder.root, "scheduler/scheduler_config.json", found.family
    if prediction not in (None, "flow"):
        raise UserError(f"prediction: {root.name} is of a family that predicts flow, not {shown(prediction)}; leave it out")
    steps = FlowSteps(root / name, found.folder.json(name), family == "flux")
    steps.check()
    clips = [text_encoder(found, part, device) if part in found.parts else None
             for part in (layouts.TEXTS[:2] if family == "sd3" else layouts.TEXTS[:1])]  # fmt: skip
    extra = added.read_all(adapters)
    if any(one.kind == "refiner" for one in extra):
        raise UserError(f"adapter: a refiner goes with Stable Diffusion XL only, not with {root.name}; leave it out")
    codec = autoencoder(*(added.autoencoder_of(extra) or (found.folder, "vae")), device, torch.float32)
    others = [one.weights for one in extra if one.kind == "network" and one.weights]
    if len(others) > 1:
        raise UserError("adapter: two networks are given; give one")
    weights = original.transformer(others[0], family) if others else None
    network, sizes = joint.joint(found.folder, "transformer", family, dtype, weights)
    part = layouts.TEXTS[2] if family == "sd3" else layouts.TEXTS[1]
    words = None
    if part in found.parts:
        tokenizer = _tokenizer(found, part)
        wide = torch.bfloat16 if dtype == torch.float16 else dtype  # some of its activations are beyond float16
        words = t5(found.folder, part, tokenizer, wide, device)
    edits = found.index["_class_name"] in layouts.EDITS
    space = joint.JointSpace(codec, clips, words, sizes, joint.TOKENS[family], joint=family == "sd3", edits=edits)
    joint.fitting(root, space)
    joint.tried(root, network.to(device), sizes)
    added.apply(extra, network.transformer, space)
    eye = found.folder if found.parts.get("image_encoder") == joint_looking.ENCODERS[family] else None
    whole, space.guides = added.guided_jointly(extra, root.name, network, family, codec, eye, device, dtype)
    denoiser = Preconditioned(whole, Gaussian(Linear()), "flow", "flow")
    if space.guides.branches:
        joint_guides.trial(denoiser, space.guides, sizes)
    few = family == "flux" and not sizes.guided
    defaults = {"sampler": "lcm" if steps.settings.get("stochastic_sampling") else "euler" if few else "auto",
                "steps": 4 if few else 28, "scale": 1.0 if family == "flux" else 7.0}  # fmt: skip
    return Model.of(Parts(
        name=root.resolve().name, hash=layouts.identity(layouts.files(found)), kind=modality("image"), space=space,
        denoiser=denoiser, defaults=defaults, device=device, dtype=dtype,
        folder=root, card=space.card(), grids=steps.grid(space.patches), adapters=extra,
    ))  # fmt: skip


def _refined(one: added.Added, space: LatentSpace, denoiser: Preconditioned, device: str,
             dtype: torch.dtype) -> tuple[LatentSpace, Preconditioned]:  # fmt: skip
    """The model with a refiner's folder behind it."""
    found = layouts.read(one.path)
    if found.family != "sdxl" or isinstance(space, Refined):
        word = "one refiner is enough" if isinstance(space, Refined) else "is no folder of Stable Diffusion XL's refiner"
        raise UserError(f"adapter: {one.path}: {word}; leave it out")
    late = _folder(found, (), [], device, dtype, space.codec)
    after = LatentSpace(late.codec, late.encoders, late.size, **late.settings)
    _check(one.path, late.network, after)
    told = _denoiser(one.path.name, late.network, late.steps, after, None)
    return handed(one.path, one.strength, space, denoiser, after, told)


def _folder(found: Layout, adapters: Sequence[str | Path], extra: list[added.Added], device: str, dtype: torch.dtype,
            codec: Autoencoder | None = None) -> Read:  # fmt: skip
    """The parts of a folder; `extra` is filled with what is added to it; codec: instead of the folder's own."""
    name = "scheduler/scheduler_config.json"
    steps = Steps(found.folder.root / name, found.folder.json(name), found.family == "sd")
    steps.schedule()  # refused before anything large is read
    encoders = [text_encoder(found, name, device) for name in ("text_encoder", "text_encoder_2") if name in found.parts]
    extra += added.read_all(adapters)
    package("diffusers.models", "UNet2DConditionModel")
    codec = codec or autoencoder(*(added.autoencoder_of(extra) or (found.folder, "vae")), device, torch.float32)
    network = unet(found.folder, "unet", dtype).to(device)
    large = found.family == "sdxl"
    settings = {"micro": large, "empty_zero": large and _flag(found, "force_zeros_for_empty_prompt", True),
                "refiner": _flag(found, "requires_aesthetics_score")}  # fmt: skip
    eye = found.folder if found.parts.get("image_encoder") == "CLIPVisionModelWithProjection" else None
    return Read(steps, encoders, codec, network, _size(network, codec), settings, layouts.identity(layouts.files(found)), eye)


def _file(path: Path, extra: Sequence[added.Added], device: str, dtype: torch.dtype) -> Read:
    """The parts of a single checkpoint. Raises UserError where no tokenizer is given beside it."""
    if (kind := original.family(header(path))) is not None:
        raise UserError(f"{path}: is the network of {original.FAMILY[kind]} alone, or has no tokenizers; "
                        "give a folder of it as the model, and this file with --adapter")  # fmt: skip
    place = next((one.path for one in extra if one.kind == "tokens"), None)
    if place is None:
        raise UserError(
            f"{path}: a single file has no tokenizer; give one with --adapter FOLDER/tokenizer, of any Stable Diffusion"
        )
    network, codec, texts, family = single.read(path, device, dtype)
    swap = added.autoencoder_of(extra)
    codec = autoencoder(*swap, device, torch.float32) if swap else codec
    folder = Folder(place.resolve().parent)
    encoders = [Encoder(Tokens.read(folder, place.resolve().name, pad), text, skip=family == "sdxl") for text, pad in texts]
    settings = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
                "timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}  # fmt: skip
    told = {"micro": family == "sdxl", "empty_zero": family == "sdxl"}
    return Read(Steps(path, settings), encoders, codec, network, _size(network, codec), told, layouts.identity([path]))


def _denoiser(name: str, network: torch.nn.Module, steps: Steps, space: LatentSpace,
              prediction: str | None) -> Preconditioned:  # fmt: skip
    """The network as what it predicts, on the schedule that it was trained on.

    The folder's word stands unless the network itself contradicts it. Of a v network zero terminal SNR is added or, unless
    `prediction` is given, taken away where the network shows that clearly. Raises UserError where two of folder, network and
    `prediction` contradict each other.
    """
    schedule, stated = steps.schedule(), steps.prediction()

    def made(reading: str, schedule: Any) -> Preconditioned:
        return Preconditioned(network, Gaussian(schedule), reading, "place", sigma_min=_lowest(schedule))

    shape = (space.codec.channels, 16, 16)
    try:
        found = probe(made("eps", schedule), shape, lambda n: _nothing(space, n), space.codec.device, steps.plain())
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{name}: its parts do not work together ({reason}); get the folder again") from None
    seen = found.prediction
    if seen == "flow":
        raise UserError(f"{name}: its network predicts flow, which is read of Stable Diffusion 3 and Flux only; give another")
    if prediction is not None and stated not in (None, prediction) and seen != prediction:
        raise UserError(f"prediction: {name} states {stated}, not {prediction}; leave it out")
    if prediction is not None and seen not in (None, prediction):
        raise UserError(f"prediction: {prediction} is asked for, but the network of {name} predicts {seen}; leave it out")
    if prediction is None and stated is not None and seen not in (None, stated):
        raise UserError(f"prediction: {name} states {stated}, but its network predicts {seen}; give --prediction {seen}")
    reading = prediction or stated or seen or "eps"
    if reading == "v" and found.zero:
        schedule = steps.plain().zero_terminal_snr()
    elif reading == "v" and found.zero is False and prediction is None:
        schedule = steps.plain()
    if reading == "eps" and not math.isfinite(float(schedule.logsnr(1.0))):
        mend = "leave rescale_betas_zero_snr out" if seen == "eps" else "give --prediction v, if it is v"
        raise UserError(f"prediction: {name} states noise up to zero SNR, where eps says nothing; {mend}")
    return made(reading, schedule)


def _nothing(space: LatentSpace, n: int) -> dict[str, torch.Tensor]:
    side = 16 * space.codec.factor  # as large as the trial pictures
    cond = space.both([""] * n, None, {"settings": {"size": f"{side}x{side}"}} if space.guides.beside else {})[0]
    device = space.codec.device
    return {key: value.to(device) for key, value in cond.items()}


def _lowest(schedule: Any) -> float:
    """σ/α at a table's index 0, below which the network was never asked."""
    return math.exp(-0.5 * float(schedule.knots[0])) if isinstance(schedule, Table) else 0.0


def text_encoder(found: Layout, name: str, device: str) -> Encoder:
    """One of a folder's CLIP encoders; in float32, as it is asked once a prompt."""
    tokenizer = _tokenizer(found, name)
    projected = found.parts[name].endswith("WithProjection")
    network = clip_text(found.folder, name, projected, torch.float32).to(device)
    return Encoder(Tokens.read(found.folder, tokenizer), network, skip=found.family in ("sdxl", "sd3"))


def _tokenizer(found: Layout, name: str) -> str:
    tokenizer = name.replace("text_encoder", "tokenizer")
    if tokenizer not in found.parts:
        raise UserError(f"{found.folder.root / layouts.INDEX}: names {name}, but no {tokenizer}; get the whole folder again")
    return tokenizer


def _flag(found: Layout, name: str, usual: bool = False) -> bool:
    value = found.index.get(name, usual)
    if not isinstance(value, bool):
        raise UserError(f"{found.folder.root / layouts.INDEX}: {name} must be true or false, got {shown(value)}")
    return value


def _size(network: UNet, codec: Autoencoder) -> int:
    config: Any = network.unet.config
    size = config.sample_size
    size = size[0] if isinstance(size, (list, tuple)) else size
    return int(size or 64) * codec.factor


def _check(where: Path, network: UNet, space: LatentSpace) -> None:
    """The parts must be made for one another. Raises UserError."""
    config: Any = network.unet.config
    width = sum(encoder.network.width for encoder in space.encoders)
    if config.cross_attention_dim != width:
        raise UserError(f"{where}: the network reads text of {config.cross_attention_dim} numbers, the encoders give {width}; "
                        "get the folder again")  # fmt: skip
    own = space.codec.channels
    if config.in_channels not in (own, own + 1, 2 * own + 1):  # alone, with depth, with a mask and what it leaves
        raise UserError(f"{where}: the network takes {config.in_channels} channels, the autoencoder gives {own}; get the folder "
                        "again")  # fmt: skip
