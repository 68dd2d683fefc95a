"""Sound: what is read, what the codec keeps, what prompts mean, what stays when a clip is changed, and files."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch

from unfog.errors import UserError
from unfog.modalities import build_network, modality
from unfog.modalities.audio import codec, show, sound
from unfog.modalities.audio.data import open_sounds, prompt_of, split_prompt
from unfog.modalities.audio.options import SoundOptions
from unfog.modalities.audio.space import SoundSpace, fit, keep, kept, paste, space
from unfog.modalities.contract import Items

AUDIO = modality("audio")


def tone(hertz: float, seconds: float = 1.024, rate: int = sound.RATE, level: float = 0.5) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def loudest(wave: np.ndarray, rate: int = sound.RATE) -> float:
    """The frequency in Hz where a wave has most, by a padded Fourier transform."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 2**18))
    return float(spectrum.argmax()) * rate / 2**18


def items(*prompts: str, waves=None) -> Items:
    waves = waves or [tone(sound.hertz(split_prompt(p)[1] or 60)) for p in prompts]
    return Items("made", waves, list(prompts), ["train"] * len(prompts), list(prompts))


@pytest.fixture(scope="module")
def notes() -> SoundSpace:
    return fit(items("flute c4", "flute c5", "acoustic grand piano a3", "electric piano a3", "snare"), SoundOptions())


# -- sound as numbers


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_another_rate_keeps_the_frequency_and_the_level(rate):
    wave = sound.resample(tone(440, 1.0, rate), sound.RATE / rate)
    assert len(wave) == sound.RATE
    assert abs(loudest(wave) - 440) < 0.1
    middle = wave[2000:-2000]
    assert abs(np.abs(middle).max() - 0.5) < 0.01


def test_what_is_above_the_new_band_is_gone_not_folded_down():
    wave = sound.resample(tone(15_000, 1.0, 44100), sound.RATE / 44100)
    assert np.abs(wave[500:-500]).max() < 1e-3


def test_down_and_up_again_is_the_same_for_what_fits():
    wave = tone(300) + tone(1234.5)
    back = sound.resample(sound.resample(wave, 0.5), 2)
    assert np.abs(back - wave)[500:-500].max() < 2e-3


def test_notes_have_names():
    assert [sound.note_of(p) for p in (21, 60, 69, 108)] == ["a0", "c4", "a4", "c8"]
    assert all(sound.pitch_of(sound.note_of(p)) == p for p in range(12, 128))
    assert sound.pitch_of("Bb3") == 58 == sound.pitch_of("a#3")
    assert [sound.pitch_of(w) for w in ("cb4", "h4", "seven", "c", "4", "")] == [None] * 6
    assert sound.hertz(69) == 440 and abs(float(sound.midi(880)) - 81) < 1e-12


# -- the codec


def test_the_transform_and_its_inverse_lose_nothing():
    wave = torch.randn(2, sound.SAMPLES, generator=torch.Generator().manual_seed(0))
    assert (codec.istft(codec.stft(wave)) - wave).abs().max() < 1e-4
    assert codec.stft(wave).shape == (2, codec.BINS, codec.FRAMES)


def test_every_frequency_is_in_a_band_and_bands_rise():
    table = codec.filters()
    assert (table.sum(0)[1:-1] > 0).all() and (table >= 0).all()
    peaks = table.argmax(1)
    assert (peaks.diff() >= 0).all() and peaks[-1] > 500


@pytest.mark.parametrize("pitch", [45, 57, 69, 84])
def test_a_note_comes_back_in_tune(pitch):
    wave = sum(tone(sound.hertz(pitch) * k, level=0.3 / k) for k in range(1, 6))
    values = codec.bands(torch.from_numpy(wave)[None])
    back = codec.wave_of(values)
    assert abs(1200 * np.log2(loudest(back[0].numpy()) / sound.hertz(pitch))) < 15
    assert (codec.bands(back) - values).abs().mean() < 0.6


