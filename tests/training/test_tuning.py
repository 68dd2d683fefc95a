"""Fine-tuning: branches, a subject beside its prior, a learned word, and tasks with a teacher and modules of their own."""

import copy
import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import unfog
from unfog.adapters import read_adapter
from unfog.diffusion import Gaussian, schedule_from_config
from unfog.diffusion.denoisers import Preconditioned
from unfog.errors import UserError
from unfog.modalities.image.data import PictureSet
from unfog.networks import lora
from unfog.networks.text import TextEncoder
from unfog.requests import TrainRequest, check
from unfog.training import tuning
from unfog.training.checkpoint import saved_steps
from unfog.training.denoising import Denoising
from unfog.training.ema import PowerEMA
from unfog.training.loop import fit, train_step
from unfog.training.optimisers import MuonAdamW
from unfog.training.picture_corpus import PictureCorpus, build_corpus
from unfog.training.recipe import Recipe
from unfog.training.run import build_network, run_recipe, settle
from unfog.training.states import text_states
from unfog.training.tuning import TunedCorpus, TunedDenoising, named, prior_pictures, with_prior

SETTINGS = {"unshuffle": 4, "widths": [16, 16], "blocks": [1, 1], "attention": [False, True], "embedding": 16}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A tiny trained model of 16 pixels that knows two styles."""
    place = tmp_path_factory.mktemp("start")
    pictures = place / "pictures"
    pictures.mkdir()
    lines = []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 4), dtype=np.uint8)
        from PIL import Image

        Image.fromarray(pixels).save(pictures / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"thing {i}", "style": ["round", "flat"][i % 2]}))
    (pictures / "metadata.jsonl").write_text("\n".join(lines))
    fields = {"name": "base", "data": str(pictures), "size": 16, "steps": 6, "batch": 4, "recolour": 0.0, "warm_up": 2,
              "licences": ["theirs"], "defaults": {"steps": 2, "scale": 2.0, "sampler": "dpmpp_2m"},
              "settings": SETTINGS}  # fmt: skip
    (place / "base.json").write_text(json.dumps(fields))
    run_recipe(TrainRequest(source=place / "base.json", out=place / "run"))
    return place / "run"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Three pictures of one thing, without captions."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("few")
    for i in range(3):
        Image.new("RGBA", (16, 16), (250, 40 * i, 0, 255)).save(folder / f"{i}.png")
    return folder


def denoising(recipe, corpus, rank=2):
    network = build_network(recipe, {"channels": 4, "classes": len(corpus.styles)})
    with torch.no_grad():  # as a trained one: at its start the head is zero, and would stay so
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    lora.add(network, rank, seed=recipe.seed)
    denoiser = Preconditioned(network, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction)
    return network, Denoising(recipe, corpus, denoiser, network)


def trained(recipe, learned, task, out, resume=False, stop=None):
    """Run the loop, with SIGTERM after step `stop`. -> the last checkpoint's tensors."""
    out.mkdir(exist_ok=True)

    def show(step, event):
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    fit(recipe, task, learned, out, resume=resume, minutes=None, dtype=torch.float32, report=lambda *_: None, show=show)
    return load_file(out / "checkpoints" / f"{saved_steps(out)[0]:07d}.safetensors")


def resumed_is_whole(tmp_path, recipe, make):
    whole = trained(recipe, *make(), tmp_path / "whole")
    trained(recipe, *make(), tmp_path / "cut", stop=3)
    assert saved_steps(tmp_path / "cut")[0] == 3
    torch.rand(11)
    cut = trained(recipe, *make(), tmp_path / "cut", resume=True)
    assert whole.keys() == cut.keys() and [k for k in whole if not torch.equal(whole[k], cut[k])] == []
    return whole


