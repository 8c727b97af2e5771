"""Each step does to voxels what it says, and its record says what it did."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine, from_matvec
from nibabel.eulerangles import euler2mat

from grandrounds.core.errors import BadImage
from grandrounds.data.nifti import canonical_nifti
from grandrounds.data.preparation.bias import CorrectBias
from grandrounds.data.preparation.brain import FindBrain, StripSkull, simple_brain
from grandrounds.data.preparation.intensity import WhiteMatter, ZScore
from grandrounds.data.preparation.registration import Register
from grandrounds.data.preparation.resampling import Resample, grid_around
from grandrounds.data.preparation.session import prepare_files
from grandrounds.data.preparation.settings import Preparation
from grandrounds.data.preparation.volumes import (
    SessionVolumes,
    WorkingVolume,
    affine_of,
    image_of,
    read_image,
    resampled,
    same_grid,
    voxels_of,
)
from grandrounds.data.session_files import find_sessions
from tests.helpers.scanned import Head, apart, displaced, head, loaded, rigid, save, save_session

MOVED = rigid((4.0, -3.0, 6.0), (7.0, -5.0, 3.0))
WORST_SIMULATED = 1.0  # mm: a transform found again, anywhere in the brain
WORST_REAL = {"rigid": 1.5, "affine": 2.0}  # mm; the scans' own placement is not known better


@pytest.fixture(scope="module", autouse=True)
def one_thread_of_itk() -> Iterator[None]:
    """As in the processes that prepare: several threads add up in any order."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    yield
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


@pytest.fixture(scope="module")
def patient() -> Head:
    return head()


def session_of(found: Head, moved: sitk.Transform | None = None) -> SessionVolumes:
    images = {name: WorkingVolume(image, name) for name, image in found.contrasts.items()}
    if moved:
        images["T2w"] = WorkingVolume(displaced(images["T2w"].image, moved), "T2w")
    return SessionVolumes("T1w", images, {"brain": WorkingVolume(found.masks["brain"], "brain")})


ORIENTATIONS = [
    (order, steps) for order in permutations(range(3)) for steps in product((1, -1), repeat=3)
]


def turned(order: tuple[int, ...], steps: tuple[int, ...]) -> nib.Nifti1Image:
    """The same head in another order and direction of its voxel axes, oblique by 10 degrees."""
    voxels = np.random.default_rng(1).random((5, 6, 7)).astype(np.float32)
    oblique = euler2mat(0.1, 0.12, 0.08) @ np.diag([1.0, 1.2, 3.0])  # type: ignore[arg-type]
    affine = from_matvec(oblique, [-4.0, 9.0, 2.0])
    image = nib.Nifti1Image(voxels, affine)
    axes = np.stack([np.array(order), np.array(steps)], axis=1)
    return image.as_reoriented(axes.tolist())


@pytest.mark.parametrize(("order", "steps"), ORIENTATIONS)
def test_any_order_and_direction_of_axes_comes_out_canonical_with_every_voxel_where_it_was(
    order: tuple[int, ...], steps: tuple[int, ...], tmp_path: Path
):
    source = turned(order, steps)
    nib.save(source, tmp_path / "in.nii")
    read = read_image(tmp_path / "in.nii", "")
    (tmp_path / "out.nii.gz").write_bytes(
        canonical_nifti(voxels_of(read.image), affine_of(read.image))
    )
    out = loaded(tmp_path / "out.nii.gz")
    assert "".join(nib.aff2axcodes(out.affine)) == "RAS"
    assert read.steps[0]["From"] == "".join(nib.aff2axcodes(source.affine))
    places = np.argwhere(np.ones(out.shape))
    where = apply_affine(np.linalg.inv(np.asarray(source.affine)) @ np.asarray(out.affine), places)
    nearest = np.rint(where).astype(int)
    assert np.abs(where - nearest).max() < 1e-4
    before = np.asarray(source.dataobj)[tuple(nearest.T)]
    assert np.array_equal(before, np.asarray(out.dataobj)[tuple(places.T)])


@pytest.fixture(scope="module")
def registered(patient: Head) -> SessionVolumes:
    return Register()(session_of(patient, MOVED))


def test_a_known_displacement_is_found_again(patient: Head, registered: SessionVolumes):
    found = registered.images["T2w"]
    assert found.transform is not None
    errors = apart(found.transform, MOVED, patient.masks["brain"])
    assert errors.max() < WORST_SIMULATED
    record = found.last("registration")
    assert record["NormalisedMutualInformation"]["After"] > 1.05  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.full
def test_registration_twice_gives_the_same_parameters(patient: Head):
    first, second = (
        Register()(session_of(patient, MOVED)).images["T2w"].last("registration") for _ in range(2)
    )
    assert first == second


