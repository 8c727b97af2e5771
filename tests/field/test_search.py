"""Further public reports, found by a search: each is rebuilt as a small head, and tried.

The numbers are computed here; none of them is anyone's. The reports are named at each case.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
import pytest

from grandrounds.core.errors import BadInput
from grandrounds.data.availability import summarise
from grandrounds.data.elements import ALL_TESTED, Elements
from grandrounds.data.nifti import read_grid, read_voxels, to_nifti
from grandrounds.data.prepare import prepare_cohort
from grandrounds.data.session_files import find_sessions
from tests.field.conftest import Verdict

Array: TypeAlias = np.ndarray
Volumes: TypeAlias = Mapping[str, Array | tuple[Array, Array]]
Judge: TypeAlias = Callable[..., Verdict]

# A head of 40 x 40 x 30 voxels of 5 mm, with a brain of 0.94 litres and a lesion in it.
AFFINE = np.array([[5.0, 0, 0, -100], [0, 5, 0, -100], [0, 0, 5, -70], [0, 0, 0, 1]])
X, Y, Z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 40, 30)), indexing="ij")
BRAIN = X**2 / 0.35 + Y**2 / 0.5 + Z**2 / 0.6 < 1
HEAD = X**2 / 0.6 + Y**2 / 0.8 + Z**2 / 0.9 < 1
SKULL = ~BRAIN & (X**2 / 0.5 + Y**2 / 0.7 + Z**2 / 0.8 < 1)
LESION = (X - 0.2) ** 2 + Y**2 + Z**2 < 0.02
T1W = np.where(HEAD, 40, 0) + np.where(BRAIN, 60 + 20 * Y, 0)
CT = np.where(SKULL, 800, np.where(BRAIN, 35, np.where(HEAD, 20, -1000)))
MR, LABELS = ("T1w",), np.uint8
HU = {"CT": (0.0, 80.0)}


def put(folder: Path, volumes: Volumes, affine: Array = AFFINE, patients: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, patients + 1):
        for kind, given in volumes.items():
            voxels, where = given if isinstance(given, tuple) else (given, affine)
            stored = voxels if voxels.dtype == LABELS else voxels.astype(np.float32)
            nib.save(nib.Nifti1Image(stored, where), folder / f"sub-{number:02}_{kind}.nii.gz")
    return folder


@pytest.fixture
def judge(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Judge:
    """What `check` says of a site with these volumes; no library may write a line beside it."""

    def judged(
        volumes: Volumes,
        *,
        affine: Array = AFFINE,
        contrasts: tuple[str, ...] = MR,
        intensity: Mapping[str, tuple[float, float]] | None = None,
    ) -> Verdict:
        site = put(tmp_path / "site", volumes, affine)
        elements = Elements(contrasts, (40, 40), (5.0, 5.0), ALL_TESTED, intensity=intensity)
        try:
            cohort = prepare_cohort("alder", site, elements, cache=tmp_path / "cache")
            summary = summarise(cohort, find_sessions(site), elements=elements, tasks=())
        except BadInput as error:
            verdict = Verdict(refused=str(error))
        else:
            told = [note.told(frozenset(contrasts)) for note in summary.notes]
            assert all(told), "each of these notes may leave the site"
            verdict = Verdict("", tuple(map(str, summary.notes)), (cohort,))
        assert tuple(capfd.readouterr()) == ("", "")
        return verdict

    return judged


def masks(brain: Array = BRAIN, lesion: Array | None = None) -> dict[str, Array]:
    found = {"T1w": T1W, "brainmask": brain.astype(LABELS)}
    return found if lesion is None else found | {"lesionmask": lesion.astype(LABELS)}


def test_a_head_as_it_should_be_is_not_spoken_of(judge: Judge):
    verdict = judge(masks(lesion=LESION))
    assert verdict.notes == ("no patient is left for validation",)
    assert len(verdict.sessions) == 2


# Headers


def test_a_header_that_was_lost_is_told(judge: Judge):
    """taigw/brats17#1, jmlipman/RatLesNetv2#2, MIC-DKFZ/nnUNet#1285: saved with eye(4)."""
    notes = judge({"T1w": T1W}, affine=np.eye(4)).notes
    assert any(note.startswith("2 of 2 volumes have the identity as their") for note in notes)


