"""What diffusion is: schedule → denoiser → sampler, with torch and numpy only.

A **schedule** (α, σ) mixes data with noise; a **denoiser** returns E[x0 | x_t]; a **sampler** walks back.
"""

from unfog.diffusion.adaptive import run_adaptive, sample_adaptive
from unfog.diffusion.classify import classify
from unfog.diffusion.denoisers import DataSetDenoiser, Denoiser, GaussianDenoiser, MixtureDenoiser, OneByOne, Preconditioned
from unfog.diffusion.discrete import Categorical, discrete_loss, sample_discrete
from unfog.diffusion.editing import inversion, noised, slerp
from unfog.diffusion.fit import Fitted, Problem, fit
from unfog.diffusion.grids import GRIDS, make_grid
from unfog.diffusion.guidance import GUIDANCES, guide
from unfog.diffusion.likelihood import bits_per_dim, log_likelihood, variational_bound
from unfog.diffusion.losses import TIMES, WEIGHTS, denoising_loss, stratified
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import Plan, State, advance, begin, run, sample
from unfog.diffusion.predictions import PREDICTIONS, Prediction, prediction_from_config
from unfog.diffusion.processes import Gaussian, Process, process_from_config
from unfog.diffusion.samplers import SAMPLERS, make_plan
from unfog.diffusion.schedules import SCHEDULES, Schedule, schedule_from_config

__all__ = [
    "GRIDS", "GUIDANCES", "PREDICTIONS", "SAMPLERS", "SCHEDULES", "TIMES", "WEIGHTS", "Categorical", "DataSetDenoiser",
    "Denoiser", "Fitted", "Gaussian", "GaussianDenoiser", "MixtureDenoiser", "Noise", "OneByOne", "Plan", "Preconditioned",
    "Prediction", "Problem", "Process", "Schedule", "State", "advance", "begin", "bits_per_dim", "classify", "denoising_loss",
    "discrete_loss", "fit", "guide", "inversion", "log_likelihood", "make_grid", "make_plan", "noised",
    "prediction_from_config", "process_from_config", "run", "run_adaptive", "sample", "sample_adaptive", "sample_discrete",
    "schedule_from_config", "slerp", "stratified", "variational_bound",
]  # fmt: skip
