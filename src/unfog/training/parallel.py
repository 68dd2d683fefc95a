"""How a network is laid over several processes and how its memory is saved: from outside, so that networks stay plain.

replicate: every process holds everything; gradients are added up (`peers.py`).
shard: every process holds 1/N of each weight, gradient, average and optimiser state, cut along the first axis; a block's weights
are put together just before it works and let go after. Source: Rajbhandari et al. 2020 (ZeRO, stage 3), arXiv:1910.02054;
Zhao et al. 2023 (FSDP), arXiv:2304.11277. What a checkpoint holds is whole tensors in either case.
checkpointed activations: a block keeps its input alone and works a second time in the backward pass. Source: Chen et al. 2016,
arXiv:1604.06174.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unfog.errors import UserError
from unfog.training.peers import Peers
from unfog.training.recipe import LoopSettings

if TYPE_CHECKING:
    from unfog.training.ema import PowerEMA

PLAIN = "_plain"  # where a sharded network keeps its own shape, without weights


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts of a network: what stands in its lists and is more than one layer."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            for part in child:
                if isinstance(part, nn.ModuleList):
                    yield from blocks(nn.ModuleList([part]))
                elif next(part.children(), None) is not None:
                    yield part
        else:
            yield from blocks(child)


def parallelise(network: nn.Module, settings: LoopSettings, peers: Peers, device: str = "cpu") -> nn.Module:
    """Lay the network out as the settings say, in place. -> what a training step calls (the network, or it compiled).

    Weights are those that it has, the same in every process. Raises UserError where the settings do not go together.
    """
    shard = settings.parallel == "shard" and peers.count > 1
    if shard:
        _check(settings, peers)
        network.__dict__[PLAIN] = _shape(network)
    for block in blocks(network):
        if settings.checkpoint_activations:
            block.forward = _again(block.forward)
        if settings.compile == "blocks":
            block.forward = torch.compile(block.forward)
    if shard:
        _shard(network, peers.count, device)
    return torch.compile(network) if settings.compile == "whole" else network  # type: ignore[return-value]


def _check(settings: LoopSettings, peers: Peers) -> None:
    if settings.average_steps:
        raise UserError("parallel: shard shares every batch; set average_steps to 0, or parallel to replicate")
    least = peers.parts(settings.accumulate)
    if settings.batch // peers.count < least:
        raise UserError(f"batch: {settings.batch} is less than {least * peers.count}, {least} for each of {peers.count} "
                        "processes that shard a network; raise batch, or lower accumulate")  # fmt: skip


def _shape(network: nn.Module) -> nn.Module:
    """A copy with weights that take no memory."""
    memo: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), False) for p in network.parameters()}
    return copy.deepcopy(network, memo)


def _again(forward: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    def call(*inputs: Any) -> Any:
        return checkpoint(forward, *inputs, use_reentrant=False) if torch.is_grad_enabled() else forward(*inputs)

    return call


def _shard(network: nn.Module, count: int, device: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for p in network.parameters():
        p.data = p.data.contiguous()  # rows are cut off the memory as it lies
    empty = {p for p in network.parameters() if not p.numel()}  # such as no registers: nothing to cut
    mesh = init_device_mesh(device, (count,))
    for part in [*blocks(network), network]:
        fully_shard(part, mesh=mesh, ignored_params=empty)
    for part in network.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)  # the loss is divided by the whole batch already
            part.set_force_sum_reduction_for_comms(True)  # a product within the sum is what gloo lacks


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process, in its own memory: all of it if the tensor is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def locals_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [local(t) for t in tensors]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Of a sharded one every process asks at once."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@torch.no_grad()
def put(tensor: Tensor, values: Tensor) -> None:
    """Fill a tensor with whole values (of the same shape), or this process's part of it with its part of them."""
    own = local(tensor)
    if own is not tensor:
        first, last = rows(len(values), tensor.device_mesh.size(), tensor.device_mesh.get_local_rank())  # type: ignore[attr-defined]
        values = values[first:last]
    own.copy_(values)


