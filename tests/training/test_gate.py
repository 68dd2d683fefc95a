"""The checks at the start of training: a healthy run gives no warning, and each bug planted is told with its mend.

Numbers are those of the table in unfog/training/gate.py: bugs that happened elsewhere and touch training.
"""

import copy
import dataclasses
import json
import random

import numpy as np
import pytest
import torch

from unfog.diffusion import Gaussian, schedule_from_config
from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.losses import Space
from unfog.diffusion.predictions import Prediction
from unfog.diffusion.processes import Gaussian as Process
from unfog.diffusion.schedules import Cosine, Table
from unfog.errors import UserError
from unfog.modalities.image.codec import RGBACodec
from unfog.networks.unet import UNet
from unfog.requests import TrainRequest
from unfog.training import gate, gate_data
from unfog.training.denoising import Denoising
from unfog.training.ema import PowerEMA
from unfog.training.gate import Scene, examine, guard
from unfog.training.optimisers import MuonAdamW
from unfog.training.picture_corpus import PictureCorpus
from unfog.training.run import build_network, run_recipe

HEALTHY = {"steps": 60, "recolour": 0.0, "prediction": "x0", "weight": "v", "weight_limit": 30.0, "dropout": 0.0, "lr": 2e-3}


@pytest.fixture
def corpus():
    """24 different pictures of 16 px with soft edges, two captions each, two styles."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (24, 4, 4, 4))).float().permute(0, 3, 1, 2)
    fine = torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")
    pictures = fine.permute(0, 2, 3, 1).round().to(torch.uint8).contiguous()
    states = torch.randn(49, 5, 12, generator=torch.Generator().manual_seed(0)).half()
    lines = ["", *(f"caption {i}" for i in range(48))]
    return PictureCorpus(pictures, np.arange(24) % 2, np.arange(1, 49).reshape(24, 2), 24, lines,
                  ["flat", "round"], RGBACodec.fit(pictures.numpy()), [f"{i:02}.png" for i in range(24)], states,
                  torch.ones(49, 5, dtype=torch.bool))  # fmt: skip


@pytest.fixture
def scene(tiny_recipe, corpus):
    """A function from changes to the recipe to what the checks look at."""

    def build(own=None, held=None, classes=2, model=None, **changes):
        recipe = tiny_recipe(**HEALTHY | changes)
        network = build_network(recipe, {"channels": 4, "classes": classes})
        denoiser = Preconditioned(network, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction)
        own = own or corpus
        return Scene(recipe, own, held or own, denoiser, network, "cpu", model)

    return build


def told(scene, about, degree="error"):
    """The one text about this; every text names what to do after a semicolon and is one line."""
    found = examine(scene)
    for finding in found:
        assert "\n" not in finding.text and ";" in finding.text and len(finding.text) < 300
    texts = [finding.text for finding in found if finding.about == about and finding.degree == degree]
    assert len(texts) == 1, found
    return texts[0]


def test_a_healthy_run_gives_no_warning(scene, capsys):
    guard(scene())
    guard(scene(prediction="v", weight=None, schedule={"name": "linear"}))
    guard(scene(network="dit", settings={"size": 16, "width": 32, "depth": 2, "heads": 2, "text_dim": 12}))
    assert capsys.readouterr().err == ""


def test_nothing_of_the_run_changes(scene):
    """Weights, gradients, mode and every random state are as they were found."""
    own = scene()
    own.network.train()
    own.network.stem.conv.weight.grad = torch.ones_like(own.network.stem.conv.weight)
    weights = {k: v.clone() for k, v in own.network.state_dict().items()}
    pictures = own.corpus.pictures.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    examine(own)
    assert all(torch.equal(weights[k], v) for k, v in own.network.state_dict().items()) and own.network.training
    assert own.network.stem.conv.weight.grad.eq(1).all() and torch.equal(pictures, own.corpus.pictures)
    assert [p for p in own.network.parameters() if p.grad is not None] == [own.network.stem.conv.weight]
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_a_run_is_the_same_to_the_bit_with_and_without_the_checks(tmp_path, picture_folder, monkeypatch, one_thread):
    settings = {"unshuffle": 4, "widths": [16, 16], "blocks": [1, 1], "attention": [False, True], "embedding": 16}
    source = tmp_path / "r.json"
    source.write_text(json.dumps({"data": str(picture_folder), "size": 16, "settings": settings, "steps": 4, "batch": 4,
                                  "dropout": 0.2}))  # fmt: skip
    run_recipe(TrainRequest(source=source, out=tmp_path / "a"))
    monkeypatch.setattr("unfog.training.run.guard", lambda *_, **__: None)
    run_recipe(TrainRequest(source=source, out=tmp_path / "b"))
    for name in ("checkpoints/0000004.safetensors", "events.jsonl", "model/network.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_error_refuses_and_force_goes_on(scene, capsys):
    bad = scene(lr=5.0, noise_std=0.2)
    with pytest.raises(UserError, match=r"lr: 5 is far.*--force"):
        guard(bad)
    guard(bad, force=True)
    assert "unfog: warning: lr: 5" in capsys.readouterr().err


def test_force_trains_and_no_error_writes_a_checkpoint(tmp_path, picture_folder):
    source = tmp_path / "r.json"
    settings = {
        "unshuffle": 4,
        "widths": [16, 16],
        "blocks": [1, 1],
        "attention": [False, True],
        "embedding": 16,
        "text_dim": 384,
    }
    fields = {"data": str(picture_folder), "size": 16, "settings": settings, "steps": 2, "batch": 4, "drop_text": 1.0}
    source.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="drop_text: 1 drops every caption"):
        run_recipe(TrainRequest(source=source, out=tmp_path / "out"))
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert run_recipe(TrainRequest(source=source, out=tmp_path / "out", force=True)).is_dir()


# bugs by number


def test_4_and_8_levels_that_disagree(scene, monkeypatch):
    monkeypatch.setattr(Cosine, "sigma", lambda self, t: 1 - self.alpha(t))
    assert "say different things" in told(scene(), "schedule")


def test_8_betas_changed_after_the_table_was_made(scene):
    own = scene()
    stale = Table.linear()
    _ = stale.knots  # what is kept from before
    object.__setattr__(stale, "betas", Table.linear().zero_terminal_snr().betas)
    monkey = copy.copy(stale)
    monkey.__dict__["alpha"] = Table(stale.betas).alpha  # alpha of the new betas, log-SNR of the old
    own.denoiser.process = Process(monkey)
    assert "build it anew from its final betas" in told(own, "schedule")


@pytest.mark.parametrize("schedule", [{"name": "table_linear_zero_snr"}, {"name": "cosine"}])
def test_8_eps_where_no_signal_is_left(scene, schedule):
    assert "eps says nothing where the schedule ends" in told(scene(schedule=schedule, prediction="eps", weight=None), "zero SNR")
    assert examine(scene(schedule={"name": "table_linear"}, prediction="eps", weight=None, noise_mean=-0.5)) == []


def test_8_a_weight_that_is_not_finite(scene, monkeypatch):
    monkeypatch.setattr(Space, "__call__", lambda self, p, alpha, sigma: 1 / (sigma - sigma))
    assert "would be NaN; take weight v" in told(scene(), "weight")


def test_9_the_weight_of_another_prediction(scene, monkeypatch):
    right = Space.__call__
    monkeypatch.setattr(Space, "__call__", lambda self, p, a, s: right(self, Prediction("eps"), a, s))
    assert "v on x0 is not the error in that space" in told(scene(), "weight")


def test_7_weights_read_as_another_prediction(scene):
    class Oracle(torch.nn.Module):
        """Says exactly v of the batch that the checks draw."""

        def __init__(self, own):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(1))
            batch = Denoising(own.recipe, own.corpus, own.denoiser, own.network).batch(0, slice(0, 4))
            level = 2**-0.5
            self.v = level * (batch["noise"] - batch["x0"])

        def forward(self, x, logsnr, cond=None):
            return self.v[: len(x)] + 0 * self.p

    own = scene(prediction="x0", model=object(), start="theirs")
    own.network = own.denoiser.network = Oracle(own)
    (found,) = gate.declared(own)
    assert "weights of theirs denoise" in found.text and "set prediction to v" in found.text and found.degree == "error"
    own.denoiser.prediction = Prediction("v")
    assert not list(gate.declared(own))


def test_11_an_average_never_updated(scene, monkeypatch):
    monkeypatch.setattr(PowerEMA, "update", lambda *_: None)
    assert "never updated" in told(scene(), "ema")


def test_11_an_average_that_is_the_weights(scene, monkeypatch):
    def shared(self, network, sigma_rel=0.1, every=1):
        self.network, self.gamma, self.every = network, 1.0, every

    monkeypatch.setattr(PowerEMA, "__init__", shared)
    assert "average a copy" in told(scene(), "ema")


def test_12_a_batch_that_depends_on_what_was_drawn_before(scene, monkeypatch):
    monkeypatch.setattr(PictureCorpus, "chosen", lambda self, recipe, index: np.random.permutation(self.plain)[: recipe.batch])
    texts = [finding.text for finding in examine(scene()) if finding.about == "draws"]
    assert any("x0 of batch 0, drawn twice, differs, so a resumed run would be another one" in text for text in texts)


def test_12_an_epoch_that_repeats_pictures(scene, monkeypatch):
    monkeypatch.setattr(PictureCorpus, "chosen", lambda self, recipe, index: np.arange(recipe.batch))
    assert "one permutation of seed and epoch" in told(scene(), "draws")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_13_weights_kept_in_half_precision(scene, dtype):
    own = scene()
    own.network.to(dtype)
    found = list(gate.precision(own))
    assert len(found) == 1 and found[0].degree == "error" and "keep them in float32" in found[0].text


def test_14_weights_that_overflow_on_the_disk_and_weights_that_are_broken(scene):
    own = scene()
    with torch.no_grad():
        own.network.head.conv.bias[0] = 1e5
    assert "too large for the float16" in next(gate.precision(own)).text
    with torch.no_grad():
        own.network.head.conv.bias[0] = float("nan")
    assert "NaN or infinity before the first step" in next(gate.precision(own)).text


def test_15_and_16_noise_of_a_batch_and_not_of_an_item(scene, monkeypatch):
    right = Denoising.draw

    def whole(self, shape, index, rows=slice(None)):
        t, _ = right(self, shape, index, rows)
        return t, torch.randn(shape, generator=torch.Generator().manual_seed(index)).flip(0)

    monkeypatch.setattr(Denoising, "draw", whole)
    assert "noise of an item depends on what else is drawn" in told(scene(), "draws")
    monkeypatch.setattr(Denoising, "draw", lambda self, shape, index, rows=slice(None): (
        right(self, shape, index, rows)[0], right(self, shape, index, rows)[1][:1].expand(shape)))  # fmt: skip
    assert "two items have the same noise" in told(scene(), "draws")
    monkeypatch.setattr(Denoising, "draw", lambda self, shape, index, rows=slice(None): (
        right(self, shape, index, rows)[0], 2 * right(self, shape, index, rows)[1]))  # fmt: skip
    assert "draw it from a unit normal" in told(scene(), "draws")


def test_19_a_null_class_of_another_data_set(scene, monkeypatch):
    right = PictureCorpus.cond
    monkeypatch.setattr(PictureCorpus, "cond", lambda self, text, label: right(self, text, np.where(label == 2, 1000, 1000)))
    assert "style number 1000 for 2 styles" in told(scene(), "labels")


def test_20_a_codec_that_loses_pictures(scene, monkeypatch):
    right = RGBACodec.decode
    monkeypatch.setattr(RGBACodec, "decode", lambda self, x0: (right(self, x0) // 16) * 16)
    assert "do not come back from model space" in told(scene(), "codec")


def test_24_levels_that_collide_in_bfloat16(scene, monkeypatch):
    from unfog.networks.layers import fourier

    monkeypatch.setattr(gate, "fourier", lambda logsnr, dim: fourier(logsnr.bfloat16(), dim))
    assert "compute log-SNR and its embedding in float32" in told(scene(), "times")


def test_24_levels_that_collide_before_the_network(scene, monkeypatch):
    right = Preconditioned.noise_level
    monkeypatch.setattr(Preconditioned, "noise_level", lambda *args: right(*args).bfloat16().float())
    assert "told apart" in told(scene(), "times")


def test_24_levels_that_collide_inside_the_network(scene, monkeypatch):
    from unfog.networks import layers

    right = layers.fourier
    monkeypatch.setattr(layers, "fourier", lambda logsnr, dim: right(torch.zeros_like(logsnr), dim))
    assert "changes nothing about what the network says" in told(scene(), "noise level")


def test_5_a_condition_that_is_accepted_and_not_used(scene, monkeypatch):
    assert "build the network with classes 2" in told(scene(classes=0), "styles")
    forward = UNet.forward
    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", lambda self, x, logsnr, cond=None: forward(self, x, logsnr, None))
        assert {f.about: f.degree for f in examine(scene())} == {"captions": "error", "styles": "error"}
    settings = {"unshuffle": 4, "widths": [16, 16], "blocks": [1, 1], "attention": [False, True], "embedding": 16, "text_dim": 0}
    assert "build the network with text_dim" in told(scene(settings=settings), "captions", "warning")


# the rest


def other(corpus, **changes):
    return dataclasses.replace(corpus, **changes)


def test_data_that_are_too_few(scene, corpus):
    assert "set batch to 12" in told(scene(batch=48), "batch", "warning")
    assert "learned by heart" in told(scene(steps=100_000), "items", "warning")
    one = other(corpus, pictures=corpus.pictures[:1], plain=1, classes=corpus.classes[:1], texts=corpus.texts[:1])
    assert "one picture only" in told(scene(one), "items")


def test_a_codec_that_does_not_fit(scene, corpus):
    wide = other(corpus, codec=RGBACodec((0.5,) * 4, (0.01,) * 4))
    assert "fit the codec to these pictures" in told(scene(wide), "range")
    flat = other(corpus, codec=RGBACodec((0.0,) * 4, (1e4,) * 4))
    texts = [f.text for f in examine(scene(flat)) if f.about == "range" and f.degree == "error"]
    assert len(texts) == 2 and "noise of unit deviation decodes to nothing but" in texts[1]
    slight = other(corpus, codec=RGBACodec((0.4,) * 4, (0.1,) * 4))
    assert "not 0 and 1" in told(scene(slight), "range", "warning")
    broken = other(corpus, codec=RGBACodec((0.5,) * 4, (0.0,) * 4))
    assert any("NaN or infinity" in f.text for f in examine(scene(broken)))


def test_copies(scene, corpus):
    same = other(corpus, pictures=corpus.pictures[torch.arange(24) // 2])
    assert "50% of the pictures are copies of another, such as 00.png" in told(scene(same), "duplicates", "warning")
    noisy = corpus.pictures[torch.arange(24) // 3].clone()
    noisy[:, 0, 0, 0] = torch.arange(24).to(torch.uint8)  # each differs in one number
    assert "nearly equal another" in told(scene(other(corpus, pictures=noisy)), "duplicates", "warning")
    assert "all 24 pictures are the same" in told(scene(other(corpus, pictures=corpus.pictures[[0] * 24])), "duplicates")


def test_shipped_styles_are_not_taken_for_copies():
    """Many emoji share an outline; the near hash tells them apart."""
    import unfog.data
    from unfog.modalities.image.data import PictureSet

    data = PictureSet.open(unfog.data.path("emoji-64"))
    pictures = torch.from_numpy(np.stack([data.load(i, 32) for i in data.split("train")[:400]]))
    exact, near = gate_data._hashes(pictures)
    assert len(set(exact)) > 0.9 * 400 and len(set(near)) > 0.7 * 400


def test_held_out_pictures_that_are_trained_on(scene, corpus):
    part = other(corpus, pictures=corpus.pictures[:10], plain=10)
    assert "10 of 10 held-out pictures are trained on too" in told(scene(held=part), "held out")
    mixed = other(corpus, pictures=torch.cat([corpus.pictures[:2], 255 - corpus.pictures[:8]]), plain=10)
    assert "2 of 10" in told(scene(held=mixed), "held out", "warning")


def test_captions_that_say_nothing(scene, corpus):
    equal = other(corpus, texts=np.ones_like(corpus.texts))
    assert "all captions are the same ('caption 0')" in told(scene(equal), "captions", "warning")
    none = other(corpus, texts=np.zeros_like(corpus.texts))
    assert "no picture has a caption" in told(scene(none), "captions", "warning")
    assert "drops every caption" in told(scene(drop_text=1.0), "captions")
    broken = other(corpus, states=corpus.states * float("nan"))
    assert any("text states hold NaN" in f.text for f in examine(scene(broken)))


def test_labels_that_say_nothing(scene, corpus):
    one = other(corpus, classes=np.zeros(24, int), styles=["flat"])
    assert "style 'flat' is the only one" in told(scene(one, classes=1), "labels", "warning")
    alone = np.zeros(24, int)
    alone[3] = 1
    assert "one picture only of style round" in told(scene(other(corpus, classes=alone)), "labels", "warning")
    assert any("style number 7" in f.text for f in examine(scene(other(corpus, classes=np.full(24, 7)))) if f.degree == "error")


def test_settings_far_off(scene):
    def says(check, words, degree="warning", **changes):
        (found,) = check(scene(**changes))
        assert words in found.text and found.degree == degree

    says(gate.settings, "take 1e-3", lr=1e-7)
    says(gate.settings, "take 6 or fewer", warm_up=200)
    says(gate.settings, "never lowers the learning rate", decay=0.0)
    says(gate.settings, "would be untrained", steps=3, warm_up=0)
    says(gate.settings, "its untrained start too", ema=0.25)
    says(gate.schedule, "lies beyond the schedule's end", "error", schedule={"name": "edm", "sigma_max": 0.5})
    says(gate.schedule, "leaves levels untrained", noise_std=0.1)


def test_training_that_does_not_train(scene, monkeypatch):
    frozen = scene()
    frozen.network.requires_grad_(False)
    assert "all weights are frozen" in told(frozen, "overfit")
    right = MuonAdamW.step
    with monkeypatch.context() as patch:
        patch.setattr(MuonAdamW, "step", lambda self, closure=None: None)
        texts = [f.text for f in gate.overfit(scene())]
        assert any("do not lower its loss" in t for t in texts) and any("no weight moves" in t for t in texts)

    def uphill(self, closure=None):
        for group in self.param_groups:
            group["lr"] *= -1
        right(self)

    with monkeypatch.context() as patch:
        patch.setattr(MuonAdamW, "step", uphill)
        assert "do not lower its loss" in told(scene(), "overfit")
    monkeypatch.setattr(
        Denoising, "loss", lambda self, batch: batch["x0"].flatten(1).mean(1) * self.network.head.conv.bias[0] / 0
    )
    assert "not finite in the first" in [f.text for f in gate.overfit(scene())][0]


def test_a_perfect_network_must_give_back_x0(scene, monkeypatch):
    right = Prediction.to_x0
    monkeypatch.setattr(Prediction, "to_x0", lambda *args: 0.9 * right(*args))
    assert "would not give back x0" in told(scene(), "prediction")


def test_a_process_that_mixes_otherwise(scene, monkeypatch):
    right = Process.mix
    monkeypatch.setattr(Process, "mix", lambda *args: 0.9 * right(*args))
    assert "mix is not alpha x0" in told(scene(), "weight")


@pytest.mark.slow
def test_the_default_preset_is_fit_to_train(corpus):
    from unfog.training.presets import DEFAULT, preset

    recipe = preset(DEFAULT).recipe()
    pictures = torch.nn.functional.interpolate(corpus.pictures.permute(0, 3, 1, 2).float(), size=32).permute(0, 2, 3, 1)
    own = dataclasses.replace(corpus, pictures=pictures.to(torch.uint8).contiguous(), states=torch.randn(49, 32, 384).half(),
                              masks=torch.ones(49, 32, dtype=torch.bool))  # fmt: skip
    network = build_network(recipe, {"channels": 4, "classes": 2})
    denoiser = Preconditioned(network, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction)
    assert not [finding.text for finding in examine(Scene(recipe, own, own, denoiser, network)) if finding.degree == "error"]
