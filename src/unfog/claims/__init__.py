"""The field's claims, each measured by code that anyone can rerun: `unfog claims`. One file a claim, one line in CLAIMS.

claim.py says what a claim is and decides it; run.py measures and keeps the results; page.py and draw.py show them.
mixtures.py, modes.py, emoji.py and tiny.py are what claims are measured on: exact mixtures, such whose modes are counted, the
shipped model, small networks.
"""

from __future__ import annotations

from unfog.claims import forward, gan, gan_pictures, markov
from unfog.claims.claim import Check, Claim, Figure, Found, Line, Measure, Plot, Settings, Statement, Test, decide

CLAIMS: dict[str, tuple[Statement, Measure]] = {
    "forward": (forward.STATEMENT, forward.measure),
    "markov": (markov.STATEMENT, markov.measure),
    "gan": (gan.STATEMENT, gan.measure),
    "gan-pictures": (gan_pictures.STATEMENT, gan_pictures.measure),
}

__all__ = [
    "CLAIMS", "Check", "Claim", "Figure", "Found", "Line", "Measure", "Plot", "Settings", "Statement", "Test", "decide",
]  # fmt: skip