@torch.no_grad()
def gathered(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors by the same names, laid out row by row; none where they are not to be kept. Every process calls it."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            found[name] = full.cpu().contiguous() if full is not tensor else tensor.contiguous()
    return found


def rows(length: int, count: int, rank: int) -> tuple[int, int]:
    """Which rows of `length` lie in process `rank` of `count`: as many in each, less in the last ones."""
    each = -(-length // count)
    return min(rank * each, length), min((rank + 1) * each, length)


def sharded(network: nn.Module) -> bool:
    """Whether this process holds a part of the network's weights only."""
    return any(hasattr(p, "to_local") for p in network.parameters())


def twin(network: nn.Module) -> nn.Module:
    """A plain copy with weights of its own that lie as the network's do: whole, or this process's part of each."""
    if not sharded(network):
        copied = copy.deepcopy(network)
        for part in copied.modules():
            part.__dict__.pop("forward", None)  # a compiled one would still be the original's
        return copied
    return _filled(network.__dict__[PLAIN], {k: p.detach().clone() for k, p in network.named_parameters()})


def _filled(shape: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    copied = copy.deepcopy(shape)
    for name, weight in weights.items():
        place, _, last = name.rpartition(".")
        setattr(copied.get_submodule(place), last, nn.Parameter(weight, requires_grad=False))
    return copied


@torch.no_grad()
def leaders(ema: PowerEMA, peers: Peers) -> PowerEMA | None:
    """The average with whole weights in the leader, None in the others. Every process calls it."""
    if not sharded(ema.network):
        return ema if peers.leads else None
    found = {}
    with peers.together():
        for name, p in ema.network.named_parameters():
            full = whole(p.detach())
            if peers.leads:
                found[name] = full
    if not peers.leads:
        return None
    result = copy.copy(ema)
    result.network = _filled(_shape(ema.network), found).eval()
    return result


def clipped(parameters: list[nn.Parameter], most: float) -> float:
    """Scale all gradients so that their norm is at most `most`. -> the norm before, over all processes' parts."""
    if not any(hasattr(p, "to_local") for p in parameters):
        return float(nn.utils.clip_grad_norm_(parameters, most))
    import torch.distributed as dist

    gradients = locals_of(p.grad for p in parameters if p.grad is not None)
    alike = [p.grad for p in parameters if p.grad is not None and not hasattr(p, "to_local")]  # the same in every process
    square = nn.utils.get_total_norm(gradients).square()
    dist.all_reduce(square)
    if alike:
        square -= (dist.get_world_size() - 1) * nn.utils.get_total_norm(alike).square()
    norm = square.sqrt()
    torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)


def by_rows(matrices: list[Tensor], shapes: list[torch.Size], work: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """work(matrix) of each whole matrix, where every process holds some rows of it and gets back the same rows.

    matrices: this process's rows of each, (r, C); shapes: of the whole, (R, C). Each matrix is put together in one process,
    the i-th in process i mod N, so that none is worked on twice and none has to be held by all.
    """
    import torch.distributed as dist

    rank, count = dist.get_rank(), dist.get_world_size()
    sent, gathered = [], {}
    for i, (part, shape) in enumerate(zip(matrices, shapes, strict=True)):
        each = -(-shape[0] // count)  # as many rows from all: the last ones' are filled up
        padded = part.new_zeros(each, shape[1])
        padded[: len(part)] = part
        owner = i % count
        into = [torch.empty_like(padded) for _ in range(count)] if rank == owner else None
        sent.append((dist.gather(padded, into, dst=owner, async_op=True), padded))
        if into is not None:
            gathered[i] = into
    done = []
    for i, (part, shape) in enumerate(zip(matrices, shapes, strict=True)):
        sent[i][0].wait()
        owner, out = i % count, torch.empty_like(sent[i][1])
        pieces = None
        if rank == owner:
            result = work(torch.cat(gathered.pop(i))[: shape[0]])
            filled = result.new_zeros(len(out) * count, shape[1])
            filled[: shape[0]] = result
            pieces = [piece.to(out.dtype) for piece in filled.split(len(out))]
        done.append((dist.scatter(out, pieces, src=owner, async_op=True), out[: len(part)], pieces))
    for job, *_ in done:
        job.wait()
    return [own for _, own, _ in done]