def test_silence_comes_back_as_silence():
    values = codec.bands(torch.zeros(1, sound.SAMPLES))
    assert torch.equal(values, torch.full_like(values, float(np.log(codec.FLOOR))))
    assert codec.wave_of(values).abs().max() < 1e-4


def test_what_is_known_is_held_through_griffin_lim():
    wave = torch.from_numpy(tone(440))
    known = wave.clone()
    known[8000:9000] = float("nan")
    found = codec.griffin_lim(codec.stft(wave[None]).abs(), known, steps=16)[0]
    assert (found - wave)[known.isfinite()].square().mean() < 0.01 * wave.square().mean()
    gap = slice(8000, 9000)
    assert (found[gap] - wave[gap]).square().mean() < 0.02 * wave[gap].square().mean()  # its phase is that of its surroundings


# -- data of a user's own


def write(path, wave, rate=sound.RATE, **how):
    soundfile = pytest.importorskip("soundfile")
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, **how)


def test_a_folder_is_read_whatever_its_files_are(tmp_path):
    write(tmp_path / "snare/one.wav", np.stack([tone(200, 0.5, 44100), 0 * tone(200, 0.5, 44100)], 1), 44100)  # stereo
    write(tmp_path / "flute/x_c4.flac", tone(261.6, 3.0), 16000)  # too long
    write(tmp_path / "flute/y_a4.ogg", tone(440, 0.3, 48000), 48000)
    write(tmp_path / "bad/silence.wav", np.zeros(3 * 16000))
    write(tmp_path / "bad/nan.wav", np.full(1000, np.nan), subtype="FLOAT")
    write(tmp_path / "bad/empty.wav", np.zeros(0))
    (tmp_path / "bad/text.wav").write_text("no sound at all")
    (tmp_path / "readme.txt").write_text("not a sound file by its name")
    found = open_sounds(tmp_path, None)
    assert sorted(zip(found.names, found.prompts, strict=True)) == [
        ("flute/x_c4.flac", "flute c4"), ("flute/y_a4.ogg", "flute a4"), ("snare/one.wav", "snare")]  # fmt: skip
    assert found.skipped == {"silence": 1, "not all numbers (NaN or infinite)": 1, "empty": 1, "no readable sound file": 1}
    by_name = dict(zip(found.names, found.raw, strict=True))
    assert len(by_name["flute/x_c4.flac"]) == sound.SAMPLES  # its first clip
    assert abs(loudest(by_name["snare/one.wav"]) - 200) < 1 and abs(len(by_name["snare/one.wav"]) - 8000) < 5
    assert all(abs(np.abs(w).max() - sound.PEAK) < 0.02 for w in found.raw)


def test_metadata_says_what_clips_are(tmp_path):
    write(tmp_path / "a.wav", tone(440))
    write(tmp_path / "b.wav", tone(220))
    lines = [{"file_name": "a.wav", "text": "  Violin   A4 "},
             {"file_name": "b.wav", "class": "violin", "pitch": 57, "split": "test"}]  # fmt: skip
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "a.wav", "a.wav")
        archive.write(tmp_path / "b.wav", "b.wav")
        archive.writestr("metadata.jsonl", "\n".join(json.dumps(line) for line in lines))
    found = open_sounds(tmp_path / "set.zip", None)
    assert found.prompts == ["violin a4", "violin a3"] and found.splits == ["train", "test"]
    assert found.split("heldout") == [1]


@pytest.mark.parametrize("line, told", [('{"text": "x"}', "line 1"), ("[1]", "line 1"), ("{", "line 1"),
                                        ('{"file_name": "a.wav", "pitch": 300}', "0 to 127")])  # fmt: skip
def test_damaged_metadata_is_refused_by_line(tmp_path, line, told):
    write(tmp_path / "a.wav", tone(440))
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(UserError, match=told) as error:
        open_sounds(tmp_path, None)
    assert "\n" not in str(error.value)


