"""The training loop: the same run however it is cut, broken batches, data order, learning rate, several processes."""

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unfog.diffusion import Gaussian, schedule_from_config
from unfog.diffusion.denoisers import Preconditioned
from unfog.errors import UserError
from unfog.modalities.image.codec import RGBACodec
from unfog.training.checkpoint import saved_steps
from unfog.training.denoising import Denoising, mixed
from unfog.training.ema import PowerEMA
from unfog.training.loop import fit, keeps, lr_at, train_step
from unfog.training.optimisers import MuonAdamW
from unfog.training.peers import Peers
from unfog.training.run import build_network

from . import processes

pytestmark = pytest.mark.usefixtures("one_thread")


def denoiser_of(recipe, corpus):
    network = build_network(recipe, {"channels": 4, "classes": len(corpus.styles)})
    return network, Preconditioned(network, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction)


def task_of(recipe, corpus):
    network, denoiser = denoiser_of(recipe, corpus)
    return network, Denoising(recipe, corpus, denoiser, network)


def train(recipe, corpus, out, resume=False, show=None, peers=None):
    out.mkdir(exist_ok=True)
    network, task = task_of(recipe, corpus)
    return fit(recipe, task, network, out, resume=resume, minutes=None, dtype=torch.float32, report=lambda *_: None,
               show=show or (lambda *_: None), peers=peers)  # fmt: skip


def saved(out, rank=0):
    """(step, state) of the newest checkpoint."""
    step = saved_steps(out)[0]
    return step, load_file(out / "checkpoints" / f"{step:07d}{f'.{rank}' if rank else ''}.safetensors")


def stop_at(number, kind):
    """A `show` that sends this process a signal after step `number`."""
    return lambda step, event: os.kill(os.getpid(), kind) if step == number else None


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_resumed_is_the_run_that_was_not(tmp_path, tiny_recipe, tiny_corpus, kind):
    recipe = tiny_recipe()
    _, step = train(recipe, tiny_corpus, tmp_path / "whole")
    assert step == 6
    handler = signal.getsignal(kind)
    _, step = train(recipe, tiny_corpus, tmp_path / "cut", show=stop_at(3, kind))
    assert step == 3 and signal.getsignal(kind) is handler
    assert saved(tmp_path / "cut")[0] == 3
    torch.rand(17)  # whatever else draws numbers in between
    _, step = train(recipe, tiny_corpus, tmp_path / "cut", resume=True)
    assert step == 6
    (_, whole), (_, cut) = (saved(tmp_path / n) for n in ("whole", "cut"))
    assert whole.keys() == cut.keys() and any(k.startswith("optimiser.") for k in whole)
    assert [k for k in whole if not torch.equal(whole[k], cut[k])] == []


def test_training_moves_weights_and_average_apart(tmp_path, tiny_recipe, tiny_corpus):
    ema, _ = train(tiny_recipe(), tiny_corpus, tmp_path / "run")
    _, state = saved(tmp_path / "run")
    moved = [k for k in state if k.startswith("network.") and not torch.equal(state[k], state[k.replace("network.", "ema.", 1)])]
    assert len(moved) > 10
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6 and lines[-1]["loss"] > 0


def test_a_broken_batch_does_not_touch_anything(tiny_recipe, tiny_corpus):
    recipe = tiny_recipe()
    network, task = task_of(recipe, tiny_corpus)
    optimiser, ema = MuonAdamW(network), PowerEMA(network)
    settings = {"lr": 1e-3, "clip": 1.0, "dtype": torch.float32}

    def step(number, factor):
        batch = task.batch(number)
        return train_step(network, task.loss, optimiser, [ema], batch | {"x0": batch["x0"] * factor}, step=number, **settings)

    step(0, 1.0)
    everything = [*network.parameters(), *ema.network.parameters(), *(v for s in optimiser.state.values() for v in s.values())]
    before = [v.detach().clone() for v in everything]
    _, norm = step(1, math.nan)
    assert math.isnan(norm)
    assert all(torch.equal(a, b) for a, b in zip(before, everything, strict=True))
    _, norm = step(2, 1.0)
    assert math.isfinite(norm) and any(not torch.equal(a, b) for a, b in zip(before, everything, strict=True))


