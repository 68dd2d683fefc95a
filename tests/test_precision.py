"""The number format: what the processor has, or what the environment says; and kinds of data work in bf16, too."""

import pytest
import torch

import unfog
from unfog.errors import UserError
from unfog.precision import SMALL, fastest


def test_the_environment_decides_where_it_says_something(monkeypatch):
    monkeypatch.setenv("UNFOG_PRECISION", "bfloat16")
    assert fastest() == torch.bfloat16
    monkeypatch.setenv("UNFOG_PRECISION", "half")
    with pytest.raises(UserError, match="UNFOG_PRECISION: 'half' is not one of float32, bfloat16"):
        fastest()
    monkeypatch.delenv("UNFOG_PRECISION")
    for has, wanted in (({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert fastest() == wanted
        assert fastest(size=SMALL) == wanted
        assert fastest(size=SMALL - 1) == torch.float32  # of which bf16 would be the slower one


def test_shipped_models_answer_in_bf16(monkeypatch):
    monkeypatch.setenv("UNFOG_PRECISION", "bfloat16")
    for name, prompt in (("emoji-64", "a red apple"), ("molecules-s", "5 atoms"), ("series-m", None), ("drums-notes", "snare")):
        model = unfog.load(name)
        assert model.dtype == torch.bfloat16
        if prompt is not None:
            assert len(model.generate(prompt, seed=1, steps=2)) == 1
