"""The text side of Stable Diffusion: CLIP's tokens and its text network, in plain torch.

    tokens    lower case, one space, byte-level pairs (vocab.json, merges.txt); a chunk is <start> · 75 tokens · <end> · padding
    states    causal transformer, layer norm first; pooled: the state of the first <end>

Written here rather than taken, as importing transformers costs seconds and each of its versions names the weights anew.
Source: Radford et al. 2021 (CLIP), arXiv:2103.00020, §2.4.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.errors import UserError, shown
from unfog.interop.safe import Folder, parse

Fragments = Sequence[tuple[str, float]]  # pieces of one prompt with their weights
ROOM = 75  # tokens of a chunk without its start and end
PATTERN = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


class Tokens:
    """Text to numbers. `own`: learned words, each standing for several vectors (textual inversion)."""

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], pad: str, where: Path) -> None:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

        for token in ("<|startoftext|>", "<|endoftext|>", pad):
            if token not in vocab:
                raise UserError(f"{where}: lacks the token {shown(token)}; get the folder again")
        try:
            bpe = models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>")
        except Exception as error:  # of the library's own kind
            raise UserError(f"{where}: its pairs do not fit its words ({str(error)[:60]}); get the folder again") from None
        self.tokenizer = Tokenizer(bpe)
        parts = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        self.tokenizer.normalizer = normalizers.Sequence(parts)
        split = pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True)
        cut = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        self.tokenizer.pre_tokenizer = cut
        self.tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
        self.start, self.end, self.pad = vocab["<|startoftext|>"], vocab["<|endoftext|>"], vocab[pad]
        self.largest = max(vocab.values())
        self.own: dict[str, list[int]] = {}

    @staticmethod
    def read(folder: Folder, component: str, padding: str | None = None) -> Tokens:
        """Of vocab.json and merges.txt; padding: instead of what the folder says. Raises UserError where they are damaged."""
        where = folder.root / component / "vocab.json"
        vocab = parse(folder.bytes(f"{component}/vocab.json", 2**23), where)
        if not vocab or not all(type(v) is int and 0 <= v < 2**20 for v in vocab.values()):
            raise UserError(f"{where}: is no list of words and their numbers; get the folder again")
        lines = folder.text(f"{component}/merges.txt", 2**23).split("\n")
        pairs = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
        if not all(len(pair) == 2 for pair in pairs):
            raise UserError(f"{folder.root / component / 'merges.txt'}: is no list of pairs; get the folder again")
        pad: Any = "<|endoftext|>"
        for name in ("tokenizer_config.json", "special_tokens_map.json"):  # the later one decides, as it always did
            if folder.has(f"{component}/{name}"):
                pad = folder.json(f"{component}/{name}").get("pad_token", pad)
        pad = padding or (pad.get("content") if isinstance(pad, dict) else pad)
        return Tokens(vocab, [(a, b) for a, b in pairs], str(pad), where)

    def numbers(self, text: str) -> list[int]:
        """Tokens of a text, without start and end; learned words become their own numbers."""
        return [number for number, _ in self.placed(text)]

    def placed(self, text: str) -> list[tuple[int, int]]:
        """Each token and where in the text it begins."""
        found: list[tuple[int, int]] = []
        place = 0
        while place < len(text):
            at, word = min(((at, w) for w in self.own if (at := text.find(w, place)) >= 0), default=(len(text), ""))
            if text[place:at].strip():
                piece = self.tokenizer.encode(text[place:at], add_special_tokens=False)
                found += [(number, place + first) for number, (first, _) in zip(piece.ids, piece.offsets, strict=True)]
            found += [(number, at) for number in self.own.get(word, [])]
            place = at + len(word)
        return found

    def weighed(self, fragments: Fragments) -> list[tuple[int, float]]:
        """Tokens of a whole prompt with their weights: each weighs what the fragment of its first letter does."""
        ends = list(accumulate(len(text) for text, _ in fragments))
        tokens = self.placed("".join(text for text, _ in fragments))
        return [(number, fragments[min(bisect(ends, start), len(ends) - 1)][1]) for number, start in tokens]

    def chunks(self, fragments: Fragments) -> tuple[list[list[int]], list[list[float]]]:
        """(numbers, weights) of each chunk of 77; at least one."""
        pairs = self.weighed(fragments)
        ids, weights = [], []
        for first in range(0, max(len(pairs), 1), ROOM):
            part = pairs[first : first + ROOM]
            left = ROOM - len(part)
            ids.append([self.start, *(n for n, _ in part), self.end, *([self.pad] * left)])
            weights.append([1.0, *(w for _, w in part), *([1.0] * (left + 1))])
        return ids, weights


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, inner: int, act: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(width, inner), nn.Linear(inner, width), act
        self.rough = "tanh" if act == "gelu_pytorch_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        y = y * torch.sigmoid(1.702 * y) if self.act == "quick_gelu" else F.gelu(y, approximate=self.rough)
        return self.fc2(y)


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, act: str, eps: float, causal: bool = True) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(width, heads, causal), MLP(width, inner, act)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Said(NamedTuple):
    """last: states after the last layer's norm (B, 77, width). penultimate: before the last layer, as they are. pooled (B, d)."""

    last: Tensor
    penultimate: Tensor
    pooled: Tensor


class ClipText(nn.Module):
    """CLIP's text network as a `config.json` states it; names as in its weights, without the leading `text_model.`"""

    def __init__(self, config: Mapping[str, Any], projected: bool) -> None:
        super().__init__()
        width, act = config.get("hidden_size", 512), config.get("hidden_act", "quick_gelu")
        if act not in ("quick_gelu", "gelu"):
            raise UserError(f"hidden_act {shown(act)} is not known; give quick_gelu or gelu")
        eps = float(config.get("layer_norm_eps", 1e-5))
        self.end = config.get("eos_token_id", 49407)
        if type(self.end) is not int:
            raise UserError(f"eos_token_id must be a whole number, got {shown(self.end)}")
        self.embeddings = nn.ModuleDict({
            "token_embedding": nn.Embedding(config.get("vocab_size", 49408), width),
            "position_embedding": nn.Embedding(config.get("max_position_embeddings", 77), width),
        })  # fmt: skip
        heads, inner = config.get("num_attention_heads", 8), config.get("intermediate_size", 2048)
        if width % heads:
            raise UserError(f"hidden_size {width} does not divide by num_attention_heads {heads}")
        layers = [Layer(width, heads, inner, act, eps) for _ in range(config.get("num_hidden_layers", 12))]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)
        self.text_projection = nn.Linear(width, config.get("projection_dim", 512), bias=False) if projected else None

    @property
    def width(self) -> int:
        return self.final_layer_norm.weight.shape[0]

    def forward(self, ids: Tensor) -> Said:
        """ids (B, 77) of whole numbers."""
        x = self.embeddings["token_embedding"](ids)
        x = x + self.embeddings["position_embedding"].weight[: ids.shape[1]]  # type: ignore[index]
        before = x
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            before, x = x, layer(x)
        last = self.final_layer_norm(x)
        # configs with eos_token_id 2 are from before the end had its own number there: then it is the largest
        ends = ids.argmax(1) if self.end == 2 else (ids == self.end).int().argmax(1)
        pooled = last[torch.arange(len(ids)), ends]
        return Said(last, before, pooled if self.text_projection is None else self.text_projection(pooled))
