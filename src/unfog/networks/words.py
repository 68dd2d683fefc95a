"""Learned words: vectors that stand for a word among the text encoder's input embeddings.

    states of "a <my-thing> in the rain" = encoder(e[CLS] e[a] v₁ v₂ e[in] e[the] e[rain] e[SEP])

Only v₁ ... v_k are learned; the encoder and the network stay. They enter where words do, not among the states that leave the
encoder, so that a learned word has a place and neighbours like any other: "red" before it changes its states and it changes
theirs. Source: Gal et al. 2022, arXiv:2208.01618, sec. 3.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from unfog.networks.text import TOKENS, WIDTH, TextEncoder


class Word(nn.Module):
    """The vectors of one word: k parameters of (384,), each apart, as embeddings are optimised a number at a time."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.ParameterList([nn.Parameter(vector.clone()) for vector in vectors])

    def stacked(self) -> Tensor:
        """(k, 384)."""
        return torch.stack(list(self.vectors))


def names(prompts: Sequence[str], words: Mapping[str, Tensor]) -> bool:
    """Whether any prompt has one of the words in it."""
    return any(word in prompt.lower() for prompt in prompts for word in words)


def first_vectors(encoder: TextEncoder, phrase: str, count: int) -> Tensor:
    """The embeddings of a phrase's tokens, over and over, as first values of `count` vectors (count, 384)."""
    inner = _ids(encoder, phrase)
    chosen = torch.tensor([inner[i % len(inner)] for i in range(count)])
    return encoder.embed(chosen)


def encode(encoder: TextEncoder, prompts: Sequence[str], words: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """States (B, 32, 384) float32, zero where padded, and the mask (B, 32), as `TextEncoder` gives them, with a gradient
    to the words' vectors (k, 384). Prompts that name none of the words go through the encoder as they always do."""
    if not names(prompts, words):
        return encoder(prompts)
    rows, masks = [], []
    for prompt in prompts:
        if names([prompt], words):
            own = _states(encoder, prompt, words)
            rows.append(torch.cat([own, own.new_zeros(TOKENS - len(own), WIDTH)]))
            masks.append(torch.arange(TOKENS) < len(own))
        else:
            found, mask = encoder([prompt])
            rows.append(found[0].clone())  # a copy: what inference mode made may not meet gradients
            masks.append(mask[0])
    return torch.stack(rows), torch.stack(masks)


def _states(encoder: TextEncoder, prompt: str, words: Mapping[str, Tensor]) -> Tensor:
    """(T, 384), T the prompt's own length."""
    first, last = encoder.tokenizer.encode("").ids[:2]
    parts = [encoder.embed(torch.tensor([first]))]
    for piece in re.split(f"({'|'.join(map(re.escape, words))})", prompt, flags=re.IGNORECASE):
        if piece.lower() in words:
            parts.append(words[piece.lower()].to(parts[0].device, torch.float32))
        elif ids := _ids(encoder, piece):
            parts.append(encoder.embed(torch.tensor(ids)))
    embedded = torch.cat(parts)[: TOKENS - 1]
    return encoder.layers(torch.cat([embedded, encoder.embed(torch.tensor([last]))])[None])[0]


def _ids(encoder: TextEncoder, piece: str) -> list[int]:
    """Token numbers of a piece of a prompt, without what begins and ends a whole one."""
    encoded = encoder.tokenizer.encode(piece, add_special_tokens=False)
    return [number for number, real in zip(encoded.ids, encoded.attention_mask, strict=True) if real]
