"""Low-rank branches beside the linear maps and convolutions of any network.

    y = W x + (alpha/rank)·B (A x),   A (rank, in), B (out, rank), B = 0 at the start

Only A and B train; W stays. Of a convolution, A is one of the same kernel, stride and padding to `rank` channels, B a 1×1 one,
so that B·A is again a kernel of W's shape. Source: Hu et al. 2021, arXiv:2106.09685, sec. 4.1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from unfog.errors import UserError, unknown
from unfog.networks.layers import OUTER, SteadyLinear


class Branched(nn.Module):
    """A linear map or a convolution with a low-rank branch beside it. Code that reads `weight` gets the sum of both."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        inner = min(rank, base.weight[0].numel(), len(base.weight))  # more could express no more
        self.base, self.scale = base, alpha / rank
        self.original: Tensor | None = None  # what `base` had before the branch went into it
        self.a: nn.Module
        self.b: nn.Module
        if isinstance(base, nn.Conv2d):
            self.a = nn.Conv2d(base.in_channels, inner, base.kernel_size, base.stride, base.padding, base.dilation,  # type: ignore[arg-type]
                               bias=False, padding_mode=base.padding_mode)  # fmt: skip
            self.b = nn.Conv2d(inner, base.out_channels, 1, bias=False)
        else:  # as steady as the base: an item's bits must not come to depend on its batch
            kind = SteadyLinear if isinstance(base, SteadyLinear) else nn.Linear
            self.a = kind(base.in_features, inner, bias=False)
            self.b = kind(inner, base.out_features, bias=False)
        self.to(base.weight.device, base.weight.dtype).train(base.training)
        weight = self.a.weight
        assert isinstance(weight, nn.Parameter)
        bound = 1 / math.sqrt(weight[0].numel())
        first = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator).to(weight)
        if base.weight.ndim == 4 and base.weight.is_contiguous(memory_format=torch.channels_last):
            first = first.contiguous(memory_format=torch.channels_last)
        weight.data = first
        nn.init.zeros_(self.b.weight)

    def change(self) -> Tensor:
        """(alpha/rank)·B·A, of W's shape, in W's dtype."""
        return change(self.a.weight, self.b.weight, self.scale).to(self.base.weight)  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        return self.base.weight if self.original is not None else self.base.weight + self.change()

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y if self.original is not None else y + self.scale * self.b(self.a(x))


def change(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """factor·B·A in float32: a (rank, in) or (rank, in, kh, kw), b (out, rank) or (out, rank, 1, 1) -> (out, *a.shape[1:])."""
    product = b.flatten(1).float() @ a.flatten(1).float()
    return (factor * product).reshape(len(b), *a.shape[1:])


def candidates(network: nn.Module, targets: Sequence[str] = ()) -> list[str]:
    """Names of the layers that get a branch: each nn.Linear and each nn.Conv2d of one group that stands in `targets`.

    targets: a name of a layer or any part of it between dots ("attention", "mlp", "down.1"); without any, all layers but
    embeddings, modulation, the stem and the head. Raises UserError for a target that no layer has.
    """
    found = [name for name, module in network.named_modules()
             if name and (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))]  # fmt: skip
    if not targets:
        return [name for name in found if not set(OUTER) & set(name.split("."))]
    for target in targets:
        if not any(_within(target, name) for name in found):
            raise unknown("lora_targets", target, {part for name in found for part in name.split(".") if not part.isdecimal()})
    return [name for name in found if any(_within(target, name) for target in targets)]


def _within(target: str, name: str) -> bool:
    return f".{target}." in f".{name}."


def add(network: nn.Module, rank: int, alpha: float | None = None, targets: Sequence[str] = (), seed: int = 0) -> list[str]:
    """Freeze a network and put a branch beside each layer of `targets` (`candidates`). -> the names of these layers.

    alpha: the branch is scaled by alpha/rank; without it 1. The network is the same function as before, to the bit.
    Raises UserError where there is no layer to put one beside, or branches are there already.
    """
    if branches(network):
        raise UserError("lora: the network has branches already; fold them in first")
    names = candidates(network, targets)
    if not names:
        raise UserError("lora: the network has no linear map or convolution to put a branch beside; name some in lora_targets")
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        base = network.get_submodule(name)
        assert isinstance(base, (nn.Linear, nn.Conv2d))
        _put(network, name, Branched(base, rank, rank if alpha is None else alpha, generator))
    return names


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, module)  # of a list too: its parts are attributes named by numbers


def branches(network: nn.Module) -> dict[str, Branched]:
    """The layers that have a branch, by the name that they had without it."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Branched)}


@torch.no_grad()
def merge(network: nn.Module, strength: float = 1.0) -> None:
    """Put `strength` times each branch into its layer's weight: sampling then costs what it costs without."""
    unmerge(network)
    for layer in branches(network).values():
        layer.original = layer.base.weight.detach().clone()
        layer.base.weight += strength * layer.change()


@torch.no_grad()
def unmerge(network: nn.Module) -> None:
    """Take the branches out of the weights, which are then what they were, to the bit."""
    for layer in branches(network).values():
        if layer.original is not None:
            layer.base.weight.copy_(layer.original)
            layer.original = None


@torch.no_grad()
def folded(network: nn.Module) -> nn.Module:
    """A copy whose branches are inside the weights and gone as modules: of the kind that it was before `add`."""
    whole = copy.deepcopy(network)
    merge(whole)
    for name, layer in branches(whole).items():
        _put(whole, name, layer.base)
    return whole


def state(network: nn.Module) -> dict[str, Tensor]:
    """A and B of each branch on the CPU: `<layer>.a` and `<layer>.b`."""
    return {f"{name}.{key}": getattr(layer, key).weight.detach().cpu().contiguous()
            for name, layer in branches(network).items() for key in ("a", "b")}  # fmt: skip


@torch.no_grad()
def load(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give each branch its A and B of `state`. Raises UserError where names or shapes are other ones; then nothing changes."""
    own = {f"{name}.{key}": getattr(layer, key).weight for name, layer in branches(network).items() for key in ("a", "b")}
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in values.items()}:
        raise UserError("lora: the branches are of another network, rank or targets; add them as they were saved")
    for key, weight in own.items():
        weight.copy_(values[key])


def merged(weights: Mapping[str, Tensor], values: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Weights of a network without branches, in float32 where factor·B·A was added to them.

    factor: strength·alpha/rank. Raises UserError where a branch fits no weight.
    """
    out = dict(weights)
    for name in sorted({key.rpartition(".")[0] for key in values}):
        a, b, weight = values.get(f"{name}.a"), values.get(f"{name}.b"), weights.get(f"{name}.weight")
        if a is None or b is None or weight is None or not _fit(a, b, weight):
            raise UserError(f"lora: layer {name} of the adapter does not fit this network; use it with the model it was made for")
        out[f"{name}.weight"] = weight.float() + change(a, b, factor).to(weight.device)
    return out


def _fit(a: Tensor, b: Tensor, weight: Tensor) -> bool:
    """Whether B·A is of the weight's shape; they may come from a stranger."""
    if a.ndim != weight.ndim or b.ndim != weight.ndim or weight.ndim < 2 or not (a.is_floating_point() and b.is_floating_point()):
        return False
    return (len(b), *a.shape[1:]) == tuple(weight.shape) and tuple(b.shape[1:]) == (len(a), *(1,) * (weight.ndim - 2))