def test_branches_stopped_and_resumed_are_the_run_that_was_not(tmp_path, tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(lr=0.01)
    first, _ = denoising(recipe, tiny_corpus)
    state = resumed_is_whole(tmp_path, recipe, lambda: denoising(recipe, tiny_corpus))
    moved = {k for k, v in first.state_dict().items() if not torch.equal(state[f"network.{k}"], v)}
    assert moved == {f"{name}.{key}.weight" for name in lora.branches(first) for key in ("a", "b")}
    held = [v.numel() for k, v in state.items() if k.startswith("optimiser.") and not k.endswith(".step")]
    assert sum(held) < 2 * sum(p.numel() for p in first.parameters() if p.requires_grad) + 1  # no state for frozen weights
    assert all(torch.equal(state[f"ema.{k}"], v) for k, v in first.state_dict().items() if k not in moved)


def test_a_run_leaves_a_whole_model_and_its_adapter(tmp_path, start, few):
    before = unfog.load(start)
    request = check(TrainRequest, {"source": few, "start": str(start), "lora": 2, "lora_alpha": 4.0, "steps": 8, "out": tmp_path})
    assert run_recipe(request) == tmp_path / "model"
    model, adapter = unfog.load(tmp_path), read_adapter(tmp_path)
    card = adapter.card
    assert (card.kind, card.rank, card.alpha, card.base.hash, card.licences) == ("lora", 2, 4.0, before.hash, ["theirs"])
    assert card.layers == lora.candidates(before.denoiser.network) and card.training["steps"] == 8
    assert (tmp_path / "adapter" / "adapter.safetensors").stat().st_size < (
        tmp_path / "model" / "network.safetensors"
    ).stat().st_size
    assert model.card["network"] == before.card["network"] and model.hash != before.hash
    together = unfog.load(start, adapters=[tmp_path])
    theirs, ours, first = (m.denoiser.network.state_dict() for m in (model, together, before))
    assert any(not torch.equal(theirs[key], first[key]) for key in theirs)
    for key in theirs:  # `model` was rounded to float16
        torch.testing.assert_close(ours[key], theirs[key], rtol=2e-3, atol=1e-5)
    # a tuned model tuned again: its way is not the next run's
    recipe, _, _ = settle(check(TrainRequest, {"source": few, "start": str(tmp_path)}))
    assert recipe.lora == 0 and recipe.lora_alpha is None
    assert recipe.lr == pytest.approx(before.card["training"]["recipe"]["lr"] / 4)  # half of half, as without branches


def test_prior_pictures_are_made_once_and_alike(tmp_path, start):
    recipe = Recipe(subject="sks thing", prior_count=5, size=16)
    model = unfog.load(start)
    first = prior_pictures(recipe, model, tmp_path / "a")
    assert [(r.name, r.style) for r in first.records] == [("thing", s) for s in ("", "round", "flat", "", "round")]
    files = {p.name: p.read_bytes() for p in (tmp_path / "a" / "prior").iterdir()}
    prior_pictures(recipe, model, tmp_path / "b")
    assert {p.name: p.read_bytes() for p in (tmp_path / "b" / "prior").iterdir()} == files and len(files) == 8
    ages = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a" / "prior").iterdir()}
    prior_pictures(recipe, model, tmp_path / "a")
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a" / "prior").iterdir()} == ages
    prior_pictures(recipe.model_copy(update={"prior_count": 4}), model, tmp_path / "a")  # another wish: made anew
    assert len(list((tmp_path / "a" / "prior").glob("*.png"))) == 4
    (tmp_path / "a" / "prior" / "0002.png").write_bytes(b"x")
    with pytest.raises(UserError, match="0002.png: the file is damaged"):
        prior_pictures(recipe.model_copy(update={"prior_count": 4}), model, tmp_path / "a")


def test_subject_and_prior_share_each_batch(tmp_path, start, few):
    fields = {"source": few, "start": str(start), "subject": "sks thing", "prior_count": 5, "prior_weight": 0.25}
    recipe, data, model = settle(check(TrainRequest, fields))
    corpus = build_corpus(data, recipe, styles=model.styles, codec=model.codec)
    assert corpus.captions == ["", "sks thing", "a sks thing", "sks thing, transparent background"]
    joined = with_prior(recipe, corpus, model, tmp_path)
    assert isinstance(joined, TunedCorpus) and (joined.plain, len(joined.pictures)) == (3, 8)
    seen = np.concatenate([joined.chosen(recipe, index)[1::2] for index in range(5)])
    assert sorted(seen) == sorted([*range(3, 8)] * 8)  # 40 places: each prior picture as often
    for index in range(5):
        chosen = joined.chosen(recipe, index)
        assert (chosen[::2] < 3).all() and (chosen[1::2] >= 3).all()
        assert np.array_equal(joined.chosen(recipe, index), chosen)
    told = [joined.captions[n] for n in joined.texts[0]], [joined.captions[n] for n in joined.texts[4]]
    assert all("sks" in caption for caption in told[0])
    assert not any("sks" in caption for caption in told[1]) and told[1].count("") == 1
    assert joined.names[3] == "prior/0000.png" and joined.styles == model.styles
    # the weights: rows by turns, whichever rows are asked for
    text_states(joined, TextEncoder.load(), tmp_path)
    network = build_network(recipe, {"channels": 4, "classes": len(joined.styles)})
    denoiser = Preconditioned(network, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction)
    task = TunedDenoising(recipe, joined, denoiser, network)
    batch = task.batch(2)
    assert batch["weight"].tolist() == [1.0, 0.25] * (recipe.batch // 2)
    assert task.batch(2, slice(1, None, 3))["weight"].tolist() == batch["weight"][1::3].tolist()
    whole = Denoising.loss(task, batch)
    torch.testing.assert_close(task.loss(batch), whole * batch["weight"])
    assert torch.equal(batch["cond"]["caption"], torch.as_tensor(batch["cond"]["caption"]))
    # no prior: the subject alone
    alone = with_prior(recipe.model_copy(update={"prior_weight": 0.0}), corpus, model, tmp_path / "none")
    assert len(alone.pictures) == 3 and not (tmp_path / "none").exists()
    assert (alone.chosen(recipe, 0) < 3).all()


def test_captions_that_name_the_subject_stay(tmp_path, few):
    folder = tmp_path / "own"
    folder.mkdir()
    for path in few.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "1.txt").write_text("a sks cat in the rain")
    (folder / "2.txt").write_text("something else")
    data = named(Recipe(subject="sks cat"), PictureSet.open(folder))
    assert [(r.name, r.text) for r in data.records] == [("sks cat", ""), ("", "a sks cat in the rain"), ("sks cat", "")]
    data.records *= 40
    with pytest.raises(UserError, match="120 pictures of one subject; give at most 100"):
        named(Recipe(subject="sks cat"), data)


def test_a_subject_from_the_start_to_a_model(tmp_path, start, few):
    request = check(TrainRequest, {"source": few, "start": str(start), "subject": "sks thing", "prior_count": 3, "steps": 4,
                                   "lora": 2, "out": tmp_path})  # fmt: skip
    run_recipe(request)
    assert (tmp_path / "adapter").is_dir() and len(list((tmp_path / "prior").glob("*.png"))) == 3
    recipe = unfog.load(tmp_path).card["training"]["recipe"]
    assert (recipe["subject"], recipe["batch"], recipe["lora"]) == ("sks thing", 16, 2)


def test_a_word_is_learned_and_nothing_else(tmp_path, start, few):
    request = check(TrainRequest, {"source": few, "start": str(start), "word": "<mine>", "class_prompt": "red thing", "steps": 8,
                                   "out": tmp_path})  # fmt: skip
    assert run_recipe(request) == tmp_path / "adapter" and not (tmp_path / "model").exists()
    adapter = read_adapter(tmp_path)
    assert (adapter.card.kind, adapter.card.word) == ("word", "<mine>")
    encoder = TextEncoder.load()
    first = tuning.words.first_vectors(encoder, "red thing", 2)
    assert adapter.tensors["vectors"].shape == (2, 384) and not torch.equal(adapter.tensors["vectors"], first)
    assert sum(p.stat().st_size for p in (tmp_path / "adapter").iterdir()) < 10_000
    state = load_file(tmp_path / "checkpoints" / "0000008.safetensors")
    assert {k for k in state if k.startswith("network.")} == {"network.vectors.0", "network.vectors.1"}
    base, ours = unfog.load(start), unfog.load(start, adapters=[tmp_path])
    assert [p.tobytes() for p in base.generate("thing 3", seed=1)] == [p.tobytes() for p in ours.generate("thing 3", seed=1)]
    assert [p.tobytes() for p in base.generate("<mine>", seed=1)] != [p.tobytes() for p in ours.generate("<mine>", seed=1)]


def test_a_word_learns_to_be_what_the_model_knows(tmp_path, start):
    """The loss of pictures falls when the word that names them is learned, with the network as it is."""
    model = unfog.load(start)
    network = model.denoiser.network.float()
    with torch.no_grad():  # a network that listens: what it draws is a map of the mean text state
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.1)
    corpus = PictureCorpus(torch.zeros(4, 16, 16, 4, dtype=torch.uint8), np.full(4, 2), np.ones((4, 2), int), 4, ["", "a <x>"],
                    model.styles, model.codec, ["p.png"] * 4)  # fmt: skip
    encoder = TextEncoder.load()
    text_states(corpus, encoder, tmp_path)
    joined = TunedCorpus(**{f: getattr(corpus, f) for f in corpus.__dataclass_fields__})
    recipe = Recipe(word="<x>", batch=8, size=16, lr=0.02, steps=30, warm_up=1, noise_mean=1.0)
    tuned = tuning.tuned(recipe, network, model.denoiser, [joined], model, encoder, "cpu")
    before = copy.deepcopy(network.state_dict())
    optimiser, ema = MuonAdamW(tuned.learned, 0.02), PowerEMA(tuned.learned)
    with torch.no_grad():
        first = float(tuned.task.loss(tuned.task.batch(1000)).mean())
    for step in range(30):
        train_step(tuned.learned, tuned.task.loss, optimiser, [ema], tuned.task.batch(step), lr=0.02, clip=1.0, step=step,
                   dtype=torch.float32)  # fmt: skip
    with torch.no_grad():
        last = float(tuned.task.loss(tuned.task.batch(1000)).mean())
    assert last < 0.97 * first
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("fields, message", [
    ({"lora": 2, "start": None}, "lora: tunes a model that is there; name it with --start"),
    ({"subject": "sks cat", "start": None}, "subject: tunes a model"), ({"word": "<a>", "start": None}, "word: tunes a model"),
    ({"word": "<a>", "lora": 2}, "word and lora are two ways"), ({"word": "<a>", "subject": "b c"}, "word and subject are two"),
    ({"class_prompt": "cat"}, "class_prompt goes with subject or word"), ({"lora_alpha": 2.0}, "lora_alpha goes with lora"),
    ({"lora_targets": ["out"]}, "lora_targets goes with lora"),
    ({"lora": 2, "lora_targets": ["atention"]}, "did you mean attention"),
    ({"prior_weight": 2.0}, "prior_weight goes with subject"),
    ({"prior_count": 9}, "prior_count goes with subject"), ({"word_vectors": 3}, "word_vectors goes with word"),
    ({"subject": "sks"}, "subject names no class to keep; give class_prompt, or prior_weight 0"),
    ({"subject": "a b", "prior_weight": 0.0, "prior_count": 3}, "prior_count goes with a prior_weight above 0"),
])  # fmt: skip
def test_ways_that_do_not_go_together(start, few, fields, message):
    given = {"source": few, "start": str(start), **fields}
    with pytest.raises(UserError, match=message) as error:
        settle(check(TrainRequest, {key: value for key, value in given.items() if value is not None}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fields", [
    {"lora": 0}, {"word": "mine"}, {"word": "<My Thing>"}, {"prior_weight": -1.0}, {"lora_alpha": 0.0}, {"subject": ""},
    {"word_vectors": 17}, {"lora": True}, {"lora_targets": []},
])  # fmt: skip
def test_requests_that_are_no_good(few, fields):
    with pytest.raises(UserError, match=f"^{next(iter(fields))}"):
        check(TrainRequest, {"source": few, "start": "emoji-64", **fields})


