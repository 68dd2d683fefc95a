"""Pictures of several shapes: frames, batches of one frame, and a model that makes what was asked for."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import unfog
from unfog.errors import UserError
from unfog.modalities.image.data import PictureSet
from unfog.requests import GenerateRequest, Result, TrainRequest, check, from_recipe
from unfog.training.buckets import bucketed, frames, multiple, nearest, used_frames
from unfog.training.picture_corpus import build_corpus
from unfog.training.run import run_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("size", "step"), [(64, 16), (64, 4), (256, 16), (32, 8), (16, 8)])
def test_frames_have_the_area_the_sides_and_the_range(size, step):
    found = frames(size, step)
    assert (size, size) in found and list(found) == sorted(found, key=lambda f: f[0] / f[1])
    assert {(h, w) for w, h in found} == set(found)
    for w, h in found:
        assert w % step == h % step == 0 and 0.5 <= w / h <= 2 and 0.5 <= w * h / size**2 <= 1.5
    if step * 8 <= size:
        assert min(w / h for w, h in found) < 0.55 and len(found) >= 5


def test_what_a_network_needs(tiny_recipe):
    assert multiple(tiny_recipe()) == 8 and multiple(tiny_recipe(network="dit", settings={"patch": 2})) == 2
    assert multiple(tiny_recipe(settings={})) == 16 and multiple(tiny_recipe(network="dit", settings={})) == 4


def test_a_frame_that_few_pictures_would_fill_is_not_used(tiny_recipe):
    recipe = tiny_recipe(batch=16, size=32)
    known = frames(32, 8)
    wide = known[nearest((200, 100), list(known))]
    assert used_frames([(50, 50)] * 20 + [(200, 100)] * 3, recipe) == [(32, 32)]
    assert used_frames([(50, 50)] * 20 + [(200, 100)] * 4, recipe) == [(32, 32), wide]
    assert used_frames([(200, 100)] * 2 + [(9, 9)], recipe) == [wide]


@pytest.mark.parametrize(("counts", "batch"), [((10, 7, 3), 4), ((1, 5), 8), ((64, 64), 64), ((23,), 5)])
def test_every_picture_comes_once_in_each_round_of_its_bucket(counts, batch):
    members = list(np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1]))
    seen = {b: [] for b in range(len(counts))}
    batches = [bucketed(members, batch, 7, i) for i in range(40 * sum(counts) // batch)]
    for chosen in batches:
        (bucket,) = {next(b for b, m in enumerate(members) if i in m) for i in chosen}
        assert len(chosen) == batch
        seen[bucket].append(chosen)
    for b, n in enumerate(counts):  # batches of a bucket may come in another order within an epoch: count, do not follow
        visits = np.bincount(np.concatenate(seen[b]) - members[b][0], minlength=n)
        assert abs(visits - 40).max() <= 1 + -(-batch // n), (b, visits)
    assert all(np.array_equal(bucketed(members, batch, 7, i), batches[i]) for i in (5, 0, 11))
    assert any(not np.array_equal(bucketed(members, batch, 8, i), batches[i]) for i in range(5))


def shapes(folder, sizes):
    folder.mkdir()
    for i, (w, h) in enumerate(sizes):
        Image.new("RGBA", (w, h), (5 * i, 90, 200, 255)).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"thing {i}")
    return folder


SIZES = [(40, 40)] * 8 + [(60, 30)] * 8 + [(21, 40)] * 8


def test_a_batch_is_of_one_frame_and_its_rows_are_those_of_the_whole(tmp_path, tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(size=32, buckets=True, batch=4, recolour=0.5)
    corpus = build_corpus(PictureSet.open(shapes(tmp_path / "set", SIZES)), recipe)
    corpus.states, corpus.masks = torch.zeros(len(corpus.captions), 2, 12), torch.ones(len(corpus.captions), 2, dtype=torch.bool)
    assert len(corpus.pictures) > corpus.plain == 24 and len(corpus.frames) == 3
    seen = set()
    for index in range(12):
        x0, _ = corpus.batch(recipe, index)
        width, height = corpus.frames[corpus.bucket[corpus.chosen(recipe, index)[0]]]
        assert x0.shape == (4, 4, height, width) and len(set(corpus.bucket[corpus.chosen(recipe, index)])) == 1
        assert torch.equal(corpus.batch(recipe, index, slice(1, None, 2))[0], x0[1::2])
        assert corpus.batch(recipe, index, slice(4, None, 5))[0].shape == (0, 4, height, width)  # a process without a share
        seen.add((width, height))
    assert seen == set(corpus.frames)
    planes = torch.cat([corpus.x0(np.flatnonzero(corpus.bucket[:24] == b)).transpose(0, 1).flatten(1) for b in range(3)], 1)
    assert abs(planes[:3].mean(1)).max() < 2e-3  # the codec counts no pixel that is none


def test_filling_cuts_a_little_and_pads_the_rest(tmp_path):
    ramp = np.zeros((40, 80, 4), np.uint8)
    ramp[..., 0], ramp[..., 3] = np.arange(80) * 3, 255
    Image.fromarray(ramp).save(tmp_path / "a.png")
    data = PictureSet.open(tmp_path)
    assert data.size(0) == (80, 40)
    near = data.load(0, (40, 21))  # 5 % of the width is cut off, none is empty
    assert near.shape == (21, 40, 4) and (near[..., 3] == 255).all() and 1 <= near[10, 0, 0] <= 12
    far = data.load(0, (40, 40))  # 8 %, and the rest stays transparent
    rows = (far[..., 3] > 128).all(1).sum()
    assert rows == round(20 / 0.92) and not far[0].any() and far[20, 0, 0] > 4
    square = data.load(0, 40)
    assert (square[..., 3] > 128).all(1).sum() == 20 and square[20, 0, 0] < 4


@pytest.mark.parametrize("network", ["unet", "dit"])
def test_a_model_of_several_shapes(tmp_path, network):
    settings = {"unet": {"unshuffle": 4, "widths": [16, 16], "blocks": [1, 1], "attention": [False, True], "embedding": 16},
                "dit": {"size": 32, "width": 32, "depth": 2, "heads": 2, "registers": 1, "bottleneck": 16}}  # fmt: skip
    fields = {"name": "shapes", "data": str(shapes(tmp_path / "set", SIZES)), "size": 32, "network": network, "buckets": True,
              "settings": settings[network], "steps": 3, "batch": 4, "accumulate": 1, "recolour": 0.0, "report_steps": 3,
              "defaults": {"steps": 2, "scale": 2.0, "sampler": "ddim"}}  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(fields))
    run_recipe(TrainRequest(source=tmp_path / "r.json", out=tmp_path / "out"))
    card = json.loads((tmp_path / "out" / "model" / "model.json").read_text())
    assert len(card["buckets"]) == 3 and [32, 32] in card["buckets"]
    assert all(math.isfinite(loss) for loss in card["training"]["held_out_loss"].values())
    assert (tmp_path / "out" / "samples" / "0000003.png").is_file()

    model = unfog.load(tmp_path / "out")
    wide, tall = max(card["buckets"]), min(card["buckets"])
    assert model.generate("thing 1", seed=1)[0].size == (32, 32)
    assert model.generate("thing 1", seed=1, aspect="2:1")[0].size == tuple(wide)
    assert model.generate("thing 1", seed=1, aspect="1:2")[0].size == tuple(tall)
    request = check(GenerateRequest, {"prompts": ["thing 1"], "seed": 1, "aspect": "2:1"})
    (made,) = [event for event in model.stream(request) if isinstance(event, Result)]
    assert made.recipe["aspect"] == "2:1" and from_recipe(made.recipe).aspect == "2:1"
    with pytest.raises(UserError, match=r"aspect: shapes makes no pictures near 4:1; give one of: .*1:1 \(32x32\)"):
        model.generate("thing 1", aspect="4:1")
    broken = {**card, "buckets": [[0, 8]]}
    from unfog.files import write_manifest

    (tmp_path / "out" / "model" / "model.json").write_text(json.dumps(broken))
    write_manifest(tmp_path / "out" / "model")
    with pytest.raises(UserError, match="buckets must be"):
        unfog.load(tmp_path / "out")


def test_a_square_model_makes_squares_only():
    model = unfog.load("emoji-64")
    assert model.frame() == model.frame("1:1") == (64, 64)
    with pytest.raises(UserError, match=r"aspect: emoji-64 makes no pictures near 3:2; give one of: 1:1 \(64x64\)"):
        model.frame("3:2")
    for wrong in ("3x2", "0:1", "3:", "1:2:3", "-1:2"):
        with pytest.raises(UserError, match="aspect"):
            check(GenerateRequest, {"prompts": ["x"], "aspect": wrong})
    assert "aspect" not in model._settings(check(GenerateRequest, {"prompts": ["x"]}))