def test_too_little_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match="not found"):
        open_sounds(tmp_path / "nowhere", None)
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="neither"):
        open_sounds(tmp_path / "x.zip", None)
    with pytest.raises(UserError, match="no sound files"):
        (tmp_path / "e").mkdir()
        open_sounds(tmp_path / "e", None)
    write(tmp_path / "f/a.wav", np.zeros(100))
    write(tmp_path / "f/b.wav", tone(100))
    with pytest.raises(UserError, match="only 1 of 2 sounds can be used .1 are silence."):
        open_sounds(tmp_path / "f", None)


def test_a_clip_without_words_is_asked_for_by_nothing():
    assert prompt_of("x.wav", {}) == "any" and prompt_of("a4.wav", {}) == "any"
    assert prompt_of("bells/low_c3-2.wav", {}) == "bells c3"
    assert split_prompt("acoustic grand piano c#3") == ("acoustic grand piano", 49) and split_prompt("a4") == ("", 69)


# -- prompts and model space


def test_space_is_the_same_from_its_card(notes):
    again = space(json.loads(json.dumps(notes.card())))
    assert again == notes
    with pytest.raises(UserError, match="damaged"):
        space({**notes.card(), "mean": [1.0]})


def test_x0_is_about_unit_and_decodes_to_the_sound(notes):
    x0, cond = notes.encode([tone(440, 0.5)])
    assert x0.shape == (1, 1, 128, 64) and cond["told"].abs().sum() == 0
    wave = notes.decode(x0, cond)[0]
    assert wave.shape == (sound.SAMPLES,) and abs(loudest(wave) - 440) < 5
    assert np.array_equal(wave * 32768, np.round(wave * 32768))


def test_what_is_decoded_does_not_depend_on_the_batch(notes):
    x0, cond = notes.encode([tone(300), tone(800)])
    both = notes.decode(x0, cond)
    assert np.array_equal(both[1], notes.decode(x0[1:], {"told": cond["told"][1:]})[0])


def test_prompts_mean_classes_and_pitches(notes):
    asked = notes.ask(["flute c5", "snare", "any", None, "grand"], [0] * 5)
    named = [*notes.classes, None]
    assert [named[i] for i in asked["class"]] == ["flute", "snare", None, None, "acoustic grand piano"]
    assert asked["pitch"].tolist() == [[72, 1], [0, 0], [0, 0], [0, 0], [57, 1]]
    open_ones = notes.ask(["flute"] * 20, range(20))["pitch"][:, 0]
    assert open_ones.min() >= 60 and open_ones.max() <= 72 and len(set(open_ones.tolist())) > 3
    assert torch.equal(open_ones, notes.ask(["flute"] * 20, range(20))["pitch"][:, 0])
    assert {named[i] for i in notes.ask(["c#4"] * 5, range(5))["class"]} == {"flute"}


@pytest.mark.parametrize("prompt, told", [("flut c5", "did you mean flute"), ("flute c9", "c4 to c5"), ("snare c4", "no pitch"),
                                          ("piano", "acoustic grand piano or electric piano"), ("c9", "ask for"),
                                          ("x" * 5000, "unknown")])  # fmt: skip
def test_what_is_not_understood_is_told_in_one_line(notes, prompt, told):
    with pytest.raises(UserError, match=told) as error:
        notes.ask([prompt], [0])
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_the_network_is_told_how_a_training_clip_was_moved(notes):
    rng = np.random.default_rng(5)
    wave, told = notes._moved(tone(440, 0.8), rng)
    played = wave[round(float(told[1]) * notes.delay) :]
    assert abs(12 * np.log2(loudest(played) / 440) - float(told[0])) < 0.02
    assert abs(-20 * np.log10(np.abs(played[3000:9000]).max() / 0.5) / 20 - float(told[2])) < 0.01
    x0, _ = notes.encode([tone(440)] * 2, [np.random.default_rng(1), np.random.default_rng(2)])
    assert not torch.equal(x0[0], x0[1])


