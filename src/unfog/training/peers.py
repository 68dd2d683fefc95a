"""Several processes that train one model. Started by `torchrun --nproc-per-node N -m unfog train ...`.

every = 0: at each step each process takes its share of the batch and the gradients are added up, so that the run is that of
one process: to the bit where that one works a batch through in as many parts as there are processes, else to rounding.
every = n: each takes batches of its own, and every n steps their weights are averaged; steps need no exchange, so a core or a
machine that is held up for a moment holds nobody else up. Source of the latter: Stich 2018 (local SGD), arXiv:1805.09767.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, nn

from unfog.errors import UserError

PATIENCE = timedelta(minutes=float(os.environ.get("UNFOG_PATIENCE_MINUTES", 30)))  # a report of the leader's is waited for


def _broken(error: RuntimeError) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "connection", "timed out"))


class Peers:
    """This process's place among `count`; alone, every method does nothing."""

    def __init__(self, every: int = 0, device: str = "cpu") -> None:
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.every = every
        if self.count > 1:
            import torch.distributed as dist

            if device == "cuda":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
            if not dist.is_initialized():
                with self.together():
                    store, rank, count = next(dist.rendezvous("env://", timeout=PATIENCE))
                    # torchrun keeps its store when it starts processes again, and in it the addresses of those that died
                    store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
                    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=count,
                                            timeout=PATIENCE)  # fmt: skip

    @property
    def leads(self) -> bool:
        """Whether this process is the one that saves and reports."""
        return self.rank == 0

    @property
    def alike(self) -> bool:
        """Whether all processes hold the same weights after every step."""
        return self.count == 1 or not self.every

    @property
    def batches(self) -> int:
        """Batches that all processes together take at a step."""
        return self.count if self.every else 1

    def place(self, step: int) -> tuple[int, slice]:
        """The number of this process's batch at `step`, and which rows of it are its own.

        Batches of their own are together what one process alone would draw later.
        """
        if self.every:
            return step * self.count + self.rank, slice(None)
        return step, slice(self.rank, None, self.count)

    def parts(self, accumulate: int) -> int:
        """Into how many parts this process cuts its share, so that all together make at least `accumulate`."""
        return accumulate if self.every else -(-accumulate // self.count)

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            import torch.distributed as dist

            with self.together():
                dist.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around whatever needs all processes. UserError where one of them is gone, or has not come for `PATIENCE`."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _broken(error):
                raise
            told = " ".join(str(error).split())[-80:]
            raise UserError(f"process {self.rank + 1} of {self.count}: another one is gone or stands still ({told}); "
                            "start all of them again with --resume") from None  # fmt: skip

    def share(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Give every process the sum of all gradients, where they take shares of one batch. -> the sum of their losses.

        Gradients of a sharded network are sums already: its backward pass adds them up.
        """
        if self.count == 1 or self.every:
            return loss
        import torch.distributed as dist

        ours = [p for p in parameters if not hasattr(p, "to_local")]
        for p in ours:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in ours if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in gradients), loss.reshape(1)])
        with self.together():
            dist.all_reduce(flat)
        *sums, loss = flat.split([*(g.numel() for g in gradients), 1])
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total.view_as(gradient))  # its memory stays laid out as one process would have it
        return loss[0]

    def average(self, network: nn.Module, *wishes: bool) -> list[bool]:
        """Give every process the mean of all processes' weights. -> for each wish whether any of them has it."""
        if self.count == 1:
            return list(wishes)
        import torch.distributed as dist

        parameters = [] if self.alike else [p.data for p in network.parameters()]
        flags = torch.tensor([float(wish) for wish in wishes], device=next(network.parameters()).device)
        flat = torch.cat([*(p.flatten() for p in parameters), flags])
        with self.together():
            dist.all_reduce(flat)
        flat /= self.count
        *means, found = flat.split([*(p.numel() for p in parameters), len(wishes)])
        for p, mean in zip(parameters, means, strict=True):
            p.copy_(mean.view_as(p))
        return [bool(wish > 0) for wish in found]

    def meet(self, step: int, network: nn.Module, *wishes: bool) -> list[bool]:
        """Before `step`: average if it is time. -> which wishes to follow, which processes can only do where they meet."""
        if self.count > 1 and self.every and step % self.every:
            return [False] * len(wishes)
        return self.average(network, *wishes)
