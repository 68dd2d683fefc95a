"""Batches made ahead: in order, the same with any number of workers, errors at their step, threads that end."""

import threading
import time

import pytest
import torch

from unfog.diffusion import Gaussian, schedule_from_config
from unfog.diffusion.denoisers import Preconditioned
from unfog.training.denoising import Denoising
from unfog.training.feed import Feed
from unfog.training.loop import fit
from unfog.training.run import build_network

pytestmark = pytest.mark.usefixtures("one_thread")


def alive():
    return [t.name for t in threading.enumerate() if t.name.startswith("unfog-feed")]


class Numbers:
    """A task that remembers which batches were made, and breaks at one."""

    def __init__(self, breaks=None, seconds=0.0):
        self.made, self.breaks, self.seconds = [], breaks, seconds

    def batch(self, index, rows=slice(None)):
        time.sleep(self.seconds)
        self.made.append(index)
        if index == self.breaks:
            raise ValueError(f"batch {index}")
        return {"x": torch.arange(index, index + 8)[rows]}

    def loss(self, batch):
        return batch["x"].float()

    def names(self, index):
        return [str(index)]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 3])
def test_batches_come_in_order_and_none_past_the_end(workers, stride):
    task = Numbers()
    with Feed(task, workers, stride, 5 * stride) as feed:
        found = [feed.batch(step * stride, slice(1, None, 2))["x"].tolist() for step in range(5)]
        assert feed.names(7) == ["7"] and feed.loss({"x": torch.ones(2)}).tolist() == [1, 1]
    assert found == [list(range(step * stride, step * stride + 8))[1::2] for step in range(5)]
    assert sorted(task.made) == [step * stride for step in range(5)] and not alive()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_next_batches_are_made_meanwhile(workers):
    task = Numbers(seconds=0.02)
    with Feed(task, workers) as feed:
        feed.batch(0)
        before = feed.waited
        time.sleep(0.3)
        assert sorted(task.made) == list(range(workers + 1))
        feed.batch(1)
        assert feed.waited - before < 0.015 <= before


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_comes_at_its_own_step(workers):
    with Feed(Numbers(breaks=3), workers) as feed:
        for step in range(3):
            feed.batch(step)
            time.sleep(0.02)  # by now the broken one has been made ahead
        with pytest.raises(ValueError, match="batch 3"):
            feed.batch(3)
        assert feed.batch(4)["x"][0] == 4
    assert not alive()


@pytest.mark.parametrize("workers", [1, 2])
def test_another_batch_than_the_one_foreseen(workers):
    with Feed(Numbers(), workers) as feed:
        for index, rows in [(0, slice(None)), (7, slice(None)), (8, slice(0, 2)), (2, slice(1, None, 2)), (3, slice(None))]:
            assert feed.batch(index, rows)["x"].tolist() == list(range(index, index + 8))[rows]
        assert len(feed.ahead) <= workers
    assert not alive()


def test_threads_end_while_a_batch_is_being_made():
    with pytest.raises(KeyboardInterrupt), Feed(Numbers(seconds=0.05), 2) as feed:
        feed.batch(0)
        raise KeyboardInterrupt
    assert not alive()


def test_a_run_is_the_same_with_any_number_of_workers(tmp_path, tiny_recipe, tiny_corpus):
    found = []
    for workers in (0, 1, 2):
        recipe = tiny_recipe(workers=workers, steps=10)
        network = build_network(recipe, {"channels": 4, "classes": 2})
        denoiser = Preconditioned(network, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction)
        out = tmp_path / str(workers)
        out.mkdir()
        with Feed(Denoising(recipe, tiny_corpus, denoiser, network), workers, 1, 10) as feed:
            fit(recipe, feed, network, out, resume=False, minutes=None, dtype=torch.float32, report=lambda *_: None,
                show=lambda *_: None)  # fmt: skip
        assert feed.waited > 0
        found.append([p.read_bytes() for p in (out / "events.jsonl", out / "checkpoints" / "0000010.safetensors")])
    assert found[0] == found[1] == found[2]


def test_workers_are_no_part_of_what_a_model_says(tiny_recipe):
    assert tiny_recipe(workers=0).model_dump() == tiny_recipe(workers=2).model_dump()
