"""Tuning and adapters from the command line: what reaches the request and `unfog.load`, what is refused, pictures remade."""

import sys
import types
from pathlib import Path

import pytest
import torch

import unfog
from unfog import adapters
from unfog.adapters import Base, Card, save_adapter
from unfog.modalities.image.show import read_recipe, save_png
from unfog.requests import TrainRequest


@pytest.fixture
def calls(monkeypatch):
    """A stand-in for training that records its requests."""
    seen = []
    training = types.ModuleType("unfog.training")
    training.run_recipe = seen.append
    monkeypatch.setitem(sys.modules, "unfog.training", training)
    Path("data").mkdir()
    return seen


@pytest.fixture
def loads(model, monkeypatch):
    """Adapters given to `unfog.load`, at each of its calls that had any."""
    seen, plain = [], unfog.load

    def load(name, **options):
        if options:
            model.adapters = adapters.read_adapters(options["adapters"], model.name, model.hash, options["any_base"])
            seen.append(options)
        return plain(name)

    def stream(request, plain=model.stream):
        for event in plain(request):
            if hasattr(event, "recipe") and getattr(model, "adapters", None):
                event.recipe["adapters"] = adapters.recorded(model.adapters)
            yield event

    monkeypatch.setattr(unfog, "load", load)
    monkeypatch.setattr(model, "stream", stream)
    for name in ("one", "two"):
        card = Card(format=1, kind="lora", name=name, base=Base(name=model.name, hash=model.hash))
        save_adapter(Path(name), card, {"x.a": torch.ones(1, 2), "x.b": torch.ones(3, 1)})
    return seen


def test_ways_of_tuning_reach_the_request(unfog_command, calls):
    words = ["--start", "emoji-64", "--lora", 8, "--lora-alpha", 4, "--lora-targets", "attention", "--lora-targets", "mlp"]
    words += ["--subject", "sks cat", "--class-prompt", "cat", "--prior-weight", 0.5, "--prior-count", 32, "--out", "run"]
    assert unfog_command("train", "data", *words) == (0, ["run"], [])
    fields = {"lora": 8, "lora_alpha": 4.0, "lora_targets": ["attention", "mlp"], "subject": "sks cat", "class_prompt": "cat",
              "prior_weight": 0.5, "prior_count": 32}  # fmt: skip
    assert calls.pop() == TrainRequest(source=Path("data"), out=Path("run"), start="emoji-64", **fields)
    assert unfog_command("train", "data", "--start", "m", "--word", "<my-cat>", "--word-vectors", 3)[0] == 0
    assert calls.pop() == TrainRequest(source=Path("data"), start="m", word="<my-cat>", word_vectors=3)


@pytest.mark.parametrize("words", [
    ["--lora", "0"], ["--lora", "2.5"], ["--word", "cat"], ["--prior-weight", "nan"], ["--subject", ""], ["--prior-count", "0"],
    ["--word-vectors", "99"],
])  # fmt: skip
def test_bad_ways_are_one_line(unfog_command, calls, words):
    code, out, err = unfog_command("train", "data", "--start", "emoji-64", *words)
    assert (code, out, len(err), calls) == (2, [], 1, [])


def test_adapters_reach_load_and_pictures_are_remade(unfog_command, loads, model):
    code, (path,), err = unfog_command("generate", "x", "--adapter", "one:0.5", "--adapter", "two", "--seed", 1)
    assert (code, err) == (0, []) and loads == [{"adapters": ["one:0.5", "two"], "any_base": False}]
    told = read_recipe(path)["adapters"]
    assert [(entry["name"], entry["strength"]) for entry in told] == [("one", 0.5), ("two", 1.0)]
    code, (again,), err = unfog_command("generate", "--like", path, "--adapter", "two", "--adapter", "one", "--out", "again")
    assert (code, err) == (0, []) and Path(again).read_bytes() == Path(path).read_bytes()
    assert loads[-1]["adapters"] == ["one:0.5", "two:1.0"]
    for given, said in (([], "was made with adapter one"), (["--adapter", "one"], "was made with adapter two"),
                        (["--adapter", "one:1", "--adapter", "two"], "leave the strength out")):  # fmt: skip
        code, out, err = unfog_command("generate", "--like", path, *given)
        assert (code, out, len(err)) == (2, [], 1) and said in err[0]
    model.adapters = []
    _, (bare,), _ = unfog_command("generate", "y", "--seed", 1)
    code, out, err = unfog_command("generate", "--like", bare, "--adapter", "one")
    assert (code, out, len(err)) == (2, [], 1) and "made without adapter one" in err[0]


def test_a_recipe_from_a_stranger_opens_no_file(unfog_command, loads):
    from PIL import Image

    recipe = {"prompt": "x", "negative": None, "style": None, "seed": 1, "sampler": "ddim", "steps": 4, "scale": 2.0,
              "model": "emoji-64", "model_hash": "0123abcd", "version": "1.2.3",
              "adapters": [{"name": "../../secret", "hash": "../one", "strength": 1.0}]}  # fmt: skip
    save_png(Image.new("RGBA", (8, 8)), "trap.png", recipe)
    code, out, err = unfog_command("generate", "--like", "trap.png")
    assert (code, out, len(err), loads) == (2, [], 1, []) and "give its folder with --adapter" in err[0]


@pytest.mark.parametrize("words, said", [
    (["--adapter", "none"], "no adapter.json there"), (["--adapter", "one:7"], "strength 7"), (["--any-base"], "--adapter"),
    (["--adapter", "one", "--adapter", "one"], "given twice"), (["--adapter"], "--adapter"),
])  # fmt: skip
def test_bad_adapters_are_one_line(unfog_command, loads, words, said):
    code, out, err = unfog_command("generate", "x", *words)
    assert (code, out, len(err)) == (2, [], 1) and said in err[0]
    assert not Path("out").exists()
