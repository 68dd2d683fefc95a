"""`unfog train`: a model from a recipe file, or from a folder of pictures."""

from __future__ import annotations

from pathlib import Path

from unfog.cli.options import Flag, Real, Repeated, Whole


def train(
    source: Path,
    /,
    *,
    out: Path = Path("unfog-model"),
    steps: Whole | None = None,
    minutes: Real | None = None,
    start: str | None = None,
    kind: str | None = None,
    preset: str | None = None,
    budget: str | None = None,
    force: Flag = False,
    resume: Flag = False,
    ray: Whole | None = None,
    lora: Whole | None = None,
    lora_alpha: Real | None = None,
    lora_targets: Repeated = None,
    subject: str | None = None,
    class_prompt: str | None = None,
    prior_weight: Real | None = None,
    prior_count: Whole | None = None,
    word: str | None = None,
    word_vectors: Whole | None = None,
    track: list[str] | None = None,
) -> None:
    """Train a model by a recipe file, or on your own pictures.

    Try:
      unfog train my-pictures/
      unfog train my-pictures/ --out my-model --budget 30m
      unfog train recipes/emoji-64.json
      unfog train --resume my-model
      unfog train my-pictures/ --out my-emoji --start emoji-64 --minutes 30
      torchrun --nproc-per-node 2 -m unfog train recipes/emoji-64.json --resume
      unfog train my-cat/ --out my-cat-run --start emoji-64 --lora 8 --subject "sks cat" --class-prompt cat
      unfog train my-cat/ --out my-word --start emoji-64 --word "<my-cat>" --class-prompt cat

    Parameters
    ----------
    source
        A recipe file (of a model, or of an autoencoder: docs/latent.md), or
        pictures: a folder, .zip or .tar (with metadata.jsonl or metadata.csv, or a .txt
        beside each picture, or one sub-folder a class), a folder of WebDataset's .tar shards, .parquet, a
        folder of Hugging Face's save_to_disk, .npy or .npz. With --resume, a run's own folder will do.
    out
        The model folder to write.
    steps
        Training steps; without it, the recipe's own, or as many as the budget holds.
    minutes
        Stop, save and finish after this long.
    kind
        The kind of data, where they are no pictures (see `unfog models --kinds`).
    preset
        Named settings for pictures of one's own: tiny, small, base, large or dit-small; without it, the largest
        that learns enough within the budget.
    budget
        A time such as 45s, 30m, 2h, 1.5h or 1d, set-up included. Steps are chosen so that the learning rate has
        fallen to its end by then, and chosen anew if the machine turns out slower. For pictures without
        --steps, 60 minutes.
    start
        A shipped model or a model folder whose weights to begin with (fine-tuning). It keeps its network,
        styles and colours; pictures of a style that it does not know are learned as of none.
    force
        Train in spite of what the checks at the start find wrong.
    resume
        Go on from the last checkpoint in --out; the result is as if the run had never stopped.
    ray
        Train in so many workers of Ray (needs `pip install "unfog[ray]"`), which are started again from the
        last checkpoint where one is lost.
    lora
        Train only low-rank branches of this rank beside the start model's inner layers; they are also written
        apart, to OUT/adapter, for generate --adapter.
    lora_alpha
        Branches are scaled by this over their rank; without it, by 1.
    lora_targets
        A part of the names of the layers that get branches, such as attention. Repeatable; without it, all inner ones.
    subject
        What all pictures show, a rare word and its class, such as "sks cat": 3 to 20 pictures need no captions.
    class_prompt
        The subject's class, such as cat: pictures of it by the start model are mixed in, so that the class stays as
        it was. Without it, the subject without its first word. Of a word, what it begins as.
    prior_weight
        How much these count; 0 = none are made; without it, 1.
    prior_count
        How many of them are made; without it, 64.
    word
        Learn a word for what all pictures show, such as "<my-cat>": the network stays, OUT/adapter gets the word.
    word_vectors
        Tokens that the word takes, 1 to 16; without it, 2.
    track
        Also send figures and samples to tensorboard, trackio or wandb (several: more than once, or with commas).
        Whether or not, the folder --out holds report.html.
    """
    given = {key: value for key, value in locals().items() if value is not None}  # options are named as the request's fields
    from unfog.errors import UserError
    from unfog.requests import TrainRequest, check

    if track is not None:
        given["track"] = [name.strip() for words in track for name in words.split(",") if name.strip()]
    request = check(TrainRequest, given)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give a recipe file, or a folder, .zip or .tar of pictures")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file, not a folder; choose another place")
    from unfog.training import run_recipe

    run_recipe(request)
    print(out)