def test_a_mask_with_a_lost_header_beside_an_image_with_its_own_is_refused(judge: Judge):
    """taigw/brats17#1: the prediction alone was saved with eye(4)."""
    sentence = judge({"T1w": T1W, "brainmask": (BRAIN.astype(LABELS), np.eye(4))}).refused
    assert "sub-01_brainmask.nii.gz: is not on the grid of sub-01_T1w.nii.gz" in sentence


@pytest.mark.parametrize(("factor", "litres"), [(0.1, "0.00094"), (10, "940.0")])
def test_lengths_that_are_off_by_a_factor_of_ten_are_told(judge: Judge, factor: float, litres: str):
    """openneuropet/PET2BIDS#7: voxel sizes in cm, read as mm."""
    affine = AFFINE * np.array([[factor]] * 3 + [[1.0]])
    notes = "\n".join(judge(masks(), affine=affine).notes)
    assert "2 of 2 sessions have the brain of a size that nobody's has" in notes
    assert f"such as {litres} litres" in notes


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mask_whose_axis_runs_the_other_way_is_refused(judge: Judge, axis: int):
    """MIC-DKFZ/nnUNet#1669: only a warning there, and the outline lay elsewhere."""
    other = AFFINE.copy()
    other[axis] *= -1
    sentence = judge({"T1w": T1W, "brainmask": (BRAIN.astype(LABELS), other)}).refused
    assert "brainmask.nii.gz: is not on the grid" in sentence


def test_a_mask_without_the_tilt_of_its_image_is_refused(judge: Judge):
    """MIC-DKFZ/nnUNet#2526: 10 degrees in the image's header, none in its mask's."""
    tilt, (sine, cosine) = AFFINE.copy(), (np.sin(0.1754), np.cos(0.1754))
    tilt[:2, :2] = 5 * np.array([[cosine, -sine], [sine, cosine]])
    sentence = judge({"T1w": (T1W, tilt), "brainmask": BRAIN.astype(LABELS)}).refused
    assert "mm apart" in sentence


def test_the_rounding_of_an_origin_is_no_difference(judge: Judge):
    """pyplati/platipy#302: float32 in NIfTI, float64 in DICOM."""
    rounded = AFFINE.copy()
    rounded[:3, 3] += 1e-4
    assert not judge({"T1w": T1W, "brainmask": (BRAIN.astype(LABELS), rounded)}).refused


def test_axes_that_are_nearly_exchanged_are_written_as_they_were_read(tmp_path: Path):
    """MIC-DKFZ/nnUNet#2477: a turn by 83 degrees came back turned by 180."""
    turned = AFFINE.copy()
    turned[:2, :2] = 5 * np.array([[0.12084686, -0.99267119], [0.99267119, 0.12084686]])
    put(tmp_path, {"T1w": T1W}, turned, patients=1)
    path = tmp_path / "sub-01_T1w.nii.gz"
    (tmp_path / "again.nii").write_bytes(to_nifti(read_voxels(path), path))
    again = nib.load(tmp_path / "again.nii")
    assert isinstance(again, nib.Nifti1Image)
    assert np.allclose(again.get_fdata(), T1W, atol=1e-4)
    assert read_grid(tmp_path / "again.nii").distance(read_grid(path)) < 1e-3


# The field of view


def test_slices_that_a_slab_does_not_show_are_told(judge: Judge):
    """nipreps/fmriprep#2314 and #3561: one of two contrasts covers a part of the head."""
    slab = np.where(Z < -0.1, T1W, 0)
    verdict = judge(masks() | {"T2w": slab}, contrasts=("T1w", "T2w"))
    [note] = [note for note in verdict.notes if note.startswith("of the brain, 2 of 2 sessions")]
    kept, shown = (
        sum(getattr(s.extents["brain"], name) for s in verdict.sessions.values())
        for name in ("kept", "shown")
    )
    assert f"keep {round(100 * kept / shown)} % or little more" in note


