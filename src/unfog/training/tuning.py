"""Fine-tuning on one path: all weights, low-rank branches, a subject whose class is kept, a learned word, a control branch.

    subject:  loss = E‖x̂₀(x_t, "a sks cat") − x₀‖² + prior_weight · E‖x̂₀(x′_t, "a cat") − x′₀‖²,  x′₀ made by the start model

Given recipe and start model, `tuned` returns what is trained, the task, and what is written; the loop is the same for all.
Sources: Hu et al. 2021, arXiv:2106.09685 (branches); Ruiz et al. 2022, arXiv:2208.12242, eq. 2 (prior preservation);
Gal et al. 2022, arXiv:2208.01618 (words).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from unfog.adapters import FORMAT, Base, Card, save_adapter
from unfog.diffusion.denoisers import Preconditioned
from unfog.errors import UserError
from unfog.files import MANIFEST, read_checked, write_atomic, write_folder
from unfog.modalities.image.controls import CONTROLS
from unfog.modalities.image.data import PictureSet
from unfog.networks import lora, words
from unfog.networks.text import TextEncoder
from unfog.training.corpus import Corpus
from unfog.training.denoising import Denoising
from unfog.training.loop import Batch
from unfog.training.picture_corpus import PictureCorpus, build_corpus
from unfog.training.recipe import Recipe, Tuning, checked
from unfog.training.states import CHUNK
from unfog.training.steering import branch_of

if TYPE_CHECKING:
    from unfog.model import Model
    from unfog.requests import EstimateRequest, TrainRequest

FEW = 100  # pictures; more of one thing than this are a data set, whose captions count
SUBJECT_BATCH, SUBJECT_STEPS, WORD_STEPS, WORD_LR = 16, 300, 300, 5e-3
LORA_LR = 4.0  # times the rate of all weights; at 1 emoji-64 had half learned a subject in 240 steps, at 4 it had


def settled(recipe: Recipe, request: TrainRequest | EstimateRequest, model: Model | None) -> Recipe:
    """The recipe with the request's way of tuning, and for a folder the settings that suit it. Raises UserError where two
    ways, or a way and the start, do not go together."""
    asked = {key: value for key in Tuning.model_fields if (value := getattr(request, key, None)) is not None}
    folder = request.source.suffix not in (".json", ".py")
    update: dict[str, Any] = dict(asked)
    if folder:  # the start model's own recipe may have been a tuned one: its way is not this run's
        rate = recipe.lr / (LORA_LR if recipe.lora else 1) * (LORA_LR if asked.get("lora") else 1)
        update = {**Tuning().model_dump(), "lr": rate, **asked}
    subject, word = (asked.get(way) or getattr(recipe, way) for way in ("subject", "word"))
    if folder and (subject or word):
        update |= {"batch": SUBJECT_BATCH, "accumulate": 1, "steps": WORD_STEPS if word else SUBJECT_STEPS}
        update |= {"warm_up": 20} | ({"lr": WORD_LR} if word else {})
    if (subject or word) and recipe.kind == "image":
        update["recolour"] = 0.0  # what is learned has its own colours
    if asked.get("lora") or recipe.lora or word or recipe.control or recipe.style_reference:
        update["snapshots"] = 0  # averages of branches or words are no model's
    fields = {name: getattr(recipe, name) for name in type(recipe).model_fields}  # also those that a dump leaves out
    recipe = checked({**fields, **update}, str(request.source))
    if model is None and (
        way := next((way for way in ("lora", "subject", "word", "control", "style_reference") if getattr(recipe, way)), None)
    ):
        raise UserError(f"{way}: tunes a model that is there; name it with --start")
    if model is not None and recipe.lora:
        network = model.denoiser.network
        assert isinstance(network, nn.Module)
        lora.candidates(network, recipe.lora_targets)  # a wrong name is told before anything is written
    return recipe


def of_class(recipe: Recipe) -> str:
    """What the subject is one of: class_prompt, or the subject without its first word."""
    return recipe.class_prompt or (recipe.subject or "").partition(" ")[2]


def named(recipe: Recipe, data: PictureSet) -> PictureSet:
    """The data set, whose pictures are all called by the subject or the word; a caption that names it already stays.

    Raises UserError for more pictures than one thing has.
    """
    name = recipe.subject or recipe.word
    if name is None:
        return data
    if len(data) > FEW:
        raise UserError(f"{data.path}: {len(data)} pictures of one subject; give at most {FEW}, or train with captions instead")
    change = {"name": name, "text": "", "tags": [], "colors": []}
    data.records = [r if name.lower() in r.text.lower() and not r.name else r.model_copy(update=change) for r in data.records]
    return data


def prior_pictures(recipe: Recipe, model: Model, out: Path) -> PictureSet:
    """OUT/prior: `prior_count` pictures of the class by the start model, in its styles by turns and in none, seeds 0, 1, ...

    Made once: a run that goes on takes them as they are, after comparing their sha256.
    """
    folder, name = out / "prior", of_class(recipe)
    told = {"model": model.hash, "prompt": name, "count": recipe.prior_count}
    if (folder / MANIFEST).is_file() and json.loads(read_checked(folder, "prior.json")) == told:
        for path in sorted(folder.glob("*.png")):
            read_checked(folder, path.name)
        return PictureSet.open(folder)
    from PIL import Image

    from unfog.modalities.image.show import png_bytes

    print(f"{recipe.name}: {model.name} makes {recipe.prior_count} pictures of {name!r} first, once", file=sys.stderr, flush=True)
    styles = [[None, *model.styles][i % (len(model.styles) + 1)] for i in range(recipe.prior_count)]
    made = model.make([name] * len(styles), styles, list(range(len(styles))))
    lines = [json.dumps({"file_name": f"{i:04d}.png", "name": name, "style": style or ""}) for i, style in enumerate(styles)]

    def write(temporary: Path) -> None:
        for i, picture in enumerate(made):
            write_atomic(temporary / f"{i:04d}.png", png_bytes(Image.fromarray(picture)))
        write_atomic(temporary / "metadata.jsonl", ("\n".join(lines) + "\n").encode())
        write_atomic(temporary / "prior.json", (json.dumps(told) + "\n").encode())

    write_folder(folder, write)
    return PictureSet.open(folder)


@dataclass
class TunedCorpus(PictureCorpus):
    """The first `plain` pictures are the subject's, the rest the prior's; of a batch every second row is the prior's.

    The subject's captions are never dropped, else it would become what the model draws when told nothing; the prior's are, now
    and then, as their texts hold the empty caption.
    """

    def chosen(self, recipe: Recipe, index: int) -> np.ndarray:
        """Which pictures batch `index` is made of, (B,)."""
        chosen = super().chosen(recipe.model_copy(update={"recolour": 0.0}), index)  # those behind `plain` are the prior's
        prior = len(self.pictures) - self.plain
        if prior:
            rows = np.arange(1, len(chosen), 2)
            places = index * len(rows) + np.arange(len(rows))
            order = np.concatenate([np.random.default_rng([recipe.seed, int(epoch), 3]).permutation(prior)
                                    for epoch in np.arange(places[0] // prior, places[-1] // prior + 1)])  # fmt: skip
            chosen[rows] = self.plain + order[places - places[0] // prior * prior]
        return chosen

    def batch(self, recipe: Recipe, index: int, rows: slice = slice(None)) -> tuple[Tensor, dict[str, Tensor]]:
        return super().batch(recipe.model_copy(update={"drop_text": 0.0}), index, rows)

    def cond(self, text: np.ndarray, label: np.ndarray) -> dict[str, Tensor]:
        """Also "caption", the numbers (B,) of the captions: a learned word's states are made anew at each step."""
        cond = super().cond(text, label)
        return cond | {"caption": torch.from_numpy(np.asarray(text)).to(cond["text"].device)}


