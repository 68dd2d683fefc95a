"""Molecules: what is read, model space and back, what the network may not depend on, figures by hand and beside PoseBusters."""

import itertools

import numpy as np
import pytest
import torch

from unfog.errors import UserError
from unfog.modalities.contract import Items
from unfog.modalities.molecule import MODALITY, chem, conditions, sdf, stability
from unfog.modalities.molecule.chem import Molecule
from unfog.modalities.molecule.nearest import nearest
from unfog.modalities.molecule.network import MoleculeNet
from unfog.modalities.molecule.space import MoleculeSpace, project, turn

SMILES = ["CCO", "c1ccccc1C", "CC#N", "CC(=O)N", "C1CC1F", "OCC(S)CCl", "c1ccoc1", "CN(C)C=O", "CS(=O)(=O)C", "C=CC=O"]


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    pytest.importorskip("rdkit")
    path = tmp_path_factory.mktemp("smi") / "some.smi"
    path.write_text("\n".join(f"{s} name-{i}" for i, s in enumerate(SMILES)) + "\n")
    found = MODALITY.open(path, MODALITY.options())
    return Items(path, found.raw, found.prompts, ["train"] * len(found), found.names)


@pytest.fixture(scope="module")
def space(items):
    return MODALITY.fit(items, MODALITY.options())


def same(a, b, places=1e-4):
    return (a.elements == b.elements and (a.charges == b.charges).all() and (a.hydrogens == b.hydrogens).all()
            and (a.orders == b.orders).all() and np.abs(a.xyz - b.xyz).max() < places)  # fmt: skip


def test_smiles_are_read_with_a_geometry(items):
    assert len(items) == len(SMILES) and not items.skipped and items.names[0] == "name-0"
    ethanol = items.raw[0]
    assert ethanol.elements == ("C", "C", "O") and ethanol.hydrogens.tolist() == [3, 2, 1]
    assert 1.35 < np.linalg.norm(ethanol.xyz[1] - ethanol.xyz[2]) < 1.5  # a C-O bond, Å
    assert items.raw[2].orders.tolist() == [[0, 1, 0], [1, 0, 3], [0, 3, 0]]


def test_bad_molecules_are_counted_and_left_out(tmp_path):
    pytest.importorskip("rdkit")
    path = tmp_path / "mixed.csv"
    bad = ["C(C)(C)(C)(C)C", "not smiles", "CC.O", "[CH3]", "", "C" * 60]
    path.write_text("\n".join(["name,SMILES,split", *(f"x,{s},train" for s in SMILES), *(f"y,{s}," for s in bad)]))
    found = MODALITY.open(path, MODALITY.options())
    assert len(found) == len(SMILES) and set(found.splits) == {"train"}
    assert found.skipped == {"an impossible valence": 1, "unreadable text": 2, "several fragments": 1, "radicals": 1,
                             "more than 32 atoms": 1}  # fmt: skip


@pytest.mark.parametrize("name, text, says", [
    ("a.smi", "???\nXX\n", "0 usable molecules"), ("a.csv", "a,b\n1,2\n", "no column 'smiles'"),
    ("a.zip", "no zip", "not a whole zip"), ("a.txt", "CCO\n", "not a file of molecules"),
])  # fmt: skip
def test_files_that_hold_nothing_are_refused_in_one_line(tmp_path, name, text, says):
    pytest.importorskip("rdkit")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        MODALITY.open(tmp_path / name, MODALITY.options())
    assert "\n" not in str(caught.value)


def test_what_no_molecule_has_is_refused(items):
    space = MODALITY.fit(items, MODALITY.options())
    assert space.ask(["logp 2 rings 1"], [0])["numbers"][0, 2:].tolist() == [1.0, 1.0]
    for asked, said in (("logp 900", "logp 900 is far .* ask for -"), ("rings 99", "rings 99 is far .* ask for 0.0 to")):
        with pytest.raises(UserError, match=said):
            space.ask([asked], [0])