def test_samples_are_a_model_space_too():
    own = fit(items("kick", "snare"), SoundOptions(space="wave"))
    x0, cond = own.encode([tone(440)])
    assert x0.shape == (1, 1, sound.SAMPLES) and 0.3 < float(x0.std()) < 3
    assert np.abs(own.decode(x0, cond)[0] - tone(440)).max() < 1 / 32768


# -- gaps


@pytest.mark.parametrize("spec, first, last", [("0-0.4", 0, 6400), ("0.5-", 8000, 16384), (" .25 - .5 ", 4000, 8000)])
def test_spans_are_seconds(spec, first, last):
    found = kept(spec)
    assert found[first:last].all() and found.sum() == last - first


@pytest.mark.parametrize("spec", ["", "a-b", "0.5-0.2", "0-0.4,", "2-3", "0-9", "-1-0.5", "0.5", "0-1e9", "nan-1"])
def test_other_spans_are_refused_in_one_line(spec):
    with pytest.raises(UserError, match="keep: ") as error:
        kept(spec)
    assert "\n" not in str(error.value)


def test_frames_stay_where_they_hear_only_what_stays(notes):
    mask = keep(notes, tone(440), "0-0.4,0.8-1.024")
    assert mask.shape == notes.shape and (mask == mask[:1, :1]).all()
    frames = np.flatnonzero(~mask[0, 0])
    centres = (frames * 256 + 128) / sound.RATE
    assert centres.min() < 0.4 < centres[2] and centres.max() > 0.8 > centres[-3]


@pytest.mark.parametrize("seed", range(4))
def test_nothing_outside_the_gap_changes_and_no_step_is_heard(seed):
    rng = np.random.default_rng(seed)
    raw, made = tone(440) + tone(660, level=0.1), tone(440 + 40 * seed, level=0.4)
    first, length = rng.integers(800, 9000), rng.integers(800, 6000)
    spec = f"0-{first / sound.RATE:.4f},{(first + length) / sound.RATE:.4f}-"
    found, stays = paste(None, made, raw, spec), kept(spec)
    assert np.array_equal(found[stays], sound.fitted(raw)[stays])
    assert np.array_equal(paste(None, found, raw, spec), found)  # it is there already
    assert not np.array_equal(found[~stays], sound.fitted(raw)[~stays])
    edges = np.flatnonzero(stays[1:] != stays[:-1])
    assert len(edges) == 2
    usual = np.abs(np.diff(raw)).max()
    assert all(abs(found[e + 1] - found[e]) < 1.5 * usual for e in edges)


def test_a_short_clip_is_extended():
    raw = tone(440, 0.5)
    found = paste(None, tone(440), raw, "0-0.5")
    assert len(found) == sound.SAMPLES and np.array_equal(found[:8000], raw) and np.abs(found[9000:]).max() > 0.3


# -- networks


@pytest.mark.parametrize("name, settings, shape", [
    ("bands", {"unshuffle": 8, "widths": [16, 32], "blocks": [1, 1], "attention": [False] * 2, "embedding": 32}, (1, 128, 64)),
    ("wave", {"patch": 32, "widths": [16, 24], "blocks": [1, 1], "embedding": 32}, (1, 4096)),
])  # fmt: skip
def test_networks_are_told_everything_and_keep_the_shape(name, settings, shape):
    torch.manual_seed(0)
    network = build_network(
        "audio", name, {"channels": 1, "classes": 3, "text_dim": 0, "augment": 14, "dropout": 0.0, **settings}
    )
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, 0, 0.1)
    x, logsnr = torch.randn(2, *shape), torch.zeros(2)
    cond = {"class": torch.tensor([0, 1]), "pitch": torch.tensor([[60.0, 1], [64, 1]]), "told": torch.zeros(2, 3)}
    network.eval()
    with torch.no_grad():
        plain = network(x, logsnr, cond)
        assert plain.shape == x.shape and torch.isfinite(plain).all()
        for key, value in (("class", torch.tensor([2, 2])), ("pitch", torch.zeros(2, 2)), ("told", torch.ones(2, 3))):
            assert not torch.allclose(network(x, logsnr, {**cond, key: value}), plain), key
        assert torch.equal(network(x, logsnr, {k: v for k, v in cond.items() if k != "told"}), plain)  # none: as not moved


