"""Molecules side by side: the formula as chemists draw it (RDKit), and balls and sticks in 3D, lit from the upper left."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfog.modalities.molecule.chem import Molecule, of_rdkit, rdkit, smiles_of, to_rdkit, whole

if TYPE_CHECKING:
    from PIL.Image import Image

WIDE, HIGH, CAPTION, COLUMNS, FINER = 200, 160, 36, 3, 2  # pixels of one drawing, a tile is two wide; drawn FINER times as large
INK, FAINT, PAPER, WRONG = (40, 40, 40), (110, 110, 110), (255, 255, 255), (178, 34, 34)
COLOURS = {"H": (235, 235, 235), "C": (96, 96, 102), "N": (62, 96, 214), "O": (216, 48, 42), "F": (98, 196, 92),
           "Cl": (52, 168, 70), "Br": (150, 62, 40), "I": (132, 44, 150), "S": (226, 190, 42), "P": (232, 132, 40)}  # fmt: skip
OTHER = (214, 120, 170)
# of balls, in Å
RADII = {"H": 0.23, "C": 0.36, "N": 0.35, "O": 0.34, "F": 0.33, "Cl": 0.42, "S": 0.42, "P": 0.42, "Br": 0.45, "I": 0.5}
STICK = 0.11


def render(raw: Sequence[Molecule], labels: Sequence[str]) -> Image:
    """One sheet, RGB: each molecule's formula, its 3D shape, its SMILES and its label."""
    from PIL import Image, ImageDraw, ImageFont

    columns = min(COLUMNS, max(len(raw), 1))
    width, height = 2 * WIDE, HIGH + CAPTION
    sheet = Image.new("RGB", (columns * width, max(math.ceil(len(raw) / columns), 1) * height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for k, (molecule, label) in enumerate(zip(raw, labels, strict=True)):
        x, y = (k % columns) * width, (k // columns) * height
        mol = to_rdkit(molecule)
        sheet.paste(formula(molecule, mol), (x, y))
        sheet.paste(balls(of_rdkit(whole(mol), "atoms") if mol is not None else molecule), (x + WIDE, y))
        name, ink = (smiles_of(mol), INK) if mol is not None else ("not a valid molecule", WRONG)
        for row, (text, colour) in enumerate(((name, ink), (label, FAINT))):
            short = text if draw.textlength(text, font) <= width - 16 else text[: (width - 16) // 7 - 1] + "…"
            draw.text((x + 8, y + HIGH + 15 * row), short, colour, font)
    return sheet


def formula(molecule: Molecule, mol: Any) -> Image:
    """The structural formula, (HIGH, WIDE) RGB; of an invalid molecule as it stands."""
    from PIL import Image

    chem, drawing = rdkit(), rdkit("Chem.Draw.rdMolDraw2D")
    flat = to_rdkit(molecule, sanitise=False) if mol is None else chem.RemoveHs(mol)
    flat.RemoveAllConformers()
    if mol is None:
        flat.UpdatePropertyCache(strict=False)
        chem.FastFindRings(flat)
    rdkit("Chem.rdDepictor").Compute2DCoords(flat)
    canvas = drawing.MolDraw2DCairo(WIDE, HIGH)
    options = canvas.drawOptions()
    options.padding, options.fixedBondLength, options.prepareMolsBeforeDrawing = 0.08, 28, False
    try:
        if mol is not None:
            flat = drawing.PrepareMolForDrawing(flat, kekulize=True, wavyBonds=False)
        canvas.DrawMolecule(flat)
    except (ValueError, RuntimeError):
        return Image.new("RGB", (WIDE, HIGH), PAPER)
    canvas.FinishDrawing()
    return Image.open(io.BytesIO(canvas.GetDrawingText())).convert("RGB")


def balls(molecule: Molecule) -> Image:
    """Balls and sticks, (HIGH, WIDE) RGB: the widest view, nearer parts over farther ones."""
    from PIL import Image, ImageDraw

    xyz = np.nan_to_num(molecule.xyz.astype(float))
    xyz = xyz - xyz.mean(0)
    axes = np.linalg.svd(xyz, full_matrices=False)[2] if len(xyz) > 1 else np.eye(3)[:1]
    axes = np.concatenate([axes, np.eye(3)[len(axes) :]])
    axes[2] *= np.sign(np.linalg.det(axes)) or 1.0  # a turn, no mirror
    xyz = xyz @ axes.T @ _tilt().T
    size = np.array([WIDE, HIGH]) * FINER
    reach = np.abs(xyz[:, :2]).max(0) + 0.6
    unit = float(min(size[0] / 2 / max(reach[0], 2.5), size[1] / 2 / max(reach[1], 2.0)))
    sheet = Image.new("RGB", tuple(size.tolist()), PAPER)
    draw = ImageDraw.Draw(sheet)
    spots = xyz * [unit, -unit, unit] + [*(size / 2), 0]
    parts: list[tuple[float, tuple[int, int | None]]] = [(z, (i, None)) for i, z in enumerate(xyz[:, 2])]
    parts += [((xyz[i, 2] + xyz[j, 2]) / 2, (i, j)) for i, j in np.argwhere(np.triu(molecule.orders, 1))]
    for _, (i, other) in sorted(parts, key=lambda part: (part[0], part[1][1] is None)):
        if other is None:
            ball = _ball(molecule.elements[i], round(RADII.get(molecule.elements[i], 0.4) * unit))
            sheet.paste(ball, tuple((spots[i, :2] - ball.width / 2).round().astype(int).tolist()), ball)
        else:
            _stick(draw, spots, molecule, i, other, unit)
    return sheet.resize((WIDE, HIGH), Image.Resampling.BOX)


def _tilt() -> NDArray[np.float64]:
    """A little from above and from the side, so that flat molecules show their depth."""
    a, b = 0.45, 0.3
    about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    return about_x @ about_y


def _stick(draw: Any, spots: NDArray[Any], molecule: Molecule, i: int, j: int, unit: float) -> None:
    """A bond, half in each atom's colour, as many sticks as its order."""
    start, end = spots[i, :2], spots[j, :2]
    along = (end - start) / max(float(np.linalg.norm(end - start)), 1e-6)
    aside = np.array([-along[1], along[0]])
    order = int(molecule.orders[i, j])
    width = STICK * unit * (2.0 if order == 1 else 1.1)
    for k in range(order):
        shift = aside * (k - (order - 1) / 2) * STICK * unit * 2.2
        middle = (start + end) / 2 + shift
        for place, atom in ((start, i), (end, j)):
            colour = np.array(COLOURS.get(molecule.elements[atom], OTHER))
            for share, light in ((1.0, 0.72), (0.6, 0.9), (0.25, 1.08)):
                tint = tuple(int(c) for c in (colour * light).clip(0, 255))
                draw.line([*(place + shift), *middle], tint, max(round(width * share), 1))


@cache
def _ball(element: str, radius: int) -> Image:
    """A lit ball, RGBA."""
    from PIL import Image

    radius = max(radius, 2)
    y, x = (np.mgrid[: 2 * radius + 2, : 2 * radius + 2] - radius - 0.5) / radius
    inside = x * x + y * y
    z = np.sqrt((1 - inside).clip(0))
    lit = (-0.45 * x - 0.55 * y + 0.7 * z).clip(0, 1)
    colour = np.array(COLOURS.get(element, OTHER)) * (0.45 + 0.6 * lit)[..., None] + 150 * (lit[..., None] ** 24)
    alpha = ((1 - np.sqrt(inside)) * radius + 0.5).clip(0, 1) * 255
    return Image.fromarray(np.concatenate([colour.clip(0, 255), alpha[..., None]], -1).astype(np.uint8), "RGBA")