@pytest.mark.slow
@pytest.mark.full
def test_what_lies_in_place_already_is_not_moved(patient: Head):
    found = Register()(session_of(patient)).images["T2w"]
    assert float(found.last("registration")["LargestShiftInMm"]) < 0.5  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_a_known_displacement_of_a_real_patient_is_found_again(real_data: Path, kind: str):
    site = real_data / "mri/site-lju15t"
    first, second = (read_image(site / f"sub-01_ses-2_{c}.nii.gz", c) for c in ("T1w", "T2w"))
    mask = read_image(site / "sub-01_ses-2_brainmask.nii.gz", "")
    centred = sitk.Euler3DTransform(MOVED)
    centred.SetCenter(mask.image.TransformContinuousIndexToPhysicalPoint([160, 160, 18]))
    moved = replace(second, image=displaced(second.image, centred))
    session = SessionVolumes("T1w", {"T1w": first, "T2w": moved})
    found = Register(kind)(session).images["T2w"]  # type: ignore[arg-type]
    assert found.transform is not None
    assert apart(found.transform, centred, mask.image).max() < WORST_REAL[kind]


def variation(image: sitk.Image, mask: sitk.Image) -> float:
    values = voxels_of(image)[voxels_of(mask) > 0]
    return float(values.std() / values.mean())


def test_n4_takes_a_known_shading_away(patient: Head):
    """Of white matter: with the coil's shading, corrected, and as it is without a shading."""
    shaded = head(contrasts=("T1w",), bias=0.6)
    volumes = {"T1w": WorkingVolume(shaded.contrasts["T1w"], "")}
    masks = {"brain": WorkingVolume(shaded.masks["brain"], "")}
    corrected = CorrectBias(grid=6.0)(SessionVolumes("T1w", volumes, masks)).fixed
    white = shaded.masks["white"]
    before, after = (variation(i, white) for i in (volumes["T1w"].image, corrected.image))
    assert before > 0.12
    assert after < 0.06
    assert after < 1.1 * variation(patient.contrasts["T1w"], white)


def test_n4_refuses_values_below_zero(patient: Head):
    image = patient.contrasts["T1w"] - 0.5
    session = SessionVolumes("T1w", {"T1w": WorkingVolume(image, "")}, session_of(patient).masks)
    with pytest.raises(BadImage, match="T1w has many values below 0"):
        CorrectBias()(session)


def test_a_mask_moves_with_the_contrast_that_it_was_drawn_on(
    patient: Head, registered: SessionVolumes
):
    lesion = WorkingVolume(displaced(patient.masks["white"], MOVED), "")
    drawn = replace(registered, masks={"lesion": WorkingVolume(lesion.image > 0.5, "")})
    found = Resample(drawn_on="T2w")(drawn).masks["lesion"]
    inside, truth = voxels_of(found.image) > 0, voxels_of(patient.masks["white"]) > 0
    assert 2 * (inside & truth).sum() / (inside.sum() + truth.sum()) > 0.85
    assert found.last("resample")["Interpolation"] == "nearest"
    assert found.last("resample")["DrawnOn"] == "T2w"


def test_a_volume_on_its_own_grid_keeps_every_voxel(patient: Head):
    session = session_of(patient)
    done = Resample()(session)
    for name, volume in done.images.items():
        assert np.array_equal(voxels_of(volume.image), voxels_of(session.images[name].image))
    mask = done.masks["brain"]
    assert np.array_equal(voxels_of(mask.image), voxels_of(patient.masks["brain"]))


def test_another_spacing_covers_the_same_head_with_masks_on_the_images(patient: Head):
    done = Resample(spacing=(2.0, 2.0, 4.0))(session_of(patient))
    image, mask = done.fixed.image, done.masks["brain"].image
    assert image.GetSpacing() == (2.0, 2.0, 4.0)
    assert same_grid(image, mask)
    sizes = [voxels_of(m).sum() * np.prod(m.GetSpacing()) for m in (mask, patient.masks["brain"])]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_b_splines_do_not_overshoot(patient: Head):
    done = Resample(spacing=(1.5, 1.5, 3.0), interpolation="b-spline")(session_of(patient))
    found = voxels_of(done.fixed.image)
    assert found.min() >= 0
    assert found.max() <= voxels_of(patient.contrasts["T1w"]).max()


def test_a_sheared_grid_comes_out_at_right_angles(patient: Head):
    """A gantry that is tilted shears the slices' places."""
    affine = affine_of(patient.contrasts["T1w"])
    affine[1, 0] += 0.8
    sheared = image_of(voxels_of(patient.contrasts["T1w"]), affine)
    direction = np.array(grid_around(sheared).GetDirection()).reshape(3, 3)
    assert np.allclose(direction.T @ direction, np.eye(3))