class Matching:
    """A task of its own: the student's prediction, through a map that is learned with it, shall be the frozen teacher's."""

    def __init__(self, teacher, student, reader, seed=0):
        self.teacher, self.student, self.extra, self.seed = teacher.eval().requires_grad_(False), student, reader, seed

    def batch(self, index, rows=slice(None)):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(self.seed + index))
        return {"x": x[rows]}

    def loss(self, batch):
        with torch.no_grad():
            target = self.teacher(batch["x"])
        return (self.extra(self.student(batch["x"])) - target).square().mean(1)

    def names(self, index):
        return [f"draw {index}"] * 4


def test_a_teacher_and_modules_of_a_tasks_own_train_with_the_same_loop(tmp_path, tiny_recipe):
    """Distillation needs nothing of the loop: the student is the network, what else is trained is the task's `extra`."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    fixed = copy.deepcopy(teacher.state_dict())

    def make():
        torch.manual_seed(1)
        student, reader = nn.Sequential(nn.Linear(6, 3), nn.Tanh()), nn.Linear(3, 6)
        return student, Matching(teacher, student, reader)

    recipe = tiny_recipe(lr=0.01, steps=6)
    state = resumed_is_whole(tmp_path, recipe, make)
    student, task = make()
    first = {f"network.{k}": v for k, v in student.state_dict().items()} | {
        f"extra.{k}": v for k, v in task.extra.state_dict().items()
    }
    assert all(not torch.equal(state[k], v) for k, v in first.items())  # all parts of both modules
    assert all(torch.equal(v, fixed[k]) for k, v in teacher.state_dict().items())
    longer = tiny_recipe(lr=0.01, steps=150)
    learned, task = make()
    before = float(task.loss(task.batch(10**6)).detach().mean())
    trained(longer, learned, task, tmp_path / "longer")
    assert float(task.loss(task.batch(10**6)).detach().mean()) < 0.5 * before
