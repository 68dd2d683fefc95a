"""Denoisers: E[x0 | x_t], the one contract between networks, guidance and samplers.

    D(x_t, t) = c_skip·x_t + c_out·network(c_in·x_t, logsnr, cond)          Preconditioned
    D(x_t, t) = E[x0 | x_t] in closed form                                   Gaussian, mixture, data set

The exact denoisers need no training: samplers, losses and metrics are tested against them.
Source: Karras et al. 2022, arXiv:2206.00364, eq. 7 (form) and appendix B.3 (data set).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from unfog.diffusion.predictions import Prediction, prediction_from_config
from unfog.diffusion.processes import Process, expand
from unfog.diffusion.schedules import Shifted, Table
from unfog.errors import UserError

Cond = dict[str, Tensor]
Network = Callable[..., Tensor]  # network(x_t (B, *D), logsnr (B,), cond) -> (B, *D)


class Denoiser(Protocol):
    """E[x0 | x_t, cond]; t is a float, the same for all items, or (B,)."""

    @property
    def process(self) -> Process: ...
    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor: ...


def _dtype(network: Any) -> torch.dtype | None:
    """The dtype of the network's first floating parameter, None when it has none (a plain function)."""
    if isinstance(network, torch.nn.Module):
        for parameter in network.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return None