def with_prior(recipe: Recipe, corpus: PictureCorpus, model: Model | None, out: Path) -> PictureCorpus:
    """The corpus that a subject or a word is learned from: with the prior's pictures where the recipe wants them."""
    if not (recipe.subject or recipe.word) or model is None:
        return corpus
    joined = TunedCorpus(**{field.name: getattr(corpus, field.name) for field in fields(PictureCorpus)})
    if not recipe.subject or not recipe.prior_weight:
        return joined
    if corpus.bucket is not None:
        raise UserError("buckets: a subject's prior is of square pictures; set buckets to false, or prior_weight to 0")
    prior = build_corpus(prior_pictures(recipe, model, out), recipe, styles=corpus.styles, codec=corpus.codec)
    numbers = {caption: i for i, caption in enumerate(corpus.captions)}
    moved = np.array([numbers.setdefault(caption, len(numbers)) for caption in prior.captions])
    empty = np.zeros((len(prior.texts), 1), int)  # one in eight: guidance's other branch stays the class's, too
    texts = np.hstack([moved[prior.texts], moved[prior.texts[:, :-1]], empty])
    joined.pictures = torch.cat([corpus.pictures, prior.pictures])
    joined.classes = np.concatenate([corpus.classes, prior.classes])
    joined.texts = np.concatenate([np.hstack([corpus.texts] * 2), texts])
    joined.captions, joined.names = list(numbers), [*corpus.names, *(f"prior/{name}" for name in prior.names)]
    return joined


