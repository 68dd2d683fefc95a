"""A run folder survives anything: kills at any moment, flipped bits, a full disk, a second process."""

import builtins
import errno
import hashlib
import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from unfog import files
from unfog.diffusion import Gaussian, schedule_from_config
from unfog.diffusion.denoisers import Preconditioned
from unfog.errors import UserError
from unfog.training.checkpoint import Checkpoints, cut_events, only_run, saved_steps
from unfog.training.denoising import Denoising
from unfog.training.ema import PowerEMA
from unfog.training.feed import Feed
from unfog.training.loop import fit
from unfog.training.optimisers import MuonAdamW
from unfog.training.run import build_network

pytestmark = pytest.mark.usefixtures("one_thread")
OFTEN = 1e-9  # minutes between checkpoints: one before every step


def train(recipe, corpus, out, resume=False):
    with only_run(out):
        network = build_network(recipe, {"channels": 4, "classes": len(corpus.styles)})
        denoiser = Preconditioned(network, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction)
        task = Denoising(recipe, corpus, denoiser, network)
        with Feed(task, recipe.workers, 1, recipe.steps) as feed:
            return fit(recipe, feed, network, out, resume=resume, minutes=None, dtype=torch.float32, report=lambda *_: None,
                       show=lambda *_: None)[1]  # fmt: skip


def in_a_child(work):
    """Start `work` in a process of its own."""

    def quietly():
        torch.set_num_threads(1)
        work()

    process = multiprocessing.get_context("fork").Process(target=quietly)
    process.start()
    return process


def result(out):
    """sha256 of all that a run ends with: newest checkpoint and event log."""
    step = saved_steps(out)[0]
    names = [f"checkpoints/{step:07d}.safetensors", f"checkpoints/{step:07d}.json", "events.jsonl"]
    return [hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names]


def killed_at_random(recipe, corpus, out, kills, seed):
    chance = random.Random(seed)
    for _ in range(kills):
        child = in_a_child(lambda: train(recipe, corpus, out, resume=True))
        time.sleep(chance.uniform(0.0, 0.4))
        child.kill()
        child.join()


MANNERS = [(workers, accumulate) for workers in (0, 1, 2) for accumulate in (1, 4)]
KILLS = [(4 if workers == 1 else 3, workers, accumulate) for workers, accumulate in MANNERS]  # 20 in all


@pytest.mark.parametrize(("kills", "workers", "accumulate"), [*KILLS, pytest.param(200, 1, 1, marks=pytest.mark.slow)])
def test_killed_at_any_moment_ends_as_the_run_that_was_not(tmp_path, tiny_recipe, tiny_corpus, kills, workers, accumulate):
    recipe = tiny_recipe(steps=16 + 2 * kills, checkpoint_minutes=OFTEN, accumulate=accumulate, workers=workers)
    assert train(recipe, tiny_corpus, tmp_path / "whole") == recipe.steps
    (tmp_path / "cut" / "checkpoints").mkdir(parents=True)
    (tmp_path / "cut" / "checkpoints" / "notes.txt").write_text("somebody's own")
    killed_at_random(recipe, tiny_corpus, tmp_path / "cut", kills, seed=100 * kills + 10 * workers + accumulate)
    assert train(recipe, tiny_corpus, tmp_path / "cut", resume=True) == recipe.steps
    assert result(tmp_path / "cut") == result(tmp_path / "whole")
    assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == 5  # the newest two, notes.txt, nothing left over


