"""Several processes that know each other, as torchrun starts them."""

import multiprocessing
import os
import socket

import torch


def spawned(count, work):
    """`work(rank)` in `count` processes that know each other. -> the processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def peer(rank):
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
        work(rank)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=peer, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    return processes


def together(count, work):
    """As `spawned`, waited for. -> exit codes."""
    processes = spawned(count, work)
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]
