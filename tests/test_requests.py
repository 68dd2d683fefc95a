"""The request schema: every bad value is one line that names its field; good values keep their meaning."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import unfog.requests
from unfog.errors import UserError, shown, unknown
from unfog.requests import LARGEST_SEED, EvaluateRequest, GenerateRequest, TrainRequest, check, from_recipe

HUGE = 10**4000

RECIPE = {
    "prompt": "a red apple",
    "negative": None,
    "style": "noto",
    "seed": 7,
    "sampler": "ddim",
    "steps": 20,
    "scale": 2.5,
    "model": "emoji-64",
    "model_hash": "abc",
    "version": "0.1",
}


@pytest.mark.parametrize(
    ("fields", "starts", "says"),
    [
        ({"prompts": []}, "prompts:", "empty"),
        ({"prompts": [""]}, "prompts 1:", "empty"),
        ({"prompts": ["a", " \n\t "]}, "prompts 2:", "empty"),
        ({"prompts": ["a" * 2001]}, "prompts 1:", "2,001"),
        ({"prompts": ["a" * 10_000_000]}, "prompts 1:", "10,000,000"),
        ({"prompts": ["a"] * 1001}, "prompts:", "1001"),
        ({"prompts": ["\udcff"]}, "prompts 1:", "Unicode"),
        ({"prompts": [3]}, "prompts 1:", "string"),
        ({}, "prompts:", "missing"),
        ({"steps": 0}, "steps:", "less than 1"),
        ({"steps": 1001}, "steps:", "more than 1000"),
        ({"steps": True}, "steps:", "whole number"),
        ({"steps": 7.5}, "steps:", "whole number"),
        ({"steps": "8"}, "steps:", "whole number"),
        ({"steps": HUGE}, "steps:", "more than 1000"),
        ({"scale": math.nan}, "scale:", "finite"),
        ({"scale": math.inf}, "scale:", "finite"),
        ({"scale": -0.1}, "scale:", "less than 0"),
        ({"scale": 100.1}, "scale:", "more than 100"),
        ({"scale": True}, "scale:", "number"),
        ({"scale": "nan"}, "scale:", "number"),
        ({"seed": -1}, "seed:", "less than 0"),
        ({"seed": LARGEST_SEED + 1}, "seed:", "more than"),
        ({"seed": LARGEST_SEED, "n": 2}, "seed:", "n = 2"),
        ({"n": 0}, "n:", "less than 1"),
        ({"n": 10_001}, "n:", "more than 10000"),
        ({"batch": 0}, "batch:", "less than 1"),
        ({"style": " "}, "style:", "empty"),
        ({"negative": "x" * 2001}, "negative:", "2,001"),
        ({"colour": "red"}, "field:", "unknown"),
        ({"sacle": 2}, "field:", "did you mean scale?"),
    ],
)
def test_bad_fields_are_one_short_line(fields, starts, says):
    given = fields if "prompts" in fields or not fields else {"prompts": ["x"], **fields}
    with pytest.raises(UserError) as caught:
        check(GenerateRequest, given)
    line = str(caught.value)
    assert line.startswith(starts)
    assert says in line
    assert "\n" not in line
    assert len(line) < 300
    assert "; " in line  # what is wrong; what to do


def test_several_mistakes_are_counted():
    with pytest.raises(UserError, match=r"^steps: .*\(and 2 more\)$"):
        check(GenerateRequest, {"prompts": ["x"], "steps": 0, "n": 0, "seed": -1})


def test_good_values_pass_unchanged():
    request = check(
        GenerateRequest,
        {"prompts": ["  a red apple "], "seed": np.int64(LARGEST_SEED), "scale": 0, "steps": 1000, "negative": " "},
    )
    assert request.prompts == ["a red apple"]
    assert request.seed == LARGEST_SEED and type(request.seed) is int
    assert request.scale == 0.0
    assert request.negative is None
    assert request.batch == 1 and request.n == 1
    assert GenerateRequest.model_validate_json(request.model_dump_json()) == request


def test_seeds_count_up_prompt_by_prompt():
    request = GenerateRequest(prompts=["a", "b"], n=4, seed=7)
    expected = [("a", 7), ("a", 8), ("a", 9), ("a", 10), ("b", 7), ("b", 8), ("b", 9), ("b", 10)]
    assert request.pictures() == expected
    assert request.settled() is request


def test_a_seed_is_drawn_once_and_only_when_missing():
    request = GenerateRequest(prompts=["a"], n=3)
    with pytest.raises(UserError, match="seed"):
        request.pictures()
    drawn = [request.settled().seed for _ in range(20)]
    assert all(0 <= seed < 2**31 for seed in drawn)
    assert len(set(drawn)) > 1


def test_requests_do_not_change():
    with pytest.raises(ValueError):
        GenerateRequest(prompts=["a"]).seed = 3


def test_the_recipe_names_one_picture():
    request = from_recipe(json.loads(json.dumps(RECIPE)))
    assert request.pictures() == [("a red apple", 7)]
    assert (request.style, request.steps, request.scale, request.sampler) == ("noto", 20, 2.5, "ddim")
    assert request.batch == 1


@pytest.mark.parametrize("key", ["prompt", "seed", "steps", "model_hash", "version"])
def test_a_recipe_with_a_hole_is_refused(key):
    with pytest.raises(UserError, match=key):
        from_recipe({k: v for k, v in RECIPE.items() if k != key})


@pytest.mark.parametrize(("key", "value"), [("seed", None), ("seed", -1), ("steps", "x"), ("prompt", ["a"])])
def test_a_recipe_with_a_bad_value_is_refused(key, value):
    with pytest.raises(UserError, match="^(recipe|seed|steps|prompts)"):
        from_recipe({**RECIPE, key: value})


def test_unknown_names_bring_the_nearest():
    styles = ["noto", "twemoji", "openmoji"]
    assert "did you mean twemoji?" in str(unknown("style", "Twemojy", styles))
    assert "give one of: noto, openmoji, twemoji" in str(unknown("style", "qqqq", styles))
    assert "leave it out" in str(unknown("style", "noto", []))
    assert len(str(unknown("style", "x" * 10_000_000, styles))) < 200


@pytest.mark.parametrize("value", ["a\nb\x00\x1b[31m", "x" * 1000, HUGE, float("nan"), b"\n" * 100])
def test_shown_is_one_short_line(value):
    text = shown(value)
    assert text.isprintable() and len(text) <= 42


def test_train_and_evaluate_requests(tmp_path):
    train = check(TrainRequest, {"source": tmp_path, "minutes": 1.5, "steps": 10})
    assert train.resume is False and train.minutes == 1.5
    for bad in ({"minutes": 0}, {"minutes": math.nan}, {"steps": 0}, {"resume": "yes"}, {"speed": 1}):
        with pytest.raises(UserError):
            check(TrainRequest, {"source": tmp_path, **bad})
    assert check(EvaluateRequest, {"models": ["emoji-64"]}).n >= 2
    for bad in (
        {"n": 1},
        {"seed": -1},
        {"models": [""]},
        {"models": []},
        {"against": ""},
        {"scale": math.inf},
        {"likelihood": -1},
    ):
        with pytest.raises(UserError):
            check(EvaluateRequest, {"models": ["emoji-64"], **bad})


def test_requests_do_not_load_torch():
    code = "import sys, unfog.requests; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(unfog.requests.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "[]\n"
