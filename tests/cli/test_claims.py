"""`unfog claims` on the command line: what it lists, passes on, prints and refuses."""

import json
import sys
import types

import pytest
from pydantic import BaseModel

from unfog.requests import ClaimsRequest


class Found(BaseModel):
    claims: list[str] = ["forward"]

    def __str__(self):
        return "forward: holds"


@pytest.fixture
def calls(monkeypatch):
    """A stand-in for the measuring that records requests."""
    seen = []
    module = types.ModuleType("unfog.claims.run")

    def claims(request, say):
        seen.append(request)
        say("forward: measuring")
        return Found()

    module.claims = claims
    monkeypatch.setitem(sys.modules, "unfog.claims.run", module)
    return seen


def test_what_it_passes_on_and_prints(unfog_command, calls):
    assert unfog_command("claims") == (0, ["forward: holds"], ["forward: measuring"])
    code, (line,), _ = unfog_command("claims", "forward", "markov", "--quick", "--seed", 3, "--out", "x", "--resume", "--json")
    assert (code, json.loads(line)) == (0, {"claims": ["forward"]})
    unfog_command("claims", "--page")
    assert calls == [
        ClaimsRequest(),
        ClaimsRequest(names=["forward", "markov"], quick=True, seed=3, out="x", resume=True),
        ClaimsRequest(page=True),
    ]


def test_it_lists_the_claims(unfog_command):
    from unfog.claims import CLAIMS

    code, out, err = unfog_command("claims", "--list")
    assert code == 0 and not err and [line.split()[0] for line in out] == list(CLAIMS)


@pytest.mark.parametrize(
    ("words", "says"),
    [(["forwards"], "did you mean forward?"), (["--seed", "-1"], "seed: -1 is less than 0"), (["--seed", "x"], "--help")],
)
def test_bad_input_is_one_line(unfog_command, words, says):
    code, out, (line,) = unfog_command("claims", *words)
    assert (code, out) == (2, []) and says in line
