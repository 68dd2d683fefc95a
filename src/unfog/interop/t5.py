"""T5's encoder and its tokens, in plain torch: the third voice of Stable Diffusion 3, the first of Flux.

    tokens    SentencePiece pieces as tokenizer.json has them · </s> · padding up to a fixed number, which is read like words
    states    layers of x + o·softmax(q·k + b)·v and x + wo·(gelu(wi_0·x)·wi_1·x), each after an RMS norm; no scale, no biases
    b         one number a head for the distance j − i, in buckets that widen with it; the first layer's serve all

Written here for CLIP's reasons (`clip.py`). Sources: Raffel et al. 2019, arXiv:1910.10683, §2.1; Shazeer 2020, arXiv:2002.05202.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.errors import UserError, shown
from unfog.interop.clip import Fragments
from unfog.interop.networks import config_of, filled
from unfog.interop.safe import LARGEST_WORDS, Folder, Weights, parse

KEPT = 16  # prompts whose states are remembered: one of 512 tokens has 8 MB
LONGEST = 4096  # tokens; T5 has no places that run out, memory does
# What a tokenizer.json of T5 is made of. Patterns of others could take any time to match.
PARTS = ("Precompiled", "Sequence", "Strip", "Replace", "NFKC", "NFC", "Lowercase", "WhitespaceSplit", "Metaspace", "Prepend")
PATTERNS = (" {2,}",)


class T5Tokens:
    """Text to numbers by a folder's tokenizer.json: a unigram model of SentencePiece."""

    def __init__(self, tokenizer: Any, end: int, pad: int) -> None:
        self.tokenizer, self.end, self.pad = tokenizer, end, pad
        self.largest = tokenizer.get_vocab_size(with_added_tokens=True) - 1

    @staticmethod
    def read(folder: Folder, component: str) -> T5Tokens:
        """Of tokenizer.json, its kinds of parts checked before the library sees it. Raises UserError where it is damaged."""
        from tokenizers import Tokenizer

        name = f"{component}/tokenizer.json"
        where = folder.root / name
        if not folder.has(name):
            raise UserError(f"{where}: is missing; write it with transformers: T5TokenizerFast.from_pretrained(...)"
                            ".save_pretrained(...)")  # fmt: skip
        told = parse(folder.bytes(name, LARGEST_WORDS), where)
        _check(told, where)
        try:
            found = Tokenizer.from_str(json.dumps(told))
            end, pad = found.token_to_id("</s>"), found.token_to_id("<pad>")
            found.no_truncation()
            found.no_padding()
        except BaseException as error:  # its panics are no Exceptions
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise UserError(f"{where}: makes no tokenizer ({' '.join(str(error).split())[:60]}); get the folder again") from None
        if end is None or pad is None:
            raise UserError(f"{where}: lacks the token {'</s>' if end is None else '<pad>'}; get the folder again")
        return T5Tokens(found, end, pad)

    def pairs(self, fragments: Fragments) -> list[tuple[int, float]]:
        """(number, weight) of each token, the end last, without padding. Raises UserError for more than LONGEST."""
        found = [(n, w) for text, w in fragments for n in self.tokenizer.encode(text, add_special_tokens=False).ids]
        if len(found) >= LONGEST:
            raise UserError(f"prompt: has {len(found)} tokens of T5, more than {LONGEST - 1}; make it shorter")
        return [*found, (self.end, 1.0)]


