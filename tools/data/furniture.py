"""Build pictures with exact depth and normals: 820 models of furniture, rendered at 64x64, beside the emoji.

    python tools/data/furniture.py --cache CACHE --out data

Writes OUT/emoji-furniture-64.zip (emoji-64's pictures, and four views of each model, without a style), and the maps of these
views under their names, OUT/furniture-64-depth.zip (near is light, nothing is black) and OUT/furniture-64-normals.zip (right,
up and towards the viewer as red, green and blue; nothing is black). A twentieth of the models is held out, with all views.
None of the three ships. Needs apt-get and dpkg-deb (Debian's package of the models is fetched and unpacked, not installed).

Surfaces are drawn as points, some DENSITY to a pixel of a grid of twice the size, the nearest of each pixel kept: exact to a
pixel, and as quick for 100,000 triangles as for ten. Light comes from the upper left, as in emoji.
Licences: CC BY 3.0 (Scopia, Kator Legaz, Reallusion, contributors of Blend Swap) and CC0; NOTICE.
"""

from __future__ import annotations

import io
import re
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from packages import APT, fetch, lossless, metadata, run, write_zip
from PIL import Image

import unfog.data
from unfog.modalities.image.captions import caption
from unfog.modalities.image.colours import main_colours
from unfog.modalities.image.data import PictureSet, Record

PACKAGE = {
    "furniture": (
        "sweethome3d-furniture=1.8-1",
        "sweethome3d-furniture_1.8-1_all.deb",
        "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
    )
}
SIZE, FINE = 64, 2  # pixels a side; how much finer is drawn
DENSITY, MOST = 8.0, 4_000_000  # points a fine pixel of surface; points a view
YAWS, PITCH, JITTER = (-55.0, -25.0, 25.0, 55.0), 20.0, 8.0  # degrees
LIGHT = np.array([-0.45, 0.75, 0.5]) / np.linalg.norm([-0.45, 0.75, 0.5])  # from there: right, up, towards the viewer
AMBIENT = 0.55
MARGIN = 3  # pixels of the frame left free
NEAR, FAR = 1.0, 0.25  # of the depth map: a model's nearest point and its farthest, seen or not
HELD_OUT = 0.05
Floats = NDArray[np.float32]


@dataclass
class Mesh:
    """Corners (T, 3, 3) of triangles, where in their material's texture they lie (T, 3, 2), and their material (T,)."""

    corners: Floats
    places: Floats
    material: NDArray[np.int64]
    colours: list[Floats]  # of each material: (3,), or a texture (H, W, 3), in [0, 1]


def materials(archive: zipfile.ZipFile, path: str) -> dict[str, Floats]:
    """Colour or texture by name; a texture that cannot be read leaves the colour."""
    found: dict[str, Floats] = {}
    name, folder = "", PurePosixPath(path).parent
    members = {member.lower(): member for member in archive.namelist()}
    if path.lower() not in members:
        return found
    for line in archive.read(members[path.lower()]).decode("latin-1").splitlines():
        key, _, rest = line.strip().partition(" ")
        if key == "newmtl":
            name = rest.strip()
            found[name] = np.full(3, 0.7, np.float32)
        elif key == "Kd" and name:
            found[name] = np.array(rest.split()[:3], np.float32).clip(0, 1)
        elif key == "map_Kd" and name:
            file = members.get(str(folder / rest.strip().replace("\\", "/").split("/")[-1]).lower())
            if file:
                try:
                    with Image.open(io.BytesIO(archive.read(file))) as image:
                        image.thumbnail((256, 256))
                        found[name] = np.asarray(image.convert("RGB"), np.float32) / 255
                except OSError:
                    continue
    return found


