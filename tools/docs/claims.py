"""Put together what claims were measured into several places, and draw docs/claims.md of it.

    unfog claims forward --out /tmp/one & unfog claims steps --out /tmp/two & wait
    python tools/docs/claims.py /tmp/one /tmp/two benchmarks/results/gan.json

Each place is a folder of `unfog claims`, or a JSON file whose "claims" are such; what stands in a later place replaces what
stands in an earlier one, and docs/claims itself comes first. Nothing is measured and no verdict changes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from unfog.claims import CLAIMS
from unfog.claims.claim import Claim
from unfog.claims.run import RESULTS, Results, read, write

DOCS = Path(__file__).parents[2] / "docs" / "claims"


def of(place: Path) -> Results:
    """The results of a folder, or the claims of a JSON file."""
    if place.is_dir():
        return read(place)
    found = json.loads(place.read_text(encoding="utf-8"))
    return Results(claims=[Claim(**claim) for claim in found["claims"]], seconds=found.get("seconds", {}))


def joined(places: list[Path], into: Path) -> Results:
    """All claims of `into` and of the places, later ones first, in the registry's order."""
    claims: dict[str, Claim] = {}
    seconds: dict[str, float] = {}
    for results in map(of, [into, *places] if (into / RESULTS).is_file() else places):
        for claim in results.claims:
            claims[claim.name] = claim
            seconds.pop(claim.name, None)
            seconds |= {k: v for k, v in results.seconds.items() if k == claim.name}
    order = list(CLAIMS)
    return Results(
        claims=sorted(claims.values(), key=lambda c: order.index(c.name)), seconds={k: seconds[k] for k in order if k in seconds}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", type=Path)
    parser.add_argument("--into", type=Path, default=DOCS)
    given = parser.parse_args()
    results = joined(given.places, given.into)
    write(given.into, results)
    for claim in results.claims:
        print(f"{claim.name}: {claim.verdict}{' (quick)' if claim.quick else ''}")


if __name__ == "__main__":
    main()
