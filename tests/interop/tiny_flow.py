"""Folders of Stable Diffusion 3 and Flux with tiny random weights, written by diffusers and transformers themselves."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch

PIECES = ["▁", "▁a", "▁red", "▁apple", "▁cat", "▁on", "▁the", "▁moon", "▁blue", "s", *"abcdefghijklmnopqrstuvwxyz"]
LATENT = {"scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False}


def t5_tokens(folder: Path) -> None:
    from transformers import T5TokenizerFast

    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((p, -1.0 - 0.1 * i) for i, p in enumerate(PIECES))]
    T5TokenizerFast(vocab=words, extra_ids=0).save_pretrained(folder)


def t5(seed: int = 0, width: int = 96, act: str = "gated-gelu", shards: bool = False):
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    config = T5Config(d_model=width, d_kv=8, d_ff=40, num_layers=2, num_heads=3, vocab_size=64, feed_forward_proj=act,
                      relative_attention_num_buckets=8, relative_attention_max_distance=20)  # fmt: skip
    model = T5EncoderModel(config).eval()
    with torch.no_grad():  # its own first values are too small to tell anything apart
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def shaken(network, amount: float = 0.1):
    """Modulations begin at 0 in some; here every weight does something."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return network.eval()


def sd3_network(seed: int = 0, **fields):
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(seed)
    settings = {"sample_size": 16, "patch_size": 2, "in_channels": 8, "out_channels": 8, "num_layers": 2, "attention_head_dim": 8,
                "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 96, "pooled_projection_dim": 64,
                "pos_embed_max_size": 12, **fields}  # fmt: skip
    return shaken(SD3Transformer2DModel(**settings))


def flux_network(seed: int = 0, **fields):
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(seed)
    settings = {"in_channels": 32, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
                "joint_attention_dim": 96, "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6), "guidance_embeds": True,
                **fields}  # fmt: skip
    return shaken(FluxTransformer2DModel(**settings))


def sd3(folder: Path, without: tuple[str, ...] = (), network: dict | None = None, **noise) -> Path:
    """SD 3; without: encoders left out. network: fields of its config."""
    tiny.tokens(folder / "tokenizer")
    tiny.tokens(folder / "tokenizer_2", "!")
    t5_tokens(folder / "tokenizer_3")
    encoders = {"text_encoder": lambda: tiny.clip(0, projected=True),
                "text_encoder_2": lambda: tiny.clip(1, act="gelu", projected=True),
                "text_encoder_3": t5}  # fmt: skip
    told = {}
    for name, make in encoders.items():
        model = None if name in without else make()
        if model is not None:
            model.save_pretrained(folder / name)
        tokenizer = name.replace("text_encoder", "tokenizer")
        told[name] = [None, None] if model is None else ["transformers", type(model).__name__]
        kind = "T5TokenizerFast" if name.endswith("3") else "CLIPTokenizer"
        told[tokenizer] = [None, None] if model is None else ["transformers", kind]
    sd3_network(**(network or {})).save_pretrained(folder / "transformer")
    tiny.vae(0, channels=8, **LATENT).save_pretrained(folder / "vae")
    tiny.noise(folder, "FlowMatchEulerDiscreteScheduler", **{"num_train_timesteps": 1000, "shift": 3.0, **noise})
    tiny.index(folder, "StableDiffusion3Pipeline", transformer=["diffusers", "SD3Transformer2DModel"],
               vae=["diffusers", "AutoencoderKL"], scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
               image_encoder=[None, None], feature_extractor=[None, None], **told)  # fmt: skip
    return folder


def flux(folder: Path, network: dict | None = None, **noise) -> Path:
    """Flux; network: fields of its config (guidance_embeds=False: schnell)."""
    tiny.tokens(folder / "tokenizer")
    t5_tokens(folder / "tokenizer_2")
    tiny.clip(0).save_pretrained(folder / "text_encoder")
    t5().save_pretrained(folder / "text_encoder_2")
    flux_network(**(network or {})).save_pretrained(folder / "transformer")
    tiny.vae(0, channels=8, **LATENT).save_pretrained(folder / "vae")
    told = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0, **noise}
    tiny.noise(folder, "FlowMatchEulerDiscreteScheduler", **told)
    tiny.index(folder, "FluxPipeline", transformer=["diffusers", "FluxTransformer2DModel"], vae=["diffusers", "AutoencoderKL"],
               scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"], text_encoder=["transformers", "CLIPTextModel"],
               tokenizer=["transformers", "CLIPTokenizer"], text_encoder_2=["transformers", "T5EncoderModel"],
               tokenizer_2=["transformers", "T5TokenizerFast"])  # fmt: skip
    return folder


