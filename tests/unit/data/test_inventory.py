"""What lies at a site is listed as it is: contrasts, masks, spacing, windows, variables."""

from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadSite
from grandrounds.data.inventory import HeldSession, Inventory, shared_names, take_inventory
from tests.conftest import SaveVolume


def test_volumes_are_listed_with_the_window_that_shows_the_brain(
    tmp_path: Path, save_volume: SaveVolume
):
    voxels = np.zeros((20, 30, 6), np.float32)
    voxels[8:13, 10:28, :] = 50  # rows run to the front: 12 from the middle at the far end
    affine = np.diag([2.0, 1.5, 3.0, 1.0])
    save_volume(tmp_path / "sub-1_T1w.nii.gz", voxels, affine)
    save_volume(tmp_path / "sub-1_lesionmask.nii.gz", (voxels > 0).astype(np.uint8), affine)
    found = take_inventory("oak", tmp_path)
    [session] = found.sessions
    assert (found.kind, session.patient) == ("volumes", "sub-1")
    assert session.names == {"T1w", "lesion"}
    assert session.spacing == pytest.approx((1.5, 2.0))
    rows, columns = session.window
    assert rows == pytest.approx((2 * 12.5 + 1) * 1.5)
    assert columns == pytest.approx((2 * 2.5 + 1) * 2.0)


def test_the_mask_of_a_brain_is_its_window_and_not_the_head(
    tmp_path: Path, save_volume: SaveVolume
):
    voxels = np.zeros((20, 20, 6), np.float32)
    voxels[2:18, 2:18, :] = 50
    brain = np.zeros((20, 20, 6), np.uint8)
    brain[8:12, 8:12, 2:4] = 1
    save_volume(tmp_path / "sub-1_T1w.nii.gz", voxels)
    save_volume(tmp_path / "sub-1_brainmask.nii.gz", brain)
    [session] = take_inventory("oak", tmp_path).sessions
    assert session.window == pytest.approx((4.0, 4.0))


def test_a_table_is_listed_by_its_columns_of_numbers(tmp_path: Path):
    path = tmp_path / "oak.csv"
    path.write_text("participant_id,age,ward,empty,sick\np1,63,north,,1\np2,n/a,south,n/a,0\n")
    found = take_inventory("oak", path)
    assert (found.kind, found.patients) == ("table", ("p1", "p2"))
    assert list(found.values) == ["age", "sick"]
    assert found.known("age") == (63.0,)
    assert found.having(["age", "sick"]) == ("p1",)
    assert (found.is_binary("sick"), found.is_binary("age")) == (True, False)


def test_a_stack_is_listed_by_its_labels(tmp_path: Path):
    path = tmp_path / "images.npz"
    np.savez(
        path,
        images=np.zeros((3, 8, 10), np.uint8),
        patient=np.array(["a", "a", "b"]),
        sick=np.array([1, 1, 0]),
        names=np.array(["x", "y", "z"]),
        odd=np.zeros(5),
    )
    found = take_inventory("oak", path)
    assert (found.kind, found.patients, list(found.values)) == ("images", ("a", "b"), ["sick"])
    assert found.window == (8.0, 10.0)
    assert found.is_binary("sick")


def test_what_is_no_data_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BadSite, match="is no data that a study can be proposed for"):
        take_inventory("oak", tmp_path / "notes.txt")


def site(name: str, *contrasts: str) -> Inventory:
    return Inventory(name, "volumes", (HeldSession("p", frozenset(contrasts)),), {})


def test_what_all_sites_share_is_told_from_what_some_have():
    found = shared_names([site("oak", "T1w", "T2w"), site("yew", "T1w", "FLAIR")])
    assert found == (("T1w",), {"T2w": ["oak"], "FLAIR": ["yew"]})


def test_contrasts_that_differ_in_case_alone_are_refused():
    with pytest.raises(BadSite, match=r"FLAIR \(at oak\) and Flair \(at yew\) differ in case"):
        shared_names([site("oak", "FLAIR"), site("yew", "Flair")])
