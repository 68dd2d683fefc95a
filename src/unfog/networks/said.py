"""Text states of prompts whose words have weights, of any length.

With S the states of the whole text and S∖j those of the text without the words j, of weight w_j:

    words of j:  w_j·S        all others:  S + Σ_j (w_j − 1)·(S − S∖j)

so a weight turns the words themselves up or down, and with them what the others know of them: with weight 0 the states are
those of the text without them, exactly; with weight 1 nothing is changed. Weights on the words' own states alone left "a red
ribbon" as it was, as "ribbon" had heard of "red" in the encoder (docs/prompts.md has the figures).

What is longer than the encoder reads goes through it in pieces, cut between words, and the network is given the states of all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from unfog.networks.text import TOKENS, WIDTH, TextEncoder
from unfog.networks.words import encode
from unfog.prompts import Fragment

Said: TypeAlias = "str | tuple[Fragment, ...]"  # text, cut where it is too long; or fragments with weights, of any length
ROOM = TOKENS - 2  # in a piece, beside the tokens that begin and end it


def states(encoder: TextEncoder, said: Sequence[Said], words: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """States (B, T, 384) float32, zero where padded, and the mask (B, T); T is 32 for each piece of the longest.

    Text, and fragments that are no more than text, go through the encoder together, as they always did.
    """
    texts = [one if isinstance(one, str) else _plain(encoder, one, words) for one in said]
    if all(text is not None for text in texts):
        return encode(encoder, [str(text) for text in texts], words)
    plain = [str(text) for text in texts if text is not None]
    short = iter(zip(*encode(encoder, plain, words), strict=True) if plain else ())
    rows = []
    for one, text in zip(said, texts, strict=True):
        if text is None:
            assert not isinstance(one, str)
            rows.append(_pieces(encoder, one, words))
        else:
            found, mask = next(short)
            rows.append(found[mask])
    longest = max(-(-len(row) // TOKENS) for row in rows) * TOKENS
    padded = torch.stack([torch.cat([row, row.new_zeros(longest - len(row), WIDTH)]) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(longest)[None] < lengths[:, None]


def fits(encoder: TextEncoder, text: str, words: Mapping[str, Tensor]) -> bool:
    """Whether the encoder reads the text in one piece."""
    return len(_tokens(encoder, (Fragment(text),), words)[0]) <= ROOM


def _plain(encoder: TextEncoder, said: tuple[Fragment, ...], words: Mapping[str, Tensor]) -> str | None:
    text = "".join(fragment.text for fragment in said)
    return text if all(fragment.weight == 1.0 for fragment in said) and fits(encoder, text, words) else None


def _tokens(
    encoder: TextEncoder, said: tuple[Fragment, ...], words: Mapping[str, Tensor]
) -> tuple[Tensor, list[int], list[bool]]:
    """Embedded tokens (N, 384); of each, its fragment (by its first letter), and whether a word begins there."""
    text = "".join(fragment.text for fragment in said)
    ends, place = [], 0
    for fragment in said:
        place += len(fragment.text)
        ends.append(place)
    rows: list[Tensor] = [torch.zeros(0, WIDTH)]
    places: list[int] = []
    begins: list[bool] = []
    place = 0
    for piece in re.split(f"({'|'.join(map(re.escape, words))})", text, flags=re.IGNORECASE) if words else [text]:
        if piece.lower() in words:
            vectors = words[piece.lower()].detach().float().cpu()
            rows.append(vectors)
            places += [place] * len(vectors)
            begins += [k == 0 for k in range(len(vectors))]
        elif piece:
            found = encoder.whole.encode(piece, add_special_tokens=False)
            if found.ids:
                rows.append(encoder.embed(torch.tensor(found.ids)))
            places += [place + first for first, _ in found.offsets]
            begins += [not token.startswith("##") for token in found.tokens]
        place += len(piece)
    owners, owner = [], 0
    for start in places:  # they rise
        while ends and start >= ends[owner]:
            owner += 1
        owners.append(owner)
    return torch.cat(rows), owners, begins


@torch.inference_mode()
def _pieces(encoder: TextEncoder, said: tuple[Fragment, ...], words: Mapping[str, Tensor]) -> Tensor:
    """(N + 2 a piece, 384): the weighted states of all pieces, one behind the other."""
    said = tuple(fragment for fragment in said if fragment.weight > 0.0)
    rows, owners, begins = _tokens(encoder, said, words)
    first, last = (encoder.embed(torch.tensor([i])) for i in encoder.whole.encode("").ids)
    found: list[Tensor] = []
    start = 0
    while start < len(rows) or not found:
        end = min(start + ROOM, len(rows))
        if end < len(rows):  # not within a word, unless it is longer than a piece
            end = next((i for i in range(end, start, -1) if begins[i]), end)
        one = torch.cat([first, rows[start:end], last])
        weights = {j: said[j].weight for j in owners[start:end] if said[j].weight != 1.0}
        found.append(_weighted(encoder, one, torch.tensor([-1, *owners[start:end], -1]), weights))
        start = end
    return torch.cat(found)


def _weighted(encoder: TextEncoder, tokens: Tensor, owners: Tensor, weights: Mapping[int, float]) -> Tensor:
    """States (T, 384) of embedded tokens (T, 384), whose words `owners` (T,) have these weights, all others 1."""
    whole = encoder.layers(tokens[None])[0]
    out = whole.clone()
    for j, weight in weights.items():
        others = owners != j
        out[others] += (weight - 1.0) * (whole[others] - encoder.layers(tokens[others][None])[0])
    for j, weight in weights.items():
        out[owners == j] *= weight
    return out