def test_a_grid_too_fine_is_refused_before_it_is_made(patient: Head):
    wide = sitk.Image(patient.contrasts["T1w"])
    wide.SetSpacing((40.0, 40.0, 40.0))
    with pytest.raises(BadImage, match=r"would have .* voxels; a prepared volume has at most"):
        grid_around(wide, (0.2, 0.2, 0.2))


def test_a_simple_mask_is_near_the_brain_of_a_simulated_head(patient: Head):
    found = voxels_of(simple_brain(patient.contrasts["T2w"])) > 0
    truth = voxels_of(patient.masks["brain"]) > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.7


def test_a_stripped_skull_is_zero_and_the_brain_as_it_was(patient: Head):
    session = session_of(patient)
    done = StripSkull()(FindBrain()(session))  # the own mask stays
    inside = voxels_of(patient.masks["brain"]) > 0
    found, before = voxels_of(done.fixed.image), voxels_of(session.fixed.image)
    assert np.array_equal(found[inside], before[inside])
    assert not found[~inside].any()
    with pytest.raises(BadImage, match="no brain mask"):
        StripSkull()(replace(session, masks={}))


def test_greys_are_scaled_as_asked(patient: Head):
    session = session_of(patient)
    inside = voxels_of(patient.masks["brain"]) > 0
    scored = voxels_of(ZScore()(session).fixed.image)[inside]
    assert abs(scored.mean()) < 1e-3
    assert scored.std() == pytest.approx(1, abs=1e-3)
    white = voxels_of(patient.masks["white"]) > 0
    scaled = voxels_of(WhiteMatter()(session).fixed.image)[white]
    assert np.median(scaled) == pytest.approx(1000, rel=0.1)


def test_the_record_alone_makes_the_voxels_again(tmp_path: Path):
    """Whoever has the source and the sidecar needs SimpleITK and nothing of ours."""
    save_session(tmp_path, moved=MOVED)
    [files] = find_sessions(tmp_path)
    digests = {path.name: path.name for path in (*files.contrasts.values(), *files.masks.values())}
    settings = Preparation(tmp_path, bias=False, spacing=(3.0, 3.0, 3.0))
    made = prepare_files(files, digests, settings)
    (tmp_path / "made.nii.gz").write_bytes(made.files["sub-1_T2w.nii.gz"])
    record = json.loads(made.files["sub-1_T2w.json"])["Preparation"]
    assert record["InputSHA256"] == "sub-1_T2w.nii.gz"
    registered, placed = record["Steps"][1:]
    transform = sitk.Euler3DTransform()
    transform.SetFixedParameters(registered["FixedParameters"])
    transform.SetParameters(registered["Parameters"])
    source = sitk.ReadImage(str(tmp_path / "sub-1_T2w.nii.gz"), sitk.sitkFloat32)
    source = sitk.DICOMOrient(source, "LPS")
    for axis, deviation in enumerate(placed["SmoothingInMm"]):
        if deviation > 0.1 * source.GetSpacing()[axis]:
            source = sitk.RecursiveGaussian(source, deviation, direction=axis)
    axes = np.array(placed["SlicesRowsColumnsToRas"])
    empty = image_of(np.zeros(placed["Size"][::-1], np.float32), axes)
    again = resampled(source, empty, transform, sitk.sitkLinear, placed["Outside"])
    found = voxels_of(read_image(tmp_path / "made.nii.gz", "").image)
    assert np.abs(voxels_of(again) - found).max() < 1e-4


def test_an_acquisition_is_carried_over_and_nothing_else_of_a_sidecar(tmp_path: Path):
    save_session(tmp_path, mask=False)
    hostile = {
        "RepetitionTime": 0.5,
        "EchoTime": 1e9,
        "PatientName": "Doe^Jane",
        "Preparation": {"Steps": ["none"]},
        "SequenceFamily": {"deep": [1] * 9},
    }
    (tmp_path / "sub-1_T1w.json").write_text(json.dumps(hostile))
    [files] = find_sessions(tmp_path)
    digests = {path.name: "" for path in files.contrasts.values()}
    made = prepare_files(files, digests, Preparation(tmp_path, bias=False, registration="none"))
    sidecar = json.loads(made.files["sub-1_T1w.json"])
    assert set(sidecar) == {"RepetitionTime", "Preparation"}
    assert b"Doe" not in b"".join(made.files.values())
    assert "echo time" in sidecar["Preparation"]["Steps"][0]["Doubts"][0]


def test_a_saved_head_is_read_as_it_was(patient: Head, tmp_path: Path):
    read = read_image(save(tmp_path / "x.nii.gz", patient.contrasts["T1w"]), "")
    assert np.array_equal(voxels_of(read.image), voxels_of(patient.contrasts["T1w"]))
    assert same_grid(read.image, patient.contrasts["T1w"])
