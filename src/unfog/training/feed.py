"""Batches prepared ahead: the loop asks for a batch by its number, and threads have made it meanwhile.

A batch is a function of its number, so that it does not matter who makes it or when: any number of workers gives the same
bits. Threads and not processes: what takes time (copies, random numbers) runs without Python's lock, and nothing is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from unfog.training.loop import Batch, Task

Place = tuple[int, int | None, int | None, int | None]  # a batch's number, and which rows of it


class Feed:
    """A `Task` whose batches are made ahead by `workers` threads; 0: each when it is asked for.

    stride: from the number of one step's batch to that of the next. end: the number that no batch reaches, if there is one.
    waited: seconds in which the loop stood still for its batches. Use it in a `with`, which ends the threads.
    """

    def __init__(self, task: Task, workers: int = 1, stride: int = 1, end: int | None = None) -> None:
        self.task, self.workers, self.stride, self.end = task, workers, stride, end
        self.waited = 0.0
        self.ahead: dict[Place, Future[Batch]] = {}
        device = torch.cuda.current_device() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
        start: Callable[[], None] = (lambda: None) if device is None else (lambda: torch.cuda.set_device(device))
        self.pool = ThreadPoolExecutor(workers, "unfog-feed", initializer=start) if workers else None

    @property
    def extra(self) -> nn.Module | None:
        """What is trained beside the network."""
        return self.task.extra

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; what they have made ahead is dropped."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
        self.ahead.clear()

    def batch(self, index: int, rows: slice = slice(None)) -> Batch:
        """These rows of batch `index`. What went wrong in making it is raised here, and not a step sooner."""
        began = time.perf_counter()
        try:
            if self.pool is None:
                return self.task.batch(index, rows)
            wanted = [index + k * self.stride for k in range(self.workers + 1)]
            places = [(i, rows.start, rows.stop, rows.step) for i in wanted if i == index or self.end is None or i < self.end]
            for place in [place for place in self.ahead if place not in places]:  # the loop went elsewhere
                self.ahead.pop(place).cancel()
            for place in places:
                if place not in self.ahead:
                    self.ahead[place] = self.pool.submit(self.task.batch, place[0], rows)
            return self.ahead.pop(places[0]).result()
        finally:
            self.waited += time.perf_counter() - began

    def loss(self, batch: Batch) -> Tensor:
        """The loss of each item, (B,)."""
        return self.task.loss(batch)

    def names(self, index: int) -> list[str]:
        """What batch `index` is made of."""
        return self.task.names(index)
