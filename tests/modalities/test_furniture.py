"""Renders of meshes beside exact answers: a ball, a slanted board, a file with its textures."""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tools/data"))

import furniture


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def mesh(corners, colour=(1.0, 0.5, 0.0)):
    corners = np.asarray(corners, np.float32)
    return furniture.Mesh(corners, np.zeros((len(corners), 3, 2), np.float32), np.zeros(len(corners), int),
                          [np.array(colour, np.float32)])  # fmt: skip


def ball(parts=48):
    up, around = np.linspace(0, np.pi, parts + 1), np.linspace(0, 2 * np.pi, 2 * parts + 1)
    grid = np.stack(
        [np.sin(up)[:, None] * np.cos(around), np.cos(up)[:, None] + 0 * around, np.sin(up)[:, None] * np.sin(around)], -1
    )
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    return mesh(np.concatenate([np.stack([a, b, c], 2).reshape(-1, 3, 3), np.stack([a, c, d], 2).reshape(-1, 3, 3)]))


def test_a_ball_has_a_ball_s_outline_depth_and_normals(rng):
    picture, depth, normals = (np.asarray(image).astype(float) for image in furniture.view(ball(), 30, 20, rng))
    radius = furniture.SIZE / 2 - furniture.MARGIN
    place = (np.arange(furniture.SIZE) + 0.5 - furniture.SIZE / 2) / radius
    x, y = np.meshgrid(place, -place)
    inside = x**2 + y**2 < 0.95**2
    assert (picture[..., 3][inside] > 240).all() and (picture[..., 3][x**2 + y**2 > 1.06**2] == 0).all()
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, None))
    core = x**2 + y**2 < 0.85**2
    assert abs((normals / 255 * 2 - 1) - np.stack([x, y, z], -1))[core].mean() < 0.04
    assert abs(depth[core] / 255 - (furniture.FAR + (1 - furniture.FAR) * (1 + z[core]) / 2)).mean() < 0.01
    assert (depth[~(x**2 + y**2 < 1.06**2)] == 0).all() and (normals[~(x**2 + y**2 < 1.06**2)] == 0).all()
    lit = picture[..., :3].sum(-1)
    assert lit[16, 16] > lit[48, 48] + 50  # the light is at the upper left


def test_the_nearer_of_two_surfaces_is_seen(rng):
    def board(z, half):
        a, b, c, d = [-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]
        return [[a, b, c], [a, c, d]]

    both = mesh(board(-1.0, 1.0) + board(1.0, 0.4))
    both.material[2:] = 1
    both.colours.append(np.array([0, 0, 1], np.float32))
    picture, depth, normals = (np.asarray(image) for image in furniture.view(both, 0, 0, rng))
    assert picture[32, 32, 2] > 150 > picture[32, 32, 0] and picture[32, 8, 0] > 150 > picture[32, 8, 2]
    assert depth[32, 32] == 255 and depth[32, 8] == round(255 * furniture.FAR)
    assert (normals[32, 32] == normals[32, 8]).all() and normals[32, 8].tolist() == [128, 128, 255]


def test_a_file_with_polygons_textures_and_counts_from_the_end(rng):
    buffer, texture = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8)).save(texture, "png")
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("thing/thing.obj", "mtllib thing.mtl\nv -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\n"
                         "vt 0 1\nusemtl painted\nf -4/1 -3/2 -2/3 -1/4\nusemtl unknown\nf 1//1 2//1 3//1\n")  # fmt: skip
        archive.writestr("thing/thing.mtl", "newmtl painted\nKd 1 1 1\nmap_Kd C:\\pictures\\Paint.png\n")
        archive.writestr("thing/paint.png", texture.getvalue())
    with zipfile.ZipFile(buffer) as archive:
        found = furniture.read_mesh(archive, "thing/thing.obj")
    assert found.corners.shape == (3, 3, 3) and found.material.tolist() == [1, 1, 2]
    found.corners, found.places, found.material = found.corners[:2], found.places[:2], found.material[:2]
    picture = np.asarray(furniture.view(found, 0, 0, rng)[0])
    assert picture[32, 16, 0] > 150 > picture[32, 16, 1] and picture[32, 48, 1] > 150 > picture[32, 48, 0]


def test_the_catalogue_is_read():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        told = "# furniture\nid=x\nid#1=a\nname#1=Caf\xe9 chair\ntags#1=Seat, Old\nmodel#1=/a/chair.obj\n\nid#2=b\nname#2=Lamp\n"
        archive.writestr("PluginFurnitureCatalog.properties", told.encode("latin-1"))
    with zipfile.ZipFile(buffer) as archive:
        first, second = furniture.catalogue(archive)
    assert first["name"] == "Café chair" and first["tags"] == "Seat, Old" and second["name"] == "Lamp"
