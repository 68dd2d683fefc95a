"""Muon for hidden matrices, AdamW for the rest (or for all), as one optimiser.

Muon: m ← μ·m + g;  W ← W − lr · 0.2·√max(rows, columns) · orthogonal(g + μ·m).  The factor makes an update as large as AdamW's,
so that one learning rate serves both. Source: Jordan et al. 2024 (Newton-Schulz coefficients); Liu et al. 2025,
arXiv:2502.16982 (the factor). Of a sharded network every process changes its own rows; a matrix is put together for Muon alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unfog.networks.layers import OUTER
from unfog.precision import fastest
from unfog.training.parallel import by_rows, local, locals_of
from unfog.training.recipe import LoopSettings


def orthogonal(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: singular values end in about 0.7 to 1.2. (R, C) -> (R, C).

    In the format this machine multiplies fastest: bfloat16 where it is only emulated takes a hundred times as long.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(fastest(matrix.device.type))
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    if x.dtype == torch.float32 and x.shape[1] >= 2 * x.shape[0]:  # bfloat16 would lose what is small in a square
        x = _polynomial(x @ x.T, a, b, c, iterations) @ x
    else:
        for _ in range(iterations):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _polynomial(gram: Tensor, a: float, b: float, c: float, iterations: int) -> Tensor:
    """The product of the iteration's factors, found on the small square matrix alone, as all of them commute. (R, R)"""
    product = None
    for last in range(iterations - 1, -1, -1):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if last:
            gram = factor @ gram @ factor
    assert product is not None
    return product


def hidden_matrices(network: nn.Module) -> list[nn.Parameter]:
    """Weights of inner linear and convolution layers; embeddings, modulation, the stem and the head go to AdamW."""
    return [p for name, p in network.named_parameters()
            if p.requires_grad and p.ndim >= 2 and not any(part in name.split(".") for part in OUTER)]  # fmt: skip


class MuonAdamW(torch.optim.Optimizer):
    """One optimiser over two groups of what requires a gradient; `lr` of each group may be scaled by a learning-rate schedule."""

    def __init__(
        self,
        network: nn.Module,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        extra: nn.Module | None = None,
        muon: bool = True,
    ) -> None:
        """extra: what else is trained, all of it by AdamW; without `muon`, so is the network. What needs no gradient is left
        alone."""
        inner = hidden_matrices(network) if muon else []
        chosen = {id(p) for p in inner}
        every = [*network.parameters(), *(extra.parameters() if extra else ())]
        rest = [p for p in every if p.requires_grad and id(p) not in chosen]
        groups = [{"params": inner, "kind": "muon"}, {"params": rest, "kind": "adamw"}]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["weight_decay"] and parameters:
                torch._foreach_mul_(locals_of(parameters), 1 - group["lr"] * group["weight_decay"])
            (self._muon if group["kind"] == "muon" else self._adamw)(parameters, group)

    def _muon(self, parameters: Sequence[Tensor], group: dict) -> None:
        updates, shapes = [], []
        for p in parameters:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            assert p.grad is not None
            gradient, momentum = local(p.grad), local(state["momentum"])
            torch.add(gradient, momentum, alpha=group["momentum"], out=momentum)
            update = gradient.add(momentum, alpha=group["momentum"])
            updates.append(update.reshape(len(update), math.prod(p.shape[1:])))
            shapes.append(torch.Size([len(p), math.prod(p.shape[1:])]))
        apart = any(local(p) is not p for p in parameters)
        found = by_rows(updates, shapes, orthogonal) if apart else map(orthogonal, updates)
        for p, shape, direction in zip(parameters, shapes, found, strict=True):
            own, scale = local(p), 0.2 * max(shape) ** 0.5
            own.add_(direction.reshape(own.shape), alpha=-group["lr"] * scale)

    def _adamw(self, parameters: Sequence[Tensor], group: dict) -> None:
        first, second = group["betas"]
        for p in parameters:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros(())
                state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
            assert p.grad is not None
            own, gradient, mean, square = locals_of((p, p.grad, state["mean"], state["square"]))
            state["step"] += 1
            n = int(state["step"])
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            spread = (square / (1 - second**n)).sqrt_().add_(1e-8)
            own.addcdiv_(mean, spread, value=-group["lr"] / (1 - first**n))


def optimiser_of(settings: LoopSettings, network: nn.Module, extra: nn.Module | None = None) -> MuonAdamW:
    """The optimiser of a run with these settings; `extra` is what it trains beside the network."""
    return MuonAdamW(network, settings.lr, extra=extra, muon=settings.optimiser == "muon")
