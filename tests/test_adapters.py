"""Adapter folders: round trip, damage, the wrong model, strength 0, learned words, and pictures remade with them."""

import json
import shutil

import numpy as np
import pytest
import torch

import unfog
from unfog import adapters
from unfog.adapters import Base, Card, asked, read_adapter, save_adapter
from unfog.errors import UserError
from unfog.files import write_manifest
from unfog.modalities.image.codec import RGBACodec
from unfog.model import Model, save_model
from unfog.networks import lora, words
from unfog.networks.text import TextEncoder
from unfog.requests import GenerateRequest, Result
from unfog.training.picture_corpus import PictureCorpus
from unfog.training.recipe import Recipe
from unfog.training.run import build_network

SETTINGS = {"unshuffle": 4, "widths": [16, 24], "blocks": [1, 1], "attention": [False, True], "embedding": 16}
RECIPE = Recipe(name="tiny", size=16, settings=SETTINGS, defaults={"steps": 3, "scale": 2.0, "sampler": "dpmpp_2m"})


def network_of(seed):
    network = build_network(RECIPE, {"channels": 4, "classes": 2})
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """base and other: models of the same shapes; look: an adapter that changes base's weights; word: one that adds <it>."""
    place = tmp_path_factory.mktemp("adapters")
    empty = np.zeros(0, np.int64)
    corpus = PictureCorpus(torch.zeros(0, 16, 16, 4), empty, empty, 0, [""], ["flat", "round"], RGBACodec(), [])
    for seed, name in enumerate(("base", "other")):
        save_model(place / name, RECIPE, corpus, network_of(seed), 3, {"0": 0.5})
    base = Model(place / "base", dtype=torch.float32)
    theirs = Base(name=base.name, hash=base.hash)
    network = base.denoiser.network
    lora.add(network, 2)
    with torch.no_grad():
        for layer in lora.branches(network).values():
            layer.b.weight.normal_(generator=torch.Generator().manual_seed(3), std=0.3)
    tensors = {key: value.half() for key, value in lora.state(network).items()}
    save_adapter(place / "run" / "adapter", Card(format=1, kind="lora", name="look", base=theirs, rank=2, alpha=2.0), tensors)
    lora.load(network, {key: value.float() for key, value in tensors.items()})
    save_model(place / "whole", RECIPE, corpus, lora.folded(network), 3, {"0": 0.5})
    vectors = torch.randn(2, 384, generator=torch.Generator().manual_seed(4)) * 0.05
    save_adapter(place / "word", Card(format=1, kind="word", name="it", base=theirs, word="<it>"), {"vectors": vectors})
    return place


def made(folder, wishes=(), prompt="a red apple", **fields):
    model = unfog.load(folder, adapters=wishes)
    results = model.stream(GenerateRequest(prompts=[prompt], seed=5, **fields))
    return next(event for event in results if isinstance(event, Result))


def pixels(result):
    return np.asarray(result.image).astype(int)


def test_with_its_adapter_a_model_is_the_tuned_one(folders):
    plain, tuned = made(folders / "base"), made(folders / "base", [folders / "run"])
    whole = made(folders / "whole")
    assert np.abs(pixels(plain) - pixels(tuned)).max() > 20
    assert np.abs(pixels(whole) - pixels(tuned)).max() <= 2  # `whole` was rounded to float16
    assert tuned.recipe["model_hash"] == plain.recipe["model_hash"] != whole.recipe["model_hash"]
    (entry,) = tuned.recipe["adapters"]
    assert entry == {"name": "look", "hash": read_adapter(folders / "run").hash, "strength": 1.0}
    assert "adapters" not in plain.recipe


def test_strength(folders):
    look = str(folders / "run" / "adapter")
    plain = made(folders / "base")
    nothing = made(folders / "base", [f"{look}:0", f"{folders / 'word'}:0"], prompt="a red apple")
    assert nothing.image.tobytes() == plain.image.tobytes() and nothing.recipe == plain.recipe
    far = [np.abs(pixels(made(folders / "base", [f"{look}:{s}"])) - pixels(plain)).mean() for s in (0.1, 0.5, 1)]
    assert 0 < far[0] < far[1] < far[2]
    weights = {"w.weight": torch.ones(3, 2)}
    values = {"w.a": torch.tensor([[1.0, 2.0]]), "w.b": torch.tensor([[1.0], [0.0], [-1.0]])}
    expected = torch.tensor([[1.5, 2.0], [1.0, 1.0], [0.5, 0.0]])
    assert torch.equal(lora.merged(weights, values, 0.5)["w.weight"], expected)


def test_a_word_counts_only_where_it_is_named(folders):
    word = folders / "word"
    plain, with_word = made(folders / "base"), made(folders / "base", [word])
    assert plain.image.tobytes() == with_word.image.tobytes()
    named = [made(folders / "base", wishes, prompt="a red <it>") for wishes in ([], [word])]
    assert named[0].image.tobytes() != named[1].image.tobytes()
    assert made(folders / "base", [word], prompt="a red <IT>").image.tobytes() == named[1].image.tobytes()
    against = [made(folders / "base", wishes, negative="<it>") for wishes in ([], [word])]
    assert against[0].image.tobytes() != against[1].image.tobytes()