@pytest.mark.parametrize("accumulate", [2, 3, 4, 9])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(tiny_recipe, tiny_corpus, accumulate):
    recipe = tiny_recipe(dropout=0.0)
    found = []
    for parts in (1, accumulate):
        network, task = task_of(recipe, tiny_corpus)
        optimiser = MuonAdamW(network)
        optimiser.step = lambda: None
        found.append((train_step(network, task.loss, optimiser, [PowerEMA(network)], task.batch(0), lr=1e-3, clip=1e9, step=0,
                                 dtype=torch.float32, accumulate=parts), [p.grad for p in network.parameters()]))  # fmt: skip
    (whole, gradients), (parts, summed) = found
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    for a, b in zip(gradients, summed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_five_broken_batches_in_a_row_are_an_error(tmp_path, tiny_recipe, tiny_corpus):
    tiny_corpus.codec = RGBACodec((math.nan,) * 4, (1.0,) * 4)
    seen = []
    with pytest.raises(UserError, match=r"five batches in a row.*the last with \d\d.png, .*lower lr"):
        train(tiny_recipe(), tiny_corpus, tmp_path / "run", show=lambda step, event: seen.append(step))
    assert seen == [1, 2, 3, 4]
    step, state = saved(tmp_path / "run")  # what was trained before them is kept, unharmed
    assert step == 4 and all(value.isfinite().all() for value in state.values())


def test_a_checkpoint_of_another_network(tmp_path, tiny_recipe, tiny_corpus):
    train(tiny_recipe(steps=1), tiny_corpus, tmp_path)
    settings = tiny_recipe().settings | {"embedding": 32}
    with pytest.raises(UserError, match="made with another network"):
        train(tiny_recipe(settings=settings), tiny_corpus, tmp_path, resume=True)


@pytest.mark.parametrize(("steps", "snapshots"), [(100, 16), (64, 16), (25, 16), (7, 16), (1000, 1), (10, 0)])
def test_averages_are_kept_evenly_and_at_the_end(tiny_recipe, steps, snapshots):
    recipe = tiny_recipe(steps=steps, snapshots=snapshots)
    kept = [step for step in range(1, steps + 1) if keeps(recipe, step)]
    assert len(kept) == min(snapshots, steps) and kept[-1:] == ([steps] if snapshots else [])
    assert not kept or max(np.diff([0, *kept])) - min(np.diff([0, *kept])) <= 1


def test_learning_rate(tiny_recipe):
    recipe = tiny_recipe(steps=100, warm_up=10, decay=0.3, lr=2.0)
    rates = [lr_at(recipe, step) for step in range(101)]
    assert np.allclose(np.diff(rates[:10]), 0.2) and math.isclose(rates[0], 0.2)
    assert set(rates[9:71]) == {2.0}
    assert np.allclose(np.diff(rates[70:]), -2 / 30) and rates[100] == 0
    assert {lr_at(tiny_recipe(warm_up=0, decay=0.0, lr=0.5), step) for step in range(6)} == {0.5}
    # the constant part may be prolonged: until the shorter run's fall, both runs are one
    longer = tiny_recipe(steps=200, warm_up=10, decay=0.3, lr=2.0)
    assert [lr_at(longer, step) for step in range(71)] == rates[:71]


def test_a_batch_is_a_function_of_seed_and_step(tiny_recipe, tiny_corpus):
    recipe = tiny_recipe()
    first = tiny_corpus.batch(recipe, 5)
    for step in (0, 9):
        tiny_corpus.batch(recipe, step)
    again = tiny_corpus.batch(recipe, 5)
    assert torch.equal(first[0], again[0]) and all(torch.equal(first[1][k], again[1][k]) for k in first[1])
    assert not torch.equal(first[1]["text"], tiny_corpus.batch(recipe, 6)[1]["text"])
    assert not torch.equal(first[1]["text"], tiny_corpus.batch(tiny_recipe(seed=1), 5)[1]["text"])


def test_every_epoch_visits_every_plain_picture_once(tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(recolour=0.0)
    decoded = np.concatenate([tiny_corpus.codec.decode(tiny_corpus.batch(recipe, step)[0]) for step in range(5)])
    numbers = [round(int(red) / 20) for red in decoded[:, 0, 0, 0]]  # batches of 4 straddle epochs of 10
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))
    assert numbers[:10] != numbers[10:]


