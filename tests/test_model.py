"""The model folder and its pictures: seeds, batches, damage, names, hashes."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

import unfog
from unfog.diffusion import Noise, make_grid, make_plan
from unfog.errors import UserError
from unfog.files import write_manifest
from unfog.modalities.image.codec import RGBACodec
from unfog.modalities.image.data import PictureSet
from unfog.model import Model, add_plan, save_model
from unfog.requests import GenerateRequest, Progress, Result
from unfog.training.picture_corpus import PictureCorpus
from unfog.training.recipe import Recipe
from unfog.training.run import build_network

STYLES = ["flat", "round", "sketchy"]
RECIPE = Recipe(
    name="tiny",
    size=16,
    settings={"unshuffle": 4, "widths": [16, 24], "blocks": [1, 1], "attention": [False, True], "embedding": 16},
    defaults={"steps": 4, "scale": 2.0, "sampler": "dpmpp_2m"},
    licences=["made by hand"],
)


def write_model(folder, change=0.0):
    torch.manual_seed(0)
    network = build_network(RECIPE, {"channels": 4, "classes": len(STYLES)})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        network.head.conv.bias[0] += change
    empty = np.zeros(0, np.int64)
    corpus = PictureCorpus(torch.zeros(0, 16, 16, 4), empty, empty, 0, [""], STYLES, RGBACodec(), [])
    save_model(folder, RECIPE, corpus, network, 3, {"0": 0.5})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return Model(folder, dtype=torch.float32)


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder to damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def pixels(pictures):
    return np.stack([np.asarray(p) for p in pictures]).astype(int)


def test_load_and_generate(folder):
    model = unfog.load(folder)
    assert (model.name, model.styles, model.size, len(model.hash)) == ("tiny", STYLES, 16, 16)
    (picture,) = model.generate("a red apple", style="flat", seed=1)
    assert picture.mode == "RGBA" and picture.size == (16, 16)
    assert len(np.unique(np.asarray(picture))) > 10


def test_a_picture_does_not_depend_on_its_neighbours(folder):
    model = unfog.load(folder)  # in whatever number format is fastest here
    four = model.generate("a red apple", seed=7, n=4)
    assert len({p.tobytes() for p in four}) == 4
    for k in range(4):
        assert model.generate("a red apple", seed=7 + k)[0].tobytes() == four[k].tobytes()
    two = model.generate(GenerateRequest(prompts=["a blue car", "a red apple"], seed=7, n=2))
    assert [p.tobytes() for p in two[2:]] == [p.tobytes() for p in four[:2]]


def test_a_batch_is_close_to_one_by_one(model):
    alone, together = (pixels(model.generate("a red apple", seed=3, n=5, batch=b)) for b in (1, 4))
    assert np.abs(alone - together).max() <= 1


def test_strict_pictures_are_the_same_to_the_bit_in_any_batch_order_and_number_of_threads(model):
    seeds = list(range(3, 10))
    wanted = [model.generate("a red apple", seed=k, strict=True)[0].tobytes() for k in seeds]
    before = torch.get_num_threads()
    try:
        for threads in (2,):
            torch.set_num_threads(threads)
            batch = model.generate("a red apple", seed=3, n=7, batch=7, strict=True)
            assert [p.tobytes() for p in batch] == wanted
            assert torch.get_num_threads() == threads
        two = model.generate(GenerateRequest(prompts=["a blue car", "a red apple"], seed=3, n=7, batch=14, strict=True))
        assert [p.tobytes() for p in two[7:]] == wanted
    finally:
        torch.set_num_threads(before)


def test_make_is_close_to_generate(model):
    prompts, styles, seeds = ["a red apple", "a blue car", "a red apple"], ["flat", None, "round"], [4, 9, 4]
    many = np.stack(model.make(prompts, styles, seeds, batch=2))
    single = [model.generate(p, style=s, seed=k)[0] for p, s, k in zip(prompts, styles, seeds, strict=True)]
    assert many.shape == (3, 16, 16, 4) and many.dtype == np.uint8
    assert np.abs(many - pixels(single)).max() <= 1


def test_everything_asked_for_counts(model):
    base = model.generate("a red apple", style="flat", seed=1)[0].tobytes()
    assert base == model.generate("a red apple", style="flat", seed=1)[0].tobytes()
    for change in ({"style": "round"}, {"style": None}, {"seed": 2}, {"scale": 3.0}, {"steps": 5}, {"sampler": "euler"},
                   {"negative": "a blue car"}):  # fmt: skip
        assert model.generate("a red apple", **{"style": "flat", "seed": 1} | change)[0].tobytes() != base, change
    assert model.generate("a green pear", style="flat", seed=1)[0].tobytes() != base


def test_scale_one_is_half_the_work(model):
    rows = []
    hook = model.denoiser.network.register_forward_hook(lambda _module, given, _out: rows.append(len(given[0])))
    try:
        model.generate("a red apple", seed=1, n=3, batch=3, scale=2.0)
        guided, rows[:] = sum(rows), []
        model.generate("a red apple", seed=1, n=3, batch=3, scale=1.0)
    finally:
        hook.remove()
    assert guided == 2 * sum(rows) and sum(rows) == 3 * model.plan().nfe


def test_events_count_up_and_carry_what_remakes_the_picture(model):
    request = GenerateRequest(prompts=["a red apple", "a blue car"], n=2, seed=5, batch=3, style="flat")
    events = list(model.stream(request))
    done = [e.done for e in events if isinstance(e, Progress)]
    assert done == sorted(done) and done[-1] == events[0].total == 4 * model.plan().nfe
    results = [e for e in events if isinstance(e, Result)]
    assert [(r.index, r.prompt, r.seed) for r in results] == [
        (0, "a red apple", 5), (1, "a red apple", 6), (2, "a blue car", 5), (3, "a blue car", 6)]  # fmt: skip
    recipe = results[3].recipe
    assert (recipe["model"], recipe["model_hash"], recipe["steps"], recipe["scale"]) == ("tiny", model.hash, 4, 2.0)
    assert recipe["negative"] is None and json.loads(json.dumps(recipe)) == recipe


def test_a_learned_plan_belongs_to_the_folder(copy, tmp_path):
    before = Model(copy, dtype=torch.float32)
    picture = before.generate("a red apple", seed=1)[0].tobytes()
    schedule = before.denoiser.process.schedule
    plan = make_plan("deis", schedule, make_grid("karras", schedule, 3))
    add_plan(copy, copy, "fit-3", {"plan": plan.to_dict(), "scale": 1.5})
    add_plan(copy, tmp_path / "other", "fit-3b", {"plan": plan.to_dict(), "scale": 1.5})
    model = Model(copy, dtype=torch.float32)
    assert set(Model(tmp_path / "other").plans) == {"fit-3", "fit-3b"}
    assert model.hash == before.hash and model.generate("a red apple", seed=1)[0].tobytes() == picture
    result = next(e for e in model.stream(GenerateRequest(prompts=["x"], seed=1, sampler="fit-3")) if isinstance(e, Result))
    assert (result.recipe["sampler"], result.recipe["steps"], result.recipe["scale"]) == ("fit-3", 3, 1.5)
    assert result.recipe["plan"] == model.plan_hash("fit-3") != None  # noqa: E711
    with pytest.raises(UserError, match="plan of 3 evaluations, not 5"):
        model.generate("x", seed=1, sampler="fit-3", steps=5)
    with pytest.raises(UserError, match="fit-3"):
        model.generate("x", seed=1, sampler="fit-4")
    (copy / "plans.json").write_bytes((copy / "plans.json").read_bytes().replace(b"1.5", b"1.6"))
    with pytest.raises(UserError, match="plans.json"):
        Model(copy)


@pytest.mark.parametrize("name", ["network.safetensors", "model.json"])
def test_a_flipped_bit_is_noticed(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}: the file is damaged"):
        unfog.load(copy)


def test_the_shipped_network_is_not_asked_below_its_training():
    """A real picture with hardly any noise comes back as well from σ/α 0.002 as from 0.03; it had 2.4 times the error."""
    model = unfog.load("emoji-64")
    data = PictureSet.open(unfog.data.path("emoji-64"))
    chosen = data.split("train")[::2000]
    x0 = model.codec.encode(np.stack([data.load(i, 64) for i in chosen]))
    cond = model.condition([data.records[i].name for i in chosen], [data.records[i].style for i in chosen])
    schedule, noise = model.denoiser.process.schedule, Noise(range(len(chosen))).normal((4, 64, 64), 0)
    errors = []
    for level in (0.03, 0.002):
        t = float(schedule.time(-2.0 * math.log(level)))
        with torch.no_grad():
            found = model.denoiser(float(schedule.alpha(t)) * x0 + float(schedule.sigma(t)) * noise, t, cond)
        errors.append(float((found - x0).square().mean().sqrt()))
    assert errors[1] < 1.1 * errors[0] < 0.2


def test_a_model_says_how_little_noise_it_was_trained_on(copy):
    assert Recipe(noise_mean=0.4, noise_std=1.3).sigma_min == pytest.approx(math.exp(0.4 - 3.9), rel=0.005)
    assert Recipe(noise_mean=9.0).sigma_min == 0.05
    card = json.loads((copy / "model.json").read_text())
    assert Model(copy).denoiser.sigma_min == card["sigma_min"] == RECIPE.sigma_min
    for wrong in ("low", -0.1, 1.0, True):
        (copy / "model.json").write_text(json.dumps({**card, "sigma_min": wrong}))
        write_manifest(copy)
        with pytest.raises(UserError, match=r"model\.json: sigma_min must be a number in"):
            Model(copy)


@pytest.mark.parametrize("name", ["network.safetensors", "manifest.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: missing"):
        unfog.load(copy)


def test_a_cut_file_and_a_broken_manifest(copy):
    data = (copy / "network.safetensors").read_bytes()
    (copy / "network.safetensors").write_bytes(data[:-7])
    with pytest.raises(UserError, match=r"network\.safetensors: the file is damaged"):
        unfog.load(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: not readable"):
        unfog.load(copy)
    (copy / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match=r"manifest\.json"):
        unfog.load(copy)


def edit(folder, **fields):
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | fields))
    write_manifest(folder)


def test_a_newer_format_is_refused(copy):
    edit(copy, format=99)
    with pytest.raises(UserError, match="format 99.*update unfog"):
        unfog.load(copy)


def test_weights_that_do_not_fit_the_card(copy):
    settings = RECIPE.settings | {"channels": 4, "classes": 3, "widths": [16, 32]}
    edit(copy, network={"name": "unet", "settings": settings})
    with pytest.raises(UserError, match=r"network\.safetensors"):
        unfog.load(copy)


def test_a_card_from_nowhere(copy):
    edit(copy, network={"name": "os.system", "settings": {}})
    with pytest.raises(UserError, match="network"):
        unfog.load(copy)


def test_unknown_names_come_with_the_nearest(model):
    with pytest.raises(UserError, match="style: 'rond' is unknown; did you mean round"):
        model.generate("a red apple", style="rond")
    with pytest.raises(UserError, match="sampler: 'dpmpp_2mm' is unknown; did you mean dpmpp_2m"):
        model.generate("a red apple", sampler="dpmpp_2mm")
    with pytest.raises(UserError, match="did you mean steps"):
        model.generate("a red apple", stps=3)
    with pytest.raises(UserError, match="model: 'no-such-model' is unknown"):
        unfog.load("no-such-model")


def test_a_folder_that_holds_no_model(tmp_path):
    with pytest.raises(UserError, match=r"no model\.json there"):
        unfog.load(tmp_path)


def test_the_hash_is_the_weights(folder, tmp_path):
    same, other = write_model(tmp_path / "same"), write_model(tmp_path / "other", change=0.25)
    assert Model(same).hash == Model(folder).hash != Model(other).hash


def test_saving_replaces_whole_or_not_at_all(tmp_path):
    folder = write_model(tmp_path / "tiny")
    before = Model(folder).hash
    write_model(folder, change=0.25)
    assert Model(folder).hash != before
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "model.json", "network.safetensors"]
