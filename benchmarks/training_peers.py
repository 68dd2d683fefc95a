"""The sides of training.py, each in a process of its own: `python training_peers.py SIDE BATCH THREADS SIZE CLOCK`.

It says {"gflop": of one forward, "parameters": n}, then for every number of steps read from stdin it makes these and says
what they took; at the end of stdin, {"peak_mb": ...}. Time is taken inside by hooks that are alike for all sides, on the wall
or of this process's use of the processors, which a busy machine disturbs little (what loader processes use is not in it).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PICTURES, CAPTIONS, TOKENS, TEXT_DIM, CLASSES = 1024, 64, 32, 384, 5
# about 4 GFLOP a 64x64 picture each; for ours the widths alone are not the default (128, 192, 256), which has 1.7
OURS: dict[str, Any] = {"widths": [192, 320, 384]}
FINER: dict[str, Any] = {"unshuffle": 2, "widths": [96, 176, 256], "attention": [False, False, True]}  # works at 32x32
THEIRS: dict[str, Any] = {
    "layers_per_block": 2, "block_out_channels": (32, 64, 128, 128),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}  # fmt: skip
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


class Done(Exception):
    """No more steps are asked for."""


class Clock:
    """Seconds by part of a step, and the turns in which steps are asked for."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.parts: dict[str, float] = {}
        self.started = 0.0

    def add(self, part: str, seconds: float) -> None:
        self.parts[part] = self.parts.get(part, 0.0) + seconds

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            start = self.now()
            out = call(*args, **options)
            self.add(part, self.now() - start)
            return out

        return wrapped

    def begin(self, *_: Any) -> None:
        self.started = self.now()

    def end(self, part: str) -> Callable[..., None]:
        return lambda *_: self.add(part, self.now() - self.started)

    def each(self, part: str, items: Iterator[Any]) -> Iterator[Any]:
        following = self.timed(part, items.__next__)
        while True:
            yield following()

    def watch(self, network: Any) -> None:
        """Time what every side has: forward, backward, clipping, the optimiser's step."""
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        network.register_forward_pre_hook(self.begin)
        network.register_forward_hook(self.end("forward"))
        torch.Tensor.backward = self.timed("backward", torch.Tensor.backward)  # type: ignore[method-assign]
        torch.nn.utils.clip_grad_norm_ = self.timed("clip", torch.nn.utils.clip_grad_norm_)
        register_optimizer_step_pre_hook(self.begin)
        register_optimizer_step_post_hook(self.end("optimiser"))

    def turns(self) -> Iterator[int]:
        """Numbers of steps asked for; coming back for the next one says what the last ones took."""
        for line in sys.stdin:
            self.parts = {}
            busy, own, began, start = busy_seconds(), time.process_time(), time.perf_counter(), self.now()
            yield int(line)
            seconds, wall, own = self.now() - start, time.perf_counter() - began, time.process_time() - own
            others = None if busy is None else max((busy_seconds() or 0) - busy - own, 0.0) / wall
            say({"seconds": seconds, "others": others, "parts": self.parts})