def test_a_slab_is_told_without_a_mask_of_the_brain_too(judge: Judge):
    """nipreps/fmriprep#2144: half of the files had brain cut off."""
    slab = np.where(Z < -0.1, T1W, 0)
    notes = judge({"T1w": T1W, "T2w": slab}, contrasts=("T1w", "T2w")).notes
    assert any(note.startswith("of the head (no brain mask), 2 of 2 sessions") for note in notes)


def test_a_mask_that_reaches_into_the_padding_is_named(judge: Judge):
    """nipreps/fmriprep#552: a mask grew into voxels that were never measured."""
    sentence = judge({"T1w": np.where(Y < 0.1, T1W, 0), "brainmask": BRAIN.astype(LABELS)}).refused
    assert "and its brain mask lie where none of them is 0" in sentence


def test_a_mask_of_the_cropped_head_is_refused(judge: Judge):
    """neuroneural/brainchop-cli#53: a mask of the crop under the header of the whole."""
    sentence = judge({"T1w": T1W, "brainmask": np.pad(BRAIN.astype(LABELS), 2)}).refused
    assert "34 x 44 x 44 voxels instead of 30 x 40 x 40" in sentence


def test_a_lesion_at_the_edge_of_the_volume_is_counted_where_the_window_cuts_it(judge: Judge):
    """rordenlab/dcm2niix#10, nipreps/fmriprep#1528: pushed out of the picture on the way."""
    moved = AFFINE.copy()
    moved[:3, :3] *= 1.6
    notes = judge(masks(lesion=HEAD & (X > 0.68)), affine=moved).notes
    assert any("cuts away part of lesions in 2 of 2 sessions" in note for note in notes)


# Masks and labels


@pytest.mark.parametrize("kind", ["brain", "lesion"])
def test_a_mask_of_everything_is_refused(judge: Judge, kind: str):
    """AIM-Harvard/pyradiomics#765: a mask of all ones; NIRALUser/DTIPrep#6: too inclusive."""
    everything = np.ones_like(BRAIN)
    volumes = masks(everything) if kind == "brain" else masks(lesion=everything)
    sentence = judge(volumes).refused
    assert f"sub-01_{kind}mask.nii.gz: marks all of its voxels (48000 of 48000" in sentence


@pytest.mark.parametrize("kind", ["brain", "lesion"])
def test_a_mask_with_0_and_1_exchanged_is_refused(judge: Judge, kind: str):
    """hieuvmphan/MaskGAN#8: background 1, and the structure 0."""
    sentence = judge(masks(~BRAIN) if kind == "brain" else masks(lesion=~LESION)).refused
    assert f"sub-01_{kind}mask.nii.gz: marks all corners of the volume" in sentence
    assert "exchanged" in sentence


def test_a_brain_mask_of_almost_nothing_is_told(judge: Judge):
    """MIC-DKFZ/HD-BET#5, MASILab/Synb0-DISCO#13: almost all voxels of the mask are 0."""
    crumb = BRAIN & (np.abs(X) < 0.1) & (np.abs(Y) < 0.1) & (np.abs(Z) < 0.1)
    notes = "\n".join(judge(masks(crumb)).notes)
    assert "have the brain of a size that nobody's has, such as 0.004 litres" in notes


def test_lesions_outside_of_the_mask_of_the_brain_are_told(judge: Judge):
    """nipreps/fmriprep#1109, dorianps/LINDA#31: one of the two masks is wrong."""
    verdict = judge(masks(lesion=(HEAD & ~BRAIN & (X > 0.5)) | LESION))
    [note] = [n for n in verdict.notes if "outside of their mask of the brain" in n]
    assert note.startswith("2 of 2 sessions have lesions")
    extent = verdict.sessions["sub-01"].extents["lesion"]
    assert f"up to {round(100 * extent.outside / extent.outlined)} %" in note


