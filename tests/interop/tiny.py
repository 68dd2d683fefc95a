"""Folders of diffusers' with tiny random weights, written by diffusers and transformers themselves."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = ["a", "red", "apple", "cat", "on", "the", "moon", "of", "blue"]


def tokens(folder: Path, pad: str = "<|endoftext|>") -> None:
    """A CLIP tokenizer of the bytes, and of a few whole words."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    merges, vocab = [], [*alphabet, *(c + "</w>" for c in alphabet)]
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                vocab.append("".join(pair))
            parts = ["".join(pair), *parts[2:]]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    told = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def clip(seed: int = 0, width: int = 32, act: str = "quick_gelu", projected: bool = False, layers: int = 3, heads: int = 4):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(hidden_size=width, intermediate_size=37, num_attention_heads=heads, num_hidden_layers=layers,
                            vocab_size=600, projection_dim=width, hidden_act=act, bos_token_id=0, eos_token_id=2,
                            max_position_embeddings=77)  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def vae(seed: int = 0, channels: int = 4, **fields):
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    settings = {
        "block_out_channels": (32, 64), "in_channels": 3, "out_channels": 3, "latent_channels": channels, "norm_num_groups": 8,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, **fields,
    }  # fmt: skip
    return AutoencoderKL(**settings).eval()


def unet(seed: int = 0, text: int = 32, **fields):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    settings = {
        "block_out_channels": (32, 64), "layers_per_block": 2, "sample_size": 16, "in_channels": 4, "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": text, "norm_num_groups": 8, "attention_head_dim": 4, **fields,
    }  # fmt: skip
    return UNet2DConditionModel(**settings).eval()


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False,
      "set_alpha_to_one": False}  # fmt: skip


def index(folder: Path, pipeline: str, **parts) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, "_diffusers_version": "0.42.1", **parts}))


def noise(folder: Path, name: str, **fields) -> None:
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    told = {"_class_name": name, "_diffusers_version": "0.42.1", **fields}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(told))


def stable_diffusion(folder: Path, second: bool = False, name: str = "PNDMScheduler", **fields) -> Path:
    """SD 1.x; second: 2.x (another activation, linear projections, heads by width, padding with "!")."""
    tokens(folder / "tokenizer", "!" if second else "<|endoftext|>")
    clip(0, act="gelu" if second else "quick_gelu").save_pretrained(folder / "text_encoder")
    extra = {"use_linear_projection": True, "attention_head_dim": (2, 4)} if second else {}
    unet(0, **extra).save_pretrained(folder / "unet")
    vae(0).save_pretrained(folder / "vae")
    noise(folder, name, **{**SD, **fields})
    index(folder, "StableDiffusionPipeline", unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"],
          text_encoder=["transformers", "CLIPTextModel"], tokenizer=["transformers", "CLIPTokenizer"],
          scheduler=["diffusers", name], safety_checker=[None, None], feature_extractor=[None, None],
          requires_safety_checker=False)  # fmt: skip
    return folder


def stable_diffusion_xl(folder: Path) -> Path:
    """SDXL: two encoders, pooled text, sizes told to the network."""
    tokens(folder / "tokenizer")
    tokens(folder / "tokenizer_2", "!")
    clip(0).save_pretrained(folder / "text_encoder")
    clip(1, act="gelu", projected=True).save_pretrained(folder / "text_encoder_2")
    unet(0, text=64, use_linear_projection=True, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2),
         addition_embed_type="text_time", addition_time_embed_dim=8,
         projection_class_embeddings_input_dim=32 + 6 * 8).save_pretrained(folder / "unet")  # fmt: skip
    vae(0, scaling_factor=0.13025).save_pretrained(folder / "vae")
    noise(folder, "EulerDiscreteScheduler", **{**SD, "timestep_spacing": "leading", "prediction_type": "epsilon"})
    index(folder, "StableDiffusionXLPipeline", unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"],
          text_encoder=["transformers", "CLIPTextModel"], text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
          tokenizer=["transformers", "CLIPTokenizer"], tokenizer_2=["transformers", "CLIPTokenizer"],
          scheduler=["diffusers", "EulerDiscreteScheduler"], image_encoder=[None, None], feature_extractor=[None, None],
          force_zeros_for_empty_prompt=True)  # fmt: skip
    return folder


