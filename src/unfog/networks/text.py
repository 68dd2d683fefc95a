"""The frozen text encoder: MiniLM-L6 (a 6-layer BERT), token states of 384 numbers.

Written out in plain torch because it starts in a third of a second; importing transformers alone takes several.
Weights ship as int8 with one scale a row (22.7 MB); the states are what they are after that rounding, in training and
in use alike. Source: Wang et al. 2020, arXiv:2002.10957; sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from unfog.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WIDTH, HEADS, LAYERS, EPS = 384, 12, 6, 1e-12
TOKENS = 32


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A float matrix (R, C) to int8 (R, C) and a float16 scale a row (R, 1), rounded to nearest."""
    scale = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=1e-8).half()
    return (weight / scale.float()).round().clamp(-127, 127).to(torch.int8), scale


class TextEncoder:
    """Prompts -> token states, padded to 32 tokens (a longer prompt is cut; prompts are short sentences here)."""

    def __init__(self, weights: dict[str, Tensor], vocabulary: bytes) -> None:
        from tokenizers import Tokenizer

        self.tokenizer, self.vocabulary = Tokenizer.from_buffer(vocabulary), vocabulary
        self.tokenizer.enable_truncation(TOKENS)
        self.tokenizer.enable_padding(length=TOKENS)
        self.words, self.word_scale = weights["words"], weights["words.scale"]
        self.weights = {
            k: v.float() * weights[f"{k}.scale"].float() if v.dtype == torch.int8 else v.float()
            for k, v in weights.items()
            if not k.endswith(".scale") and k != "words"
        }

    @cached_property
    def whole(self) -> Tokenizer:
        """The tokenizer without a limit and without padding: of a text of any length, all tokens."""
        from tokenizers import Tokenizer

        found = Tokenizer.from_buffer(self.vocabulary)
        found.no_truncation()
        found.no_padding()
        return found

    @classmethod
    def load(cls, folder: Path | None = None) -> TextEncoder:
        """Read the shipped encoder (or one in `folder`). Raises UserError where a file is missing or damaged."""
        from unfog.files import load_weights, read_checked

        folder = folder or Path(__file__).parent.parent / "pretrained" / "minilm-l6"
        if not folder.is_dir():
            raise UserError(f"text encoder: no folder {folder}; reinstall unfog")
        return cls(load_weights(folder, "minilm-l6.safetensors"), read_checked(folder, "tokenizer.json"))

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """-> states (B, 32, 384) float32, zero where padded, and the mask (B, 32), True for a real token."""
        encoded = self.tokenizer.encode_batch(list(prompts))
        ids = torch.tensor([e.ids for e in encoded])
        mask = torch.tensor([e.attention_mask for e in encoded]).bool()
        # Prompts are run at their own length: a state must not depend on what else is in the batch
        states = torch.zeros(*ids.shape, WIDTH)
        lengths = mask.sum(1)
        for length in lengths.unique().tolist():
            rows = lengths == length
            states[rows, :length] = self.layers(self.embed(ids[rows, :length]))
        return states, mask

    def embed(self, ids: Tensor) -> Tensor:
        """Token numbers (...,) to what the first layer is given, (..., 384), before the places are added."""
        return self.words[ids].float() * self.word_scale[ids].float()

    def layers(self, x: Tensor) -> Tensor:
        """Embedded tokens (B, T, 384), unpadded, to states (B, T, 384); gradients reach x."""
        w = self.weights

        def norm(x: Tensor, name: str) -> Tensor:
            return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], EPS)

        def linear(x: Tensor, name: str) -> Tensor:
            return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

        b, t = x.shape[:2]
        x = norm(x + w["positions"][:t] + w["segment"], "norm")
        for i in range(LAYERS):
            q, k, v = (y.reshape(b, t, HEADS, -1).transpose(1, 2) for y in linear(x, f"{i}.qkv").chunk(3, dim=-1))
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, WIDTH)
            x = norm(x + linear(y, f"{i}.out"), f"{i}.norm1")
            x = norm(x + linear(F.gelu(linear(x, f"{i}.up")), f"{i}.down"), f"{i}.norm2")
        return x