def test_an_edge_between_0_and_1_is_told(judge: Judge):
    """MIC-DKFZ/nnUNet#495: labels after a linear interpolation."""
    edge = 0.7 * LESION + 0.3 * np.roll(LESION, 1, 0)
    notes = judge(masks() | {"lesionmask": edge}).notes
    assert any("2 of 2 masks of lesions hold probabilities" in note for note in notes)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LESION * 255, ""),  # MIC-DKFZ/nnUNet#1777
        (LESION * 1 + (LESION & (X > 0.2)), "up to 2.0"),  # seg-sc-ms-lesion-multicontrast#2
        (LESION * 2 + (LESION & (X > 0.2)) * 3, "up to 5.0"),  # MIC-DKFZ/nnUNet#2500
    ],
)
def test_labels_are_read_as_inside_and_several_are_told(judge: Judge, labels: Array, words: str):
    verdict = judge(masks() | {"lesionmask": labels.astype(LABELS)})
    assert all(s.masks["lesion"].sum() > 0 for s in verdict.sessions.values())
    several = [note for note in verdict.notes if "have several labels" in note]
    assert [words in note for note in several] == [True] * bool(words)


def test_a_mask_of_many_greys_is_refused(judge: Judge):
    """MIC-DKFZ/nnUNet#2404: labels that were stored as a picture, 0 to 255."""
    greys = np.where(LESION, 128 + 60 * X + 90 * Y + 120 * Z, 0).round().astype(LABELS)
    assert "values from" in judge(masks() | {"lesionmask": greys}).refused


# Intensities


@pytest.mark.parametrize("offset", [1000, 1024])
@pytest.mark.parametrize("window", [(0.0, 80.0), (-100.0, 300.0), (-1000.0, 2500.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_ct_without_its_offset_is_refused(
    judge: Judge, offset: int, window: tuple[float, float], masked: bool
):
    """icometrix/dicom2nifti#87, pydicom/pydicom#1615, cerr/CERR#494: air at 0, tissue at 1060."""
    volumes: dict[str, Array] = {"CT": CT + offset}
    volumes |= {"brainmask": BRAIN.astype(LABELS)} if masked else {}
    sentence = judge(volumes, contrasts=("CT",), intensity={"CT": window}).refused
    assert "sub-01_CT.nii.gz: half of what it shows is above" in sentence
    assert "its offset was lost" in sentence


@pytest.mark.parametrize(
    "voxels",
    [
        CT,
        np.where(BRAIN, CT, 0),  # without the skull, air at 0
        np.where(BRAIN, CT, -1024),
        np.where(X**2 + Y**2 > 0.95, -3024, CT),  # rordenlab/dcm2niix#262, vtk-dicom#173
    ],
)
@pytest.mark.parametrize("window", [(0.0, 80.0), (-1000.0, 2500.0)])
def test_ct_in_hounsfield_units_is_read(judge: Judge, voxels: Array, window: tuple[float, float]):
    verdict = judge(
        {"CT": voxels, "brainmask": BRAIN.astype(LABELS)},
        contrasts=("CT",),
        intensity={"CT": window},
    )
    assert len(verdict.sessions) == 2, verdict.refused


def test_a_map_with_a_window_of_its_own_is_read(judge: Judge):
    """hMRI-group/hMRI-toolbox#72: maps have units, too: here T1 in ms, and nothing below 0."""
    verdict = judge({"T1w": T1W * 12}, intensity={"T1w": (0.0, 3000.0)})
    assert len(verdict.sessions) == 2, verdict.refused


def test_attenuation_is_no_hounsfield_unit(judge: Judge):
    """liyues/NeRP#5: values from 0 to 0.05."""
    volumes = {"CT": (CT + 1000) * 2e-5}
    assert "are they in its unit?" in judge(volumes, contrasts=("CT",), intensity=HU).refused


def test_one_bright_voxel_darkens_nothing(judge: Judge):
    """neurodata/m2g#55: noise peaks."""
    peak = T1W.copy()
    peak[20, 20, 15] = 1e7
    found, plain = (judge(masks() | {"T1w": each}).sessions for each in (peak, T1W))
    for label, session in found.items():
        dark = plain[label].images < 1
        assert np.abs(session.images - plain[label].images)[dark].mean() < 2e-3


def test_integers_that_passed_their_largest_value_are_refused(judge: Judge):
    """nipreps/fmriprep#968: unsigned values under a signed type."""
    wrapped = (T1W * 400).astype(np.uint16).view(np.int16).astype(np.float32)
    assert "in the brain are below 0" in judge(masks() | {"T1w": wrapped}).refused
