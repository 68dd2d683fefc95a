"""The arithmetic of diffusers' U-Net modules in fewer and better suited steps; modules and weights stay theirs.

- A tensor (B, C, H, W) laid out channels-last is (B, H·W, C) tokens without a copy, so a 1×1 convolution of it is one matrix
  product, and what attention returns need not be laid out anew.
- What is made of the text (keys and values) does not change from step to step, and is kept until another text comes.
- Guidance asks with and without the prompt about one and the same x_t. Until the first layer that reads the text both halves of
  the batch are the same, and are computed once.
- Torch convolves one small picture in float32 on one thread by a slow way of its own; it is handed to oneDNN like any other.

All of it equals diffusers' own but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.networks.attention import fused

SPECIAL = ("norm_q", "norm_k", "norm_cross", "group_norm", "spatial_norm", "added_kv_proj_dim", "residual_connection")


class Remembering:
    """Attention of diffusers' `Attention` modules by torch's fused kernel; of text, keys and values once a text."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor, Tensor] | None = None  # replaced whole: two threads never see halves of two texts

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, temb: Tensor | None = None) -> Tensor:  # fmt: skip
        heads = attn.heads

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (heads, -1)).transpose(1, 2)

        q, kept, text = split(attn.to_q(hidden_states)), self.kept, encoder_hidden_states
        if text is None:
            k, v = split(attn.to_k(hidden_states)), split(attn.to_v(hidden_states))
        elif kept is not None and kept[0] is text:
            _, k, v = kept
        else:
            k, v = split(attn.to_k(text)), split(attn.to_v(text))
            self.kept = text, k, v
        y = fused(q, k, v, attention_mask if attention_mask is None else attention_mask[:, None])  # (B, 1, S) of all heads
        return attn.to_out[0](y.transpose(1, 2).flatten(2))


def known(before: Tensor | None, now: Tensor) -> Tensor:
    """The tensor that was seen before, where `now` has the same values: what was made of it may be used again.

    Guidance puts its two halves together anew at every step.
    """
    same = before is not None and before.shape == now.shape and before.dtype == now.dtype and torch.equal(before, now)
    return before if same and before is not None else now


def halves_alike(*tensors: Tensor) -> bool:
    """Whether the second half of each batch repeats the first."""
    return all(len(x) > 1 and len(x) % 2 == 0 and torch.equal(*x.chunk(2)) for x in tensors)


def pointwise(layer: Any, x: Tensor) -> Tensor:
    """A linear layer, or a 1×1 convolution, of x (..., C): the channels last."""
    return F.linear(x, layer.weight[:, :, 0, 0] if layer.weight.ndim == 4 else layer.weight, layer.bias)


def _gated(layer: Any, x: Tensor) -> Tensor:
    """W x · gelu(V x) of W above V in one layer; each by itself is half as large, and laid out for what comes next."""
    (wide, gate), biases = layer.weight.chunk(2), (None, None) if layer.bias is None else layer.bias.chunk(2)
    return F.linear(x, wide, biases[0]) * F.gelu(F.linear(x, gate, biases[1]))


def _attend(attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
            attention_mask: Tensor | None = None) -> Tensor:  # fmt: skip
    """What `attn` has as its processor says; its own forward reads that one's signature at every call."""
    out: Tensor = attn.processor(attn, hidden_states, encoder_hidden_states, attention_mask)
    return out