class Preconditioned:
    """A network made a denoiser. The maths runs in float32 (float64 if x_t is), the network in its own dtype.

    prediction: a name, a mapping or a Prediction. noise_input: what the network gets beside its input:
    "logsnr", clamped to [−20, 20], "index", the nearest index of a `Table` schedule, "place", the same not rounded, or "flow",
    σ/(α + σ); (B,) float32.
    sigma_min: level σ/α below which the network was not trained: there it is asked about x_t·α_min/α_t at that level, as if
    noise were left. A network that predicts x0 is far off below its training, and finer grids would end farther and farther
    from the data.
    project(x (B, *D), cond): a linear map onto what x0 can be (padding 0, centre of mass 0), after which noise outside of it is
    unseen and no result lies there: the process on that subspace, for every sampler (Hoogeboom et al. 2022, arXiv:2203.17003,
    section 3.1, has it in the noise).
    """

    logsnr_limit = 20.0

    def __init__(
        self,
        network: Network,
        process: Process,
        prediction: str | Prediction = "v",
        noise_input: str = "logsnr",
        sigma_min: float = 0.0,
        project: Callable[[Tensor, Cond | None], Tensor] | None = None,
    ) -> None:
        if noise_input not in ("logsnr", "index", "place", "flow"):
            raise UserError(f"noise_input must be 'logsnr', 'index', 'place' or 'flow', got {noise_input!r}")
        self.network = network
        self.process = process
        self.prediction = prediction_from_config(prediction)
        self.noise_input = noise_input
        self.project = project
        if not 0.0 <= sigma_min < math.inf:
            raise UserError(f"sigma_min must be a level of sigma/alpha, at least 0, got {sigma_min!r}")
        self.sigma_min = sigma_min
        self.lowest = float(process.schedule.time(-2.0 * math.log(sigma_min))) if sigma_min else 0.0
        if noise_input in ("index", "place") and self._table() is None:
            raise UserError(f"noise_input {noise_input!r} needs a table schedule; use 'logsnr'")

    def _table(self) -> Table | None:
        schedule = self.process.schedule
        while isinstance(schedule, Shifted):
            schedule = schedule.base
        return schedule if isinstance(schedule, Table) else None

    def noise_level(self, t: float | Tensor, batch: int, device: torch.device) -> Tensor:
        """What the network is told about the noise at t: (batch,) float32."""
        schedule = self.process.schedule
        logsnr = schedule.logsnr(t)
        if self.noise_input in ("index", "place"):
            table = self._table()
            assert table is not None
            # Through logsnr, so that a shifted table names the index whose noise the network really sees.
            time: Any = table.time(logsnr)
            level: Any = table.index(time) if self.noise_input == "index" else table.place(time)
        elif self.noise_input == "flow":
            sigma = schedule.sigma(t)
            level = sigma / (schedule.alpha(t) + sigma)
        else:
            level = logsnr
        if not isinstance(level, Tensor):
            if self.noise_input == "logsnr":
                level = min(max(level, -self.logsnr_limit), self.logsnr_limit)
            return torch.full((batch,), float(level), dtype=torch.float32, device=device)
        if self.noise_input == "logsnr":
            level = level.clamp(-self.logsnr_limit, self.logsnr_limit)
        return level.to(device=device, dtype=torch.float32).expand(batch)

    def raw(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """The network's own output (B, *D) for x_t (B, *D) at t, in x_t's dtype; the loss reads it."""
        schedule = self.process.schedule
        x_t = self.projected(x_t, cond)
        scale = self.prediction.c_in(schedule.alpha(t), schedule.sigma(t)) if self.prediction.scale_input else 1.0
        given = x_t if isinstance(scale, float) and scale == 1.0 else expand(scale, x_t) * x_t
        dtype = _dtype(self.network)
        if dtype is not None:
            given = given.to(dtype)
            if cond is not None:
                cond = {key: value.to(dtype) if value.is_floating_point() else value for key, value in cond.items()}
        out = self.network(given, self.noise_level(t, x_t.shape[0], x_t.device), cond)
        if out.shape != x_t.shape:
            raise ValueError(f"the network returned shape {tuple(out.shape)} for an input of shape {tuple(x_t.shape)}")
        return self.projected(out.to(x_t.dtype), cond)

    def projected(self, x: Tensor, cond: Cond | None) -> Tensor:
        """x (B, *D) where x0 can be."""
        return x if self.project is None else self.project(x, cond)

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """x0 (B, *D), float32 (float64 if x_t is), for x_t (B, *D), t float or (B,)."""
        x_t = x_t if x_t.dtype == torch.float64 else x_t.float()
        schedule = self.process.schedule
        if self.lowest and (isinstance(t, Tensor) or t < self.lowest):
            asked = t.clamp_min(self.lowest) if isinstance(t, Tensor) else self.lowest
            below = t.clamp_max(self.lowest) if isinstance(t, Tensor) else t  # elsewhere alpha may be 0
            x_t, t = expand(schedule.alpha(self.lowest) / schedule.alpha(below), x_t) * x_t, asked
        c_skip, c_out, _, _ = self.prediction.affine(schedule.alpha(t), schedule.sigma(t))
        if isinstance(c_out, float) and not math.isfinite(c_out):
            raise UserError(
                f"prediction {self.prediction.name!r} says nothing about x0 where alpha is 0 (t = {t:g}); "
                "start the grid below it, or train v, flow, x0 or edm"
            )
        out = expand(c_out, x_t) * self.raw(x_t, t, cond)
        if isinstance(c_skip, float) and c_skip == 0.0:
            return out
        return out + expand(c_skip, x_t) * self.projected(x_t, cond)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread inside, as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class OneByOne:
    """The same denoiser asked item by item on one thread, so that no bit depends on the batch or on the threads.

    Matrix products and convolutions sum in an order that changes with both. Costs what batching would have saved.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """x0 (B, *D)."""
        with one_thread():
            return torch.cat([self.denoiser(x_t[i : i + 1], *_item(t, cond, i, len(x_t))) for i in range(len(x_t))])


def _item(t: float | Tensor, cond: Cond | None, i: int, batch: int) -> tuple[float | Tensor, Cond | None]:
    """t and cond of item i; a condition of batch 1 belongs to all."""
    time = t[i : i + 1] if isinstance(t, Tensor) and t.ndim else t
    if cond is None:
        return time, None
    return time, {key: value[i : i + 1] if len(value) == batch else value for key, value in cond.items()}


def _level(process: Process, t: float | Tensor, flat: Tensor) -> tuple[Any, Any]:
    """α, σ for items flattened to (B, n): floats or (B, 1)."""
    return expand(process.schedule.alpha(t), flat), expand(process.schedule.sigma(t), flat)


class GaussianDenoiser:
    """Exact for x0 ~ N(mean, C): x0 = μ + αC·(α²C + σ²I)⁻¹·(x_t − αμ).

    mean: (*D). Give `cov` (n, n) over the flattened item, or `std`: a number or (*D).
    """

    def __init__(self, process: Process, mean: Tensor, cov: Tensor | None = None, std: float | Tensor | None = None) -> None:
        self.mixture = MixtureDenoiser(
            process,
            torch.ones(1, dtype=torch.float64),
            mean[None],
            covs=None if cov is None else cov[None],
            stds=None if std is None else torch.as_tensor(std, dtype=torch.float64)[None],
        )
        self.process = process

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """E[x0 | x_t] (B, *D)."""
        return self.mixture(x_t, t, cond)


class MixtureDenoiser:
    """Exact for x0 ~ Σ w_k N(μ_k, C_k).

    weights (K,), means (K, *D); give `stds`: (K,) or (K, *D), or `covs`: (K, n, n) over the flattened item.
    """

    def __init__(
        self, process: Process, weights: Tensor, means: Tensor, stds: Tensor | None = None, covs: Tensor | None = None
    ) -> None:
        if (stds is None) == (covs is None):
            raise UserError("give a mixture either standard deviations or covariances, not both")
        self.process = process
        count = means.shape[0]
        flat = means.double().reshape(count, -1)
        self.log_weights = torch.log(weights.double() / weights.double().sum())
        if covs is not None:
            # In the eigenbasis of each component everything is diagonal.
            variance, self.basis = torch.linalg.eigh(covs.double())
            self.variance = variance.clamp_min(0.0)
        else:
            assert stds is not None
            wide = stds.double()
            wide = wide.reshape(count, -1) if wide.ndim > 1 else wide[:, None]
            self.variance = wide.expand(count, flat.shape[1]) ** 2
            self.basis = None
        self.means = flat

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """E[x0 | x_t] (B, *D), computed in float64."""
        flat = x_t.double().flatten(1)
        alpha, sigma = (value[..., None] if isinstance(value, Tensor) else value for value in _level(self.process, t, flat))
        variance, means = self.variance.to(flat.device), self.means.to(flat.device)
        residual = flat[:, None, :] - alpha * means  # (B, K, n)
        if self.basis is not None:
            residual = torch.einsum("bki,kij->bkj", residual, self.basis.to(flat.device))
        # Where a component has no width and there is no noise; its square must not overflow the exponent.
        total = (alpha * alpha * variance + sigma * sigma).clamp_min(1e-200)
        score = self.log_weights.to(flat.device) - 0.5 * (residual * residual / total + torch.log(total)).sum(-1)
        share = torch.softmax(score, dim=1)[..., None]
        shift = alpha * variance / total * residual
        if self.basis is not None:
            shift = torch.einsum("bkj,kij->bki", shift, self.basis.to(flat.device))
        return (share * (means + shift)).sum(1).reshape(x_t.shape).to(x_t.dtype)


class DataSetDenoiser:
    """Exact for x0 uniform over the items of `data` (N, *D): a softmax over the points.

        x0 = Σ softmax_i(−|x_t − α·d_i|²/(2σ²))·d_i

    It is what a network that memorises everything would learn; at σ = 0 it returns the nearest point.
    """

    def __init__(self, process: Process, data: Tensor) -> None:
        self.process = process
        self.data = data.double().flatten(1)

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """E[x0 | x_t] (B, *D), computed in float64; memory grows with B·N, not with B·N·n."""
        flat, data = x_t.double().flatten(1), self.data.to(x_t.device)
        alpha, sigma = _level(self.process, t, flat)
        exact = "donot_use_mm_for_euclid_dist"  # differences, not |a|² + |b|² − 2ab, which cancels at low noise
        if isinstance(alpha, Tensor) and alpha.ndim:
            distance = torch.cat([torch.cdist(flat[i : i + 1], alpha[i] * data, compute_mode=exact) for i in range(len(flat))])
        else:
            distance = torch.cdist(flat, alpha * data, compute_mode=exact)
        square = distance * distance
        # The nearest point's exponent is exactly 0, so that no noise level under- or overflows.
        gap = square - square.min(dim=1, keepdim=True).values
        variance = torch.as_tensor(sigma * sigma, dtype=torch.float64).to(x_t.device)
        share = torch.softmax(-0.5 * gap / variance.clamp_min(torch.finfo(torch.float64).tiny), dim=1)
        return (share @ data).reshape(x_t.shape).to(x_t.dtype)