def _check(told: Mapping[str, Any], where: Path) -> None:
    """A unigram model, and around it parts of PARTS only."""
    model = told.get("model")
    words = model.get("vocab") if isinstance(model, dict) and model.get("type", "Unigram") == "Unigram" else None
    if not isinstance(words, list) or not words or not all(_is_word(word) for word in words):
        raise UserError(f"{where}: is no list of SentencePiece's words and their weights; get the folder again")
    other = model["unk_id"] if isinstance(model, dict) and "unk_id" in model else None
    if type(other) is not int or not 0 <= other < len(words):
        raise UserError(f"{where}: its unk_id {shown(other)} is none of its words; get the folder again")
    for place in ("normalizer", "pre_tokenizer"):
        left = [told.get(place)]
        while left:
            part = left.pop()
            if part is None:
                continue
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in PARTS:
                raise UserError(f"{where}: its {place} is of the kind {shown(kind)}, which T5 has not; get the folder again")
            pattern = part.get("pattern")
            if isinstance(pattern, dict) and pattern.get("Regex", PATTERNS[0]) not in PATTERNS:
                raise UserError(f"{where}: its {place} has the pattern {shown(pattern['Regex'])}; get the folder again")
            left += [*_list(part.get("normalizers")), *_list(part.get("pretokenizers"))]


def _is_word(word: Any) -> bool:
    return isinstance(word, list) and len(word) == 2 and isinstance(word[0], str) and isinstance(word[1], (int, float))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


class Norm(nn.Module):
    """x/√(mean x² + ε), the mean in float32, times a weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(self.weight.dtype)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, each: int, buckets: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, heads * each, bias=False) for _ in range(3))
        self.o = nn.Linear(heads * each, width, bias=False)
        if buckets:
            self.relative_attention_bias = nn.Embedding(buckets, heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0).transpose(1, 2).flatten(2))


class Dense(nn.Module):
    def __init__(self, width: int, inner: int, act: str, gated: bool) -> None:
        super().__init__()
        self.act, self.gated = act, gated
        if gated:
            self.wi_0, self.wi_1 = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        else:
            self.wi = nn.Linear(width, inner, bias=False)
        self.wo = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wi_0(x) if self.gated else self.wi(x)
        y = F.relu(y) if self.act == "relu" else F.gelu(y, approximate="tanh")
        return self.wo(y * self.wi_1(x) if self.gated else y)


class Sub(nn.Module):
    """One half of a layer, under the names of its weights."""

    def __init__(self, name: str, inner: nn.Module, width: int, eps: float) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, inner)
        self.layer_norm = Norm(width, eps)

    def forward(self, x: Tensor, *beside: Tensor) -> Tensor:
        out: Tensor = x + getattr(self, self.name)(self.layer_norm(x), *beside)
        return out


class T5Text(nn.Module):
    """T5's encoder as a `config.json` states it; names as in its weights."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, layers, heads = config.get("d_model", 512), config.get("num_layers", 6), config.get("num_heads", 8)
        act = str(config.get("feed_forward_proj", "relu"))
        if act not in ("relu", "gated-gelu", "gelu"):
            raise UserError(f"feed_forward_proj {shown(act)} is not known; give gated-gelu or relu")
        eps = float(config.get("layer_norm_epsilon", 1e-6))
        self.buckets = config.get("relative_attention_num_buckets", 32)
        self.furthest = config.get("relative_attention_max_distance", 128)
        if not (4 <= self.buckets <= 4096 and self.buckets < self.furthest <= 65_536 and layers and heads):
            raise UserError(f"its {self.buckets} buckets of distances up to {self.furthest} make no network")
        self.shared = nn.Embedding(config.get("vocab_size", 32128), width)

        def layer(number: int) -> nn.Module:
            attention = SelfAttention(width, heads, config.get("d_kv", 64), 0 if number else self.buckets)
            dense = Dense(width, config.get("d_ff", 2048), act, act.startswith("gated"))
            halves = [Sub("SelfAttention", attention, width, eps), Sub("DenseReluDense", dense, width, eps)]
            return nn.ModuleDict({"layer": nn.ModuleList(halves)})

        blocks = nn.ModuleList([layer(i) for i in range(layers)])
        self.encoder = nn.ModuleDict({"block": blocks, "final_layer_norm": Norm(width, eps)})

    @property
    def width(self) -> int:
        return self.shared.weight.shape[1]

    def bias(self, n: int, device: torch.device) -> Tensor:
        """b (1, heads, n, n): half of the buckets for each direction, half of those exact, the others even in the logarithm."""
        place = torch.arange(n, device=device)
        ahead = place[None, :] - place[:, None]
        half, far = self.buckets // 2, ahead.abs()
        exact = half // 2
        wide = torch.log(far.clamp_min(1).float() / exact) / math.log(self.furthest / exact) * (half - exact)
        bucket = torch.where(far < exact, far, (exact + wide.long()).clamp_max(half - 1)) + (ahead > 0) * half
        table = self.encoder["block"][0]["layer"][0].SelfAttention.relative_attention_bias  # type: ignore[index]
        return table(bucket).permute(2, 0, 1)[None]

    def forward(self, ids: Tensor) -> Tensor:
        """States (B, n, width) of whole numbers ids (B, n)."""
        x, bias = self.shared(ids), self.bias(ids.shape[1], ids.device)
        for block in self.encoder["block"]:  # type: ignore[attr-defined]
            attend, dense = block["layer"]
            x = dense(attend(x, bias))
        return self.encoder["final_layer_norm"](x)


