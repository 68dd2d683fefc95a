"""Evaluation that cannot flatter: an independent judge, copies, styles, each with its sample size and interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unfog.requests import EvaluateRequest


def evaluate(request: EvaluateRequest) -> dict[str, Any]:
    """Compare a model's pictures with a data set's (`unfog.evaluation.report.evaluate`); torch is loaded only now."""
    from unfog.evaluation.report import evaluate

    return evaluate(request)
