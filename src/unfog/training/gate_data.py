"""The gate's look at the data: how many, which range, duplicates, captions, labels, the codec, what is held out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from unfog.evaluation.reconstruction import psnr
from unfog.modalities.image.latent import LatentCodec
from unfog.training.corpus import Corpus
from unfog.training.gate_scene import Finding, Scene, error, warning
from unfog.training.picture_corpus import PictureCorpus

LOOKED_AT = 4096  # pictures that are hashed
ENCODED = 256  # pictures that are encoded and decoded
DECODED, LEAST_PSNR = 32, 25.0  # the same by an autoencoder, and dB below which it is another's
EXACT, NEAR = 0.2, 0.5  # shares of copies from which on one is told
FEW = 8  # items below which shares of them mean nothing
BY_HEART = 2000  # times that a picture may be seen
WEIGHTS_EACH = 200_000  # parameters a picture


def of_pictures(corpus: Corpus) -> PictureCorpus:
    """The corpus, which is of pictures: these checks are asked of no other."""
    assert isinstance(corpus, PictureCorpus)
    return corpus


def _several(scene: Scene, number: int = ENCODED) -> Tensor:
    """Some pictures of the whole set, evenly, (B, H, W, 4) uint8 on the host; of several shapes, those of the commonest."""
    corpus = of_pictures(scene.corpus)
    plain = corpus.plain
    places = np.unique(np.linspace(0, plain - 1, min(number, plain)).astype(int))
    return torch.from_numpy(np.stack(corpus.pixels(places[max(corpus.alike(places), key=len)])))


def items(scene: Scene) -> Iterator[Finding]:
    """Too few for the steps, the parameters or the batch."""
    recipe, count = scene.recipe, scene.items
    if count < 2:
        yield error("items", "data: one picture only; give at least a few dozen, or start from a model (--start)")
        return
    if recipe.batch > count:
        yield warning(
            "batch",
            f"batch: {recipe.batch} is more than the {count} pictures, so one step takes some "
            f"twice; set batch to {max(count // 2, 1)}, or add pictures",
        )
    times = recipe.steps * recipe.batch / count
    if times > BY_HEART and recipe.steps > 3000:
        fewer = max(3000, BY_HEART // 2 * count // recipe.batch)
        yield warning(
            "items",
            f"data: each of {count} pictures is seen {times:.0f} times and learned by heart; "
            f"add pictures, or take --steps {fewer}",
        )
    parameters = sum(p.numel() for p in scene.network.parameters())
    if scene.model is None and parameters > WEIGHTS_EACH * count:
        yield warning(
            "items",
            f"data: {count} pictures for {parameters / 1e6:.1f}M parameters; take --preset tiny, "
            "start from a model (--start), or add pictures",
        )


def values(scene: Scene) -> Iterator[Finding]:
    """x0 finite, about zero mean and unit variance, and back to the same picture."""
    pictures = _several(scene)
    codec = of_pictures(scene.corpus).codec
    if isinstance(codec, LatentCodec):
        yield from _latents(pictures[:: max(len(pictures) // DECODED, 1)], codec)
        return
    x0 = codec.encode(pictures)
    if not torch.isfinite(x0).all():
        yield error("finite", "data: encoded pictures hold NaN or infinity; mend the codec's mean and std")
        return
    mean, std = float(x0.mean()), float(x0.std())
    flat = bool((pictures == pictures[:1, :1, :1]).all())
    if not flat and (not 0.4 < std < 2.2 or float(x0.mean((0, 2, 3)).abs().max()) > 1.2):
        far = not 0.1 < std < 8 or abs(mean) > 4
        yield (error if far else warning)(
            "range",
            f"data: in model space pictures have mean {mean:.2g} and deviation "
            f"{std:.2g}, not 0 and 1; fit the codec to these pictures (leave start out), or mend its scale",
        )
    back = torch.from_numpy(codec.decode(x0)).float() / 255
    shown, alpha = pictures.float() / 255, pictures[..., 3:].float() / 255
    off = (torch.cat([back[..., :3] * back[..., 3:] - shown[..., :3] * alpha, back[..., 3:] - alpha], -1)).abs()
    # nearly clear and nearly opaque pixels are made clear and opaque on purpose (RGBACodec's veil)
    allowed = torch.where((alpha <= 0.045) | (alpha >= 0.955), 0.05, 1.01 / 255)
    share = float((off > allowed).any(-1).float().mean())
    if share > 0.001:
        yield error(
            "codec",
            f"codec: {share:.1%} of the pixels do not come back from model space within 1/255; "
            "mend its decode, or its mean and std",
        )
    drawn = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    made = codec.decode(drawn)
    if made.dtype != np.uint8 or made.shape != (4, 16, 16, 4):
        yield error("codec", f"codec: decodes to {made.dtype} {made.shape}, not uint8 (B, H, W, 4); mend its decode")
    elif not flat and (float(made.std()) < 5 or float(((made > 1) & (made < 254)).mean()) < 0.02):
        yield error(
            "range",
            "codec: noise of unit deviation decodes to nothing but black, white or grey, so samples "
            "would too; mend its mean and std",
        )


def _latents(pictures: Tensor, codec: LatentCodec) -> Iterator[Finding]:
    """Whether the autoencoder knows such pictures."""
    x0 = codec.encode(pictures).cpu()
    if not torch.isfinite(x0).all():
        yield error("finite", "data: latents hold NaN or infinity; train the autoencoder again, with a lower lr")
        return
    decibels = float(psnr(pictures.numpy(), codec.decode(x0)).mean())
    mean, std = float(x0.mean()), float(x0.std())
    if decibels < LEAST_PSNR or not 0.5 < std < 2 or abs(mean) > 0.5:
        yield warning(
            "codec",
            f"autoencoder: gives these pictures back at {decibels:.1f} dB, its latents have mean {mean:.2g} and deviation "
            f"{std:.2g}, not 0 and 1; train one on such pictures (docs/latent.md)",
        )


def hashes(corpus: PictureCorpus, count: int) -> tuple[list[bytes], list[bytes]]:
    """Exact and near hashes of the first `count` pictures, in any order, but the same in both."""
    exact, near = [], []
    for places in corpus.alike(np.arange(count)):
        for first in range(0, len(places), 256):
            found = _hashes(torch.from_numpy(np.stack(corpus.pixels(places[first : first + 256]))))
            exact += found[0]
            near += found[1]
    return exact, near


def _hashes(chunk: Tensor) -> tuple[list[bytes], list[bytes]]:
    """Of (N, H, W, 4) uint8 pictures. Near: signs of the differences between neighbours in a 9×8
    thumbnail, and the mean colour in 8 steps a channel; equal for pictures that were saved anew or slightly changed."""
    exact = [hashlib.blake2b(p.tobytes(), digest_size=16).digest() for p in chunk.numpy()]
    planes = chunk.permute(0, 3, 1, 2).float()
    planes = torch.cat([planes[:, :3] * planes[:, 3:] / 255, planes[:, 3:]], 1)
    small = torch.nn.functional.adaptive_avg_pool2d(planes.mean(1, keepdim=True), (8, 9))[:, 0]
    rises = small.diff(dim=-1) > 1.0
    colour = (planes.mean((2, 3)) / 32).to(torch.uint8)
    near = [np.packbits(r).tobytes() + c.tobytes() for r, c in zip(rises.flatten(1).numpy(), colour.numpy(), strict=True)]
    return exact, near


def duplicates(scene: Scene) -> Iterator[Finding]:
    """The same picture again, byte for byte or nearly."""
    count = min(scene.corpus.plain, LOOKED_AT)
    if count < 2:
        return
    exact, near = hashes(of_pictures(scene.corpus), count)
    copies, alike = (1 - len(set(found)) / count for found in (exact, near))
    first = [name for name, number in Counter(exact).items() if number > 1]
    if len(set(exact)) == 1:
        yield error("duplicates", f"data: all {count} pictures are the same; give others")
    elif copies > EXACT and count >= FEW:
        order = np.concatenate(scene.corpus.alike(np.arange(count)))
        named = scene.corpus.names[int(order[exact.index(first[0])])]
        yield warning(
            "duplicates",
            f"data: {copies:.0%} of the pictures are copies of another, such as {named}, and "
            "will be learned by heart; remove the copies",
        )
    elif alike > NEAR and count >= FEW:
        yield warning(
            "duplicates",
            f"data: {alike:.0%} of the pictures nearly equal another; remove all but one of "
            "each, or expect copies in what is made",
        )


def held_out(scene: Scene) -> Iterator[Finding]:
    """Pictures that are held out and trained on."""
    if scene.held is scene.corpus or not scene.held.plain:
        return
    trained = set(hashes(of_pictures(scene.corpus), scene.corpus.plain)[0])
    held = hashes(of_pictures(scene.held), scene.held.plain)[0]
    both = sum(h in trained for h in held)
    if both > 0.01 * len(held):
        yield (error if both > 0.5 * len(held) else warning)(
            "held out",
            f"data: {both} of {len(held)} held-out pictures "
            "are trained on too, so that the held-out loss flatters; remove them from one of the splits",
        )


def texts(scene: Scene) -> Iterator[Finding]:
    """Captions that say nothing, or that the network does not read."""
    corpus, recipe = of_pictures(scene.corpus), scene.recipe
    used = {corpus.captions[i] for i in np.unique(corpus.texts)}
    if used <= {""}:
        yield warning(
            "captions",
            "data: no picture has a caption, so prompts will have no effect; put a .txt beside "
            "each, or sort them into folders named after what they show",
        )
        return
    if len(used) == 1 and corpus.plain >= FEW:
        (only,) = used
        yield warning(
            "captions",
            f"data: all captions are the same ({only[:40]!r}), so prompts will have no effect; "
            "put a .txt beside each picture, or sort them into folders named after what they show",
        )
    if recipe.drop_text >= 1:
        yield error("captions", "drop_text: 1 drops every caption; set it to about 0.1")
    if corpus.states is not None and not torch.isfinite(corpus.states[:4096]).all():
        yield error("finite", "data: text states hold NaN or infinity; remove the run's text-states folder")


def labels(scene: Scene) -> Iterator[Finding]:
    """Styles of one member, one style only, numbers without a style, a network without room for them."""
    corpus = of_pictures(scene.corpus)
    names, numbers = corpus.styles, np.asarray(corpus.classes)
    if not names:
        return
    if scene.model is None and len(names) == 1 and (numbers == 0).all():
        yield warning(
            "labels", f"data: style {names[0]!r} is the only one and says nothing; leave style out, or add pictures of another"
        )
    if numbers.min() < 0 or numbers.max() > len(names):
        yield error("labels", f"data: style number {int(numbers.max())} for {len(names)} styles; mend the corpus")
    alone = [names[i] for i, number in Counter(numbers[: corpus.plain].tolist()).items() if number == 1 and i < len(names)]
    if alone and scene.items == corpus.plain and len(alone) * 4 >= len(names) > 1:
        yield warning(
            "labels",
            f"data: one picture only of style {', '.join(sorted(alone)[:3])}; give that style more "
            "pictures, or join it to another",
        )