def read_mesh(archive: zipfile.ZipFile, path: str) -> Mesh:
    """A Wavefront .obj with its materials; polygons become fans of triangles."""
    points, spots, faces, owners = [], [], [], []
    known: dict[str, Floats] = {"": np.full(3, 0.7, np.float32)}
    order, current = [""], 0
    for line in archive.read(path).decode("latin-1").splitlines():
        key, _, rest = line.partition(" ")
        if key == "v":
            points.append(rest.split()[:3])
        elif key == "vt":
            spots.append(rest.split()[:2])
        elif key == "f":
            corners = []
            for corner in rest.split():
                v, _, other = corner.partition("/")
                t = other.partition("/")[0]
                index, spot = int(v), int(t) if t else 0
                corners.append((index - 1 if index > 0 else len(points) + index, spot - 1 if spot >= 0 else len(spots) + spot))
            for second, third in zip(corners[1:], corners[2:], strict=False):
                faces.append((corners[0], second, third))
                owners.append(current)
        elif key == "usemtl":
            if rest.strip() not in order:
                order.append(rest.strip())
            current = order.index(rest.strip())
        elif key == "mtllib":
            known |= materials(archive, str(PurePosixPath(path).parent / rest.strip()))
    index = np.array(faces, np.int64).reshape(-1, 3, 2)
    vertices = np.array(points, np.float32).reshape(-1, 3)
    texture = np.concatenate([np.array(spots, np.float32).reshape(-1, 2), np.zeros((1, 2), np.float32)])  # -1: none
    return Mesh(vertices[index[..., 0]], texture[index[..., 1]], np.array(owners, np.int64),
                [known.get(name, known[""]) for name in order])  # fmt: skip


def turned(corners: Floats, yaw: float, pitch: float) -> Floats:
    """Corners seen from the front, yaw degrees to the side and pitch from above: x right, y up, z towards the viewer."""
    a, b = np.radians(yaw), np.radians(pitch)
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return (corners @ (about_x @ about_y).T.astype(np.float32)).astype(np.float32)