def test_the_states_of_a_learned_word():
    encoder = TextEncoder.load()
    prompt = "a red apple on it"
    ids = encoder.tokenizer.encode(prompt).ids[:7]
    table = encoder.embed(torch.tensor(ids))
    # a word whose vectors are those of "red apple" is "red apple"
    states, mask = words.encode(encoder, ["a <it> on it", "nothing"], {"<it>": table[2:4]})
    plain, theirs = encoder([prompt, "nothing"])
    assert torch.equal(mask, theirs) and torch.allclose(states, plain, atol=1e-5)
    assert torch.equal(states[1], encoder(["nothing"])[0][0])
    twice, mask = words.encode(encoder, ["<it><it>"], {"<it>": table[2:4]})
    assert mask.sum() == 6 and torch.allclose(twice, encoder(["red apple red apple"])[0], atol=1e-5)
    long, mask = words.encode(encoder, ["<it> " * 40], {"<it>": table[2:4]})
    assert long.shape == (1, 32, 384) and mask.all()
    # gradients reach the vectors
    vectors = table[2:4].clone().requires_grad_()
    words.encode(encoder, ["a <it>"], {"<it>": vectors})[0].square().sum().backward()
    assert vectors.grad.abs().sum(1).min() > 0
    assert torch.equal(words.first_vectors(encoder, "red apple", 3), table[[2, 3, 2]])


@pytest.mark.parametrize("file", [adapters.CARD, adapters.WEIGHTS, "manifest.json"])
def test_damage_is_found(folders, tmp_path, file):
    copy = shutil.copytree(folders / "run" / "adapter", tmp_path / "copy")
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(data)
    with pytest.raises(UserError, match="damaged|not readable"):
        unfog.load(folders / "base", adapters=[copy])
    (copy / file).unlink()
    with pytest.raises(UserError, match="missing|no adapter.json there"):
        unfog.load(folders / "base", adapters=[copy])


@pytest.mark.parametrize("change, message", [
    ({"format": 2}, "update unfog"), ({"kind": "hat"}, "not an adapter's card"), ({"rank": 0}, "not an adapter's card"),
    ({"base": 3}, "not an adapter's card"), ({"alpha": "NaN"}, "not an adapter's card"), ({"kind": "word"}, "not a word of this"),
])  # fmt: skip
def test_cards_from_strangers(folders, tmp_path, change, message):
    copy = shutil.copytree(folders / "run" / "adapter", tmp_path / "copy")
    card = json.loads((copy / adapters.CARD).read_text())
    (copy / adapters.CARD).write_text(json.dumps(card | change))
    write_manifest(copy)
    with pytest.raises(UserError, match=message):
        unfog.load(folders / "base", adapters=[copy])


def test_what_is_refused(folders, tmp_path):
    look, word = folders / "run", folders / "word"
    with pytest.raises(UserError, match=r"was trained on tiny \w+, but tiny here is \w+; give its own model, or --any-base"):
        unfog.load(folders / "other", adapters=[look])
    assert unfog.load(folders / "other", adapters=[look], any_base=True).adapters
    for wishes, message in (([look, f"{look}:0.5"], "given twice"), ([f"{word}:0.5"], "a word is there or not"),
                            ([f"{look}:5"], "strength 5 is no number from -4 to 4"), ([f"{look}:nan"], "strength nan"),
                            (["nowhere:1"], "nowhere: no adapter.json there")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            unfog.load(folders / "base", adapters=wishes)
    twin = shutil.copytree(word, tmp_path / "twin")
    card = json.loads((twin / adapters.CARD).read_text())
    (twin / adapters.CARD).write_text(json.dumps(card | {"name": "twin"}))
    write_manifest(twin)
    with pytest.raises(UserError, match="two of them have learned <it>"):
        unfog.load(folders / "base", adapters=[word, twin])
    with pytest.raises(UserError, match="an adapter, not a whole model"):
        unfog.load(word)


@pytest.mark.parametrize("wish, path, strength", [
    ("a/b", "a/b", None), ("a/b:0.7", "a/b", 0.7), ("a:-1", "a", -1.0), ("C:\\x", "C:\\x", None), ("a:b:2", "a:b", 2.0),
    ("a:1e-3", "a", 1e-3), ("a:", "a:", None),
])  # fmt: skip
def test_path_and_strength(wish, path, strength):
    found, number = asked(wish)
    assert (str(found), number) == (path, strength)


def test_remade_like(folders):
    look, word = str(folders / "run"), str(folders / "word")
    made_so = made(folders / "base", [word, f"{look}:0.3"], prompt="a <it>")
    entries = json.loads(json.dumps(made_so.recipe["adapters"]))
    wishes = adapters.like("x.png", entries, [look, word])  # in any order, without strengths
    again = made(folders / "base", wishes, prompt="a <it>")
    assert again.recipe == made_so.recipe and again.image.tobytes() == made_so.image.tobytes()
    for given, message in (([look], "x.png: was made with adapter it .* give its folder with --adapter"),
                           ([word, f"{look}:0.4"], "at strength 0.3, not 0.4; leave the strength out")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            adapters.like("x.png", entries, given)
    with pytest.raises(UserError, match="made without adapter look"):
        adapters.like("x.png", [], [look])
    for damaged in ({}, [3], [{"hash": 4, "strength": 1.0}], [{"hash": "a"}]):
        with pytest.raises(UserError, match="recipe is damaged"):
            adapters.like("x.png", damaged, [])
