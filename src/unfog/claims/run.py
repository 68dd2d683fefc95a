"""Measuring claims, one after another, and keeping what was found: FOLDER/claims.json, its plots, and the page FOLDER.md.

Each claim is written as soon as it is done, so an interrupted run keeps all that it finished. Everything but the time
taken, which stands in its own table, is a function of the code and the seed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from unfog.checks import lookup
from unfog.claims import CLAIMS, page
from unfog.claims.claim import Claim, Settings, decide
from unfog.errors import UserError
from unfog.files import write_atomic
from unfog.requests import ClaimsRequest

RESULTS = "claims.json"


class Results(BaseModel):
    """All claims that were measured into a folder, in the registry's order; seconds is what each took."""

    model_config = ConfigDict(extra="forbid")

    claims: list[Claim] = []
    seconds: dict[str, float] = {}

    def __str__(self) -> str:
        return page.terminal(self.claims)


def measure(name: str, settings: Settings, say: Callable[[str], None] = lambda line: None) -> Claim:
    """Measure one claim of CLAIMS on one thread. Raises: UserError for an unknown name, with the nearest."""
    from unfog import __version__
    from unfog.diffusion.denoisers import one_thread

    statement, go = lookup(CLAIMS, name, "claim")
    with one_thread():  # sums in a fixed order
        found = go(settings, say)
    checks, verdict = decide(statement.tests, found.values)
    return Claim(
        name=name,
        title=statement.title,
        says=statement.says,
        source=statement.source,
        how=statement.how,
        quick=settings.quick,
        seed=settings.seed,
        version=__version__,
        checks=checks,
        verdict=verdict,
        figures=list(found.figures),
        plots=list(found.plots),
        notes=list(found.notes),
    )


def read(folder: Path) -> Results:
    """What a folder holds; empty where nothing was measured yet. Raises: UserError where its file is not readable."""
    path = folder / RESULTS
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return Results()
    except OSError as error:
        raise UserError(f"out: {path} cannot be read ({error.strerror}); choose another folder") from None
    try:
        results = Results.model_validate_json(text)
    except ValidationError:
        raise UserError(f"{path}: no results of this version of `unfog claims`; remove it and measure again") from None
    foreign = [claim.name for claim in results.claims if claim.name not in CLAIMS]
    if foreign:
        raise UserError(f"{path}: {foreign[0]!r} is no claim of this version; remove the file and measure again")
    return results


def write(folder: Path, results: Results) -> None:
    """The results, their plots and the page, each file whole or not at all. Raises: UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        write_atomic(folder / RESULTS, text.encode())
        for name, drawn in page.drawings(results.claims).items():
            write_atomic(folder / name, drawn.encode())
        write_atomic(page_of(folder), page.markdown(results.claims, folder.name, results.seconds, missing(results)).encode())
    except OSError as error:
        raise UserError(f"out: {error.filename or folder} cannot be written ({error.strerror}); choose another place") from None


def missing(results: Results) -> dict[str, str]:
    """Name and title of each claim that was not measured."""
    there = {claim.name for claim in results.claims}
    return {name: statement.title for name, (statement, _) in CLAIMS.items() if name not in there}


def page_of(folder: Path) -> Path:
    """Where the page of a folder stands: beside it, so that its links to the plots hold."""
    return folder.with_name(folder.name + ".md")


def claims(request: ClaimsRequest, say: Callable[[str], None] = lambda line: None) -> Results:
    """Measure the claims that a request names (all, if none), or only draw its page again.

    Returns: what the folder holds of them afterwards. Raises: UserError for an unknown name or an unusable folder.
    """
    names = list(dict.fromkeys(request.names)) or list(CLAIMS)
    for name in names:
        lookup(CLAIMS, name, "claim")  # before the long work, not in the middle of it
    folder = request.out.absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out: {request.out} is a file, not a folder; choose another place")
    results = read(folder)
    if request.page:
        if not results.claims:
            raise UserError(f"out: {request.out} holds no {RESULTS}; measure first, without --page")
        write(folder, results)
        return _named(results, names)
    settings = Settings(request.quick, request.seed)
    write(folder, results)  # a folder that cannot be written is found out now
    for name in names:
        there = next((c for c in results.claims if c.name == name), None)
        if request.resume and there is not None and (there.quick, there.seed) == (request.quick, request.seed):
            say(f"{name}: measured before")
            continue
        start = time.process_time()
        claim = measure(name, settings, lambda line, name=name: say(f"{name}: {line}"))  # type: ignore[misc]
        kept = [c for c in results.claims if c.name != name] + [claim]
        seconds = {**results.seconds, name: round(time.process_time() - start, 1)}
        order = list(CLAIMS)
        results = Results(
            claims=sorted(kept, key=lambda c: order.index(c.name)), seconds={k: seconds[k] for k in order if k in seconds}
        )
        write(folder, results)
        say(f"{name}: {claim.verdict}")
    return _named(results, names)


def _named(results: Results, names: Sequence[str]) -> Results:
    return Results(claims=[c for c in results.claims if c.name in names],
                   seconds={k: v for k, v in results.seconds.items() if k in names})  # fmt: skip
