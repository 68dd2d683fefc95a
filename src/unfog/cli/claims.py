"""`unfog claims`: what the field says of diffusion models, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unfog.cli.options import Flag, Whole


def claims(
    *names: str,
    quick: Flag = False,
    seed: Whole = 0,
    out: Path = Path("unfog-claims"),
    resume: Flag = False,
    page: Flag = False,
    list_: Annotated[Flag, Parameter(name="--list")] = False,
    json: Flag = False,
) -> None:
    """Measure the field's claims on exact mixtures and on the shipped model, and say which hold.

    Results are kept in FOLDER/claims.json as each claim is done, plots beside them, and the page is FOLDER.md.

    Try:
      unfog claims --list
      unfog claims forward markov --quick
      unfog claims --out docs/claims --resume

    Parameters
    ----------
    names
        Which claims; all, if none is named.
    quick
        Few samples and wide intervals: all claims in about two minutes.
    seed
        Of all that is drawn at random.
    out
        The folder for results and plots.
    resume
        Keep what the folder already holds from the same settings, and measure the rest.
    page
        Draw plots and page again from the results, without measuring.
    list_
        Print the names and titles of all claims.
    json
        Print the results as one JSON object.
    """
    import sys

    from unfog.requests import ClaimsRequest, check

    fields = {"names": list(names), "quick": quick, "seed": seed, "out": out, "resume": resume, "page": page}
    request = check(ClaimsRequest, fields)
    if list_:
        from unfog.claims import CLAIMS

        for name, (statement, _) in CLAIMS.items():
            print(f"{name:12}  {statement.title}")
        return
    from unfog.claims.run import claims as run

    results = run(request, lambda line: print(line, file=sys.stderr, flush=True))
    print(results.model_dump_json() if json else results)