@pytest.mark.parametrize("hydrogens", ["counted", "atoms"])
def test_model_space_and_back(items, tmp_path, hydrogens):
    path = tmp_path / "same.smi"
    path.write_text("\n".join(SMILES))
    options = MODALITY.options(hydrogens=hydrogens)
    found = MODALITY.open(path, options)
    space = MoleculeSpace.of(MODALITY.fit(found, options).card())
    x0, cond = space.encode(found.raw)
    assert x0.shape == (len(found), *space.shape)
    assert torch.allclose(project(x0, cond), x0, atol=1e-5)
    assert 0.9 < x0[..., :3][cond["mask"]].std() < 1.1
    noisy = x0 + 0.3 * (torch.rand(x0.shape, generator=torch.Generator().manual_seed(0)) - 0.5)
    for back, own in zip(space.decode(noisy, cond), found.raw, strict=True):  # categories survive noise
        assert back.elements == own.elements and (back.orders == own.orders).all() and (back.hydrogens == own.hydrogens).all()
    for back, own in zip(space.decode(x0, cond), found.raw, strict=True):
        assert np.abs(back.xyz - (own.xyz - own.xyz.mean(0))).max() < 1e-4
        assert hydrogens == "counted" or (set(own.elements) >= {"H"} and not own.hydrogens.any())
    other = space.decode(*space.encode(items.raw))  # read with hydrogens counted, whatever the space does with them
    assert [m.elements for m in other] == [m.elements for m in found.raw]


@pytest.mark.parametrize("seed", range(12))
def test_the_nearest_molecule_is_that_of_all_tried(seed):
    rng = np.random.default_rng(seed)
    kinds, n = [("C", 0), ("N", 0), ("O", 0), ("N", 1)], 3
    types, counts, bonds = rng.random((n, 4)), rng.random((n, 5)), rng.random((n, n, 3))
    bonds = (bonds + bonds.transpose(1, 0, 2)) / 2

    def distance(t, h, o):  # between tables: a bond stands in it both ways
        order = np.zeros((n, n), int)
        order[[1, 2, 2], [0, 0, 1]] = order[[0, 0, 1], [1, 2, 2]] = o
        valences = order.sum(1) + h
        if not all(v in stability.VALENCES[kinds[k]] for v, k in zip(valences, t, strict=True)):
            return np.inf
        off = ~np.eye(n, dtype=bool)
        return (((types - np.eye(4)[list(t)]) ** 2).sum() + ((counts - np.eye(5)[list(h)]) ** 2).sum()
                + ((bonds - np.eye(4)[order][:, :, 1:])[off] ** 2).sum())  # fmt: skip

    least = min(distance(t, np.array(h), o) for t in itertools.product(range(4), repeat=3)
                for h in itertools.product(range(5), repeat=3) for o in itertools.product(range(4), repeat=3))  # fmt: skip
    t, h, orders = nearest(kinds, types, counts, bonds)
    assert np.isclose(distance(t, h, [orders[1, 0], orders[2, 0], orders[2, 1]]), least)


@pytest.mark.parametrize("kind, atoms, order", [("F", 2, 1), ("F", 3, 3), ("Xe", 2, 3)])
def test_bonds_that_no_molecule_has_stay_as_they_are(kind, atoms, order):
    """Fluorine has one bond: two atoms can share it, three cannot; of xenon nothing is known."""
    bonds = np.zeros((atoms, atoms, 3))
    bonds[0, 1] = bonds[1, 0] = [0, 0, 1]
    t, h, orders = nearest([(kind, 0)], np.ones((atoms, 1)), np.ones((atoms, 1)), bonds)
    assert t.tolist() == h.tolist() == [0] * atoms and orders[0, 1] == order and (orders == orders.T).all()


def test_training_turns_and_nothing_else(items, space):
    x0, _ = space.encode(items.raw)
    turned, _ = space.encode(items.raw, [np.random.default_rng(i) for i in range(len(items))])
    assert torch.equal(turned[..., 3:], x0[..., 3:]) and not torch.allclose(turned[..., :3], x0[..., :3], atol=0.1)
    assert torch.allclose(torch.cdist(turned[..., :3], turned[..., :3]), torch.cdist(x0[..., :3], x0[..., :3]), atol=1e-4)
    draws = np.stack([turn(np.random.default_rng(i)) for i in range(2000)])
    assert np.abs(np.linalg.det(draws) - 1).max() < 1e-5 and np.abs(draws.mean(0)).max() < 0.06


