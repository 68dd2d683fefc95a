"""`unfog verify`: declared against observed, of the whole core or of one model folder."""

from __future__ import annotations

from pathlib import Path

from unfog.cli.options import Flag


def verify(
    model: str | None = None,
    /,
    *,
    quick: Flag = False,
    prediction: str | None = None,
    out: Path | None = None,
    json: Flag = False,
) -> int:
    """Check against exact answers: samplers, predictions and guidances, or a model against itself.

    The exit code is 1 if a check fails, 2 if a setting contradicts the model.

    Try:
      unfog verify --quick
      unfog verify emoji-64
      unfog verify my-model --prediction v

    Parameters
    ----------
    model
        The name of a shipped model or a model folder; without it, the whole matrix.
    quick
        Fewer checks, in about ten seconds.
    prediction
        What the model's network predicts, if its model.json does not say.
    out
        Also write the report to this file.
    json
        Print the report as one JSON object.
    """
    from unfog.requests import VerifyRequest, check

    request = check(VerifyRequest, {"model": model, "prediction": prediction, "quick": quick, "out": out})
    from unfog.evaluation.verify import verify as run

    report = run(request)
    print(report.model_dump_json() if json else report)
    return 0 if report.ok else 1
