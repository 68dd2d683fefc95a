"""Diffusion of discrete data: tokens are masked, or replaced by uniform ones, and found again.

    q(x_t | x0) = k·δ(x_t, x0) + (1 − k)·π,      k = keep(t) falls from 1 (data) to 0 (noise), π: the mask, or uniform
    q(x_s | x_t, x0) ∝ q(x_t | x_s)·q(x_s | x0),  q(x_t | x_s) as above with k_t/k_s in place of k

Tokens are int64, 0 … K − 1, and K is the mask. A discrete denoiser is called with (x_t (B, *D), t, cond) and returns
logits (B, *D, K) of p(x0 | x_t), for each token by itself: any constant may be added, and −inf says impossible.
Sources: Austin et al. 2021 (D3PM), arXiv:2107.03006, eq. 3 and 4; Sahoo et al. 2024 (MDLM), arXiv:2406.07524;
Lou et al. 2023 (SEDD), arXiv:2310.16834.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfog.checks import check_choice, check_whole
from unfog.diffusion.denoisers import Cond
from unfog.diffusion.grids import check_grid
from unfog.diffusion.noise import Noise
from unfog.diffusion.processes import expand
from unfog.diffusion.schedules import Schedule, lift, schedule_from_config
from unfog.errors import UserError

DiscreteDenoiser = Callable[[Tensor, Any, Cond | None], Tensor]  # (x_t (B, *D), t, cond) -> logits (B, *D, K)
KINDS = ("masked", "uniform")
ORDERS = ("ancestral", "random", "confidence", "maskgit")


@dataclass(frozen=True)
class Categorical:
    """K = `classes` ≥ 2 kinds of token under noise of `kind` "masked" or "uniform".

    schedule: any of schedules.py, its mapping, or None. keep(t) = α²/(α² + σ²), the part of the variance that is data;
    with None 1 − t. Sampling starts from pure noise, so keep(1) should be (nearly) 0.
    """

    classes: int
    kind: str = "masked"
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        check_whole("categorical process", "classes", self.classes, 2)
        check_choice("kind of categorical process", self.kind, KINDS)
        if isinstance(self.schedule, dict):
            object.__setattr__(self, "schedule", schedule_from_config(self.schedule))

    @property
    def mask(self) -> int:
        """The token that stands for "unknown"; only the masked kind has it."""
        return self.classes

    def keep(self, t: Any) -> Any:
        """The chance that a token is still its own at t (a float, array or tensor, as t is)."""
        return 1.0 - t if self.schedule is None else lift(torch.sigmoid, self.schedule.logsnr(t))

    def time(self, keep: Any) -> Any:
        """The time at which `keep` is kept, within [0, 1]: the inverse of `keep`."""
        if self.schedule is None:
            return 1.0 - keep
        # A schedule that never loses everything has no time for a keep of 0.
        t = self.schedule.time(lift(lambda u: torch.logit(u.clamp_min(torch.finfo(u.dtype).tiny)), keep))
        return lift(lambda u: u.clamp(0.0, 1.0), t)

    def check(self, what: str, x: Tensor) -> None:
        """UserError unless x (B, *D) is int64 with tokens 0 … K − 1."""
        if x.dtype != torch.int64 or x.ndim < 2 or x.numel() == 0:
            raise UserError(f"{what}: need int64 tokens with a batch dimension, got {x.dtype} of shape {tuple(x.shape)}")
        if int(x.min()) < 0 or int(x.max()) >= self.classes:
            raise UserError(f"{what}: tokens must lie in 0 … {self.classes - 1}, got {int(x.min())} … {int(x.max())}")

    def noisy(self, x0: Tensor, u: Tensor, keep: Any) -> Tensor:
        """x_t (B, *D) for a keep-probability: a float, or a tensor (B,)."""
        k = expand(keep, u)
        if self.kind == "masked":
            other = torch.full_like(x0, self.mask)
        else:
            # What u has left above k is uniform again.
            other = ((u - k) / (1.0 - k) * self.classes).nan_to_num(0.0).floor().clamp(0, self.classes - 1).long()
        return torch.where(u < k, x0, other)

    def mix(self, x0: Tensor, u: Tensor, t: float | Tensor) -> Tensor:
        """x_t (B, *D) of x0 (B, *D) at t, a float or (B,), by u (B, *D) uniform in (0, 1)."""
        self.check("mix", x0)
        return self.noisy(x0, u, self.keep(t))

    def posterior(self, x_t: Tensor, p0: Tensor, s: float, t: float) -> Tensor:
        """Σ_k p0_k·q(x_s | x_t, x0 = k) for times s < t: (B, *D, K + 1) for the masked kind, else (B, *D, K).

        x_t (B, *D); p0 (B, *D, K): probabilities of x0, one-hot for the exact posterior of a known x0.
        """
        if not 0.0 <= s < t <= 1.0:
            raise UserError(f"posterior: need 0 <= s < t <= 1, got s {s}, t {t}")
        before, after = self.keep(s), self.keep(t)
        count = self.classes
        if self.kind == "masked":
            stay = (1.0 - before) / (1.0 - after)
            found = torch.cat([p0 * (1.0 - stay), torch.full_like(p0[..., :1], stay)], -1)
            held = torch.nn.functional.one_hot(x_t, count + 1).to(p0.dtype)
            return torch.where((x_t == self.mask)[..., None], found, held)
        here = torch.nn.functional.one_hot(x_t, count).to(p0.dtype)
        ratio = after / before
        share = p0 / (after * here + (1.0 - after) / count)
        towards = before * share + (1.0 - before) / count * share.sum(-1, keepdim=True)
        return (ratio * here + (1.0 - ratio) / count) * towards

    def config(self) -> dict[str, Any]:
        """Plain values; `Categorical(**…)` without "name" reads them."""
        schedule = None if self.schedule is None else self.schedule.config()
        return {"name": "categorical", "classes": self.classes, "kind": self.kind, "schedule": schedule}


def guided(denoise: DiscreteDenoiser, scale: float, uncond: Cond) -> DiscreteDenoiser:
    """Classifier-free guidance on log-probabilities: ln p_u + scale·(ln p_c − ln p_u); 1 = off, and asks once.

    uncond: the empty condition, tensors of batch B or 1; 0 is it alone. What is impossible under cond stays so.
    Source: Schiff et al. 2024, arXiv:2412.10193, §3.
    """
    if not 0.0 <= scale < math.inf:
        raise UserError(f"discrete guidance: scale must be a finite number of at least 0, got {scale!r}")

    def both(x_t: Tensor, t: Any, cond: Cond | None) -> Tensor:
        if scale == 1.0:
            return denoise(x_t, t, cond)
        without = {key: value.expand(len(x_t), *value.shape[1:]) for key, value in uncond.items()}
        free = torch.log_softmax(denoise(x_t, t, without).double(), -1)
        if scale == 0.0:
            return free
        tied = torch.log_softmax(denoise(x_t, t, cond).double(), -1)
        return torch.where(torch.isneginf(free), tied, free + scale * (tied - free))

    return both


@dataclass(frozen=True, slots=True)
class DiscreteState:
    """Tokens x (B, *D) at time t, after step `index` (−1: before the first) of `total`; nfe: calls of the denoiser so far."""

    index: int
    total: int
    t: float
    x: Tensor
    nfe: int

    @property
    def done(self) -> bool:
        return self.index + 1 == self.total


def _draw(p: Tensor, u: Tensor) -> Tensor:
    """A category each, by the inverse of the distribution function: p (…, K) not negative, u (…) in (0, 1)."""
    mass = p.cumsum(-1)
    whole = mass[..., -1:]
    # The second is the last category that is possible at all, should u·whole round to whole.
    return torch.minimum((mass <= u[..., None] * whole).sum(-1), (mass < whole).sum(-1))


def _probabilities(logits: Tensor, x: Tensor, classes: int, temperature: float) -> Tensor:
    if logits.shape != (*x.shape, classes):
        raise ValueError(f"the denoiser returned shape {tuple(logits.shape)} for tokens {tuple(x.shape)} of {classes} classes")
    wide = logits.double() if logits.device.type != "mps" else logits.float()
    if temperature == 0.0:
        return torch.nn.functional.one_hot(wide.argmax(-1), classes).to(wide)
    p = torch.softmax(wide / temperature, -1)
    if not bool(torch.isfinite(p).all()):
        raise UserError("sample_discrete: the denoiser returned logits that are not finite, or nothing that is possible")
    return p


def sample_discrete(
    process: Categorical,
    denoise: DiscreteDenoiser,
    shape: Sequence[int],
    grid: Sequence[float] | np.ndarray,
    noise: Noise,
    cond: Cond | None = None,
    *,
    order: str = "ancestral",
    temperature: float = 1.0,
    jitter: float = 4.5,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[DiscreteState]:
    """Walk back along `grid`, falling times, from pure noise; the last step always goes to data, whatever its time.

    shape: of an item. noise: one seed an item; step i draws from stream 1 + i. temperature ≥ 0 of p(x0 | x_t), 0: the
    likeliest. known (B or 1, *shape) where mask (bool, broadcast to it) is true stays as it is. order, masked kind only:
    "ancestral" reveals each token by chance; the others a fixed number a step, ⌊(1 − keep)·N⌋ of N stay hidden: "random";
    "confidence", where the likeliest token is surest; "maskgit", where the drawn token is likeliest, with Gumbel noise of
    jitter·s, which favours likely items. With one token a step the first three are exact. A step that reveals nothing in
    any item asks nothing. The uniform kind puts known tokens in at each step's noise (approximate for the others).
    Sources: D3PM, eq. 4; MDLM, §4.2; Chang et al. 2022 (MaskGIT), arXiv:2202.04200, §3.2.
    """
    what = "sample_discrete"
    check_choice("order", order, ORDERS)
    if process.kind != "masked" and order != "ancestral":
        raise UserError(f"{what}: order {order!r} needs the masked kind; the uniform kind has 'ancestral' only")
    if not (0.0 <= temperature < math.inf and 0.0 <= jitter < math.inf):
        raise UserError(f"{what}: temperature and jitter must be finite and at least 0, got {temperature}, {jitter}")
    if (known is None) != (mask is None):
        raise UserError(f"{what}: give known and mask together, or neither")
    times = [float(t) for t in check_grid(grid)]
    shape = (len(noise.seeds), *shape)
    if len(shape) < 2 or min(shape) < 1:
        raise UserError(f"{what}: need at least one seed and the shape of an item, got seeds and shape {shape}")
    held = torch.zeros(shape, dtype=torch.bool, device=device)
    given = torch.zeros(shape, dtype=torch.int64, device=device)
    if known is not None and mask is not None:
        if mask.dtype != torch.bool:
            raise UserError(f"{what}: mask must be of dtype bool, got {mask.dtype}")
        try:
            held = held | mask.to(device)
            given = torch.where(held, known.to(device), given)
        except RuntimeError:
            shapes = f"{tuple(known.shape)} and {tuple(mask.shape)}"
            raise UserError(f"{what}: known and mask must broadcast to {shape}, got {shapes}") from None
        if held.shape != shape or given.shape != shape:
            raise UserError(f"{what}: known and mask must broadcast to {shape}, got {tuple(given.shape)}")
        process.check(f"{what}: known", given)
    total, masked = len(times) - 1, process.kind == "masked"
    wide = torch.float32 if held.device.type == "mps" else torch.float64

    def walk() -> Iterator[DiscreteState]:
        u, nfe = noise.uniform(shape[1:], 0, device, wide), 0
        free = (~held).flatten(1).sum(1).cpu().double()
        x = process.noisy(torch.zeros_like(given), u, 0.0)
        # Known tokens have one noise for the whole path.
        x = torch.where(held, given if masked else process.noisy(given, u, process.keep(times[0])), x)
        yield DiscreteState(-1, total, times[0], x, nfe)
        for i in range(total):
            t, s = times[i], times[i + 1] if i + 1 < total else 0.0
            when, which = noise.uniform((*shape[1:], 2), 1 + i, device, wide).unbind(-1)
            reveal = (x == process.mask) if masked else ~held
            if order != "ancestral":
                left = torch.floor(free * (1.0 - process.keep(s)) + 1e-6).long().to(device)
                reveal &= expand(reveal.flatten(1).sum(1) > left, reveal)
            elif masked:
                reveal &= when >= (1.0 - process.keep(s)) / (1.0 - process.keep(t))
            if bool(reveal.any()):
                with torch.no_grad():
                    p, nfe = _probabilities(denoise(x, t, cond), x, process.classes, temperature), nfe + 1
                chosen = _draw(p if masked else process.posterior(x, p, s, t), which)
                if order != "ancestral":
                    reveal = _surest(p, chosen, reveal, when, left, order, jitter * s)
                x = torch.where(reveal, chosen, x)
            if not masked:
                x = torch.where(held, process.noisy(given, u, process.keep(s)), x)
            yield DiscreteState(i, total, times[i + 1], x, nfe)

    return walk()


def _surest(p: Tensor, chosen: Tensor, hidden: Tensor, u: Tensor, left: Tensor, order: str, jitter: float) -> Tensor:
    """The hidden tokens without the `left` (B,) least sure ones, (B, *D) bool."""
    score = u
    if order == "confidence":
        score = p.amax(-1) + 1e-9 * u  # u parts what is equal
    elif order == "maskgit":
        score = p.gather(-1, chosen[..., None])[..., 0].log() - jitter * torch.log(-torch.log(u)) + 1e-9 * u
    rank = torch.where(hidden, score, math.inf).flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
    return hidden & (rank >= left[:, None]).reshape(hidden.shape)


def discrete_loss(
    process: Categorical, denoise: DiscreteDenoiser, x0: Tensor, u_time: Tensor, u: Tensor, cond: Cond | None = None
) -> Tensor:
    """The loss of each item, (B,): with u_time uniform its mean is an upper bound on −log p(x0) in nats.

    x0 (B, *D); u_time (B,) in (0, 1), perhaps `stratified`: the chance 1 − k that a token is noise, whatever the schedule; u
    (B, *D) uniform in (0, 1). With p = p(x0 | x_t), i = x_t, and R_c(j) = q(x_t = j | x0 = c)/q(x_t = i | x0 = c):

        masked   Σ_{hidden} −ln p_{x0}/(1 − k)
        uniform  Σ_tokens Σ_{j ≠ i} [R·ln(R/R̄) − R + R̄]/(k·K),   R = R_{x0}(j),   R̄ = Σ_c p_c·R_c(j)

    Both are exact for the exact denoiser. Sources: MDLM, eq. 10 (in terms of keep); Campbell et al. 2022,
    arXiv:2205.14987, prop. 2 (the bound of a jump process).
    """
    process.check("discrete_loss", x0)
    if u_time.shape != x0.shape[:1] or u.shape != x0.shape:
        raise UserError(f"discrete_loss: need u_time {tuple(x0.shape[:1])} and u {tuple(x0.shape)}, uniform in (0, 1)")
    keep = 1.0 - u_time.to(u.dtype)
    x_t = process.noisy(x0, u, keep)
    logits = denoise(x_t, process.time(keep), cond)
    log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    lost = expand(u_time, log_p)  # 1 − k, which must not round to 0
    if process.kind == "masked":
        cross = -log_p.gather(-1, x0[..., None])
        # `where`, as a known token may be impossible elsewhere: 0·inf is NaN.
        return torch.where((x_t == process.mask)[..., None], cross / lost, 0.0).flatten(1).sum(1)
    k, rest = 1.0 - lost, lost / process.classes
    eye = torch.eye(process.classes, dtype=log_p.dtype, device=log_p.device)
    here = eye[x_t]
    true = (k * eye[x0] + rest) / (k * (x0 == x_t)[..., None] + rest)
    share = log_p.exp() / (k * here + rest)
    model = k * share + rest * share.sum(-1, keepdim=True)
    gap = true * (true.log() - model.log()) - true + model
    return ((1.0 - here) * gap / (k * process.classes)).flatten(1).sum(1)
