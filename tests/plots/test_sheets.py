"""Grids, films and forward strips: their pictures are the ones that they say, their numbers are exact."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from unfog import plots
from unfog.diffusion import Gaussian, Noise, schedule_from_config
from unfog.errors import UserError
from unfog.modalities.image.show import read_recipe
from unfog.plots.film import chosen
from unfog.plots.forward import noised
from unfog.plots.grid import asked, cells, counted
from unfog.plots.requests import FilmRequest, GridRequest
from unfog.plots.strip import enlarged
from unfog.requests import GenerateRequest, check


def test_cells_are_what_generate_gives(model, tmp_path):
    drawn = plots.draw("grid", model, x="steps=2,4", y="scale=1,3", z="sampler=ddim,heun", prompt="a red apple", seed=3, n=2)
    wanted = []
    for sampler in ("ddim", "heun"):
        for scale in (1, 3):
            for steps in (2, 4):
                wanted += model.generate("a red apple", sampler=sampler, scale=scale, steps=steps, seed=3, n=2)
    assert [p.tobytes() for p in drawn.pictures] == [p.tobytes() for p in wanted]
    assert len({p.tobytes() for p in wanted}) == 16
    costs = [(cell["sampler"], cell["scale"], cell["steps"], cell["nfe"]) for cell in drawn.facts["cells"]]
    # heun asks twice a step but for the last; guidance asks for two pictures at once
    evaluations = {("ddim", 2): 2, ("ddim", 4): 4, ("heun", 2): model.plan("heun", 2).nfe, ("heun", 4): model.plan("heun", 4).nfe}
    assert costs == [
        (s, g, k, evaluations[s, k] * (1 if g == 1 else 2)) for s in ("ddim", "heun") for g in (1, 3) for k in (2, 4)
    ]
    assert all(cell["milliseconds"] > 0 for cell in drawn.facts["cells"])
    path = drawn.save(tmp_path / "sub" / "grid.png")
    assert read_recipe(path)["made"] == "unfog plot" and len(read_recipe(path)["cells"]) == 8


def test_the_pictures_of_a_grid_are_seen_in_it(model):
    drawn = plots.draw("grid", model, x="seed=1,2", y={"prompt": ["a cat", "a dog, sitting"]}, timed=False)
    seen = np.asarray(drawn.image).astype(int)
    assert drawn.image.mode == "RGB" and tuple(seen[0, 0]) == (255, 255, 255)
    for picture in drawn.pictures:
        large = np.asarray(enlarged(picture, 8, True)).astype(int)
        first = [(y, x) for y, x in zip(*np.where((seen == large[0, 0]).all(-1)), strict=True)]
        assert any(np.array_equal(seen[y : y + 128, x : x + 128], large) for y, x in first)


def test_an_untimed_grid_is_the_same_file_again(model):
    one, two = (plots.draw("grid", model, x=("style", ["flat", "round"]), prompt="a cat", timed=False).data() for _ in range(2))
    assert one == two and b"milliseconds" not in one
    assert b"milliseconds" in plots.draw("grid", model, x="style=flat,round", prompt="a cat").data()


def test_axes_and_their_errors(model):
    request = check(GridRequest, {"model": "m", "x": "prompt=a, b|c", "y": ("steps", [1, 2])})
    assert cells(request) == [{"steps": s, "prompt": p} for s in (1, 2) for p in ("a, b", "c")]
    assert asked(request, cells(request)[1]) == GenerateRequest(prompts=["c"], steps=1, seed=0)
    for axis, line in [
        ("stepz=1,2", "x: 'stepz=1,2' names no axis, did you mean steps?"),
        ("SCALE=1", "did you mean scale?"),
        ("steps", "has no ="),
        ("steps=1,x", "'x', which is no whole number"),
        ("steps=1,,2", "has an empty value"),
        ("steps=1,1", "has a value twice"),
        ("steps=" + ",".join(map(str, range(1, 40))), "has 39 values"),
        (7, "is no axis"),
        (("steps", "12"), "is no axis"),
    ]:
        with pytest.raises(UserError) as caught:
            check(GridRequest, {"model": "m", "x": axis})
        assert line in str(caught.value) and "\n" not in str(caught.value)
    for fields, line in [
        ({"x": "sampler=ddim,huen"}, "did you mean heun?"),
        ({"x": "style=flat,rond"}, "did you mean round?"),
        ({"x": "steps=0,1"}, "steps: 0 is less than 1"),
        ({"x": "scale=1,nan"}, "not a finite number"),
        ({"x": "steps=1,2", "prompt": None}, "prompt: is missing"),
        ({"x": "steps=1,2", "y": "steps=3"}, "goes over steps, as x does"),
        ({"x": "seed=" + ",".join(map(str, range(24))), "y": "scale=" + ",".join(map(str, range(24)))}, "more than 400"),
        ({"x": "steps=1", "step": 4}, "did you mean steps?"),
    ]:
        with counted(model) as evaluations, pytest.raises(UserError) as caught:
            plots.draw("grid", model, **({"prompt": "a cat"} | fields))
        assert line in str(caught.value) and "\n" not in str(caught.value)
        assert evaluations == [0]  # refused before anything is made
    with pytest.raises(UserError, match="did you mean film"):
        plots.draw("flim", model)
    with pytest.raises(UserError, match="of one model"):
        plots.draw("grid", [model, model], x="steps=1")


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "ddpm", "auto"])
def test_a_film_ends_with_the_picture(model, sampler):
    drawn = plots.draw("film", model, prompt="a cat", seed=5, n=2, steps=3, sampler=sampler, frames=30, style="flat")
    pictures = model.generate("a cat", seed=5, n=2, steps=3, sampler=sampler, style="flat")
    plan = model.plan(sampler, 3)
    rows = np.array([np.asarray(p) for p in drawn.pictures]).reshape(4, plan.nfe + 1, 16, 16, 4)
    for k, picture in enumerate(pictures):
        assert np.array_equal(rows[2 * k, -1], np.asarray(picture)) and np.array_equal(rows[2 * k + 1, -1], np.asarray(picture))
    # the first frame is the noise of the picture's own seed
    x = model.denoiser.process.prior(Noise([6]).normal((4, 16, 16), 0), plan.start)
    assert np.array_equal(rows[2, 0], model.codec.decode(x)[0])
    assert [f["step"] for f in drawn.facts["frames"]] == list(range(plan.nfe + 1))
    assert np.allclose([f["t"] for f in drawn.facts["frames"]], [*plan.t, plan.end])


def test_x0_of_a_film_is_what_the_step_found(model):
    request = GenerateRequest(prompts=["a cat"], seed=1, steps=4, scale=1.0, sampler="ddim")
    plan = model.planned(request)
    states = list(model.states(request, [("a cat", None, 1)], plan))
    assert [s.nfe for s in states] == [0, 1, 2, 3, 4] and states[-1].done
    cond = model.condition(["a cat"], [None])
    drawn = plots.draw("film", model, prompt="a cat", seed=1, steps=4, scale=1.0, sampler="ddim", at=[2, 0])
    rows = np.array([np.asarray(p) for p in drawn.pictures]).reshape(2, 2, 16, 16, 4)
    for column, step in enumerate((0, 2)):
        found = model.denoiser(states[step].x, states[step].t, cond)
        assert np.array_equal(rows[0, column], model.codec.decode(states[step].x)[0])
        assert np.array_equal(rows[1, column], model.codec.decode(found)[0])
    assert plots.draw("film", model, prompt="a cat", seed=1).data() == plots.draw("film", model, prompt="a cat", seed=1).data()


def test_steps_to_show():
    def steps(**fields):
        return chosen(check(FilmRequest, {"model": "m", "prompt": "p", **fields}), 20)

    assert steps(frames=3) == [0, 10, 20] and steps(at="20,0,5,5") == [0, 5, 20] and len(steps(frames=64)) == 21
    assert steps(frames=8)[0] == 0 and steps(frames=8)[-1] == 20 and len(steps(frames=8)) == 8
    for wrong in ("21", "-1"):
        with pytest.raises(UserError, match="from 0 .the noise. to 20"):
            steps(at=wrong)
    with pytest.raises(UserError, match="not whole numbers"):
        steps(at="1.5")


@pytest.mark.parametrize("name", ["cosine", "linear", "vp", "edm"])
def test_noised_pictures_have_alpha_and_sigma(name):
    process = Gaussian(schedule_from_config({"name": name}))
    x0 = torch.randn(4, 128, 128, generator=torch.Generator().manual_seed(0)) * 1.7 + 0.4
    times = [0.05, 0.3, 0.5, 0.8]
    for t, x_t in zip(times, noised(process, x0, times, seed=11), strict=True):
        flat = x0.flatten().double()
        slope, level = np.polyfit(flat.numpy(), x_t.flatten().double().numpy(), 1)
        rest = x_t.flatten().double() - slope * flat - level
        alpha, sigma = float(process.schedule.alpha(t)), float(process.schedule.sigma(t))
        within = 5 * sigma / math.sqrt(len(flat))  # five standard errors
        assert abs(slope - alpha) < within and abs(level) < 2 * within and abs(float(rest.std()) - sigma) < within


def test_the_forward_strip_says_and_shows_its_levels(model, tmp_path):
    drawn = plots.draw("forward", model, logsnr="4,0,-4", seed=2, prompt="a cat")
    levels = drawn.facts["levels"]
    assert np.allclose([c["logsnr"] for c in levels], [4, 0, -4], atol=1e-4)
    for c in levels:
        assert np.isclose(c["alpha"] ** 2 + c["sigma"] ** 2, 1) and np.isclose(c["snr"], (c["alpha"] / c["sigma"]) ** 2)
    assert drawn.facts["picture"] == "thing 12 (flat)"  # the first that the model was not trained on
    rows = np.array([np.asarray(p) for p in drawn.pictures]).reshape(2, 3, 16, 16, 4)
    x0 = model.codec.encode(np.array(Image.open(f"{model.card['training']['data']}/12.png"))[None])[0]
    mixed = noised(model.denoiser.process, x0, [c["t"] for c in levels], 2)
    found = [model.denoiser(x[None], c["t"], model.condition(["a cat"], [None])) for x, c in zip(mixed, levels, strict=True)]
    for k in range(3):
        assert np.array_equal(rows[0, k], model.codec.decode(mixed[k][None])[0])
        assert np.array_equal(rows[1, k], model.codec.decode(found[k])[0])
        assert np.isclose(levels[k]["rmse"], float((found[k][0] - x0).square().mean().sqrt()))
    alone = plots.draw("forward", t=[0.0, 1.0], schedule="linear", picture=f"{model.card['training']['data']}/00.png", size=16)
    assert [(c["alpha"], c["sigma"], c["snr"]) for c in alone.facts["levels"]] == [(1.0, 0.0, None), (0.0, 1.0, 0.0)]
    clean = np.asarray(alone.pictures[0]).astype(int)
    real = np.asarray(Image.open(f"{model.card['training']['data']}/00.png")).astype(int)
    sure = real[..., 3] > 40  # colours of a nearly transparent pixel are not kept
    assert np.abs(clean - real)[sure].max() <= 11 and json.dumps(alone.facts)  # an alpha of 0.96 is shown as 1


def test_forward_errors(model, tmp_path):
    for given, fields, line in [
        (model, {"schedule": "linear"}, "schedule: tiny has its own"), (model, {"size": 32}, "size: tiny has its own"),
        (None, {"prompt": "x"}, "prompt: nobody"), (None, {"schedule": "cosin"}, "did you mean cosine?"),
        (model, {"t": [0.5], "logsnr": [0]}, "the noise levels that t says too"), (model, {"t": "2"}, "not in [0, 1]"),
        (model, {"t": "a"}, "not numbers"), (model, {"picture": tmp_path / "no.png"}, "is no file"),
        (model, {"number": 99}, "have 20 pictures"), (model, {"style": "flatt"}, "did you mean flat?"),
        (None, {"data": "emoji-46"}, "emoji-46"), (model, {"picture": "x.png", "number": 1}, "beside data or number"),
    ]:  # fmt: skip
        with pytest.raises(UserError) as caught:
            plots.draw("forward", given, **fields)
        assert line in str(caught.value) and "\n" not in str(caught.value)


def test_places_are_checked(model, tmp_path):
    drawn = plots.draw("film", model, prompt="a cat", frames=2)
    (tmp_path / "mine.png").write_bytes(b"a photograph")
    for path, line in [(tmp_path / "x.jpg", "does not end in .png"), (tmp_path / "mine.png", "no plot of unfog's"),
                       (tmp_path / "mine.png" / "x.png", "no folder")]:  # fmt: skip
        with pytest.raises(UserError, match=line):
            drawn.save(path)
    assert (tmp_path / "mine.png").read_bytes() == b"a photograph"
    assert drawn.save(tmp_path / "a.png") == drawn.save(tmp_path / "a.png") == tmp_path / "a.png"  # our own is replaced