class T5Encoder:
    """T5 with its tokens."""

    def __init__(self, tokens: T5Tokens, network: T5Text) -> None:
        rows = len(network.shared.weight)
        if tokens.largest >= rows:
            raise UserError(
                f"tokenizer: has the number {tokens.largest}, the text encoder only {rows} vectors; get the folder again"
            )
        self.tokens, self.network = tokens, network
        self.kept: dict[tuple[int, ...], Tensor] = {}

    def length(self, prompts: Sequence[Fragments], usual: int) -> int:
        """Tokens that hold the longest: `usual`, or as often that as it takes."""
        most = max(len(self.tokens.pairs(prompt)) for prompt in prompts)
        return -(-most // usual) * usual

    def encode(self, prompts: Sequence[Fragments], length: int) -> Tensor:
        """States (B, length, width); a word's weight moves its states away from those of the empty prompt."""
        pairs = [self.tokens.pairs(prompt) for prompt in prompts]
        ids = [self._full(found, length) for found in pairs]
        weights = torch.tensor([[w for _, w in found] + [1.0] * (length - len(found)) for found in pairs])[..., None]
        if not bool((weights != 1.0).any()):
            return torch.stack(self._said(ids))
        *said, empty = self._said([*ids, self._full([(self.tokens.end, 1.0)], length)])
        states = torch.stack(said)
        return empty + weights.to(states) * (states - empty)

    def _full(self, pairs: Sequence[tuple[int, float]], length: int) -> tuple[int, ...]:
        return (*(n for n, _ in pairs), *(self.tokens.pad,) * (length - len(pairs)))

    def _said(self, ids: Sequence[tuple[int, ...]]) -> list[Tensor]:
        found = {}
        for one in ids:  # one by one: T5 is large, and a prompt comes once
            if one not in self.kept and one not in found:
                with torch.no_grad():
                    found[one] = self.network(torch.tensor([one], device=self.network.shared.weight.device))[0]
        told = [self.kept[one] if one in self.kept else found[one] for one in ids]
        self.kept = dict(list({**self.kept, **found}.items())[-KEPT:])
        return told


def t5(folder: Folder, component: str, tokenizer: str, dtype: torch.dtype, device: str) -> T5Encoder:
    """T5's encoder of a folder. Raises UserError naming the file that is missing or damaged."""
    tokens = T5Tokens.read(folder, tokenizer)
    where = folder.root / component / "config.json"
    config = config_of(folder, component)
    try:
        with torch.device("meta"):
            network = T5Text(config)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = f"makes no network ({str(error)[:80]}); get the folder again"
        raise UserError(f"{where}: {error if isinstance(error, UserError) else reason}") from None
    weights = folder.weights(component, "model")
    tied = {name: entry for name, entry in weights.entries.items() if name != "encoder.embed_tokens.weight"}
    own = Weights(weights.where, tied) if "shared.weight" in weights.entries else weights  # many files have the table twice
    filled(network, own, dtype, {"encoder.embed_tokens.": "shared."})
    return T5Encoder(tokens, network.to(device))