@dataclass
class TunedDenoising(Denoising):
    """Denoising of a subject beside its prior, or with a word that is learned."""

    word: words.Word | None = None
    encoder: TextEncoder | None = None

    def batch(self, index: int, rows: slice = slice(None)) -> Batch:
        weight = torch.ones(self.recipe.batch)
        if isinstance(self.corpus, TunedCorpus) and len(self.corpus.pictures) > self.corpus.plain:
            weight[1::2] = self.recipe.prior_weight
        return super().batch(index, rows) | {"weight": weight[rows].to(self.device)}

    def loss(self, batch: Batch) -> Tensor:
        """The weighted denoising loss of each item, (B,); its gradient reaches the word's vectors where there is a word."""
        if self.word is not None:
            batch = batch | {"cond": self._told(batch["cond"])}
        return super().loss(batch) * batch["weight"]

    def _told(self, cond: dict[str, Tensor]) -> dict[str, Tensor]:
        assert self.word is not None and self.encoder is not None
        numbers, place = cond["caption"].unique(return_inverse=True)
        assert isinstance(self.corpus, PictureCorpus)
        captions = [self.corpus.captions[number] for number in numbers.tolist()]
        vectors = {str(self.recipe.word): self.word.stacked().cpu()}
        with torch.autocast(self.device, enabled=False):
            states, mask = words.encode(self.encoder, captions, vectors)
        return cond | {"text": states.to(self.device)[place], "text_mask": mask.to(self.device)[place]}


@dataclass
class Tuned:
    """What a run trains and leaves. whole: the averaged `learned` to the network that draws; keep: writes OUT/adapter."""

    learned: nn.Module
    task: Denoising
    whole: Callable[[nn.Module], nn.Module]
    keep: Callable[[Path, nn.Module, int, dict[str, float]], None]
    model: bool = True  # whether the network changes, so that OUT/model is written


def prepare(recipe: Recipe, network: nn.Module) -> str:
    """Make the network ready for its way of tuning: frozen with branches, frozen for a word, or left as it is. -> what to say."""
    if recipe.lora:
        layers = lora.add(network, recipe.lora, recipe.lora_alpha, recipe.lora_targets, recipe.seed)
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e6
        return f", {trained:.2f}M of them in branches of rank {recipe.lora} beside {len(layers)} layers"
    if recipe.control:
        network.requires_grad_(False).eval()
        return f" frozen, a branch learned for {', '.join(recipe.control)}"
    if recipe.style_reference:
        network.requires_grad_(False).eval()
        return " frozen, a reader of style learned"
    if recipe.word:
        network.requires_grad_(False).eval()
        return f" frozen, {recipe.word_vectors} vectors learned"
    return ""