def test_shares_of_dropped_and_recoloured_items(tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(batch=4000, drop_text=0.2, drop_style=0.25, recolour=0.5)
    x0, cond = tiny_corpus.batch(recipe, 0)
    empty = (cond["text"] == tiny_corpus.states[0].float()).flatten(1).all(1)
    unstyled = cond["class"] == 2
    red = tiny_corpus.codec.decode(x0[:, :, :1, :1])[:, 0, 0, 0]
    assert abs(float(empty.float().mean()) - 0.2) < 0.03
    assert bool(unstyled[empty].all())  # nothing at all is what guidance starts from
    assert abs(float(unstyled[~empty].float().mean()) - 0.25) < 0.03
    assert abs(float((red >= 198).mean()) - 0.5) < 0.04


def test_drawn_noise_is_a_function_of_seed_and_step(tiny_recipe, tiny_corpus):
    recipe = tiny_recipe()
    _, task = task_of(recipe, tiny_corpus)
    shape = torch.Size([4, 4, 16, 16])
    (t, eps), (t2, eps2), (_, other) = (task.draw(shape, step) for step in (3, 3, 4))
    assert torch.equal(t, t2) and torch.equal(eps, eps2) and not torch.equal(eps, other)
    assert t.dtype == torch.float32 and bool(((t > 0) & (t < 1)).all())
    assert len({float(item.sum()) for item in eps}) == 4 and abs(float(eps.mean())) < 0.05 and abs(float(eps.std()) - 1) < 0.05


def test_some_rows_of_a_batch_are_those_of_the_whole(tiny_recipe, tiny_corpus):
    _, task = task_of(tiny_recipe(), tiny_corpus)
    whole, some = task.batch(3), task.batch(3, slice(1, None, 2))
    assert all(torch.equal(whole[key][1::2], some[key]) for key in ("x0", "t", "noise"))
    assert all(torch.equal(value[1::2], some["cond"][key]) for key, value in whole["cond"].items())


def test_seeds_of_near_numbers_are_far_apart():
    seeds = {mixed(*numbers) for numbers in np.ndindex(4, 30, 30)}
    assert len(seeds) == 3600 and all(0 <= seed < 2**63 for seed in seeds)
    bits = np.array([[seed >> bit & 1 for bit in range(63)] for seed in sorted(seeds)])
    assert np.abs(bits.mean(0) - 0.5).max() < 0.05


def together(recipe, corpus, out, count=2, stop_after=None, resume=False):
    """`count` processes train into one folder; the last is sent SIGTERM after step `stop_after`. -> exit codes."""

    def work(rank):
        def show(step, event):
            if rank == count - 1 and step == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

        train(recipe, corpus, out, resume=resume, show=show, peers=Peers(recipe.average_steps))

    return processes.together(count, work)


def test_two_processes_end_with_the_mean_of_both(tmp_path, tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(steps=1, warm_up=1, decay=0.0, average_steps=1)
    assert together(recipe, tiny_corpus, tmp_path) == [0, 0]
    _, found = saved(tmp_path)
    alone = []
    for index in range(2):  # what each process does, here in one
        network, task = task_of(recipe, tiny_corpus)
        optimiser, ema = MuonAdamW(network, recipe.lr), PowerEMA(network, recipe.ema)
        network.train()
        torch.manual_seed((recipe.seed + 1) * 999_983 + index)
        train_step(network, task.loss, optimiser, [ema], task.batch(index), lr=lr_at(recipe, 0), clip=recipe.clip, step=0,
                   dtype=torch.float32)  # fmt: skip
        alone.append(network.state_dict())
    for key in alone[0]:
        mean = (alone[0][key] + alone[1][key]) / 2
        assert torch.allclose(found[f"network.{key}"], mean, atol=1e-6), key
    assert any(not torch.equal(alone[0][key], alone[1][key]) for key in alone[0])


def test_a_signal_to_one_stops_all_where_they_meet(tmp_path, tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(steps=40, average_steps=4)
    assert together(recipe, tiny_corpus, tmp_path, stop_after=5) == [0, 0]
    assert saved(tmp_path)[0] == 8
    steps = [json.loads(line)["step"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert all(step % 10 == 0 for step in steps)  # the leader's lines only, each once
    assert len(steps) == len(set(steps))


def test_two_processes_stopped_and_resumed_are_the_run_that_was_not(tmp_path, tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(steps=14, average_steps=4)
    assert together(recipe, tiny_corpus, tmp_path / "whole") == [0, 0]
    assert together(recipe, tiny_corpus, tmp_path / "cut", stop_after=5) == [0, 0]
    assert saved(tmp_path / "cut")[0] == 8
    assert together(recipe, tiny_corpus, tmp_path / "cut", resume=True) == [0, 0]
    for rank in range(2):
        (step, whole), (_, cut) = (saved(tmp_path / n, rank) for n in ("whole", "cut"))
        assert step == 14 and [k for k in whole if not torch.equal(whole[k], cut[k])] == []
    assert (tmp_path / "whole" / "events.jsonl").read_bytes() == (tmp_path / "cut" / "events.jsonl").read_bytes()


@pytest.mark.parametrize("before, after", [(2, 2), (2, 1), (1, 2), (3, 2)])
def test_processes_that_share_batches_are_one(tmp_path, tiny_recipe, tiny_corpus, before, after):
    """Stopped as so many and resumed as so many: the run of one process."""
    recipe = tiny_recipe(steps=12, dropout=0.2, batch=5)
    assert together(recipe, tiny_corpus, tmp_path / "whole", count=1) == [0]
    assert together(recipe, tiny_corpus, tmp_path / "cut", before, stop_after=5) == [0] * before
    assert saved(tmp_path / "cut")[0] == 5
    assert together(recipe, tiny_corpus, tmp_path / "cut", after, resume=True) == [0] * after
    (step, whole), (_, cut) = (saved(tmp_path / n) for n in ("whole", "cut"))
    assert step == 12 and whole.keys() == cut.keys()
    for key in whole:
        if max(before, after) == 2:  # as many as the parts that one process cuts a batch into
            assert torch.equal(whole[key], cut[key]), key
        else:  # Adam divides small gradients by themselves, rounding and all
            assert torch.allclose(whole[key], cut[key], rtol=0, atol=2e-5), key
    if max(before, after) == 2:
        assert (tmp_path / "whole" / "events.jsonl").read_bytes() == (tmp_path / "cut" / "events.jsonl").read_bytes()


@pytest.mark.parametrize(("count", "steps"), [(1, 6), (2, 3), (3, 2)])
def test_processes_draw_what_one_alone_would(monkeypatch, count, steps):
    monkeypatch.setenv("WORLD_SIZE", "1")
    apart, together = Peers(4), Peers(0)
    apart.count = together.count = count
    drawn, shares = [], []
    for step in range(steps):
        for apart.rank in range(count):
            index, rows = apart.place(step)
            assert rows == slice(None)
            drawn.append(index)
        for together.rank in range(count):
            index, rows = together.place(step)
            shares += [(index, row) for row in range(7)[rows]]
    assert drawn == list(range(6))
    assert sorted(shares) == [(step, row) for step in range(steps) for row in range(7)]