def view(mesh: Mesh, yaw: float, pitch: float, rng: np.random.Generator) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Picture (RGBA), depth (grey) and normals (RGB) of a mesh, each SIZE pixels a side; parallel rays."""
    corners, side = turned(mesh.corners, yaw, pitch), SIZE * FINE
    low, high = corners.min((0, 1)), corners.max((0, 1))
    scale = (side - 2 * MARGIN * FINE) / max(float((high - low)[:2].max()), 1e-9)
    corners = (corners - (low + high) / 2) * np.float32(scale)
    edges = corners[:, 1:] - corners[:, :1]
    normals = np.cross(edges[:, 0], edges[:, 1])
    area = np.linalg.norm(normals, axis=-1) / 2
    normals = normals / np.maximum(2 * area, 1e-9)[:, None]
    normals *= np.where(normals[:, 2:] < 0, -1, 1)  # both sides of a surface are seen
    wanted = np.maximum(area * np.maximum(normals[:, 2], 0.15), 0.3) * DENSITY
    wanted *= min(1.0, MOST / float(wanted.sum()))
    owner = np.repeat(np.arange(len(area)), np.floor(wanted + rng.random(len(wanted))).astype(np.int64))
    share = np.sort(rng.random((2, len(owner)), np.float32), axis=0)
    weights = np.stack([share[0], share[1] - share[0], 1 - share[1]], 1)
    points = np.einsum("nk,nkc->nc", weights, corners[owner])
    column = np.floor(points[:, 0] + side / 2).astype(np.int64).clip(0, side - 1)
    row = np.floor(side / 2 - points[:, 1]).astype(np.int64).clip(0, side - 1)
    pixel = row * side + column
    order = np.lexsort((points[:, 2], pixel))  # the nearest of each pixel is its last
    last = order[np.append(pixel[order][1:] != pixel[order][:-1], True)]
    colour = shaded(mesh, owner[last], weights[last], normals[owner[last]])
    deep = (high - low)[2] * scale
    nearness = points[last, 2] / max(float(deep), 1e-9) + 0.5
    drawn = np.zeros((side * side, 8), np.float32)
    drawn[pixel[last]] = np.concatenate([colour, np.ones((len(last), 1)), (FAR + (NEAR - FAR) * nearness)[:, None],
                                         normals[owner[last]]], 1)  # fmt: skip
    small = drawn.reshape(SIZE, FINE, SIZE, FINE, 8).mean((1, 3))
    cover = small[..., 3:4]
    straight = np.where(cover > 0, small / np.maximum(cover, 1e-6), 0)
    picture = np.concatenate([straight[..., :3], cover], -1)
    direction = straight[..., 5:] / np.maximum(np.linalg.norm(straight[..., 5:], axis=-1, keepdims=True), 1e-6)
    full = cover[..., 0] >= 0.5  # a map has no soft border: half a depth would be another depth
    depth, normal = np.where(full, straight[..., 4], 0), np.where(full[..., None], direction / 2 + 0.5, 0)
    return shown(picture), shown(depth), shown(normal)


def shown(x: Floats) -> Image.Image:
    """A picture of (H, W), (H, W, 3) or (H, W, 4) numbers in [0, 1]."""
    return Image.fromarray((x * 255).round().clip(0, 255).astype(np.uint8))


def shaded(mesh: Mesh, owner: NDArray[np.int64], weights: Floats, normals: Floats) -> Floats:
    """Colours (N, 3) of points: of their material or its texture, by how they face the light."""
    base, material = np.zeros((len(owner), 3), np.float32), mesh.material[owner]
    spots = np.einsum("nk,nkc->nc", weights, mesh.places[owner])
    for number, colour in enumerate(mesh.colours):
        mine = material == number
        if colour.ndim == 1:
            base[mine] = colour
        elif mine.any():
            height, width = colour.shape[:2]
            u, v = (spots[mine] % 1).T
            base[mine] = colour[((1 - v) * height).astype(int).clip(0, height - 1), (u * width).astype(int).clip(0, width - 1)]
    return base * (AMBIENT + (1 - AMBIENT) * np.maximum(normals @ LIGHT, 0))[:, None].astype(np.float32) ** 0.8


def catalogue(archive: zipfile.ZipFile) -> Iterator[dict[str, str]]:
    """What an archive says of each of its models."""
    told = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
    found: dict[str, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", told, re.MULTILINE):
        found.setdefault(number, {})[key] = value.strip()
    return iter(found.values())


def build(cache: Path, out: Path) -> None:
    package = fetch(cache, APT, PACKAGE)["furniture"]
    subprocess.run(["dpkg-deb", "-x", str(package), str(cache / "furniture")], check=True)
    rng, emoji = np.random.default_rng(0), PictureSet.open(unfog.data.path("emoji-64"))
    files: dict[str, list[tuple[str, bytes]]] = {"picture": [], "depth": [], "normals": []}
    records = [record.model_dump(exclude_defaults=True) for record in emoji.records]
    for path in sorted((cache / "furniture").rglob("*.sh3f")):
        with zipfile.ZipFile(path) as archive:
            for model in catalogue(archive):
                mesh = read_mesh(archive, model["model"].lstrip("/"))
                held = rng.random() < HELD_OUT
                name = f"{path.stem}-{PurePosixPath(model['model']).stem}".lower()
                tags = [tag.strip().lower() for tag in model.get("tags", "").split(",") if tag.strip() not in ("", "Blend Swap")]
                for number, yaw in enumerate(YAWS):
                    tilt = rng.uniform(-JITTER, JITTER, 2)
                    drawn = dict(zip(files, view(mesh, yaw + tilt[0], PITCH + tilt[1], rng), strict=True))
                    file = f"furniture/{name}-{number}.webp"
                    record = Record(file_name=file, concept=name, name=model["name"].lower(), category="furniture",
                                    tags=[*tags, model.get("category", "").lower(), "furniture"],
                                    colors=main_colours(np.asarray(drawn["picture"])),
                                    split="heldout_concept" if held else "train")  # fmt: skip
                    records.append(record.model_copy(update={"text": caption(record)}).model_dump(exclude_defaults=True))
                    for kind, image in drawn.items():
                        files[kind].append((file, lossless(image)))
    with zipfile.ZipFile(unfog.data.path("emoji-64")) as archive:
        before = [(name, archive.read(name)) for name in archive.namelist() if not name.startswith("metadata")]
    said = write_zip(out / "emoji-furniture-64.zip", [*before, *files["picture"], metadata(records)], stored=(".webp",))
    print(f"{out}/emoji-furniture-64.zip: {len(before)} emoji and {len(files['picture'])} views, {said}")
    for kind in ("depth", "normals"):
        said = write_zip(out / f"furniture-64-{kind}.zip", files[kind], stored=(".webp",))
        print(f"{out}/furniture-64-{kind}.zip: {said}")


if __name__ == "__main__":
    run(build, __doc__, "data")