def test_project_holds_what_it_promises():
    x, mask = torch.randn(3, 6, 3 + 5 + 18), torch.arange(6)[None] < torch.tensor([[6], [4], [1]])
    y = project(x, {"mask": mask})
    bonds = y[..., 8:].unflatten(-1, (6, 3))
    assert y[..., :3].sum(1).abs().max() < 1e-5 and torch.equal(bonds, bonds.transpose(1, 2))
    assert not y[~mask].any() and not bonds.diagonal(dim1=1, dim2=2).any()
    assert torch.equal(y[..., 3:8][mask], x[..., 3:8][mask])


def network(space, equivariant=True):
    torch.manual_seed(0)
    net = MoleculeNet(**space.network(), width=24, pair=16, depth=2, heads=2, equivariant=equivariant).eval()
    for p in net.parameters():  # what starts at zero must not hide anything
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return net


def test_the_network_turns_with_the_molecule_and_does_not_mind_the_order(items, space):
    net = network(space)
    x, cond = space.encode(items.raw)
    cond = {**space.ask(items.prompts, range(len(items))), **cond}
    logsnr = torch.linspace(-4, 4, len(items))
    rotation = torch.from_numpy(turn(np.random.default_rng(5)))
    turned = torch.cat([x[..., :3] @ rotation.T, x[..., 3:]], dim=-1)
    with torch.no_grad():
        out, moved = net(x, logsnr, cond), net(turned, logsnr, cond)
        assert torch.allclose(moved, torch.cat([out[..., :3] @ rotation.T, out[..., 3:]], dim=-1), atol=2e-5)
        assert (out[..., :3] - x[..., :3]).abs().max() > 1e-3  # it does move atoms
        n = space.atoms
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
        bonds = [3 + space.kinds + 3 * int(j) + k for j in order for k in range(3)]
        columns = [*range(3 + space.kinds), *bonds]
        mixed = net(x[:, order][..., columns], logsnr, {**cond, "mask": cond["mask"][:, order]})
        assert torch.allclose(mixed, out[:, order][..., columns], atol=2e-5)
        padded = x + torch.where(cond["mask"][..., None], 0.0, 5.0)
        assert torch.allclose(net(project(padded, cond), logsnr, cond), net(project(x, cond), logsnr, cond), atol=1e-5)
        plain = network(space, equivariant=False)
        assert not torch.allclose(plain(turned, logsnr, cond)[..., 3:], plain(x, logsnr, cond)[..., 3:], atol=1e-3)


def test_prompts(space):
    cond = space.ask(["3 atoms logp -1.5", None, "any", "rings 0, 4 atoms"], [1, 2, 2, 3])
    assert cond["mask"].sum(1).tolist()[0] == 3 and cond["mask"].sum(1).tolist()[3] == 4
    assert cond["numbers"][:, 2:].tolist() == [[1, 0], [0, 0], [0, 0], [0, 1]]
    assert cond["numbers"][0, 0] == pytest.approx((-1.5 - space.means[0]) / space.deviations[0], rel=1e-5)
    assert torch.equal(cond["mask"][1], cond["mask"][2])  # the same seed draws the same size
    drawn = space.ask([None] * 500, range(500))["mask"].sum(1)
    assert set(drawn.tolist()) == {n for n, count in enumerate(space.sizes) if count}


@pytest.mark.parametrize("prompt, says", [
    ("logq 3", "did you mean logp"), ("99 atoms", "1 to"), ("logp two", "not understood|unknown"), ("logp 1 logp 2", "twice"),
    ("rings -1", "no number"), ("rings 1.5", "no number"),
])  # fmt: skip
def test_prompts_that_are_refused(space, prompt, says):
    with pytest.raises(UserError, match=says):
        space.ask([prompt], [0])


