"""How good a model is: retrieval by an independent scorer, copies of training pictures, wrong styles, with intervals."""

from unfog.evaluation.copies import Known, copy_share, copy_threshold, look, nearest, planted, thumbnails
from unfog.evaluation.memorisation import Memorisation, memorisation
from unfog.evaluation.pictures import evaluate, measure, style_error
from unfog.evaluation.report import Compared, Copies, Figure, Group, Report
from unfog.evaluation.retrieval import draw_distractors, retrieval
from unfog.evaluation.statistics import bootstrap_interval, share_interval

__all__ = [
    "Compared",
    "Copies",
    "Figure",
    "Group",
    "Known",
    "Memorisation",
    "Report",
    "bootstrap_interval",
    "copy_share",
    "copy_threshold",
    "draw_distractors",
    "evaluate",
    "look",
    "measure",
    "memorisation",
    "nearest",
    "planted",
    "retrieval",
    "share_interval",
    "style_error",
    "thumbnails",
]