def test_the_comb_stands_where_harmonics_do():
    from unfog.modalities.audio.network import comb

    lines = comb({"pitch": torch.tensor([[57.0, 1.0], [57.0, 0.0]])}, torch.zeros(2))
    assert lines.shape == (2, 2, 128) and not lines[1].any()
    wave = sum(tone(220 * k, level=0.1) for k in range(1, 6))
    heard = codec.bands(torch.from_numpy(wave)[None])[0].mean(1)
    peaks = [i for i in range(1, 60) if heard[i] > heard[i - 1] and heard[i] >= heard[i + 1] and heard[i] > -1]
    assert len(peaks) == 5 and all(lines[0, 0, max(p - 1, 0) : p + 2].max() > 0.6 for p in peaks)
    assert int(lines[0, 1].argmax()) == peaks[0]


# -- files and sheets


def test_a_file_is_its_sound_and_recipe():
    wave = np.round(tone(440) * 32768).astype(np.float32) / 32768
    recipe = {"prompt": "flute ä4", "seed": 3}
    data = show.to_bytes(wave, recipe)
    assert data == show.to_bytes(wave.copy(), dict(reversed(recipe.items()))) and data[34] == 16
    back, told = show.from_bytes(data, "x.wav")
    assert np.array_equal(back, wave) and told == recipe
    assert show.from_bytes(show.to_bytes(wave, None), "x.wav")[1] == {}
    fine, _ = show.from_bytes(show.to_bytes(tone(441), {}), "x.wav")
    assert np.abs(fine - tone(441)).max() < 2**-22


def test_other_programs_read_it():
    soundfile = pytest.importorskip("soundfile")
    wave = np.round(tone(440) * 32768).astype(np.float32) / 32768
    for raw in (wave, tone(441)):
        found, rate = soundfile.read(io.BytesIO(show.to_bytes(raw, {"prompt": "flute"})), dtype="float32")
        assert rate == 16_000 and np.abs(found - raw).max() < 2**-22


def test_what_is_no_sound_is_refused_by_name():
    good = show.to_bytes(tone(440), {"a": 1})
    for data, told in ((b"", "no readable"), (b"RIFF", "no readable"), (show.to_bytes(0 * tone(1), {}), "silence")):
        with pytest.raises(UserError, match=f"x.wav: .*{told}") as error:
            show.from_bytes(data, "x.wav")
        assert "\n" not in str(error.value)
    for cut in (20, 43, 60, len(good) // 2):
        try:
            show.from_bytes(good[:cut], "x.wav")
        except UserError as error:
            assert "\n" not in str(error)
    with pytest.raises(UserError, match="NaN"):
        show.to_bytes(np.full(10, np.nan), {})


def test_a_damaged_recipe_is_none():
    data = show.to_bytes(tone(440), {"a": 1})
    assert show.from_bytes(data.replace(b'{"a": 1}', b'{"a": 1]'), "x.wav")[1] == {}


def test_a_sheet_shows_waves_and_spectrograms():
    sheet = AUDIO.render([tone(440), tone(880, 0.3)], ["flute a4", "x" * 200])
    assert sheet.mode == "RGB" and sheet.width > 2 * show.WIDTH
    alone = show.picture(tone(500))
    column = np.asarray(alone).astype(int).sum(2)[show.WAVE_HEIGHT :, 128]
    row = 127 - int(column.argmax())  # brightest
    assert abs(row - int(codec.bands(torch.from_numpy(tone(500))[None])[0, :, 30].argmax())) <= 1
