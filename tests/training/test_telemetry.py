"""What a run writes down: the same events however it is cut, timing, time left, trackers, and that none of it costs much."""

import itertools
import json
import math
import os
import signal
import sys
import time
import types

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.diffusion import Gaussian, schedule_from_config
from unfog.errors import UserError
from unfog.requests import TrainRequest
from unfog.training import watch
from unfog.training.denoising import Denoising
from unfog.training.loop import fit
from unfog.training.progress import BARS, Remaining, Shown, Spark, clock
from unfog.training.recipe import LoopSettings
from unfog.training.run import build_network, run_recipe
from unfog.training.telemetry import Telemetry, flat, gathered, lines
from unfog.training.trackers import Trackers, check_trackers
from unfog.training.watch import CopyCheck, Preconditioned, Watch, bin_losses, distance, held_out_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def train(recipe, corpus, out, resume=False, show=None, watched=True):
    """A run with reports, the last of them at its end as `unfog train` makes it."""
    out.mkdir(exist_ok=True)
    process = Gaussian(schedule_from_config(recipe.schedule))
    network = build_network(recipe, {"channels": 4, "classes": len(corpus.styles)})
    task = Denoising(recipe, corpus, Preconditioned(network, process, recipe.prediction), network)
    watch, telemetry = Watch(recipe, corpus, corpus, process, torch.float32, "cpu"), Telemetry(out, recipe)

    def report(step, ema):
        telemetry.report(step, watch(ema.network, network)[0] if watched else {"held_out": {"0": step}})

    with telemetry:
        ema, step = fit(recipe, task, network, out, resume=resume, minutes=None, dtype=torch.float32, report=report,
                        show=show or (lambda *_: None), telemetry=telemetry)  # fmt: skip
        if step % recipe.report_steps:
            report(step, ema)
    return step


def stop_at(number, kind=signal.SIGTERM):
    return lambda step, event: os.kill(os.getpid(), kind) if step == number else None


def kill_after(count):
    """A `show` that kills this process at its so many'th step, with no chance to save."""
    left = iter(range(count - 1))
    return lambda step, event: next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL)