def awake(network):
    """Its zero layers filled, so that it does something."""
    for parameter in network.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def controlnet(seed: int = 1, text: int = 32, **fields):
    """Made for `unet`, its zero layers filled so that it does something."""
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    settings = {
        "block_out_channels": (32, 64), "layers_per_block": 2, "in_channels": 4, "norm_num_groups": 8, "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": text,
        "conditioning_embedding_out_channels": (8, 16), **fields,
    }  # fmt: skip
    network = ControlNetModel(**settings).eval()
    return awake(network)


def controlnet_union(seed: int = 1, **fields):
    """Of eight kinds, for `stable_diffusion_xl`."""
    from diffusers import ControlNetUnionModel

    torch.manual_seed(seed)
    settings = {
        "block_out_channels": (32, 64), "layers_per_block": 2, "in_channels": 4, "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 64,
        "conditioning_embedding_out_channels": (8, 16), "use_linear_projection": True, "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2), "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8, "num_control_type": 8, "num_trans_channel": 32,
        "num_trans_head": 4, "num_proj_channel": 32, **fields,
    }  # fmt: skip
    network = ControlNetUnionModel(**settings).eval()
    return awake(network)


def clip_vision(seed: int = 3, **fields):
    """An image encoder, whose pictures are 32 pixels a side."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    settings = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 3, "image_size": 32,
                "patch_size": 8, "projection_dim": 24, **fields}  # fmt: skip
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**settings)).eval()


def ip_adapter(network, kind: str = "plain", seed: int = 4, encoder: int = 32, embedding: int = 24) -> dict[str, torch.Tensor]:
    """An IP-Adapter for a U-Net, under the names of its own code. encoder: width of the image encoder's states."""
    torch.manual_seed(seed)
    text = network.config.cross_attention_dim
    shapes: dict[str, tuple[int, ...]] = {}
    if kind == "plain":
        shapes = {"proj.weight": (4 * text, embedding), "proj.bias": (4 * text,), "norm.weight": (text,), "norm.bias": (text,)}
    elif kind == "full":
        shapes = {"proj.0.weight": (encoder, encoder), "proj.0.bias": (encoder,), "proj.2.weight": (text, encoder),
                  "proj.2.bias": (text,), "proj.3.weight": (text,), "proj.3.bias": (text,)}  # fmt: skip
    else:
        width, inner = 40, 64
        shapes = {"latents": (1, 3, width), "proj_in.weight": (width, encoder), "proj_in.bias": (width,),
                  "proj_out.weight": (text, width), "proj_out.bias": (text,), "norm_out.weight": (text,),
                  "norm_out.bias": (text,)}  # fmt: skip
        for i in range(4):  # as deep as diffusers takes all to be
            shapes |= {f"layers.{i}.0.{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
            shapes |= {f"layers.{i}.0.to_q.weight": (inner, width), f"layers.{i}.0.to_kv.weight": (2 * inner, width),
                       f"layers.{i}.0.to_out.weight": (width, inner), f"layers.{i}.1.0.weight": (width,),
                       f"layers.{i}.1.0.bias": (width,), f"layers.{i}.1.1.weight": (4 * width, width),
                       f"layers.{i}.1.3.weight": (width, 4 * width)}  # fmt: skip
    found = {f"image_proj.{name}": torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    layers = [module for name, module in network.named_modules() if name.endswith("attn2")]
    for k, layer in enumerate(layers):
        for part in ("to_k_ip", "to_v_ip"):
            found[f"ip_adapter.{2 * k + 1}.{part}.weight"] = torch.randn(layer.to_k.weight.shape[0], text) * 0.3
    return found
