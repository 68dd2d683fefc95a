"""Predictions: what the network's output means; each is one affine map.

    network target = p·x0 + q·ε                                x0 = c_skip·x_t + c_out·network(c_in·x_t)
    c_skip = −q/g,   c_out = σ/g,   g = p·σ − q·α              (so that the two say the same)

| name  | p        | q        | c_skip        | c_out          |
| x0    | 1        | 0        | 0             | 1              |
| eps   | 0        | 1        | 1/α           | −σ/α           |
| v     | −σ       | α        | α/(α²+σ²)     | −σ/(α²+σ²)     |
| flow  | −1       | 1        | 1/(α+σ)       | −σ/(α+σ)       |
| score | 0        | −1/σ     | 1/α           | σ²/α           |
| edm   | σ/(n·s)  | −s·α/n   | s²·α/n²       | s·σ/n          |    n² = σ² + s²·α²,  s = data_std

x0, v, flow and edm are finite at every noise level; eps and score cannot be where α = 0.
Sources: Salimans & Ho 2022, arXiv:2202.00512 (v); Lipman et al. 2022, arXiv:2210.02747 (flow); Karras et al.
2022, arXiv:2206.00364, eq. 7 and table 1 (edm, here in x_t instead of x_t/α).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from unfog.checks import call, lookup
from unfog.diffusion.processes import expand
from unfog.errors import UserError

Level = Any  # α or σ: a python float, or a (B,) float tensor


class Affine(NamedTuple):
    """The four coefficients of one prediction at one noise level."""

    c_skip: Level
    c_out: Level
    p: Level
    q: Level


def _divide(numerator: Level, denominator: Level) -> Level:
    """numerator / denominator with ±inf, not an exception, where a python float denominator is 0."""
    if isinstance(denominator, Tensor) or isinstance(numerator, Tensor):
        return numerator / denominator
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(numerator) / np.float64(denominator))


def _x0(alpha: Level, sigma: Level, data_std: float) -> Affine:
    zero = 0.0 * sigma
    return Affine(zero, zero + 1.0, zero + 1.0, zero)


def _eps(alpha: Level, sigma: Level, data_std: float) -> Affine:
    zero = 0.0 * sigma
    return Affine(_divide(1.0, alpha), _divide(-sigma, alpha), zero, zero + 1.0)


def _v(alpha: Level, sigma: Level, data_std: float) -> Affine:
    square = alpha * alpha + sigma * sigma
    return Affine(alpha / square, -sigma / square, -sigma, alpha)


def _flow(alpha: Level, sigma: Level, data_std: float) -> Affine:
    zero = 0.0 * sigma
    return Affine(1.0 / (alpha + sigma), -sigma / (alpha + sigma), zero - 1.0, zero + 1.0)


def _score(alpha: Level, sigma: Level, data_std: float) -> Affine:
    return Affine(_divide(1.0, alpha), _divide(sigma * sigma, alpha), 0.0 * sigma, _divide(-1.0, sigma))


def _edm(alpha: Level, sigma: Level, data_std: float) -> Affine:
    square = sigma * sigma + (data_std * data_std) * (alpha * alpha)
    norm = square**0.5
    return Affine(
        data_std * data_std * alpha / square, data_std * sigma / norm, sigma / (norm * data_std), -data_std * alpha / norm
    )


PREDICTIONS: dict[str, Callable[[Level, Level, float], Affine]] = {
    "x0": _x0,
    "eps": _eps,
    "v": _v,
    "flow": _flow,
    "score": _score,
    "edm": _edm,
}


@dataclass(frozen=True)
class Prediction:
    """What a network predicts.

    name: a key of PREDICTIONS. data_std: standard deviation of x0 (only edm, and the scaling of the input,
    use it). scale_input: give the network x_t/√(σ² + data_std²·α²); None means what the prediction is known
    for (edm: yes, others: no).
    """

    name: str
    data_std: float = 1.0
    scale_input: bool | None = None

    def __post_init__(self) -> None:
        lookup(PREDICTIONS, self.name, "prediction")
        if not self.data_std > 0.0:
            raise UserError(f"prediction {self.name!r}: data_std must be positive, got {self.data_std}")
        if self.scale_input is None:
            object.__setattr__(self, "scale_input", self.name == "edm")

    def affine(self, alpha: Level, sigma: Level) -> Affine:
        """(c_skip, c_out, p, q) at α, σ: floats or (B,) tensors."""
        return PREDICTIONS[self.name](alpha, sigma, self.data_std)

    def c_in(self, alpha: Level, sigma: Level) -> Level:
        """The factor on the network's input; the float 1.0 when the input is not scaled."""
        if not self.scale_input:
            return 1.0
        return 1.0 / (sigma * sigma + (self.data_std * self.data_std) * (alpha * alpha)) ** 0.5

    def target(self, x0: Tensor, eps: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """p·x0 + q·ε, equal to (x0 − c_skip·x_t)/c_out, also where that is 0/0.

        Shapes (B, *D); α, σ float or (B,).
        """
        _, _, p, q = self.affine(alpha, sigma)
        return expand(p, x0) * x0 + expand(q, x0) * eps

    def of_x0(self, x0: Tensor, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """What the network would have said where it means x0: (x0 − c_skip·x_t)/c_out, (B, *D); needs σ > 0."""
        c_skip, c_out, _, _ = self.affine(alpha, sigma)
        return (x0 - expand(c_skip, x_t) * x_t) / expand(c_out, x_t)

    def to_x0(self, output: Tensor, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """c_skip·x_t + c_out·output, (B, *D)."""
        c_skip, c_out, _, _ = self.affine(alpha, sigma)
        return expand(c_skip, x_t) * x_t + expand(c_out, x_t) * output

    def config(self) -> dict[str, Any]:
        """Plain values; `prediction_from_config` reads them."""
        return asdict(self)


def prediction_from_config(config: str | dict[str, Any] | Prediction) -> Prediction:
    """A Prediction from its name, its stated options, or itself."""
    if isinstance(config, Prediction):
        return config
    if isinstance(config, str):
        return Prediction(config)
    if not isinstance(config, dict) or "name" not in config:
        raise UserError(f"prediction: expected a name or a mapping with a 'name', got {config!r}")
    return call(Prediction, f"prediction {config['name']!r}", 0, **config)