def tuned(recipe: Recipe, network: nn.Module, denoiser: Preconditioned, corpora: list[Corpus], model: Model | None,
          encoder: TextEncoder | None, device: str) -> Tuned:  # fmt: skip
    """What is trained, how, and what it leaves. corpora: the run's own first, then those it is watched on."""
    corpus = corpora[0]

    def card(kind: Any, step: int, losses: dict[str, float], **more: Any) -> Card:
        assert model is not None
        training = {"data": recipe.data, "steps": step, "recipe": recipe.told(), "held_out_loss": losses}
        base = Base(name=model.name, hash=model.hash)
        return Card(format=FORMAT, kind=kind, name=recipe.name, base=base, licences=recipe.licences, training=training, **more)

    def no_adapter(_out: Path, _average: nn.Module, _step: int, _losses: dict[str, float]) -> None:
        pass

    def keep_branches(out: Path, average: nn.Module, step: int, losses: dict[str, float]) -> None:
        alpha = float(recipe.lora if recipe.lora_alpha is None else recipe.lora_alpha)
        layers = list(lora.branches(average))
        tensors = {key: value.half() for key, value in lora.state(average).items()}
        save_adapter(out / "adapter", card("lora", step, losses, rank=recipe.lora, alpha=alpha, layers=layers), tensors)

    if recipe.word and encoder is not None:
        first = words.first_vectors(encoder, recipe.class_prompt or "thing", recipe.word_vectors)
        word = words.Word(first).to(device)

        def tell(average: nn.Module) -> nn.Module:
            assert isinstance(average, words.Word)
            vectors = {str(recipe.word): average.stacked().detach().cpu()}
            for told in {id(c): c for c in corpora if isinstance(c, PictureCorpus)}.values():
                parts = [
                    words.encode(encoder, told.captions[i : i + CHUNK], vectors) for i in range(0, len(told.captions), CHUNK)
                ]
                told.states = torch.cat([states.half() for states, _ in parts])
                told.masks = torch.cat([mask for _, mask in parts])
                told.to(device)
            return network

        def keep_word(out: Path, average: nn.Module, step: int, losses: dict[str, float]) -> None:
            assert isinstance(average, words.Word)
            tensors = {"vectors": average.stacked().detach().cpu().contiguous()}
            save_adapter(out / "adapter", card("word", step, losses, word=recipe.word), tensors)

        task = TunedDenoising(recipe, corpus, denoiser, network, device, word, encoder)
        return Tuned(word, task, tell, keep_word, model=False)
    if recipe.control or recipe.style_reference:
        branch, whole = branch_of(recipe, network)
        way = "control" if recipe.control else "style"

        def keep_branch(out: Path, average: nn.Module, step: int, losses: dict[str, float]) -> None:
            tensors = {key: value.detach().cpu().half() for key, value in average.state_dict().items()}
            save_adapter(
                out / "adapter",
                card(way, step, losses, controls={kind: CONTROLS[kind].channels for kind in recipe.control}),
                tensors,
            )

        steered = whole(branch.to(device))
        asked = Preconditioned(steered, denoiser.process, recipe.prediction)
        return Tuned(branch, Denoising(recipe, corpus, asked, steered, device), whole, keep_branch, model=False)
    kind = TunedDenoising if recipe.subject else Denoising
    plain = kind(recipe, corpus, denoiser, network, device)
    if recipe.lora:
        return Tuned(network, plain, lora.folded, keep_branches)
    return Tuned(network, plain, lambda average: average, no_adapter)
