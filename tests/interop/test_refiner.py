"""XL's hand-over to its refiner: the latents of diffusers' two pipelines, one after the other, on tiny random checkpoints."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny
from test_folder import refused
from test_parity import LATENTS, NEGATIVE, PROMPT, apart, walked

from unfog.interop import load, save
from unfog.interop.refiner import HandOver


def refiner(folder: Path) -> Path:
    """A network of its own beside the second encoder of XL; told a score instead of a target."""
    tiny.stable_diffusion_xl(folder)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    shutil.rmtree(folder / "unet")
    tiny.unet(5, text=32, use_linear_projection=True, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2),
              addition_embed_type="text_time", addition_time_embed_dim=8,
              projection_class_embeddings_input_dim=32 + 5 * 8).save_pretrained(folder / "unet")  # fmt: skip
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True,
              "force_zeros_for_empty_prompt": False, "text_encoder": [None, None], "tokenizer": [None, None]}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("refined")
    return tiny.stable_diffusion_xl(place / "base"), refiner(place / "refiner")


@pytest.fixture(scope="module")
def pipes(folders):
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

    first = StableDiffusionXLPipeline.from_pretrained(folders[0])
    absent = {"text_encoder": None, "tokenizer": None}
    last = StableDiffusionXLImg2ImgPipeline.from_pretrained(folders[1], **absent)
    for pipe in (first, last):
        pipe.set_progress_bar_config(disable=True)
    return first, last


@pytest.mark.parametrize("name, share, negative", [("euler", 0.8, NEGATIVE), ("euler", 0.55, None), ("ddim", 0.8, NEGATIVE)])
def test_latents(folders, pipes, name, share, negative):
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    kind, own = {"euler": EulerDiscreteScheduler, "ddim": DDIMScheduler}[name], [pipe.scheduler for pipe in pipes]
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    told = {"negative_prompt": negative, "num_inference_steps": 20, "guidance_scale": 7.5, "output_type": "latent"}
    try:
        for pipe in pipes:
            pipe.scheduler = kind.from_config(pipe.scheduler.config)
        with torch.no_grad():
            half = pipes[0](PROMPT, latents=x.clone(), denoising_end=share, **told).images
            wanted = pipes[1](PROMPT, image=half, denoising_start=share, **told).images
    finally:
        for pipe, before in zip(pipes, own, strict=True):
            pipe.scheduler = before
    model = load(folders[0], "cpu", [f"{folders[1]}:{share}"], dtype=torch.float32)
    cond, other = model.space.both([PROMPT], negative, {})
    plan = model.plan(name, 20)
    assert plan.nfe == 20 and apart(walked(model, plan, x, cond, other), wanted) < LATENTS
    alone = load(folders[0], "cpu", dtype=torch.float32)
    cond, other = alone.space.both([PROMPT], negative, {})
    assert apart(walked(alone, plan, x, cond, other), wanted) > 0.01  # the refiner does something


def test_items_on_both_sides_of_the_hand_over():
    class Says(torch.nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.sign = sign

        def forward(self, x, level, cond):
            return self.sign * x * cond["text"][:, :1]

    network, x = HandOver(Says(1.0), Says(-1.0), 200), torch.ones(4, 1)
    cond = {"text": torch.full((4, 2), 3.0), "late_text": torch.full((4, 5), 7.0)}
    assert network(x, torch.tensor([999.0, 200.0, 199.0, 0.0]), cond).flatten().tolist() == [3, 3, -7, -7]
    assert network(x[:1], torch.tensor([199.99999]), {k: v[:1] for k, v in cond.items()}).item() == 3


def test_pictures_and_recipes(folders):
    whole, most, half = (load(folders[0], "cpu", wishes, dtype=torch.float32)
                         for wishes in ([], [folders[1]], [f"{folders[1]}:0.5"]))  # fmt: skip
    made = [m.generate("a cat", seed=1, steps=8, sampler="euler")[0].tobytes() for m in (whole, most, half)]
    assert len(set(made)) == 3
    assert most.adapters[0].strength == 0.8 and most.adapters[0].card.kind == "refiner"
    off = load(folders[0], "cpu", [f"{folders[1]}:0"], dtype=torch.float32)
    assert off.generate("a cat", seed=1, steps=8, sampler="euler")[0].tobytes() == made[0]
    refused(lambda: save(most, "out"), "a refiner is a folder of its own")


def test_what_is_no_refiner_of_the_model(folders, tmp_path):
    base, last = folders
    refused(lambda: load(base, "cpu", [f"{last}:1.5"]), "between 0 and 1")
    refused(lambda: load(tiny.stable_diffusion(tmp_path / "sd"), "cpu", [last]), "XL only")
    refused(lambda: load(base, "cpu", [tmp_path / "sd"]), "no folder of Stable Diffusion XL's refiner")
    other = shutil.copytree(last, tmp_path / "other")
    tiny.noise(other, "EulerDiscreteScheduler", **{**tiny.SD, "beta_end": 0.02, "prediction_type": "epsilon"})
    refused(lambda: load(base, "cpu", [other]), "another noise schedule")
    refused(lambda: load(base, "cpu", [last, shutil.copytree(last, tmp_path / "twice")]), "one refiner is enough")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "unet": ["evil", "UNet"]}))
    refused(lambda: load(base, "cpu", [other]), "model_index.json", "which unfog does not run")


def test_a_picture_is_remade_with_what_was_added(folders, tmp_path, capfd, monkeypatch):
    from unfog.cli import main

    monkeypatch.chdir(tmp_path)
    model = ["--model", str(folders[0])]
    assert main(["generate", "a cat", *model, "--adapter", f"{folders[1]}:0.5", "--steps", "2", "--seed", "1"]) == 0
    (path,) = capfd.readouterr().out.splitlines()
    before = Path(path).read_bytes()
    assert main(["generate", "--like", path, *model, "--adapter", str(folders[1])]) == 0
    assert Path(path).read_bytes() == before
    for wrong, said in (([], "was made with adapter refiner"), (["--adapter", f"{folders[1]}:0.8"], "leave the strength out")):
        capfd.readouterr()
        assert main(["generate", "--like", path, *model, *wrong]) == 2
        assert said in capfd.readouterr().err
