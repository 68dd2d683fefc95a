"""Which folder of diffusers' this is: its model_index.json, whose (library, class) pairs are looked up, never imported."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfog.errors import UserError, shown, unknown
from unfog.interop import flows
from unfog.interop.noise import CLASSES
from unfog.interop.safe import Folder

INDEX = "model_index.json"
FAMILIES = {
    "StableDiffusionPipeline": "sd", "StableDiffusionImg2ImgPipeline": "sd", "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl", "StableDiffusionInpaintPipeline": "sd", "StableDiffusionDepth2ImgPipeline": "sd",
    "StableDiffusionXLInpaintPipeline": "sdxl", "StableDiffusion3Pipeline": "sd3", "StableDiffusion3Img2ImgPipeline": "sd3",
    "FluxPipeline": "flux", "FluxImg2ImgPipeline": "flux", "FluxFillPipeline": "flux",
    "FluxKontextPipeline": "flux", "FluxControlPipeline": "flux", "FluxControlImg2ImgPipeline": "flux",
    "FluxControlInpaintPipeline": "flux",
}  # fmt: skip
PAIRS = {
    "unet": {("diffusers", "UNet2DConditionModel")},
    "vae": {("diffusers", "AutoencoderKL")},
    "text_encoder": {("transformers", "CLIPTextModel"), ("transformers", "CLIPTextModelWithProjection")},
    "text_encoder_2": {("transformers", "CLIPTextModelWithProjection")},
    "scheduler": {("diffusers", name) for name in CLASSES},
    "safety_checker": {("stable_diffusion", "StableDiffusionSafetyChecker")},
    "image_encoder": {("transformers", "CLIPVisionModelWithProjection"), ("transformers", "SiglipVisionModel")},
    "feature_extractor": {("transformers", "CLIPFeatureExtractor"), ("transformers", "CLIPImageProcessor"),
                          ("transformers", "CLIPImageProcessorPil"), ("transformers", "SiglipImageProcessor"),
                          ("transformers", "DPTFeatureExtractor"), ("transformers", "DPTImageProcessor"),
                          ("transformers", "DPTImageProcessorPil"), ("transformers", "DPTImageProcessorFast")},
    "depth_estimator": {("transformers", "DPTForDepthEstimation")},
}  # fmt: skip
PAIRS |= {name: {("transformers", f"CLIPTokenizer{fast}") for fast in ("", "Fast")} for name in ("tokenizer", "tokenizer_2")}
T5 = {"text_encoder": {("transformers", "T5EncoderModel")},
      "tokenizer": {("transformers", f"T5Tokenizer{fast}") for fast in ("", "Fast")}}  # fmt: skip
FLOWING = {("diffusers", name) for name in flows.CLASSES}
# Where a family's parts are of other classes than those of Stable Diffusion 1, 2 and XL.
OTHERS: dict[str, dict[str, set[tuple[str, str]]]] = {
    "sd3": {"unet": set(), "transformer": {("diffusers", "SD3Transformer2DModel")}, "scheduler": FLOWING,
            "text_encoder": PAIRS["text_encoder_2"], "text_encoder_3": T5["text_encoder"], "tokenizer_3": T5["tokenizer"]},
    "flux": {"unet": set(), "transformer": {("diffusers", "FluxTransformer2DModel")}, "scheduler": FLOWING,
             "text_encoder_2": T5["text_encoder"], "tokenizer_2": T5["tokenizer"]},
}  # fmt: skip
EDITS = ("FluxKontextPipeline",)  # whose network sees the picture that it is told to change
TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3")
BESIDE = ("safety_checker", "feature_extractor", "image_encoder", "depth_estimator")  # that pictures do not depend on
BLOCKS = 64  # of a weight file that its hash reads
BLOCK = 2**16


@dataclass(frozen=True)
class Layout:
    """family: a value of FAMILIES. parts: the class of each component that is there. index: what model_index.json says beside."""

    folder: Folder
    family: str
    parts: dict[str, str]
    index: dict[str, Any]


def read(path: Path) -> Layout:
    """The layout of a folder. Raises UserError for one that is damaged, unknown, or names code of its own."""
    folder = Folder(path)
    where = path / INDEX
    index = folder.json(INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        plain = FAMILIES if isinstance(name, str) else ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline")
        raise UserError(f"{where}: {unknown('_class_name', name, plain)}")
    parts: dict[str, str] = {}
    family = FAMILIES[name]
    pairs = PAIRS | OTHERS.get(family, {})
    for key, value in index.items():
        if key.startswith("_") or not isinstance(value, (list, dict)):
            continue
        if not (isinstance(value, list) and len(value) == 2 and all(v is None or isinstance(v, str) for v in value)):
            raise UserError(f"{where}: {shown(key)} must be a library and a class, got {shown(value)}; get the folder again")
        if value == [None, None]:
            continue
        if tuple(value) not in pairs.get(key, set()):
            raise UserError(
                f"{where}: {shown(key)} names {shown(f'{value[0]}.{value[1]}', 80)}, which unfog does not run; "
                "give a folder whose parts are diffusers' and transformers' own"
            )
        parts[key] = value[1]
    text = [key for key in TEXTS if key in parts]
    network = "transformer" if family in OTHERS else "unet"
    wanted = ("text_encoder", "text_encoder_2") if family == "flux" else text or ("text_encoder",)
    for key in (network, "vae", "scheduler", *wanted):
        if key not in parts:
            raise UserError(f"{where}: names no {key}; get the whole folder again")
    return Layout(folder, family, parts, index)


def identity(files: list[Path]) -> str:
    """16 hex digits of some files: their sizes and 64 blocks of 64 KiB of each, so all of it up to 4 MiB."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.parent.name}/{path.name}:{size};".encode())
        step = max(BLOCK, (size - BLOCK) // (BLOCKS - 1))
        with open(path, "rb") as opened:
            for at in range(0, size, step):
                opened.seek(min(at, max(size - BLOCK, 0)))
                digest.update(opened.read(BLOCK))
    return digest.hexdigest()[:16]


def files(layout: Layout) -> list[Path]:
    """The files that decide what a picture looks like: weights, configs, tokens."""
    used = [part for part in layout.parts if part not in BESIDE]
    found = [path for part in sorted(used) for path in sorted((layout.folder.root / part).glob("*"))
             if path.suffix in (".safetensors", ".json", ".txt", ".model") and path.is_file()]  # fmt: skip
    return [layout.folder.root / INDEX, *found]
