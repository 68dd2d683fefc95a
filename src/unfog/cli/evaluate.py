"""`unfog evaluate`: how what models make compares with a set of data, and models with each other."""

from __future__ import annotations

from pathlib import Path

from unfog.cli.options import Count, Flag, Real, Whole


def evaluate(
    model: str,
    /,
    *others: str,
    against: str | None = None,
    kind: str | None = None,
    n: Count = 256,
    seed: Whole = 0,
    sampler: str | None = None,
    steps: Whole | None = None,
    scale: Real | None = None,
    batch: Whole = 16,
    reader: str = "lite0",
    likelihood: Whole = 16,
    force: Flag = False,
    out: Path | None = None,
    json: Flag = False,
) -> None:
    """Measure samples: how near they are to a set of data, how varied, how true to what was asked, how far from copies.

    Try:
      unfog evaluate emoji-64
      unfog evaluate my-model --against my-pictures/ -n 2000 --out report.html
      unfog evaluate my-model emoji-64 -n 500
      unfog evaluate pictures-made-elsewhere/ --against my-pictures/
      unfog evaluate my-autoencoder --against my-pictures/ -n 1000

    Parameters
    ----------
    model
        The name of a shipped model (see `unfog models`), a model folder, a folder or .zip of pictures that were made already, a
        .npy file of numbers, or an autoencoder's folder, which is measured on held-out pictures.
    others
        More of these, compared with the first; models are given the same prompts and seeds.
    against
        The name of a shipped data set, a folder or .zip of pictures, or a .npy file of numbers; without it, emoji-64, or what a
        model of another kind than pictures was trained on.
    kind
        The kind of data where no model says it (see `unfog models --kinds`).
    n
        Samples to make; more takes longer and narrows the intervals.
    seed
        The first seed.
    sampler
        Another sampler than the model's own.
    steps
        Other steps than the model's own.
    scale
        Another strength of guidance than the model's own.
    batch
        Pictures made at once.
    reader
        The feature function: lite0 (its distances are called FD-lite0), pixels, or inception (FID, with your own weights).
    likelihood
        Pictures, seen and unseen, whose likelihood is bounded; 0 for none.
    force
        Print also what so few samples cannot tell.
    out
        Also write the report to this file: .json, or .html with pictures and plots.
    json
        Print the report as one JSON object.
    """
    from unfog.requests import EvaluateRequest, check

    request = check(EvaluateRequest, {
        "models": [model, *others], "against": against, "kind": kind,
        "n": n, "seed": seed, "sampler": sampler, "steps": steps, "scale": scale,
        "batch": batch, "reader": reader, "likelihood": likelihood, "force": force, "out": out,
    })  # fmt: skip
    from unfog.evaluation import evaluate as run

    evaluation = run(request)
    print(evaluation.model_dump_json() if json else evaluation)