def test_stability_by_hand(items):
    assert all(stability.stable(m).all() for m in items.raw)
    assert stability.order_of("C", "C", 1.54) == 1 and stability.order_of("C", "O", 1.21) == 2
    assert stability.order_of("C", "N", 1.16) == 3 and stability.order_of("C", "C", 1.64) == 0
    assert stability.order_of("O", "C", 1.2499) == 2 and stability.order_of("O", "C", 1.25) == 1
    assert stability.orders_by_distance(items.raw[3]).tolist() == items.raw[3].orders.tolist()
    ring = items.raw[1]  # toluene: bonds of 1.39 to 1.40 Å in the ring read as single
    assert stability.stable(ring, by_distance=True).sum() < len(ring)
    broken = Molecule(ring.elements, ring.charges, ring.hydrogens + np.int8(1), ring.orders, ring.xyz)
    assert not stability.stable(broken).any() and chem.valid(broken) is None


def test_a_molecule_in_pieces_is_not_valid(items):
    ethanol = items.raw[0]
    cut = Molecule(("C",) * 3, np.zeros(3, np.int8), np.array([4, 3, 3], np.int8),
                   np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0]], np.int8), ethanol.xyz)  # fmt: skip
    assert chem.largest(cut) == [1, 2] and chem.valid(cut) is None and chem.valid(cut, share=0.6) is not None
    radical = Molecule(ethanol.elements, ethanol.charges, np.array([2, 2, 1], np.int8), ethanol.orders, ethanol.xyz)
    assert chem.to_rdkit(radical) is not None and chem.valid(radical) is None


def test_files_carry_molecule_and_recipe(items):
    recipe = {"prompt": "9 atoms", "seed": 3, "model": "é"}
    for molecule in items.raw:
        data = MODALITY.to_bytes(molecule, recipe)
        back, told = MODALITY.from_bytes(data, "a.sdf")
        assert same(back, molecule) and told == recipe and MODALITY.to_bytes(back, recipe) == data
    broken = Molecule(("C", "O"), np.zeros(2, np.int8), np.array([4, 1], np.int8), np.array([[0, 3], [3, 0]], np.int8),
                      np.array([[0, 0, 0], [0, 0, 1.2]], np.float32))  # fmt: skip
    assert same(MODALITY.from_bytes(MODALITY.to_bytes(broken, {}), "a.sdf")[0], broken)
    outside = chem.rdkit().MolFromMolBlock(MODALITY.to_bytes(items.raw[1], {}).decode())  # by RDKit's own reader
    assert chem.smiles_of(outside) == "Cc1ccccc1" == MODALITY.to_bytes(items.raw[1], {}).split(b"\n")[0].decode()
    assert chem.smiles_of(chem.to_rdkit(MODALITY.from_bytes(b"OCC methanol?\n", "a.smi")[0])) == "CCO"
    for bad in (b"", b"???", b"garbage\nM  END\n"):
        with pytest.raises(UserError, match="a.sdf"):
            sdf.from_bytes(bad, "a.sdf")


def test_keep_and_paste(items, space):
    toluene = items.raw[1]
    held = MODALITY.keep(space, toluene, "c1ccccc1")
    rows = conditions.kept_atoms(toluene, "c1ccccc1")
    assert len(rows) == 6 and held[rows][:, :3].all() and held[:, :3].sum() == 18
    start = 3 + len(space.types)
    assert not held[:, start : start + space.counts].any()  # hydrogens stay free
    assert held[:, 3 + space.kinds :].reshape(space.atoms, space.atoms, 3).sum() == 6 * 6 * 3
    moved = Molecule(tuple("N" * 7), toluene.charges, toluene.hydrogens, 0 * toluene.orders, toluene.xyz + np.float32(0.4))
    made = MODALITY.paste(space, moved, toluene, "c1ccccc1")
    assert (made.xyz[rows] == toluene.xyz[rows]).all() and (
        made.orders[np.ix_(rows, rows)] == toluene.orders[np.ix_(rows, rows)]
    ).all()
    free = next(i for i in range(7) if i not in rows)
    assert made.elements[free] == "N" and np.abs(made.xyz[free] - toluene.xyz[free]).max() < 1e-5  # it moves with its frame
    assert conditions.kept_atoms(toluene, "0-2,4") == [0, 1, 2, 4] and len(conditions.kept_atoms(toluene, "all")) == 7
    for bad in ("c1ccccn1", "C(((", "5-99", "7", "3-1"):
        with pytest.raises(UserError, match="keep"):
            conditions.kept_atoms(toluene, bad)


