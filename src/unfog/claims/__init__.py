"""The field's claims, each measured by code that anyone can rerun: `unfog claims`. One file a claim, one line in CLAIMS.

claim.py says what a claim is and decides it; run.py measures and keeps the results; page.py and draw.py show them.
mixtures.py, emoji.py and tiny.py are what claims are measured on: exact mixtures, the shipped model, small networks;
guided.py serves the claims about guidance, modes.py those about GANs.
"""

from __future__ import annotations

from unfog.claims import (
    dropped,
    few_steps,
    few_steps_pictures,
    forward,
    gan,
    gan_pictures,
    guidance,
    latent,
    markov,
    memorising,
    saturation,
    saturation_pictures,
    steps,
)
from unfog.claims.claim import Check, Claim, Figure, Found, Line, Measure, Plot, Settings, Statement, Test, decide

CLAIMS: dict[str, tuple[Statement, Measure]] = {
    "forward": (forward.STATEMENT, forward.measure),
    "markov": (markov.STATEMENT, markov.measure),
    "steps": (steps.STATEMENT, steps.measure),
    "few-steps": (few_steps.STATEMENT, few_steps.measure),
    "few-steps-pictures": (few_steps_pictures.STATEMENT, few_steps_pictures.measure),
    "guidance": (guidance.STATEMENT, guidance.measure),
    "saturation": (saturation.STATEMENT, saturation.measure),
    "saturation-pictures": (saturation_pictures.STATEMENT, saturation_pictures.measure),
    "latent": (latent.STATEMENT, latent.measure),
    "gan": (gan.STATEMENT, gan.measure),
    "gan-pictures": (gan_pictures.STATEMENT, gan_pictures.measure),
    "memorising": (memorising.STATEMENT, memorising.measure),
    "dropped": (dropped.STATEMENT, dropped.measure),
}

__all__ = [
    "CLAIMS", "Check", "Claim", "Figure", "Found", "Line", "Measure", "Plot", "Settings", "Statement", "Test", "decide",
]  # fmt: skip
