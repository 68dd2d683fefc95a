"""Time of one call from prompt to picture, unfog beside diffusers' StableDiffusionPipeline, in one run on one machine.

    pip install -e '.[bench]' && python benchmarks/interop.py [--rounds 5]      writes benchmarks/results/interop.json

Random weights of two sizes in the layout of Stable Diffusion 1, read by both; the same prompt, negative prompt, guidance 7.5,
DDIM on the folder's own grid, float32, one thread. Unfog a second time as it is by default here (bf16 where the processor has
it). Rounds are interleaved, figures are medians of processor time, which a shared machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/interop"))
PROMPT, NEGATIVE = "a red apple on the moon", "a blue cat"


def folders(place: Path) -> dict[str, Path]:
    """The two models, written by diffusers and transformers."""
    import tiny

    small = tiny.stable_diffusion(place / "tiny")
    middle = tiny.stable_diffusion(place / "12M")
    crossed = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    up = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    network = tiny.unet(0, text=128, block_out_channels=(64, 128, 224), sample_size=32, attention_head_dim=8, norm_num_groups=32,
                        down_block_types=crossed, up_block_types=up)  # fmt: skip
    network.save_pretrained(middle / "unet")
    tiny.clip(0, width=128, layers=6).save_pretrained(middle / "text_encoder")
    return {"tiny": small, "12M": middle}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/interop.json")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    import unfog
    from unfog.interop import load

    told: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, folder in folders(Path(place)).items():
            pipe = StableDiffusionPipeline.from_pretrained(folder)
            pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
            pipe.set_progress_bar_config(disable=True)
            ours, usual = load(folder, "cpu", dtype=torch.float32), load(folder, "cpu")
            fields = {"negative": NEGATIVE, "steps": options.steps, "sampler": "ddim", "scale": 7.5, "seed": 1}
            calls = {
                "diffusers": lambda pipe=pipe: pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=options.steps,
                                                    guidance_scale=7.5),
                "unfog, float32": lambda model=ours, fields=fields: model.generate(PROMPT, **fields),
                "unfog, default": lambda model=usual, fields=fields: model.generate(PROMPT, **fields),
            }  # fmt: skip
            spent: dict[str, list[float]] = {call: [] for call in calls}
            for _ in range(options.rounds + 1):
                for call, function in calls.items():
                    start = time.process_time()
                    function()
                    spent[call].append(time.process_time() - start)
            seconds = {call: statistics.median(times[1:]) for call, times in spent.items()}  # the first round warms up
            count = sum(p.numel() for p in pipe.unet.parameters())
            told[name] = {"parameters": count, "dtype by default": str(usual.dtype).removeprefix("torch."), "seconds": seconds,
                          "times as fast": {call: seconds["diffusers"] / s for call, s in seconds.items()}}  # fmt: skip
            print(f"{name}: {count / 1e6:.1f} M parameters, {options.steps} steps")
            for call, s in seconds.items():
                print(f"  {call:<16} {s:8.3f} s   {seconds['diffusers'] / s:5.2f} times as fast")
    import diffusers

    about = {"rounds": options.rounds, "steps": options.steps, "machine": platform.processor() or platform.machine(),
             "torch": torch.__version__, "diffusers": diffusers.__version__, "unfog": unfog.__version__}  # fmt: skip
    options.out.write_text(json.dumps({"about": about, "models": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
