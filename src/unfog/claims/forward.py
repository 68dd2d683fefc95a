"""The forward process destroys information: a falling SNR, a falling mutual information, and noise at the end.

    I(x0; x_t) = ½·∫₀^{snr} mmse(s) ds,    mmse(s) = E|x0 − E[x0 | x_t]|²  at snr s = α²/σ²

For a mixture both sides are known apart: the right one by the exact denoiser, the left one by the exact densities. For
pictures any denoiser's error is at least the mmse, so the integral bounds the information from above.
Sources: Guo et al. 2005, arXiv:cs/0412108, theorem 1 (I-MMSE); Lin et al. 2023, arXiv:2305.08891 (SNR left at the end).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from unfog.claims import emoji
from unfog.claims.claim import Figure, Found, Line, Plot, Say, Settings, Statement, Test
from unfog.claims.mixtures import MIXTURES, Mixture, end
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.schedules import SCHEDULES, Cosine, Schedule, Shifted, Table
from unfog.evaluation.statistics import bootstrap_interval

LOW, HIGH = -12.0, 10.0  # log-SNR: below it nothing is known of x0, above it nothing is left to learn
PICTURE_HIGH = 6.5  # log-SNR; above it the shipped model was not trained
TIMES = 1000
CHANCE = 0.5
ENDS: dict[str, Callable[[], Schedule]] = {
    "cosine (ours)": Cosine, "DDPM's linear table": Table.linear, "Stable Diffusion's table": Table.scaled_linear,
}  # fmt: skip

STATEMENT = Statement(
    title="The forward process destroys information",
    says="Adding noise step by step destroys the information about the data, until only Gaussian noise is left.",
    source="Sohl-Dickstein et al. 2015, arXiv:1503.03585; Ho et al. 2020, arXiv:2006.11239",
    how="SNR of every schedule at 1,000 times. Mutual information on exact mixtures by I-MMSE with the exact denoiser, beside "
        "the same by exact densities; on held-out pictures an upper bound by the shipped model's error. The end is held against "
        "pure noise by the likelihood-ratio classifier of Gaussian pictures, learned on training, tested on held-out ones.",
    tests=(
        Test(key="snr", says="largest rise of the log-SNR between neighbouring times, of all schedules", op="<=", bound=0.0),
        Test(key="agree", says="mixtures: largest gap of I-MMSE to the densities, share of the information", op="<=", bound=0.01),
        Test(key="rise", says="largest rise with t of the information by densities, nats, of any mixture", op="<=", bound=0.01),
        Test(key="cosine", says="classifier at the end of our schedule (cosine): lower end of its accuracy's interval", op="<=",
             bound=CHANCE),
        Test(key="linear", says="the same at the end of DDPM's linear table", op="<=", bound=CHANCE),
        Test(key="scaled", says="the same at the end of Stable Diffusion's table (scaled linear)", op="<=", bound=CHANCE),
    ),
)  # fmt: skip


def integrated(logsnr: np.ndarray, mmse: np.ndarray) -> np.ndarray:
    """½·∫ mmse d snr up to each log-SNR (n,) in nats, for mmse (n,) or (n, m) at rising log-SNR.

    The area is taken in log-SNR, where mmse·snr is smooth; below the first point the mmse is its own.
    """
    snr = np.exp(logsnr)
    slope = 0.5 * mmse * (snr if mmse.ndim == 1 else snr[:, None])
    width = np.diff(logsnr) if mmse.ndim == 1 else np.diff(logsnr)[:, None]
    return np.concatenate([slope[:1], slope[:1] + np.cumsum(0.5 * (slope[1:] + slope[:-1]) * width, 0)])


def information(mixture: Mixture, logsnr: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """I(x0; x_t) in nats at each log-SNR (n,), by I-MMSE and by densities, each from draws of its own."""
    process = Gaussian(Cosine())
    denoise, size = mixture.denoiser(process), mixture.means.shape[1]
    errors, direct = [], []
    for k, level in enumerate(logsnr):
        t = float(process.schedule.time(float(level)))
        alpha, sigma = process.schedule.alpha(t), process.schedule.sigma(t)
        # fresh noise at each level for the integral, whose errors then average out; the same for the densities, whose
        # differences from level to level are then the levels' own
        rngs = [np.random.default_rng([seed, 43, k]), np.random.default_rng([seed, 44])]
        x0, other = mixture.draw(n, seed), mixture.draw(n, seed + 1)
        eps, other_eps = (torch.from_numpy(rng.standard_normal(x0.shape)) for rng in rngs)
        errors.append(float((denoise(process.mix(x0, eps, t), t) - x0).square().sum(1).mean()))
        x_t = process.mix(other, other_eps, t)
        given = -0.5 * other_eps.square().sum(1) - 0.5 * size * math.log(2.0 * math.pi * sigma**2)
        direct.append(float((given - mixture.log_prob(x_t, alpha, sigma).logsumexp(1)).mean()))
    return integrated(logsnr, np.array(errors)), np.array(direct)


def picture_bound(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """(log-SNR (k,), upper bound on the information of each held-out picture in bits (k, N))."""
    n, count = (8, 12) if settings.quick else (64, 28)
    chosen = emoji.rows("heldout_concept", n, settings.seed)
    denoiser, x0 = emoji.model().denoiser, emoji.encoded(chosen)
    logsnr = np.linspace(-9.0, PICTURE_HIGH, count)
    rng = np.random.default_rng([settings.seed, 47])
    errors = []
    with torch.inference_mode():
        for level in logsnr:
            t = float(denoiser.process.schedule.time(float(level)))
            eps = torch.from_numpy(rng.standard_normal(x0.shape)).float()
            parts = []
            for i in range(0, n, emoji.BATCH):
                part = x0[i : i + emoji.BATCH]
                guess = denoiser(denoiser.process.mix(part, eps[i : i + emoji.BATCH], t), t, emoji.empty(len(part)))
                parts.append((guess - part).flatten(1).square().sum(1).double().numpy())
            # what the best constant would lose bounds it too, and wins where nothing can be seen
            errors.append(np.concatenate(parts))
    return logsnr, integrated(logsnr, np.stack(errors)) / math.log(2.0)


class Telling:
    """The likelihood-ratio classifier between x_t of pictures and pure noise, pictures taken for Gaussian.

    In the first principal axes of training pictures: N(α·μ, α²·λ + σ²) against N(0, 1).
    """

    def __init__(self, train: Tensor, axes: int) -> None:
        flat = train.flatten(1).double()
        mean = flat.mean(0)
        _, values, basis = torch.linalg.svd(flat - mean, full_matrices=False)
        self.basis, self.spread = basis[:axes], (values[:axes] ** 2) / (len(flat) - 1)
        # the mean itself is the loudest sign of a picture, so it has an axis of its own
        lead = mean - self.basis.T @ (self.basis @ mean)
        self.basis = torch.cat([self.basis, (lead / lead.norm())[None]])
        self.spread = torch.cat([self.spread, ((flat - mean) @ self.basis[-1]).var()[None]])
        self.mean = self.basis @ mean

    def score(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """log p(picture's)/p(noise) of each x (N, ...)."""
        place = x.flatten(1).double() @ self.basis.T
        variance = alpha**2 * self.spread + sigma**2
        return 0.5 * (place**2 - (place - alpha * self.mean) ** 2 / variance - torch.log(variance)).sum(1)


def accuracy(telling: Telling, x0: Tensor, schedule: Schedule, t: float, draws: int, seed: int) -> np.ndarray:
    """Share of right answers for each picture (N,), over draws of its x_t and of as much pure noise; a tie is half right."""
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    right = np.zeros(len(x0))
    for k in range(draws):
        rng = np.random.default_rng([seed, 53, k])
        eps, pure = (torch.from_numpy(rng.standard_normal(x0.shape)).float() for _ in range(2))
        for scores, sign in ((telling.score(alpha * x0 + sigma * eps, alpha, sigma), 1), (telling.score(pure, alpha, sigma), -1)):
            # where α is 0 but for rounding, both densities are one and the score is a matter of the last bits
            scores = torch.where(scores.abs() < 1e-9, 0.0, scores)
            right += 0.5 * (1.0 + sign * torch.sign(scores).numpy())
    return right / (2 * draws)


def measure(settings: Settings, say: Say) -> Found:
    """Mixtures, the shipped model's bound, and the classifier at the end."""
    figures, lines = [], []
    rise = -math.inf
    say("SNR of all schedules")
    schedules: list[Schedule] = [build() for name, build in SCHEDULES.items() if name not in ("table", "shifted")]
    schedules.append(Shifted(Cosine(), 3.0))
    for schedule in schedules:
        levels = np.asarray(schedule.logsnr(torch.linspace(0.0, 1.0, TIMES, dtype=torch.float64)))
        rise = max(rise, float(np.max(np.diff(levels[np.isfinite(levels)]))))
    figures.append(Figure(what=f"schedules whose SNR was followed at {TIMES:,} times", value=len(schedules), n=0))
    points, n = (80, 1_000) if settings.quick else (160, 8_000)
    logsnr = np.linspace(LOW, HIGH, points)
    gap = worst = -math.inf
    for name, build_mixture in MIXTURES.items():
        say(f"information of {name}")
        by_mmse, direct = information(build_mixture(), logsnr, n, settings.seed)
        gap, worst = max(gap, float(np.abs(by_mmse - direct).max() / direct.max())), max(worst, float(-np.diff(direct).min()))
        time = np.asarray(Cosine().time(torch.from_numpy(logsnr)))
        lines += [Line(name=name, x=time.tolist(), y=by_mmse.tolist())]
        for way, value in (("I-MMSE", by_mmse[-1]), ("densities", direct[-1])):
            what = f"{name}: I(x0; x_t) at log-SNR {HIGH:g} by {way}, nats"
            figures.append(Figure(what=what, value=float(value), n=n, of="draws"))
    say("the shipped model's error on held-out pictures")
    levels, bits = picture_bound(settings)
    per = bits / emoji.NUMBERS
    shown = [bootstrap_interval(row) for row in per]
    time = np.asarray(Cosine().time(torch.from_numpy(levels)))
    picture_plot = Plot(
        name="pictures", title="Upper bound on what x_t tells of a picture", x_name="t", y_name="bits a number",
        lines=[Line(name=f"{emoji.MODEL}, held-out concepts", x=time.tolist(), y=per.mean(1).tolist(),
                    low=[a for a, _ in shown], high=[b for _, b in shown])], log_y=True)  # fmt: skip
    for place in (0.25, 0.5, 0.75):
        k = int(np.argmin(np.abs(time - place)))
        figures.append(emoji.mean_of(f"pictures: at most so many bits a number are left at t = {time[k]:.2f}", per[k]))
    told = classified(settings, say)
    ends = {name: emoji.mean_of(f"classifier's accuracy at the end of {name}", told[name]) for name in ENDS}
    figures += list(ends.values())
    lowest = [end(figure.low) for figure in ends.values()]
    return Found(
        tuple(figures),
        {"snr": rise, "agree": gap, "rise": worst, "cosine": lowest[0], "linear": lowest[1], "scaled": lowest[2]},
        (Plot(name="information", title="Mutual information of x0 and x_t, exact mixtures", lines=lines,
              x_name="t (cosine schedule)",
              y_name="nats"), picture_plot),
        ("A classifier that finds the end told apart from noise has found a remainder of the picture, which a sampler that "
         "starts from pure noise never sees.",),
    )  # fmt: skip


def classified(settings: Settings, say: Say) -> dict[str, np.ndarray]:
    """Share of right answers a picture (N,) at the end of each of ENDS."""
    say("telling the end from noise")
    train, test, draws, axes = (200, 100, 2, 32) if settings.quick else (1_000, 449, 8, 128)
    telling = Telling(emoji.encoded(emoji.rows("train", train, settings.seed)), axes)
    x0 = emoji.encoded(emoji.rows("heldout_concept", test, settings.seed))
    return {name: accuracy(telling, x0, build(), 1.0, draws, settings.seed) for name, build in ENDS.items()}
