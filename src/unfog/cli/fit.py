"""`unfog fit`: a plan of few evaluations, learned for one model."""

from __future__ import annotations

from pathlib import Path

from unfog.cli.options import Flag, Real, Whole


def fit(
    model: str,
    /,
    *,
    nfe: Whole,
    minutes: Real = 5.0,
    seeds: Whole = 16,
    name: str | None = None,
    prompts: Path | None = None,
    out: Path | None = None,
    json: Flag = False,
) -> None:
    """Learn steps and weights of a sampler with few evaluations, so that it ends where a fine one would.

    Try:
      unfog fit my-model --nfe 8 --minutes 10
      unfog fit emoji-64 --nfe 5 --out emoji-64-fast
      unfog generate "a red apple" --model my-model --sampler fit-8

    Parameters
    ----------
    model
        A model folder, or the name of a shipped model together with --out.
    nfe
        Network evaluations of the plan, 3 to 50.
    minutes
        Stop learning after this long and keep the best so far.
    seeds
        Pictures to learn from; as many others test it.
    name
        The plan's name; without it, fit-NFE.
    prompts
        A text file with a prompt a line; without it, the model's own data.
    out
        Write a copy of the model with the plan there, instead of adding it to the model.
    json
        Print the report as one JSON object.
    """
    import json as json_

    from unfog.requests import FitRequest, check

    fields = {"model": model, "nfe": nfe, "minutes": minutes, "seeds": seeds, "name": name, "prompts": prompts, "out": out}
    request = check(FitRequest, fields)
    from unfog.training.plans import learn_plan, show, watch

    report = learn_plan(request, watch)
    print(json_.dumps(report) if json else show(report))
