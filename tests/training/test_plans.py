"""Learning a plan for a model folder, from the request to the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unfog.errors import UserError
from unfog.modalities.image.codec import RGBACodec
from unfog.model import Model, save_model
from unfog.requests import FitRequest
from unfog.training.picture_corpus import PictureCorpus
from unfog.training.plans import learn_plan, show
from unfog.training.recipe import Recipe
from unfog.training.run import build_network

RECIPE = Recipe(
    name="tiny",
    data="gone-data",
    size=16,
    settings={"unshuffle": 4, "widths": [16], "blocks": [1], "attention": [False], "embedding": 16},
    defaults={"steps": 4, "scale": 1.5, "sampler": "dpmpp_2m"},
    licences=["made by hand"],
)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    network = build_network(RECIPE, {"channels": 4, "classes": 1})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    empty = np.zeros(0, np.int64)
    corpus = PictureCorpus(torch.zeros(0, 16, 16, 4), empty, empty, 0, [""], ["flat"], RGBACodec(), [])
    save_model(tmp_path / "tiny", RECIPE, corpus, network, 3, {"0": 0.5})
    return tmp_path / "tiny"


def test_a_plan_is_learned_reported_and_used(folder, tmp_path):
    words = tmp_path / "prompts.txt"
    words.write_text("a red apple\n\na blue car\na red apple\n")
    hash_before = Model(folder).hash
    told = []
    request = FitRequest(model=str(folder), nfe=3, minutes=0.3, seeds=2, prompts=words, out=tmp_path / "fast")
    report = learn_plan(request, lambda n, e: told.append(e))
    assert not Model(folder).plans  # the original is as it was
    fast = Model(tmp_path / "fast", dtype=torch.float32)
    assert fast.hash == hash_before and fast.plan("fit-3").nfe == 3
    assert fast.plans["fit-3"]["report"]["error_held_out"] == report["error_held_out"]
    assert report["error_learnt_on"] <= report["start_held_out"] * 2 and all(e > 0 for e in told)
    assert fast.generate("a red apple", seed=1, sampler="fit-3")[0].size == (16, 16)
    assert "--sampler fit-3" in show(report)


def test_what_is_missing_is_said_in_one_line(folder, tmp_path):
    for fields, match in (
        ({"model": "emoji-64"}, "--out"),
        ({"model": str(folder)}, "--prompts"),  # the data that it names are not here
        ({"model": str(folder), "prompts": tmp_path / "none.txt"}, "cannot be read"),
        ({"model": str(folder), "out": tmp_path}, "no model folder"),
    ):
        with pytest.raises(UserError, match=match):
            learn_plan(FitRequest(nfe=3, **fields))
