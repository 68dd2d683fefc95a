"""`unfog evaluate`: how a model's pictures compare with a data set's."""

from __future__ import annotations

from pathlib import Path

from unfog.cli.options import Count, Flag, Whole


def evaluate(
    model: str, /, *, against: str = "emoji-64", n: Count = 256, seed: Whole = 0, out: Path | None = None, json: Flag = False
) -> None:
    """Measure a model: how near its pictures are to a data set's, how varied, how far from copies.

    Try:
      unfog evaluate emoji-64
      unfog evaluate my-model --against my-pictures/ -n 1000 --out report.json

    Parameters
    ----------
    model
        The name of a shipped model (see `unfog models`) or a model folder.
    against
        The name of a shipped data set, or a folder or .zip of pictures.
    n
        Pictures to make; more takes longer and narrows the confidence intervals.
    seed
        The first seed.
    out
        Also write the report to this file.
    json
        Print the report as one JSON object.
    """
    from unfog.requests import EvaluateRequest, check

    request = check(EvaluateRequest, {"model": model, "against": against, "n": n, "seed": seed, "out": out})
    from unfog.evaluation import evaluate as run

    report = run(request)
    print(report.model_dump_json() if json else report)