def test_geometry_checks_agree_with_posebusters(items):
    posebusters = pytest.importorskip("posebusters")
    from unfog.modalities.molecule import geometry

    good = chem.to_rdkit(items.raw[1])
    xyz = items.raw[1].xyz
    stretched, folded = xyz.copy(), xyz.copy()
    stretched[0] = xyz[0] + 1.5 * (xyz[0] - xyz.mean(0))
    ring = conditions.kept_atoms(items.raw[1], "c1ccccc1")
    normal = np.linalg.svd(xyz[ring] - xyz[ring].mean(0))[2][-1]
    folded[ring[0]] = xyz[ring[0]] + 0.9 * normal
    busters = posebusters.PoseBusters(config="mol")
    names = {
        "bonds": "bond_lengths",
        "angles": "bond_angles",
        "clashes": "internal_steric_clash",
        "flat": "aromatic_ring_flatness",
    }
    for places in (xyz, stretched, folded):
        made = Molecule(items.raw[1].elements, items.raw[1].charges, items.raw[1].hydrogens, items.raw[1].orders, places)
        ours = geometry.checks(chem.to_rdkit(made))
        theirs = busters.bust([chem.whole(chem.to_rdkit(made))], None, None, full_report=False).iloc[0]
        for own, name in names.items():
            assert ours[own] == bool(theirs[name]), (own, places is xyz)
    assert all(geometry.checks(good).values()) and geometry.strain(good) < 0.5


def test_measures_know_good_from_bad(items):
    made = [*items.raw, *items.raw[:2]]
    real = Items(items.path, [*items.raw, *items.raw], [*items.prompts] * 2, ["train"] * 5 + ["heldout"] * 15, [""] * 20)
    rows = {row.name: row for row in MODALITY.measure(made, [*items.prompts, *items.prompts[:2]], real, 0)}
    assert np.mean(rows["valid"].made) == 1 and np.mean(rows["unique"].made) == pytest.approx(10 / 12)
    assert np.mean(rows["novel"].made) == pytest.approx(5 / 12)
    assert np.mean(rows["molecules stable, bonds as made, EDM's valences"].made) == 1
    assert np.mean(rows["as many atoms as asked"].made) == 1 and np.mean(rows["logP off by"].made) < 0.01
    assert np.mean(rows["all four geometry checks"].made) == 1
    assert not np.isfinite(rows["FCD to the training molecules"].made)  # 12 molecules are too few
    broken = [Molecule(m.elements, m.charges, m.hydrogens + np.int8(1), m.orders, m.xyz) for m in items.raw]
    rows = {row.name: row for row in MODALITY.measure(broken, items.prompts, real, 0)}
    assert np.mean(rows["valid"].made) < 0.4 and np.mean(rows["atoms stable, bonds as made, EDM's valences"].made) < 0.1


def test_the_frechet_distance_is_that_of_gaussians():
    from unfog.modalities.molecule.measure import frechet

    rng = np.random.default_rng(0)
    a = rng.standard_normal((4000, 3)) @ np.diag([1.0, 2.0, 3.0])
    a = (a - a.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(a.T))).T  # exactly unit covariance
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, 2 * a + [1, 0, 0]) == pytest.approx(1 + 3 * (2 - 1) ** 2, abs=1e-9)


def test_a_sheet_shows_every_molecule(items):
    broken = Molecule(("C", "O"), np.zeros(2, np.int8), np.array([4, 1], np.int8), np.array([[0, 3], [3, 0]], np.int8),
                      np.array([[0, 0, 0], [0, 0, 1.2]], np.float32))  # fmt: skip
    sheet = np.asarray(MODALITY.render([*items.raw[:3], broken], ["a", "b", "c", "d"]))
    assert sheet.shape == (2 * 196, 3 * 400, 3)
    for row, column in ((0, 0), (0, 1), (0, 2), (1, 0)):
        tile = sheet[196 * row : 196 * row + 160, 400 * column : 400 * column + 400]
        assert (tile[:, :200].min(-1) < 128).any() and (tile[:, 200:].min(-1) < 128).any()
    assert (sheet[196:, 400:] == 255).all()


