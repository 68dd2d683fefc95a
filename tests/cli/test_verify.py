"""`unfog verify` on the command line: what it passes on, prints and exits with."""

import json
import sys
import types

import pytest
from pydantic import BaseModel

from unfog.errors import UserError
from unfog.requests import VerifyRequest


class Found(BaseModel):
    ok: bool = True

    def __str__(self):
        return "all hold"


@pytest.fixture
def calls(monkeypatch):
    """A stand-in for the checks that records requests; the model "bad" fails one, "wrong" contradicts itself."""
    seen = []

    def verify(request):
        seen.append(request)
        if request.model == "wrong":
            raise UserError("prediction: 'v' is declared, but x0 it is; set prediction to 'x0'")
        return Found(ok=request.model != "bad")

    package, module = types.ModuleType("unfog.evaluation"), types.ModuleType("unfog.evaluation.verify")
    module.verify = verify
    monkeypatch.setitem(sys.modules, "unfog.evaluation", package)
    monkeypatch.setitem(sys.modules, "unfog.evaluation.verify", module)
    return seen


def test_what_it_passes_on_and_prints(unfog_command, calls):
    assert unfog_command("verify") == (0, ["all hold"], [])
    assert unfog_command("verify", "--quick") == (0, ["all hold"], [])
    code, (line,), err = unfog_command("verify", "my-model", "--prediction", "v", "--out", "report.json", "--json")
    assert (code, json.loads(line), err) == (0, {"ok": True}, [])
    assert calls == [
        VerifyRequest(),
        VerifyRequest(quick=True),
        VerifyRequest(model="my-model", prediction="v", out="report.json"),
    ]


def test_exit_codes(unfog_command, calls):
    assert unfog_command("verify", "bad") == (1, ["all hold"], [])
    code, out, (line,) = unfog_command("verify", "wrong")
    assert (code, out) == (2, []) and "'v' is declared" in line
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--prediction", "v"], "prediction: 'v' is given without a model"), ([""], "model: is empty"), (["m", "n"], "--help")],
)
def test_bad_words_are_one_line(unfog_command, calls, words, says):
    code, out, err = unfog_command("verify", *words)
    assert (code, out, len(err)) == (2, [], 1) and says in err[0]
    assert calls == []


def test_a_folder_is_no_place_for_the_report(unfog_command, tmp_path):
    code, out, (line,) = unfog_command("verify", "--out", tmp_path)
    assert (code, out) == (2, []) and "is a folder" in line