def _block(block: Any, tokens: Tensor, text: Tensor | None, mask: Tensor | None, seen: Tensor | None, kwargs: Mapping[str, Any],
           first: bool) -> Tensor:  # fmt: skip
    """Of a `BasicTransformerBlock`: self-attention, attention to the text, and the feed-forward layer, each added.

    first: nothing before has read the text.
    """
    alike = first and mask is None and type(block.attn1.processor) is Remembering and halves_alike(tokens)
    own = tokens[: len(tokens) // 2] if alike else tokens
    own = own + block.attn1(block.norm1(own), None, mask, **kwargs)
    tokens = torch.cat([own, own]) if alike else own
    tokens = tokens + block.attn2(block.norm2(tokens), text, seen, **kwargs)
    return tokens + block.ff.net[2](_gated(block.ff.net[0].proj, block.norm3(tokens)))


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask (B, S), True = may be read, as diffusers adds it to the scores."""
    return ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1) if mask is not None and mask.ndim == 2 else mask


def _transformer(outer: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, timestep: Tensor | None = None,
                 added_cond_kwargs: Any = None, class_labels: Any = None, cross_attention_kwargs: Any = None,
                 attention_mask: Tensor | None = None, encoder_attention_mask: Tensor | None = None,
                 return_dict: bool = True, *, first: bool = False) -> tuple[Tensor]:  # fmt: skip
    """Of a `Transformer2DModel` on pictures (B, C, H, W); a tuple, which is how U-Nets ask for it."""
    height, width = hidden_states.shape[2:]
    tokens = _normed(outer.norm, hidden_states).permute(0, 2, 3, 1).flatten(1, 2)
    tokens = pointwise(outer.proj_in, tokens)
    mask, seen = _bias(attention_mask, tokens.dtype), _bias(encoder_attention_mask, tokens.dtype)
    for block in outer.transformer_blocks:
        tokens = _block(block, tokens, encoder_hidden_states, mask, seen, cross_attention_kwargs or {}, first)
        first = False
    made = pointwise(outer.proj_out, tokens).unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return (made + hidden_states,)


def _convolved(layer: Any, x: Tensor) -> Tensor:
    """What a `Conv2d` computes of x (B, C, H, W)."""
    weight, bias = layer.weight, layer.bias
    alone = len(x) == 1 and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if alone and torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(x, weight, bias, layer.padding, layer.stride, layer.dilation, layer.groups)
    made: Tensor = layer._conv_forward(x, weight, bias)
    return made


def _normed(norm: Any, x: Tensor) -> Tensor:
    """Group norm of (B, C, H, W); torch's for small maps of bf16 takes three times as long as that for float32."""
    if x.dtype == torch.bfloat16 and x.shape[-2] * x.shape[-1] < 1024:
        return F.group_norm(x.float(), norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps).to(x.dtype)
    out: Tensor = norm(x)
    return out


def _resnet(block: Any, x: Tensor, temb: Tensor | None = None) -> Tensor:
    """Of a `ResnetBlock2D` that neither grows nor shrinks the picture."""
    y = block.conv1(F.silu(_normed(block.norm1, x)))
    if temb is not None:
        y = y + block.time_emb_proj(F.silu(temb))[:, :, None, None]
    y = block.conv2(F.silu(_normed(block.norm2, y)))
    if block.conv_shortcut is not None:
        x = pointwise(block.conv_shortcut, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return y + x


def _once(forward: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """forward(*tensors), of one half of the batch where the other is the same."""
    if not halves_alike(*tensors):
        return forward(*tensors)
    half = forward(*(x[: len(x) // 2] for x in tensors))
    return torch.cat([half, half])


def _before_text(network: Any) -> Iterator[Any]:
    """The modules on the way down up to and with the first that reads the text, in order."""
    yield network.conv_in
    for block in network.down_blocks:
        if getattr(block, "attentions", None):
            yield from (block.resnets[0], block.attentions[0])
            return
        yield from (*block.resnets, *(block.downsamplers or ()))


def _is_plain(module: Any) -> bool:
    """Whether a module is of the common kind that the functions above compute."""
    kind = type(module).__name__
    if kind == "Attention":
        return not any(getattr(module, name, None) for name in SPECIAL) and getattr(module, "rescale_output_factor", 1.0) == 1.0
    if kind == "ResnetBlock2D":
        return (module.upsample is None and module.downsample is None and module.time_embedding_norm == "default"
                and module.output_scale_factor == 1.0 and not module.skip_time_act
                and isinstance(module.nonlinearity, nn.SiLU))  # fmt: skip
    return kind == "Transformer2DModel" and module.is_input_continuous and all(
        block.norm_type == "layer_norm" and block.pos_embed is None and not hasattr(block, "fuser") and block.attn2 is not None
        and not block.only_cross_attention and not block.double_self_attention and block._chunk_size is None
        and type(block.ff.net[0]).__name__ == "GEGLU" and _is_plain(block.attn1) and _is_plain(block.attn2)
        for block in module.transformer_blocks
    )  # fmt: skip


def _is_wide(module: Any) -> bool:
    """Whether a module is a convolution of more than a pixel, with zeros around the picture."""
    plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and isinstance(module.padding, tuple)
    return plain and max(module.kernel_size) > 1


def lean(network: Any) -> Any:
    """The network (a U-Net, ControlNet or autoencoder of diffusers), changed: its plain modules compute as above."""
    plain = [module for module in network.modules() if _is_plain(module)]
    for module in network.modules():
        if _is_wide(module):
            module.forward = partial(_convolved, module)
    for module in plain:
        if type(module).__name__ == "Attention":
            module.processor = Remembering()
            module.forward = partial(_attend, module)
        else:
            function: Any = _resnet if type(module).__name__ == "ResnetBlock2D" else _transformer
            module.forward = partial(function, module)
    if type(network).__name__ in ("UNet2DConditionModel", "ControlNetModel"):
        for module in _before_text(network):
            if type(module).__name__ == "Transformer2DModel":
                if any(module is one for one in plain):
                    module.forward = partial(module.forward, first=True)
            else:
                module.forward = partial(_once, module.forward)
    return network
