"""`unfog estimate`: what a training run would take here, measured in seconds."""

from __future__ import annotations

from pathlib import Path

from unfog.cli.options import Flag, Whole


def estimate(
    source: Path,
    /,
    *,
    kind: str | None = None,
    preset: str | None = None,
    budget: str | None = None,
    steps: Whole | None = None,
    start: str | None = None,
    json: Flag = False,
) -> None:
    """Time, memory and disk that `unfog train` would take with the same options, and what its checks would say.

    A few real steps are measured; nothing is trained or written.

    Try:
      unfog estimate my-pictures/
      unfog estimate my-pictures/ --budget 2h
      unfog estimate recipes/emoji_64.py --steps 5000 --json

    Parameters
    ----------
    source
        A recipe file, or a folder or .zip of pictures.
    kind
        The kind of data, where they are no pictures (see `unfog models --kinds`).
    preset
        Named settings for pictures of one's own: tiny, small, base, large or dit-small.
    budget
        A time such as 45s, 30m, 2h, 1.5h or 1d: which preset and how many steps fit it.
    steps
        Training steps; without it, the recipe's own, or as many as the budget holds.
    start
        A shipped model or a model folder whose weights to begin with.
    json
        Print the estimate as one JSON object.
    """
    import json as json_

    from unfog.errors import UserError
    from unfog.requests import EstimateRequest, check

    given = {"kind": kind, "preset": preset, "budget": budget, "steps": steps, "start": start}
    request = check(EstimateRequest, {"source": source, **{k: v for k, v in given.items() if v is not None}})
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give a recipe file, or a folder or .zip of pictures")
    from unfog.training.estimate import estimate as run

    found = run(request)
    print(json_.dumps(found.as_dict()) if json else found)
