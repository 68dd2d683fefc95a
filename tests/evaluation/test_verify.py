"""What networks predict, told from exact ones; the certified matrix, and that it notices what is wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import unfog.evaluation.verify as certified
from unfog.diffusion.denoisers import DataSetDenoiser, MixtureDenoiser
from unfog.diffusion.guidance import GUIDANCES
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import sample
from unfog.diffusion.predictions import PREDICTIONS, Affine
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import SAMPLERS, make_plan
from unfog.diffusion.schedules import VP, Cosine, Linear, Table
from unfog.errors import UserError
from unfog.evaluation.infer import check_prediction, check_schedule, examine, infer_prediction
from unfog.evaluation.verify import ExactNetwork, Row, VerifyReport, certify, moments
from unfog.files import write_manifest
from unfog.modalities.image.codec import RGBACodec
from unfog.model import save_model
from unfog.networks import NETWORKS
from unfog.training.picture_corpus import PictureCorpus
from unfog.training.recipe import Recipe

SCHEDULES = {"cosine": Cosine(), "scaled linear": Table.scaled_linear(), "flow": Linear()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
every_prediction = pytest.mark.parametrize("kind", PREDICTIONS)


class ByLevel(ExactNetwork):
    """An exact network that reads the noise level from what it is given, as a real one does."""

    def __call__(self, given, level, cond=None):
        schedule = self.exact.process.schedule
        self.t = float(schedule.time(float(level[0])))
        return super().__call__(given, level, cond)


class ByIndex(ExactNetwork):
    """The same, given the index of a table."""

    def __call__(self, given, level, cond=None):
        self.t = self.exact.process.schedule.time_of(int(level[0]))
        return super().__call__(given, level, cond)


def mixture(schedule):
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    exact = MixtureDenoiser(Gaussian(schedule), torch.tensor([0.3, 0.5, 0.2]), means, stds=torch.tensor([0.3, 0.5, 0.25]))
    which = torch.randint(3, (16,), generator=generator)
    return exact, means[which] + 0.35 * torch.randn(16, 4, generator=generator, dtype=torch.float64)


# Inference


@every_prediction
@every_schedule
def test_a_prediction_is_told_from_data(schedule, kind):
    exact, data = mixture(schedule)
    found = infer_prediction(ByLevel(exact, kind), exact.process, data=data)
    assert (found.prediction, found.source) == (kind, "data")
    assert found.margin > 1.3 and next(iter(found.costs)) == kind


@every_prediction
def test_a_prediction_is_told_from_few_items_of_a_data_set(kind):
    data = torch.randn(12, 30, generator=torch.Generator().manual_seed(1)).double()
    exact = DataSetDenoiser(Gaussian(Cosine()), data)
    found = infer_prediction(ByLevel(exact, kind), exact.process, data=data[:2])
    assert found.prediction == kind and found.margin > 3


@pytest.mark.parametrize("kind", ["x0", "eps", "flow", "v"])
def test_a_prediction_is_told_without_data(kind):
    """Never told wrong; v and flow are near relatives on the flow schedule, so v may stay undecided."""
    exact, _ = mixture(SCHEDULES["flow"])
    found = infer_prediction(ByLevel(exact, kind), exact.process, shape=(4,))
    assert found.source == "samples"
    assert found.prediction == kind or (kind == "v" and found.prediction is None)


def test_a_table_of_indices_is_read_by_index():
    exact, data = mixture(Table.scaled_linear())
    found = infer_prediction(ByIndex(exact, "eps"), exact.process, data=data, noise_input="index")
    assert found.prediction == "eps"


def test_a_network_that_denoises_under_no_reading_is_left_open():
    _, data = mixture(Cosine())
    for nothing in (torch.zeros_like, torch.tanh, lambda x: x / 0):
        found = infer_prediction(lambda x, level, cond, f=nothing: f(x), Gaussian(Cosine()), data=data)
        assert found.prediction is None and found.spread is None and "undecided" in str(found)
        check_prediction(found, "eps")  # nothing speaks against it


def test_a_wrong_declaration_is_refused_in_one_line():
    exact, data = mixture(Cosine())
    found = infer_prediction(ByLevel(exact, "v"), exact.process, data=data)
    check_prediction(found, "v")
    for wrong in set(PREDICTIONS) - {"v"}:
        with pytest.raises(UserError) as error:
            check_prediction(found, wrong)
        line = str(error.value)
        assert f"'{wrong}' is declared" in line and "say 'v'" in line and "set prediction to 'v'" in line and "\n" not in line
    with pytest.raises(UserError, match="did you mean v"):
        check_prediction(found, "vv")


ENDS = {"zero": Table.scaled_linear().zero_terminal_snr(), "not zero": Table.scaled_linear()}


@pytest.mark.parametrize("kind", ["x0", "v", "flow", "edm"])
@pytest.mark.parametrize("trained", ENDS)
def test_zero_terminal_snr_is_told_and_a_schedule_that_denies_it_refused(trained, kind):
    exact, data = mixture(ENDS[trained])
    network = ByIndex(exact, kind)
    found = infer_prediction(network, exact.process, data=data, noise_input="index")
    assert found.prediction == kind
    assert found.terminal == "zero" if trained == "zero" else found.terminal != "zero"
    check_schedule(found, exact.process, kind)
    stated = Gaussian(ENDS["not zero"])
    found = infer_prediction(network, stated, data=data, noise_input="index")
    assert (found.prediction, found.terminal) == (kind, trained)
    if trained == "zero":
        with pytest.raises(UserError, match="state the schedule with zero terminal SNR"):
            check_schedule(found, stated, kind)
    else:
        check_schedule(found, stated, kind)


def test_eps_cannot_end_in_pure_noise():
    exact, data = mixture(ENDS["not zero"])
    stated = Gaussian(ENDS["zero"])
    found = infer_prediction(ByIndex(exact, "eps"), stated, data=data, noise_input="index")
    assert found.terminal == "not zero" and found.spread is None
    with pytest.raises(UserError, match="without zero terminal SNR"):
        check_schedule(found, stated, "eps")
    check_schedule(found, Gaussian(ENDS["not zero"]), "eps")


def test_a_network_that_reads_pictures_out_of_pure_noise_is_refused_on_a_schedule_that_ends_there():
    data = torch.tensor([[1.0] * 200, [-1.0] * 200]).double()  # so far apart that a trace of them is enough
    exact = DataSetDenoiser(Gaussian(ENDS["not zero"]), data)
    stated = Gaussian(ENDS["zero"])
    found = infer_prediction(ByIndex(exact, "x0"), stated, data=data.repeat(4, 1), noise_input="index")
    assert found.prediction == "x0" and found.terminal == "not zero"
    with pytest.raises(UserError, match="reads x0 out of it"):
        check_schedule(found, stated, "x0")
    check_schedule(found, Gaussian(Cosine()), "x0")  # t = 1 of a continuous schedule is not trained on


# The matrix


def test_moments_are_those_of_drawn_samples():
    schedule, mean, std, n = VP(), 0.7, 0.5, 3000
    exact = certified.GaussianDenoiser(Gaussian(schedule), torch.full((n,), mean), std=std)
    for name in ("ddpm", "sa_solver", "dpmpp_2s_a"):
        plan = make_plan(name, schedule, schedule.time(np.array([-9.0, -3.0, 0.0, 2.0, 5.0])))
        noise = Noise(range(4))
        start = schedule.alpha(plan.start) * mean + math.hypot(schedule.alpha(plan.start) * std, schedule.sigma(plan.start)) * (
            noise.normal((n,), 0, dtype=torch.float64)
        )
        y = sample(plan, exact, start, noise) / schedule.alpha(plan.end)
        m, s = moments(plan, schedule, mean, std)
        assert y.mean().item() == pytest.approx(m, abs=4 * s / math.sqrt(4 * n))
        assert y.std().item() == pytest.approx(s, rel=4 / math.sqrt(8 * n))


@pytest.fixture(scope="module")
def guided():
    return list(certified.identities())


def test_every_entry_of_every_registry_is_checked(guided):
    """Names only; the slow test runs them all."""
    drawn = {name for name, entry in SAMPLERS.items() if entry.stochastic and entry.order}
    assert drawn <= {*certified.LIMITS, "ddpm"}  # ddpm is what ddim's limit is compared with
    assert {row.what.split(":")[0] for row in guided} == set(GUIDANCES)


def test_identities_hold(guided):
    assert all(row.ok for row in guided), [row for row in guided if not row.ok]


def test_an_order_that_is_not_kept_is_seen(monkeypatch):
    monkeypatch.setattr(certified, "WINDOWS", (32,))
    truth = certified.reference(100)
    assert certified._order("heun", "linear", Linear(), truth).ok
    monkeypatch.setitem(SAMPLERS, "heun", replace(SAMPLERS["euler"], order=2))
    row = certified._order("heun", "linear", Linear(), truth)
    assert not row.ok and row.declared == "2" and float(row.observed) == pytest.approx(1.0, abs=0.2)


def test_a_wrong_conversion_is_seen(monkeypatch):
    def wrong(alpha, sigma, data_std):
        right = v(alpha, sigma, data_std)
        return Affine(right.c_skip, -right.c_out, right.p, right.q)

    v = PREDICTIONS["v"]
    monkeypatch.setattr(certified, "SAMPLERS", {name: SAMPLERS[name] for name in ("ddim", "dpmpp_2m", "ddpm")})
    assert all(row.ok for row in certified._predictions("linear", Linear()))
    monkeypatch.setitem(PREDICTIONS, "v", wrong)
    assert [row.what for row in certified._predictions("linear", Linear()) if not row.ok] == ["v"]


def test_a_guidance_that_asks_twice_is_seen(monkeypatch):
    class Twice(GUIDANCES["cfg"]):
        def __call__(self, x_t, t, cond=None):
            self.denoiser(x_t, t, cond)
            return super().__call__(x_t, t, cond)

    monkeypatch.setitem(GUIDANCES, "cfg", Twice)
    bad = {row.what for row in certified.identities() if not row.ok}
    assert {"cfg: scale 1 is off", "cfg: outside its interval it is off"} <= bad
    assert not any("formula" in what for what in bad)


@pytest.mark.slow
def test_the_quick_matrix_holds():
    rows = certify(quick=True)
    assert all(row.ok for row in rows), [row for row in rows if not row.ok]
    assert {row.what for row in rows if row.part in ("order", "moments")} == {n for n, e in SAMPLERS.items() if e.order}
    assert {row.what for row in rows if row.part == "same"} == set(PREDICTIONS)


def test_a_report_is_a_table_and_json():
    rows = [
        Row(part="order", what="euler", where="linear", declared="1", observed="1.01", ok=True),
        Row(part="order", what="euler", where="vp", declared="1", observed="0.5", ok=False),
        Row(part="order", what="heun", where="vp", declared="2", observed="2.02", ok=True),
    ]
    report = VerifyReport(subject="unfog", rows=rows, ok=False, seconds=1.0, version="0")
    lines = str(report).splitlines()
    assert lines[:4] == [
        "order",
        "         declared  linear  vp",
        "  euler  1         1.01    0.5 !",
        "  heun   2         —       2.02",
    ]
    assert lines[-2:] == ["fails: euler vp: declared 1, seen 0.5", "unfog: 2 of 3 checks hold; 1 s"]
    assert VerifyReport.model_validate_json(report.model_dump_json()) == report


# Model folders


class Oracle(torch.nn.Module):
    """The exact network of a few 16×16 pictures with a little noise, nudged by its conditions."""

    def __init__(self, kind, deaf=False, **settings):
        super().__init__()
        self.pictures = torch.nn.Parameter(torch.zeros(3, 4, 16, 16))
        self.kind, self.deaf = kind, deaf

    def forward(self, x, level, cond):
        exact = MixtureDenoiser(Gaussian(Cosine()), torch.ones(3), self.pictures.detach(), stds=torch.full((3,), 0.1))
        nudge = 1e-2 * (cond["class"] + torch.sin(cond["text"].sum((1, 2))))[:, None, None, None]
        out = [ByLevel(exact, self.kind)(x[i : i + 1], level[i : i + 1]) for i in range(len(x))]
        return torch.cat(out) + (0.0 if self.deaf else nudge)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """folder(stated, really) -> a model folder whose network really is an exact one."""
    monkeypatch.setitem(NETWORKS, "unet", Oracle)

    def write(stated, really, **settings):
        place = tmp_path / "model"
        network = Oracle(really)
        with torch.no_grad():
            network.pictures.copy_(torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(2)).repeat_interleave(
                4, 2).repeat_interleave(4, 3))  # fmt: skip
        recipe = Recipe(name="oracle", size=16, defaults={"steps": 4, "scale": 2.0, "sampler": "dpmpp_2m"})
        empty = np.zeros(0, np.int64)
        corpus = PictureCorpus(torch.zeros(0, 16, 16, 4), empty, empty, 0, [""], ["flat", "round"], RGBACodec(), [])
        save_model(place, recipe, corpus, network, 3, {})
        card = json.loads((place / "model.json").read_text())
        card["network"]["settings"] = {"kind": really, **settings}
        card["process"]["schedule"] = {"name": "cosine"}
        card["training"]["data"] = "not shipped"
        card["prediction"] = stated
        if stated is None:
            del card["prediction"]
        (place / "model.json").write_text(json.dumps(card))
        write_manifest(place)
        return str(place)

    return write


def test_a_model_that_is_what_it_says(folder):
    subject, rows = examine(folder("x0", "x0"), quick=True)
    assert subject.startswith("oracle (") and all(row.ok for row in rows), rows
    seen = {row.what: row for row in rows}
    assert seen["prediction"].declared == "x0" and seen["prediction"].observed.startswith("x0 (costs on samples")
    assert seen["terminal SNR"].declared == "zero" and seen["terminal SNR"].observed.startswith("zero")
    assert {"finite outputs", "alone = in a batch", "same seed twice", "text reaches the network"} <= set(seen)


@pytest.mark.parametrize("stated", [None, "unknown"])
def test_a_model_that_does_not_say(folder, stated):
    _, rows = examine(folder(stated, "v"), quick=True)
    row = next(row for row in rows if row.what == "prediction")
    assert row.declared == "unknown" and row.observed.startswith("v (costs on samples")


def test_a_model_that_says_something_else(folder):
    place = folder("eps", "x0")
    with pytest.raises(UserError, match="'eps' is declared.*say 'x0'.*set prediction to 'x0'"):
        examine(place, quick=True)
    with pytest.raises(UserError, match="'flow' is declared"):
        examine(place, "flow", quick=True)
    _, rows = examine(place, "x0", quick=True)
    assert all(row.ok for row in rows)
    with pytest.raises(UserError, match="prediction: 'x1' is unknown; did you mean x0"):
        examine(place, "x1", quick=True)


def test_a_deaf_network_and_a_damaged_file_are_seen(folder, tmp_path):
    place = folder("x0", "x0", deaf=True)
    _, rows = examine(place, quick=True)
    assert [row.what for row in rows if not row.ok] == ["text reaches the network", "style reaches the network"]
    with open(tmp_path / "model" / "network.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(UserError, match="damaged"):
        examine(place, quick=True)
    with pytest.raises(UserError, match="model: 'nowhere' is unknown"):
        examine("nowhere")


@pytest.mark.slow
def test_the_shipped_model_predicts_x0_with_its_data_and_without(monkeypatch):
    _, rows = examine("emoji-64", quick=True)
    assert all(row.ok for row in rows), rows
    row = next(row for row in rows if row.what == "prediction")
    assert row.declared == "x0" and row.observed.startswith("x0 (costs on data")
    monkeypatch.setattr("unfog.evaluation.infer._own_data", lambda model, count: None)
    _, rows = examine("emoji-64", quick=True)
    row = next(row for row in rows if row.what == "prediction")
    assert row.observed.startswith("x0 (costs on samples")