def test_without_rdkit_one_line_names_the_extra(monkeypatch, tmp_path):
    import importlib

    real = importlib.import_module

    def missing(name, *rest):
        if name.startswith("rdkit"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    (tmp_path / "a.smi").write_text("CCO\n")
    with pytest.raises(UserError, match=r"pip install 'unfog\[molecule\]'"):
        MODALITY.open(tmp_path / "a.smi", MODALITY.options())


def test_what_is_made_lies_where_the_kept_part_is(items, space):
    from unfog.diffusion.guidance.infill import Infill

    x0, cond = space.encode(items.raw[1:2])
    known = x0.clone()
    known[..., :3] += torch.tensor([1.0, -2.0, 0.5]) * cond["mask"][..., None]  # the file's frame is not the model's
    kept = torch.from_numpy(MODALITY.keep(space, items.raw[1], "c1ccccc1"))[None]

    class Sure:
        process = None

        def __call__(self, x_t, t, cond=None):
            return project(x_t, cond)

    plain, moved = (Infill(Sure(), known, kept, align)(x0, 0.5, cond) for align in (None, MODALITY.align))
    free = int((cond["mask"][0] & ~kept[0, :, 0]).nonzero()[0])
    assert torch.allclose(moved[0, free, :3], known[0, free, :3], atol=1e-5)
    assert (plain[0, free, :3] - known[0, free, :3]).norm() > 2  # torn off without
    assert torch.equal(moved[kept], known[kept])


def test_an_edit_may_grow_on_what_it_keeps(items, space, tmp_path):
    """Around a network of no use: the kept ring stays to the bit, and the prompt's nine atoms are made."""
    from types import SimpleNamespace

    from unfog.diffusion import Gaussian, Preconditioned, make_grid, make_plan, schedule_from_config
    from unfog.editing import edit
    from unfog.edits import EditRequest
    from unfog.modalities.contract import without

    wide = MoleculeSpace.of({**space.card(), "atoms": 9, "sizes": [0] * 9 + [1]})
    process = Gaussian(schedule_from_config({"name": "cosine"}))
    denoiser = Preconditioned(network(wide), process, "x0", project=MODALITY.project)

    def asked(said, negative, settings):
        cond = wide.ask([p for p, _, _ in said], [s for _, _, s in said])
        return cond, without(cond, wide.ask([None] * len(said), [0] * len(said)))

    plan = make_plan("ddim", process.schedule, make_grid("logsnr", process.schedule, 4))
    model = SimpleNamespace(kind=MODALITY, space=wide, denoiser=denoiser, device="cpu", name="none", hash="", asked=asked,
                            defaults={"scale": 1.0, "sampler": "ddim"}, plan=lambda *_: plan, adapters=[],
                            hints=lambda _: None)  # fmt: skip
    toluene = items.raw[1]
    request = EditRequest(item=tmp_path / "x", prompt="9 atoms", keep="c1ccccc1", seed=1, n=2)
    first, second = (event.item for event in edit(model, toluene, request) if hasattr(event, "item"))
    rows = conditions.kept_atoms(toluene, "c1ccccc1")
    assert len(first) == 9 and (first.xyz[rows] == toluene.xyz[rows]).all() and np.abs(first.xyz - second.xyz).max() > 0.01
    assert (first.orders[np.ix_(rows, rows)] == toluene.orders[np.ix_(rows, rows)]).all()


def test_the_shipped_molecules_are_as_the_page_says():
    pytest.importorskip("rdkit")
    import unfog.data

    found = MODALITY.open(unfog.data.path("molecules-s"), MODALITY.options(most=200))
    assert len(found) == 200 and not found.skipped and {"train", "heldout"} == set(found.splits)
    assert all(3 <= len(m) <= 9 and set(m.elements) <= {"C", "N", "O", "F", "S", "Cl"} and not m.charges.any() for m in found.raw)
    assert all(chem.smiles_of(chem.to_rdkit(m)) == name for m, name in zip(found.raw, found.names, strict=True))
    assert all(stability.stable(m).all() for m in found.raw)