def sd3_controlnet(seed: int = 5, **fields):
    """A ControlNet for sd3_network's."""
    from diffusers.models import SD3ControlNetModel

    torch.manual_seed(seed)
    settings = {"sample_size": 16, "patch_size": 2, "in_channels": 8, "out_channels": 8, "num_layers": 1, "attention_head_dim": 8,
                "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 96, "pooled_projection_dim": 64,
                "pos_embed_max_size": 12, **fields}  # fmt: skip
    return shaken(SD3ControlNetModel(**settings))


def flux_controlnet(seed: int = 5, **fields):
    """A ControlNet for flux_network's."""
    from diffusers.models import FluxControlNetModel

    torch.manual_seed(seed)
    settings = {"in_channels": 32, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
                "joint_attention_dim": 96, "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6), "guidance_embeds": True,
                **fields}  # fmt: skip
    return shaken(FluxControlNetModel(**settings))


def siglip_vision(seed: int = 3, **fields):
    """An image encoder of SigLIP's, whose pictures are 32 pixels a side."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(seed)
    settings = {"hidden_size": 24, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 3, "image_size": 32,
                "patch_size": 8, **fields}  # fmt: skip
    return shaken(SiglipVisionModel(SiglipVisionConfig(**settings)))


def flux_ip_adapter(network, seed: int = 4, embedding: int = 24, theirs: bool = True) -> dict[str, torch.Tensor]:
    """An IP-Adapter for flux_network's; theirs: under XLabs' names."""
    torch.manual_seed(seed)
    text, inner = network.config.joint_attention_dim, network.inner_dim
    head, layer = ("ip_adapter_proj_model", "double_blocks.{}.processor.ip_adapter_double_stream_{}_proj") if theirs else (
        "image_proj", "ip_adapter.{}.to_{}_ip")  # fmt: skip
    shapes = {f"{head}.proj.weight": (4 * text, embedding), f"{head}.proj.bias": (4 * text,), f"{head}.norm.weight": (text,),
              f"{head}.norm.bias": (text,)}  # fmt: skip
    for k in range(network.config.num_layers):
        for part in "kv":
            shapes |= {f"{layer.format(k, part)}.weight": (inner, text), f"{layer.format(k, part)}.bias": (inner,)}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def sd3_ip_adapter(network, seed: int = 4, states: int = 24) -> dict[str, torch.Tensor]:
    """An IP-Adapter for sd3_network's, under InstantX' names."""
    torch.manual_seed(seed)
    head, inner, width, deep = network.config.attention_head_dim, network.inner_dim, 64, 128
    shapes = {"latents": (1, 3, width), "proj_in.weight": (width, states), "proj_in.bias": (width,), "proj_out.weight":
              (inner, width), "proj_out.bias": (inner,), "norm_out.weight": (inner,), "norm_out.bias": (inner,),
              "time_embedding.linear_1.weight": (width, 320), "time_embedding.linear_1.bias": (width,),
              "time_embedding.linear_2.weight": (width, width), "time_embedding.linear_2.bias": (width,)}  # fmt: skip
    for i in range(4):  # as deep as diffusers takes all to be
        shapes |= {f"layers.{i}.0.{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        shapes |= {f"layers.{i}.0.to_q.weight": (deep, width), f"layers.{i}.0.to_kv.weight": (2 * deep, width),
                   f"layers.{i}.0.to_out.weight": (width, deep), f"layers.{i}.1.0.weight": (width,),
                   f"layers.{i}.1.0.bias": (width,), f"layers.{i}.1.1.weight": (4 * width, width),
                   f"layers.{i}.1.3.weight": (width, 4 * width), f"layers.{i}.2.1.weight": (4 * width, width),
                   f"layers.{i}.2.1.bias": (4 * width,)}  # fmt: skip
    shapes = {f"image_proj.{name}": shape for name, shape in shapes.items()}
    for k in range(len(network.attn_processors)):
        own = {"norm_ip.linear.weight": (2 * inner, width), "norm_ip.linear.bias": (2 * inner,), "to_k_ip.weight": (inner, inner),
               "to_v_ip.weight": (inner, inner), "norm_q.weight": (head,), "norm_k.weight": (head,),
               "norm_ip_k.weight": (head,)}  # fmt: skip
        shapes |= {f"ip_adapter.{k}.{name}": shape for name, shape in own.items()}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
