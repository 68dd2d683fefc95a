"""GFLOP/s reached while sampling, ours beside diffusers, in one run on one machine.

    pip install -e '.[bench]' && python benchmarks/sampling.py [--rounds 5]      writes benchmarks/results/sampling.json

Ours: the shipped emoji-64 with guidance, as `Model.make` runs it (codec and text encoder included in the time, not
in the count). Theirs: `UNet2DModel` of about the same work, `DDIMPipeline`, eager float32, progress bar off. The count is the
network's own floating-point operations (torch's FlopCounterMode), so a network that does more work gets no bonus. Rounds are
interleaved and each figure is a median; a shared machine disturbs both sides alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

STEPS = 10


def flops(call) -> int:  # type: ignore[no-untyped-def]
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def ours(batch: int):  # type: ignore[no-untyped-def]
    import unfog

    model = unfog.load("emoji-64")
    cond = model.condition(["a red apple"], ["noto"])
    one = flops(lambda: model.denoiser(torch.zeros(1, 4, 64, 64), 0.5, cond))
    evaluations = 2 * STEPS  # guided: with and without the prompt

    def run() -> None:
        model.make(["a red apple"] * batch, ["noto"] * batch, list(range(batch)), batch=batch, steps=STEPS)

    return one, one * evaluations * batch, run


def theirs(batch: int):  # type: ignore[no-untyped-def]
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    network = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(64, 128, 128, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), norm_num_groups=32,
    ).eval()  # fmt: skip
    one = flops(lambda: network(torch.zeros(1, 3, 32, 32), 500))
    pipeline = DDIMPipeline(network, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def run() -> None:
        with torch.no_grad():
            pipeline(batch_size=batch, num_inference_steps=STEPS, output_type="np")

    return one, one * STEPS * batch, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sampling.json")
    arguments = parser.parse_args()
    rows = []
    for batch in (1, 8):
        sides = {"unfog": ours(batch), "diffusers": theirs(batch)}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for side in sides:
            sides[side][2]()
        for _ in range(arguments.rounds):
            for side, (_, _, run) in sides.items():
                start = time.perf_counter()
                run()
                seconds[side].append(time.perf_counter() - start)
        row: dict[str, object] = {"batch": batch, "steps": STEPS}
        for side, (one, total, _) in sides.items():
            median = statistics.median(seconds[side])
            row[side] = {"gflop_one_forward": round(one / 1e9, 2), "seconds_median": round(median, 3),
                         "gflops": round(total / median / 1e9, 1), "seconds": [round(s, 3) for s in seconds[side]]}  # fmt: skip
        row["ratio"] = round(row["unfog"]["gflops"] / row["diffusers"]["gflops"], 2)  # type: ignore[index]
        rows.append(row)
        print(json.dumps(row))
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__,
               "processor": platform.machine(), "bf16": torch.cpu.get_capabilities().get("avx512_bf16", False),
               "amx": torch.cpu.get_capabilities().get("amx_bf16", False)}  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
