"""How good samples are: distances to the data, coverage, an independent judge, copies, likelihood, each with its interval."""

from unfog.evaluation.conditions import style_error
from unfog.evaluation.memorisation import Memorisation, memorisation
from unfog.evaluation.report import Difference, Evaluation, Figure, Measure, Report
from unfog.evaluation.retrieval import draw_distractors, retrieval
from unfog.evaluation.run import evaluate, measure, measure_model, measure_numbers
from unfog.evaluation.samples import Asked, Samples, found_in, made_by
from unfog.evaluation.statistics import bootstrap_interval, difference_interval, share_interval

__all__ = [
    "Asked",
    "Difference",
    "Evaluation",
    "Figure",
    "Measure",
    "Memorisation",
    "Report",
    "Samples",
    "bootstrap_interval",
    "difference_interval",
    "draw_distractors",
    "evaluate",
    "found_in",
    "made_by",
    "measure",
    "measure_model",
    "measure_numbers",
    "memorisation",
    "retrieval",
    "share_interval",
    "style_error",
]