def busy_seconds() -> float | None:
    """Seconds that all processors have worked since the start of the machine, where Linux tells."""
    try:
        user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    except OSError:
        return None
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def announce(network: Any, call: Callable[[], Any]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    say({"gflop": counter.get_total_flops() / 1e9, "parameters": sum(p.numel() for p in network.parameters())})


def pictures(size: int) -> Any:
    """(PICTURES, size, size, 4) uint8"""
    import torch

    return torch.randint(256, (PICTURES, size, size, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def corpus(size: int) -> Any:
    """Pictures and captions of random numbers, as `unfog train` holds them."""
    import numpy as np
    import torch

    from unfog.modalities.image.codec import RGBACodec
    from unfog.training.picture_corpus import PictureCorpus

    data, rng = pictures(size), np.random.default_rng(0)
    return PictureCorpus(
        data, rng.integers(CLASSES, size=PICTURES), rng.integers(CAPTIONS, size=(PICTURES, 4)), PICTURES,
        [f"caption {i}" for i in range(CAPTIONS)], [f"style {i}" for i in range(CLASSES)], RGBACodec.fit(data.numpy()),
        [f"{i}.png" for i in range(PICTURES)], torch.randn(CAPTIONS, TOKENS, TEXT_DIM).half(),
        torch.arange(TOKENS)[None] < torch.randint(3, 12, (CAPTIONS, 1)),
    )  # fmt: skip


def text() -> dict[str, Any]:
    """What ours is told of one picture."""
    import torch

    mask = torch.ones(1, TOKENS, dtype=torch.bool)
    return {"text": torch.zeros(1, TOKENS, TEXT_DIM), "text_mask": mask, "class": torch.zeros(1, dtype=torch.long)}


def ours(
    clock: Clock, batch: int, size: int, *, settings: dict[str, Any] | None = None, bf16: bool = False, around: bool = False,
    optimiser: str = "muon",
) -> None:  # fmt: skip
    """`fit` of training/loop.py as `unfog train` calls it, all settings but those given at their defaults."""
    import torch

    from unfog.diffusion import Gaussian, schedule_from_config
    from unfog.diffusion.denoisers import Preconditioned
    from unfog.training import loop
    from unfog.training.denoising import Denoising
    from unfog.training.ema import PowerEMA
    from unfog.training.progress import Shown
    from unfog.training.recipe import Recipe
    from unfog.training.run import build_network

    recipe = Recipe.model_validate({"size": size, "batch": batch, "settings": settings or OURS, "optimiser": optimiser})
    network = _adapter(size) if around else build_network(recipe, {"channels": 4, "classes": CLASSES})
    announce(network, lambda: network(torch.zeros(1, 4, size, size), torch.zeros(1), text()))
    clock.watch(network)
    denoiser = Preconditioned(network, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction)
    task = Denoising(recipe, corpus(size), denoiser, network)
    task.batch = clock.timed("data", task.batch)  # type: ignore[method-assign]
    PowerEMA.update = clock.timed("average", PowerEMA.update)  # type: ignore[method-assign]
    loop.train_step = clock.timed("step", loop.train_step)
    turns = clock.turns()
    left = next(turns, 0)
    with tempfile.TemporaryDirectory() as out, Shown(recipe) as shown:

        def show(step: int, event: dict[str, Any]) -> None:
            nonlocal left
            shown(step, event)
            left -= 1
            if not left:
                left = next(turns, 0)
            if not left:
                raise Done

        dtype = torch.bfloat16 if bf16 else torch.float32
        loop.fit(recipe, task, network, Path(out), resume=False, minutes=None, dtype=dtype, report=lambda *_: None, show=show)


def _adapter(size: int) -> Any:
    """diffusers' network under our call."""
    import torch
    from diffusers import UNet2DModel

    class Around(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = UNet2DModel(sample_size=size, in_channels=4, out_channels=4, **THEIRS)

        def forward(self, x: Any, logsnr: Any, cond: Any = None) -> Any:
            return self.unet(x, logsnr).sample

    return Around()


def plain(clock: Clock, batch: int, size: int) -> None:
    """Our network in the barest loop: forward, backward, AdamW, nothing else."""
    import torch

    from unfog.training.recipe import Recipe
    from unfog.training.run import build_network

    network = build_network(Recipe(size=size, settings=OURS, dropout=0.0), {"channels": 4, "classes": CLASSES}).train()
    announce(network, lambda: network(torch.zeros(1, 4, size, size), torch.zeros(1), text()))
    clock.watch(network)
    cond = {key: value.expand(batch, *value.shape[1:]).contiguous() for key, value in text().items()}
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    x, target = torch.randn(batch, 4, size, size), torch.randn(batch, 4, size, size)
    for count in clock.turns():
        for _ in range(count):
            optimiser.zero_grad(set_to_none=True)
            torch.nn.functional.mse_loss(network(x, torch.zeros(batch), cond), target).backward()
            optimiser.step()


def diffusers(clock: Clock, batch: int, size: int) -> None:
    """The loop of diffusers' examples/unconditional_image_generation/train_unconditional.py with its default settings.

    Its pictures are in memory, ready to use, as its folder reader needs two packages more: that spares it work.
    """
    import torch
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from tqdm import tqdm

    accelerator = Accelerator(cpu=True)
    network = UNet2DModel(sample_size=size, in_channels=3, out_channels=3, **THEIRS)
    announce(network, lambda: network(torch.zeros(1, 3, size, size), 500))
    clock.watch(network)
    noising = DDPMScheduler(num_train_timesteps=1000)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    ready = pictures(size)[..., :3].permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
    loader = torch.utils.data.DataLoader([{"input": x} for x in ready], batch_size=batch, shuffle=True)
    rate = get_scheduler("cosine", optimizer=optimiser, num_warmup_steps=500, num_training_steps=100_000)
    network, optimiser, loader, rate = accelerator.prepare(network, optimiser, loader, rate)
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    average.step = clock.timed("average", average.step)
    network.train()

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    batches = clock.each("data", endless())
    with tqdm() as bar:
        for count in clock.turns():
            for _ in range(count):
                clean = next(batches)["input"]
                noise = torch.randn(clean.shape)
                t = torch.randint(0, noising.config.num_train_timesteps, (len(clean),)).long()
                noisy = noising.add_noise(clean, noise, t)
                with accelerator.accumulate(network):
                    loss = torch.nn.functional.mse_loss(network(noisy, t).sample.float(), noise.float())
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(network.parameters(), 1.0)
                    optimiser.step()
                    rate.step()
                    optimiser.zero_grad()
                if accelerator.sync_gradients:
                    average.step(network.parameters())
                    bar.update(1)
                logs = {"loss": loss.detach().item(), "lr": rate.get_last_lr()[0]}
                bar.set_postfix(**logs)
                accelerator.log(logs)


def stub_torchvision() -> None:
    """STUB, for the peer below only: torchvision's wheel does not load beside a CPU build of torch.

    denoising-diffusion-pytorch needs of it how a picture is read, which is written out here with Pillow and numpy (flip and
    crop apart: the pictures have the right size; one half is flipped), and a writer of picture grids, which is not called.
    """
    import random

    import numpy as np
    import torch

    class Compose:
        def __init__(self, steps: list[Any]) -> None:
            self.steps = steps

        def __call__(self, x: Any) -> Any:
            for step in self.steps:
                x = step(x)
            return x

    def tensor(image: Any) -> Any:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)

    def flip(image: Any) -> Any:
        return image.transpose(0) if random.random() < 0.5 else image  # Pillow's FLIP_LEFT_RIGHT

    parts = {"Compose": Compose, "Lambda": lambda call: call, "Resize": lambda _: _same, "CenterCrop": lambda _: _same,
             "RandomHorizontalFlip": lambda: flip, "ToTensor": lambda: tensor}  # fmt: skip
    modules = {name: ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torchvision.utils")}
    for name, part in parts.items():
        setattr(modules["torchvision.transforms"], name, part)
    modules["torchvision"].transforms = modules["torchvision.transforms"]  # type: ignore[attr-defined]
    modules["torchvision"].utils = modules["torchvision.utils"]  # type: ignore[attr-defined]
    sys.modules.update(modules)


def _same(x: Any) -> Any:
    return x


def denoising_diffusion_pytorch(clock: Clock, batch: int, size: int) -> None:
    """The package's own `Trainer.train`, on a folder of PNG files, with its default settings."""
    import torch
    from PIL import Image

    stub_torchvision()
    import ema_pytorch
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    network = Unet(dim=32, dim_mults=(1, 2, 4, 8))
    announce(network, lambda: network(torch.zeros(1, 3, size, size), torch.tensor([5])))
    clock.watch(network)
    ema_pytorch.EMA.update = clock.timed("average", ema_pytorch.EMA.update)
    with tempfile.TemporaryDirectory() as folder:
        for i, picture in enumerate(pictures(size)[..., :3].numpy()):
            Image.fromarray(picture).save(f"{folder}/{i:05}.png")
        trainer = Trainer(
            GaussianDiffusion(network, image_size=size), folder, train_batch_size=batch, train_num_steps=0,
            calculate_fid=False, save_and_sample_every=10**9, results_folder=f"{folder}/results",
        )  # fmt: skip
        trainer.dl = clock.each("data", trainer.dl)
        for count in clock.turns():
            trainer.train_num_steps += count
            trainer.train()


SIDES: dict[str, Callable[..., None]] = {
    "unfog": ours,
    "unfog, bf16": lambda *args: ours(*args, bf16=True),
    "unfog, AdamW": lambda *args: ours(*args, optimiser="adamw"),
    "unfog, finer": lambda *args: ours(*args, settings=FINER),
    "plain torch, unfog's network": plain,
    "diffusers": diffusers,
    "unfog around diffusers' network": lambda *args: ours(*args, around=True, optimiser="adamw"),
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
}


def main() -> None:
    side, batch, threads, size, clock = sys.argv[1], *map(int, sys.argv[2:5]), CLOCKS[sys.argv[5]]
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with contextlib.suppress(Done):
        SIDES[side](Clock(clock), batch, size)
    say({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


if __name__ == "__main__":
    main()
