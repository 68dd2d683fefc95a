"""What sounds are measured by: the judge, pitch, embeddings and distances, each against exact answers or a reference."""

import functools
import json
import sys

import numpy as np
import pytest
import torch

import unfog.data
from unfog.errors import UserError
from unfog.modalities.audio import ears, sound
from unfog.modalities.audio.data import open_sounds, split_prompt
from unfog.modalities.audio.judge import FOLDER, judge, judged
from unfog.modalities.audio.measure import against, frechet, measure
from unfog.modalities.contract import Items

SETS = {"drums-notes": (650, 19), "speech-digits": (681, 30)}


@functools.cache
def opened(name):
    pytest.importorskip("soundfile")
    return open_sounds(unfog.data.path(name), None)


@pytest.fixture(scope="module", params=SETS)
def shipped(request):
    return opened(request.param)


def part(items: Items, places) -> Items:
    chosen = [[getattr(items, name)[i] for i in places] for name in ("raw", "prompts", "splits", "names")]
    return Items(items.path, *chosen)


def test_a_shipped_set_is_whole_and_its_splits_are_apart(shipped):
    count, classes = SETS[shipped.path.stem]
    assert len(shipped) == count and not shipped.skipped
    names = [split_prompt(prompt)[0] for prompt in shipped.prompts]
    assert len(set(names)) == classes
    held, train = shipped.split("heldout"), shipped.split("train")
    assert set(shipped.splits) == {"train", "heldout"} and len(held) + len(train) == count
    assert {names[i] for i in held} == {names[i] for i in train} == set(names)
    assert not {shipped.raw[i].tobytes() for i in held} & {shipped.raw[i].tobytes() for i in train}


def test_the_judge_knows_real_clips_it_never_heard(shipped):
    held = shipped.split("heldout")
    names = [split_prompt(shipped.prompts[i])[0] for i in held]
    said, features = judged([shipped.raw[i] for i in held], sorted(set(names)))
    assert np.mean([a == b for a, b in zip(said, names, strict=True)]) > 0.85
    assert features.shape == (len(held), 192)
    again, _ = judged([shipped.raw[i] for i in held[:3]], sorted(set(names)))
    assert again == said[:3]


def test_the_judge_is_small():
    judge()
    assert (FOLDER / "judge.safetensors").stat().st_size < 500_000
    assert json.loads((FOLDER / "judge.json").read_text())["data"] == list(SETS)


def test_real_clips_measure_as_real(shipped, monkeypatch):
    monkeypatch.setattr(sys.modules["unfog.modalities.audio.measure"], "MOST_RATED", 1)  # each takes it a second
    held = part(shipped, shipped.split("heldout")[::6])
    rows = {row.name: row for row in measure(held.raw, held.prompts, held, 0)}
    right = rows["class as asked"]
    assert np.array_equal(right.made, right.real) and right.unit == "%" and right.group == "condition"
    if "pitch as asked" in rows:
        assert rows["pitch as asked"].made.mean() > 0.8
    wrong = measure(held.raw, held.prompts[::-1], held, 0)
    assert {row.name: row for row in wrong}["class as asked"].made.mean() < 0.5


def test_measures_that_lack_a_package_are_left_out_aloud(shipped, monkeypatch):
    monkeypatch.setattr(ears, "found", lambda *names: None)
    for cached in (ears.crepe, ears.voice_encoder, ears._dnsmos):
        cached.cache_clear()
    held = part(shipped, shipped.split("heldout")[:4])
    rows = measure(held.raw, held.prompts, held, 0)
    names = {row.name for row in rows}
    assert "class as asked" in names and not {"pitch as asked", "FD (Resemblyzer)", "DNSMOS overall"} & names
    assert "resemblyzer" in rows[0].note and ("torchcrepe" in rows[0].note or "speechmos" in rows[0].note)
    for cached in (ears.crepe, ears.voice_encoder, ears._dnsmos):
        cached.cache_clear()


def test_unknown_classes_are_not_judged_and_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["unfog.modalities.audio.measure"], "MOST_RATED", 1)
    waves = [np.sin(np.arange(8000) * k / 9).astype(np.float32) for k in range(1, 5)]
    own = Items("own", waves, ["whale"] * 4, ["train"] * 4, list("abcd"))
    rows = measure(waves, ["whale"] * 4, own, 0)
    assert "class as asked" not in {row.name for row in rows} and "judge" in rows[0].note
    with pytest.raises(UserError, match="no clips"):
        measure([], [], own, 0)


# -- distances


def test_the_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(20_000, 3))
    b = rng.normal(size=(20_000, 3)) * [1, 2, 3] + [1, 0, 0]
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, b) == pytest.approx(1 + 0 + 1 + 4, rel=0.03)  # |1|² + Σ (1 − s)²


def test_it_equals_the_matrix_root_s():
    scipy_linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(40, 6)) + 1
    root = scipy_linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet(a, b) == pytest.approx(wanted, rel=1e-6)


def test_other_features_are_farther_than_the_floor():
    rng = np.random.default_rng(2)
    real = rng.normal(size=(300, 40))
    same, floor = against(rng.normal(size=(150, 40)), real, 0)
    far, _ = against(rng.normal(size=(150, 40)) + 1, real, 0)
    assert 0.7 < same / floor < 1.4 and far > 5 * floor


# -- other people's ears


def test_a_state_dict_is_read_without_running_it(tmp_path):
    network = torch.nn.LSTM(3, 4, 2)
    state = {"model_state": network.state_dict(), "step": 3}
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    for form in (True, False):
        torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=form)
        found = ears.read_floats(tmp_path / "a.pt", shapes)
        assert set(found) == set(shapes)
        assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())


def test_pitches_are_heard_right():
    if ears.crepe() is None:
        pytest.skip("torchcrepe is not installed")
    t = np.arange(sound.SAMPLES) / sound.RATE
    notes = [48, 57, 64, 76]
    waves = [sum(np.sin(2 * np.pi * sound.hertz(p) * k * t) / k for k in range(1, 5)).astype(np.float32) / 3 for p in notes]
    heard = ears.pitches([*waves, np.random.default_rng(0).normal(0, 0.1, 16384).astype(np.float32)])
    assert np.abs(100 * (sound.midi(heard[:4]) - notes)).max() < 20
    assert np.isnan(heard[4])


def test_embeddings_are_unit_vectors_and_know_voices_from_drums():
    if ears.voice_encoder() is None:
        pytest.skip("resemblyzer is not installed")
    a, b = (ears.embedded(opened(name).raw[::50]) for name in ("speech-digits", "drums-notes"))
    assert np.allclose(np.square(a).sum(1), 1, atol=1e-5)
    assert np.median(a @ a.T) > np.median(a @ b.T) + 0.1


def test_triangles_have_equal_areas():
    table = ears.slaney(40, 4096)
    area = table.sum(1) * (sound.RATE / 4096)
    assert torch.allclose(area, torch.ones(40), atol=0.03)
