"""Several processes that train one model: each takes its own steps, and every few steps their weights are averaged.

Started by `torchrun --nproc-per-node N -m unfog train ...`. Steps need no exchange, so a core or a machine that is held up
for a moment holds nobody else up. Source: Stich 2018 (local SGD), arXiv:1805.09767.
"""

from __future__ import annotations

import os

import torch
from torch import nn


class Peers:
    """This process's place among `count`; alone, every method does nothing."""

    def __init__(self, every: int = 16, device: str = "cpu") -> None:
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.every = every
        if self.count > 1:
            import torch.distributed as dist

            if device == "cuda":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
            if not dist.is_initialized():
                dist.init_process_group("nccl" if device == "cuda" else "gloo")

    @property
    def leads(self) -> bool:
        """Whether this process is the one that saves and reports."""
        return self.rank == 0

    def index(self, step: int) -> int:
        """The number of this process's batch at `step`: together the processes draw what one alone would draw later."""
        return step * self.count + self.rank

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()

    def average(self, network: nn.Module, *wishes: bool) -> list[bool]:
        """Give every process the mean of all processes' weights. -> for each wish whether any of them has it."""
        if self.count == 1:
            return list(wishes)
        import torch.distributed as dist

        parameters = [p.data for p in network.parameters()]
        flags = parameters[0].new_tensor([float(wish) for wish in wishes])
        flat = torch.cat([*(p.flatten() for p in parameters), flags])
        dist.all_reduce(flat)
        flat /= self.count
        *means, found = flat.split([*(p.numel() for p in parameters), len(wishes)])
        for p, mean in zip(parameters, means, strict=True):
            p.copy_(mean.view_as(p))
        return [bool(wish > 0) for wish in found]

    def meet(self, step: int, network: nn.Module, *wishes: bool) -> list[bool]:
        """Before `step`: average if it is time. -> which wishes to follow, which processes can only do where they meet."""
        if self.count > 1 and step % self.every:
            return [False] * len(wishes)
        return self.average(network, *wishes)