def test_a_stopped_run_leaves_the_events_of_the_whole_one(tmp_path, tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(steps=25, report_steps=10)
    train(recipe, tiny_corpus, tmp_path / "whole", watched=False)
    for stop in (13, 17):  # neither where a line is due nor where a report is: both leave lines that a whole run has not
        assert train(recipe, tiny_corpus, tmp_path / "cut", resume=stop > 13, show=stop_at(stop), watched=False) == stop
        assert [line["step"] for line in lines(tmp_path / "cut" / "events.jsonl") if line.get("end")] == [stop]
    assert train(recipe, tiny_corpus, tmp_path / "cut", resume=True, watched=False) == 25
    whole, cut = ((tmp_path / name / "events.jsonl").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    found = lines(tmp_path / "whole" / "events.jsonl")
    assert [line["step"] for line in found if "held_out" in line] == [10, 20, 25]
    assert [line["step"] for line in found if "loss" in line] == [10, 20, 25]
    train(recipe, tiny_corpus, tmp_path / "cut", resume=True, watched=False)  # there is nothing left to do
    assert (tmp_path / "cut" / "events.jsonl").read_bytes() == whole
    train(tiny_recipe(steps=30, report_steps=10), tiny_corpus, tmp_path / "cut", resume=True, watched=False)
    assert [line["step"] for line in lines(tmp_path / "cut" / "events.jsonl") if "loss" in line] == [10, 20, 30]
    starts = [line["step"] for line in lines(tmp_path / "cut" / "timing.jsonl") if line.get("start")]
    assert starts == [0, 13, 17, 25, 25]


def test_what_a_report_measures_does_not_depend_on_a_stop(tmp_path, tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(steps=12, report_steps=6, batch=2)
    train(recipe, tiny_corpus, tmp_path / "whole")
    train(recipe, tiny_corpus, tmp_path / "cut", show=stop_at(4))
    train(recipe, tiny_corpus, tmp_path / "cut", resume=True)
    found = lines(tmp_path / "cut" / "events.jsonl")
    assert found == lines(tmp_path / "whole" / "events.jsonl")
    assert [line["step"] for line in found if "copies" in line and "held_out_se" in line and "ema_distance" in line] == [6, 12]


def test_a_killed_run_leaves_the_events_of_the_whole_one(tmp_path, tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(steps=24, report_steps=8, checkpoint_minutes=1e-9)
    train(recipe, tiny_corpus, tmp_path / "whole", watched=False)
    for last in (5, 1, 9):
        child = os.fork()
        if not child:
            train(recipe, tiny_corpus, tmp_path / "cut", resume=True, watched=False, show=kill_after(last))
            os._exit(0)
        os.waitpid(child, 0)
    train(recipe, tiny_corpus, tmp_path / "cut", resume=True, watched=False)
    assert (tmp_path / "cut" / "events.jsonl").read_bytes() == (tmp_path / "whole" / "events.jsonl").read_bytes()
    assert len([line for line in lines(tmp_path / "cut" / "timing.jsonl") if line.get("start")]) == 4


def test_a_line_tells_the_mean_and_the_largest_of_its_steps(tmp_path):
    telemetry = Telemetry(tmp_path, LoopSettings(steps=24))
    telemetry.begin(0)
    for step in range(1, 25):
        event = {"step": step, "loss": float(step), "grad": float(step) ** 2, "lr": 0.5}
        if step in (3, 4):
            event["loss"] = event["grad"] = math.nan
        telemetry.step(event | ({"skipped": True} if step == 12 else {}))
        if step == 15:  # what a checkpoint keeps is enough to go on with
            kept = json.loads(json.dumps(telemetry.sums))
            telemetry.__exit__()
            telemetry = Telemetry(tmp_path, LoopSettings(steps=24))
            telemetry.begin(15, kept)
    first, second, end = lines(tmp_path / "events.jsonl")
    eight = [s for s in range(1, 11) if s not in (3, 4)]
    assert first == {"step": 10, "loss": np.mean(eight), "grad": np.mean([s**2 for s in eight]), "grad_max": 100.0, "lr": 0.5,
                     "broken": 2}  # fmt: skip
    nine = [s for s in range(11, 21) if s != 12]
    assert second["loss"] == np.mean(nine) and second["skipped"] == 1 and "broken" not in second and second["grad_max"] == 400
    assert end == {"step": 24, "loss": 22.5, "grad": np.mean([s**2 for s in range(21, 25)]), "grad_max": 576.0, "lr": 0.5,
                   "end": True}  # fmt: skip


def test_timing_tells_parts_throughput_and_survives_a_torn_line(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    (tmp_path / "timing.jsonl").write_text('{"step": 7, "at": "2026-01-01T00:00:00Z", "start": true}\n{"step": 8, "sec')
    telemetry = Telemetry(tmp_path, LoopSettings(steps=40, batch=16), batches=2)
    telemetry.begin(10)
    for step in range(11, 31):
        for part, seconds in (("data", 0.1), ("forward", 0.2), ("backward", 0.3)):
            now[0] += seconds
            telemetry.lap(part)
        if step == 15:
            now[0] += 7.0
            telemetry.lap("report")
        telemetry.step({"step": step, "loss": 1.0, "grad": 1.0, "lr": 1.0})
    old, start, first, second = lines(tmp_path / "timing.jsonl")
    assert old["step"] == 7 and start["step"] == 10 and start["start"]
    assert (first["step"], first["steps"], first["seconds"]) == (20, 10, pytest.approx(13.0))
    assert first["items_per_s"] == pytest.approx(10 * 32 / 6.0, rel=1e-4)  # the report does not count
    assert first["waiting"] == pytest.approx(1 / 6, abs=1e-4) and second["waiting"] == first["waiting"]
    assert first["parts"]["report"] == 7.0 and second["parts"] == pytest.approx(
        {"data": 1, "forward": 2, "backward": 3, "rest": 0}
    )
    assert first["memory_mib"] > 50
    assert Telemetry(tmp_path, LoopSettings(), leads=False).begin(3) is None and len(lines(tmp_path / "timing.jsonl")) == 4


def test_most_steps_touch_no_file(tmp_path, monkeypatch):
    """What a step costs is sums: a line of events every ten steps, of timing every few seconds (`EVERY`, `APART`)."""
    telemetry, written = Telemetry(tmp_path, LoopSettings(steps=10**6)), []
    telemetry.begin(0)
    append = telemetry._append
    monkeypatch.setattr(telemetry, "_append", lambda name, line: (written.append(name), append(name, line)))
    clock = (k / 1000 for k in itertools.count())  # each look at the clock is a millisecond later
    monkeypatch.setattr("unfog.training.telemetry.time.perf_counter", lambda: next(clock))
    telemetry.restart()
    for step in range(1, 2001):
        for part in ("rest", "data", "forward", "backward", "forward", "backward", "optimiser"):
            telemetry.lap(part)
        telemetry.step({"step": step, "loss": 0.123456789, "grad": 1.23456789, "lr": 1e-3})
    assert written.count("events.jsonl") == 200 and 1 <= written.count("timing.jsonl") <= 4


def noisy_run(steps, report_steps, seed):
    """(seconds so far, time left as told) after each step, on a clock with jitter, hiccups and slow reports."""
    rng = np.random.default_rng(seed)
    took = 0.02 * rng.lognormal(0, 0.4, steps)
    took[rng.random(steps) < 0.01] *= 15
    took[:2] = 5.0  # compiling
    remaining, now, told = Remaining(steps, report_steps), 0.0, []
    for step in range(1, steps + 1):
        remaining.step(took[step - 1])
        now += took[step - 1]
        if step % report_steps == 0 or step == steps:
            pause = 3.0 * rng.lognormal(0, 0.2)
            remaining.report(pause)
            now += pause
        told.append((now, remaining.left(step)))
    return told


@pytest.mark.parametrize("seed", range(8))
def test_time_left_at_half_way_on_a_noisy_clock(seed):
    steps = 4000
    told = noisy_run(steps, 250, seed)
    assert [left for _, left in told[:4]] == [None] * 4 and told[5][1] is not None
    end = told[-1][0]
    for share in (0.5, 0.75):
        now, left = told[int(steps * share) - 1]
        assert abs(left - (end - now)) <= 0.2 * (end - now)


def test_time_left_forgets_a_night_asleep():
    remaining = Remaining(2000, 5000)
    for step in range(1, 1001):
        remaining.step(36_000.0 if step == 900 else 0.1)
    assert remaining.left(1000) == pytest.approx(100, rel=0.05)


def test_the_spark_line_holds_the_whole_run():
    spark = Spark(16)
    for value in np.linspace(1, 0, 1000):
        spark.add(float(value))
    spark.add(math.nan)
    assert 8 <= len(str(spark)) < 16 and str(spark)[0] == BARS[-1] and str(spark)[-1] == BARS[0]
    assert [BARS.index(c) for c in str(spark)] == sorted((BARS.index(c) for c in str(spark)), reverse=True)
    assert str(Spark()) == "" and (clock(59.6), clock(3723)) == ("1:00", "1:02:03")


def test_shown_on_a_terminal_and_elsewhere(capsys, monkeypatch):
    from rich.console import Console

    shown = Shown(LoopSettings(steps=100, batch=8), name="things")
    with shown:
        for step in range(1, 51):
            shown(step, {"step": step, "loss": 1 / step, "grad": 1.0, "lr": 0.1, "seconds": 0.1, "waited": 0.02})
        shown.report(50, {"held_out": {"-1": 0.25}, "copies": 0.5}, 2.0)
    printed = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert printed[0]["eta_seconds"] is None and printed[0]["items_per_s"] == 80.0 and printed[0]["waiting"] == 0.2
    assert printed[-1] == {"step": 50, "held_out": {"-1": 0.25}, "copies": 0.5}
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(shown.drawn(50))
    text = console.export_text()
    assert "things" in text and "50/100" in text and "0:07 left" in text and "80.0 items/s, 20% waiting" in text
    assert "-1: 0.2500" in text and BARS[-1] in text


# what a report measures


def test_bin_losses_are_fixed_and_held_out_loss_is_their_mean(tiny_recipe, tiny_corpus):
    recipe = tiny_recipe()
    network = build_network(recipe, {"channels": 4, "classes": 2}).eval()
    denoiser = Preconditioned(network, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction)
    first = bin_losses(denoiser, tiny_corpus, torch.float32, "cpu")
    torch.rand(5)
    np.random.rand(5)
    again = bin_losses(denoiser, tiny_corpus, torch.float32, "cpu")
    assert list(first) == ["-2", "-1", "0", "1", "2", "3"] and all(np.array_equal(first[k], again[k]) for k in first)
    assert all(losses.shape == (10,) for losses in first.values())
    means = held_out_loss(denoiser, tiny_corpus, torch.float32, "cpu")
    assert means == {level: pytest.approx(losses.mean()) for level, losses in first.items()}
    few = bin_losses(denoiser, tiny_corpus, torch.float32, "cpu", 4)
    assert all(len(losses) == 4 for losses in few.values())


def test_distance_of_two_networks():
    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert distance(a, a) == 0
    with torch.no_grad():
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            p.copy_(q * 1.5)
    assert distance(a, b) == pytest.approx(0.5)


def corpus_of(pictures, corpus):
    pictures = torch.from_numpy(pictures)
    pixels = lambda chosen: list(pictures[torch.from_numpy(chosen)].numpy())  # noqa: E731
    return types.SimpleNamespace(pixels=pixels, plain=len(pictures)) if corpus is None else corpus


@pytest.mark.parametrize("side", [16, 64])
def test_copies_are_found_and_fresh_pictures_are_not(side, monkeypatch):
    monkeypatch.setattr(watch, "BLOCK", 50)  # several blocks, the last one shorter
    rng = np.random.default_rng(0)
    blobs = np.repeat(np.repeat(rng.integers(0, 256, (300, 8, 8, 4), dtype=np.uint8), side // 8, 1), side // 8, 2)
    train, held, fresh = corpus_of(blobs[:180], None), corpus_of(blobs[180:260], None), blobs[260:]
    check = CopyCheck(train, held)
    copied = check(blobs[:40])
    assert copied["copies"] == 1.0 and copied["nearest"] < 0.003 and copied["samples"] == 40
    assert check(fresh)["copies"] <= 0.15 and check(np.concatenate([blobs[:20], fresh[:20]]))["copies"] >= 0.5
    assert check.baseline["copies_real"] <= 0.05 and check.baseline["nearest_real"] > 0.05
    assert check(fresh)["nearest"] == pytest.approx(check.baseline["nearest_real"], rel=0.15)
    alone = CopyCheck(train, train)  # nothing held out: each picture against all others
    assert alone.baseline["nearest_real"] == pytest.approx(check.baseline["nearest_real"], rel=0.1)


def test_a_report_tells_train_and_held_out_apart(tiny_recipe, tiny_corpus):
    import copy

    recipe = tiny_recipe()
    network = build_network(recipe, {"channels": 4, "classes": 2})
    held = copy.copy(tiny_corpus)
    held.pictures, held.plain = 255 - tiny_corpus.pictures, 8
    average = copy.deepcopy(network)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.01)
    watch = Watch(recipe, tiny_corpus, held, Gaussian(schedule_from_config(recipe.schedule)), torch.float32, "cpu")
    values, sheet = watch(average, network)
    again, _ = watch(average, network)
    assert values == again and sheet.mode == "RGB"
    assert values["held_out"] != values["train"] != values["raw"] != values["held_out"] and values["ema_distance"] > 0
    assert values["samples"] == 16 and all(error > 0 for error in values["held_out_se"].values())
    assert set(values) == {"held_out", "held_out_se", "train", "raw", "ema_distance", "kept", "samples", "copies", "copies_real",
                           "nearest", "nearest_real"}  # fmt: skip
    alone, _ = Watch(recipe, tiny_corpus, tiny_corpus, watch.process, torch.float32, "cpu")(average, network)
    assert "train" not in alone and alone["held_out"] == pytest.approx(values["train"])


def test_a_run_keeps_the_average_or_the_weights_whichever_is_nearer(tiny_recipe, tiny_corpus, monkeypatch):
    import copy

    recipe = tiny_recipe()
    good = build_network(recipe, {"channels": 4, "classes": 2})
    bad = copy.deepcopy(good)
    with torch.no_grad():
        for p in bad.parameters():
            p.add_(0.1)
    seen = Watch(recipe, tiny_corpus, tiny_corpus, Gaussian(schedule_from_config(recipe.schedule)), torch.float32, "cpu")
    drawn = []
    draw = watch.draw_samples
    monkeypatch.setattr(watch, "draw_samples", lambda denoiser, *more: drawn.append(denoiser.network) or draw(denoiser, *more))
    first, second, same = (seen(*pair)[0] for pair in ((good, bad), (bad, good), (good, good)))
    assert [first["kept"], second["kept"], same["kept"]] == [1, 0, 1] and drawn == [good, good, good]


# trackers


def test_tensorboard_reads_back_what_was_tracked(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, last in ((0, 30), (20, 40)):  # killed after step 30, taken up again at 20
        with Trackers(["tensorboard"], tmp_path, "things", {"lr": 0.1}) as trackers, \
             Telemetry(tmp_path, LoopSettings(steps=40, report_steps=20), trackers=trackers) as telemetry:  # fmt: skip
            telemetry.begin(begin)
            for step in range(begin + 1, last + 1):
                telemetry.step({"step": step, "loss": 1 / step, "grad": 1.0, "lr": 0.1})
                if step % 20 == 0:
                    telemetry.report(step, {"held_out": {"-1": step / 100}}, Image.new("RGB", (12, 7), (255, 0, 0)))
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    losses = [(event.step, event.value) for event in read.Scalars("train/loss")]
    written = [(line["step"], line["loss"]) for line in lines(tmp_path / "events.jsonl") if "loss" in line]
    assert [step for step, _ in losses] == [10, 20, 30, 40] == [step for step, _ in written]
    assert np.allclose([v for _, v in losses], [v for _, v in written])
    assert [(e.step, round(e.value, 6)) for e in read.Scalars("report/held_out/-1")] == [(20, 0.2), (40, 0.4)]
    picture = read.Images("samples")[-1]
    assert (picture.step, picture.width, picture.height) == (40, 12, 7)


class Fake(types.ModuleType):
    """Stands in for trackio and wandb: records calls, and fails from the `last`-th on."""

    def __init__(self, name, last=99):
        super().__init__(name)
        self.calls, self.last = [], last

    def init(self, **given):
        self.calls.append(("init", given))
        return self

    def log(self, values, step):
        if len(self.calls) >= self.last:
            raise ConnectionError("the server\nis gone")
        self.calls.append((step, values))

    def finish(self):
        self.calls.append("finish")

    def Image(self, picture):
        return picture.size


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_trackers_get_the_same_numbers(name, tmp_path, monkeypatch):
    fake = Fake(name)
    monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    check_trackers([name])
    with Trackers([name, name], tmp_path, "things", {"lr": 0.1}) as trackers:
        trackers.begin(0)
        trackers.values(10, {"train/loss": 0.5})
        trackers.picture(10, Image.new("RGB", (3, 2)))
    (_, given), *rest = fake.calls
    assert rest == [(10, {"train/loss": 0.5}), (10, {"samples": (3, 2)}), "finish"]
    assert given["project"] == "unfog" and given["config"] == {"lr": 0.1} and given["name"].startswith("things")
    assert given.get("mode", "offline") == "offline" and "space_id" not in given


def test_a_tracker_that_fails_is_let_go_once(tmp_path, monkeypatch, capsys):
    fake, other = Fake("wandb", last=2), Fake("trackio")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setitem(sys.modules, "trackio", other)
    trackers = Trackers(["wandb", "trackio"], tmp_path, "things", {})
    with trackers, Telemetry(tmp_path, LoopSettings(steps=50), trackers=trackers) as telemetry:
        telemetry.begin(0)
        for step in range(1, 51):
            telemetry.step({"step": step, "loss": 1.0, "grad": 1.0, "lr": 0.1})
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "--track wandb failed (the server is gone); the run goes on" in said[0]
    assert len(lines(tmp_path / "events.jsonl")) == 5 and other.calls[-1] == "finish"
    assert [step for step, _ in other.calls[1:6]] == [10, 20, 30, 40, 50] and fake.calls[-1] != "finish"


def test_unknown_and_missing_trackers_are_one_line_before_anything_starts(tmp_path, monkeypatch, picture_folder):
    with pytest.raises(UserError, match="track: 'tensorbord' is unknown; did you mean tensorboard"):
        run_recipe(TrainRequest(source=picture_folder, out=tmp_path / "out", track=["tensorbord"]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr("unfog.training.trackers.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--track wandb: wandb is not installed; run pip install 'unfog\[wandb\]'"):
        run_recipe(TrainRequest(source=picture_folder, out=tmp_path / "out", track=["wandb"]))
    assert not (tmp_path / "out").exists()


def test_numbers_have_flat_names():
    assert dict(flat("report", {"step": 3, "held_out": {"-1": 0.5}, "end": True, "loss": None, "copies": 1})) == {
        "report/held_out/-1": 0.5, "report/copies": 1}  # fmt: skip
    assert gathered() == gathered() is not gathered()