class Dies:
    """Stands in for what files.py asks of the system: at the `last`-th write, fsync or rename the process is killed."""

    def __init__(self, last):
        self.left = last

    def __enter__(self):
        real_open, real_fsync, real_replace = builtins.open, os.fsync, os.replace

        def half(handle):
            write = handle.write

            def dying(data):
                if self.now():
                    write(data[: len(data) // 2])
                    handle.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
                return write(data)

            return dying

        class Writer:
            def __init__(self, handle):
                self.handle, self.write, self.flush, self.fileno = handle, half(handle), handle.flush, handle.fileno

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.handle.close()

        def dying(call):
            def run(*given):
                if self.now():
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*given)

            return run

        files.open = lambda *given: Writer(real_open(*given))
        os.fsync, os.replace = dying(real_fsync), dying(real_replace)
        return self

    def __exit__(self, *_):
        raise AssertionError("only ever used in a process that ends")

    def now(self):
        self.left -= 1
        return self.left == 0


@pytest.mark.slow
def test_killed_at_every_write_fsync_and_rename(tmp_path, tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(steps=3, checkpoint_minutes=OFTEN)
    train(recipe, tiny_corpus, tmp_path / "whole")
    point, killed = 0, True
    while killed:
        point += 1
        out = tmp_path / str(point)

        def work(out=out, point=point):
            with Dies(point):
                train(recipe, tiny_corpus, out)
                os._exit(0)

        child = in_a_child(work)
        child.join(60)
        killed = child.exitcode == -signal.SIGKILL
        assert killed or child.exitcode == 0
        before = saved_steps(out)[:1] or [0]
        assert train(recipe, tiny_corpus, out, resume=True) == 3
        assert result(out) == result(tmp_path / "whole"), (point, before)
    # four checkpoints (before each step, and the last), each two files written, flushed, renamed, the folder flushed
    assert point - 1 >= 32


def states(out):
    return {step: load_file(out / "checkpoints" / f"{step:07d}.safetensors") for step in saved_steps(out)}


@pytest.mark.slow
def test_flipped_bits_and_cut_files_are_found_and_the_one_before_is_taken(tmp_path, tiny_recipe, tiny_corpus, capsys):
    recipe = tiny_recipe(steps=4, checkpoint_minutes=OFTEN)
    train(recipe, tiny_corpus, tmp_path)
    assert saved_steps(tmp_path) == [4, 3]
    network = build_network(recipe, {"channels": 4, "classes": len(tiny_corpus.styles)})
    checkpoints = Checkpoints(tmp_path, network, [PowerEMA(network)], MuonAdamW(network))
    paths = [tmp_path / "checkpoints" / f"0000004.{kind}" for kind in ("safetensors", "json")]
    whole, chance, found = [path.read_bytes() for path in paths], random.Random(0), 0
    assert checkpoints.load() == 4
    for trial in range(1100):  # a flipped bit, and every eleventh time an end cut off
        number = trial % 4 == 3
        path, good = paths[number], whole[number]
        broken = bytearray(good)
        if trial % 11 == 10:
            del broken[chance.randrange(len(good)) :]
        else:
            broken[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        path.write_bytes(broken)
        taken, said = checkpoints.load(), capsys.readouterr().err
        if taken == 4:  # what is read is the same: blanks and the step, which the file's name says too
            assert number and json.loads(broken)["sha256"] == json.loads(good)["sha256"] and not said
        else:
            assert taken == 3 and "0000004.json: damaged" in said
            found += 1
        path.write_bytes(good)
    assert found > 1000 and checkpoints.load() == 4


def test_no_whole_checkpoint_is_an_error(tmp_path, tiny_recipe, tiny_corpus):
    train(tiny_recipe(steps=1), tiny_corpus, tmp_path)
    for path in (tmp_path / "checkpoints").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="no checkpoint there is whole; start without --resume"):
        train(tiny_recipe(), tiny_corpus, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("snapshots", "said"),
    [(0, r"step 3 cannot be written \(No space left on device\); that of step 2 stays"),
     (1, r"averages/0000003.safetensors: cannot be written \(No space left on device\); make room and go on")],
)  # fmt: skip
def test_a_full_disk_costs_no_checkpoint(tmp_path, tiny_recipe, tiny_corpus, monkeypatch, snapshots, said):
    train(tiny_recipe(steps=2, snapshots=snapshots), tiny_corpus, tmp_path)
    before = states(tmp_path)
    recipe = tiny_recipe(steps=3, snapshots=snapshots)

    replace = os.replace

    def full(source, target):
        if target.parent.name in ("checkpoints", "averages"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match=said):
        train(recipe, tiny_corpus, tmp_path, resume=True)
    monkeypatch.undo()
    assert {s: {k: v.sum() for k, v in state.items()} for s, state in states(tmp_path).items()} == {
        s: {k: v.sum() for k, v in state.items()} for s, state in before.items()
    }
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith(".")]
    assert train(recipe, tiny_corpus, tmp_path, resume=True) == 3


def test_two_processes_cannot_share_a_folder_and_a_killed_one_frees_it(tmp_path, tiny_recipe, tiny_corpus):
    ready = multiprocessing.get_context("fork").Event()

    def hold():
        with only_run(tmp_path):
            ready.set()
            time.sleep(60)

    child = in_a_child(hold)
    assert ready.wait(30)
    with pytest.raises(UserError, match="another process is training there"):
        train(tiny_recipe(), tiny_corpus, tmp_path)
    child.kill()
    child.join()
    assert train(tiny_recipe(steps=1), tiny_corpus, tmp_path) == 1


def test_events_after_the_checkpoint_are_cut(tmp_path):
    path = tmp_path / "events.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (10, 20, 30)]
    path.write_text("\n".join([*lines, '{"step": 40, "lo']))
    cut_events(path, 20)
    assert path.read_text().splitlines() == lines[:2]
    cut_events(tmp_path / "absent.jsonl", 0)
