from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor, nn

from grandrounds.data.cohort import Cohort, Session, SplitName
from grandrounds.tasks.synthesis.examples import Augmentation, ContrastPair, SiteTaskCode, Slices
from grandrounds.tasks.task import Slice, list_slices, list_visits

T1_T2, T2_PD, PD_T1 = (
    ContrastPair("T1w", "T2w"),
    ContrastPair("T2w", "PDw"),
    ContrastPair("PDw", "T1w"),
)
CONTRASTS = ("T1w", "T2w", "PDw")
CODING = SiteTaskCode(("alder", "birch"), CONTRASTS)
STILL = Augmentation(flip=0.0)


def session(patient: str, contrasts: tuple[str, ...] = CONTRASTS, slices: int = 2) -> Session:
    """Every pixel says which slice and contrast it is of: 0.1 a slice, 0.25 a contrast."""
    values = [[0.1 * i + 0.25 * CONTRASTS.index(c) for c in contrasts] for i in range(slices)]
    images = np.broadcast_to(
        np.array(values, np.float32)[:, :, None, None], (slices, len(contrasts), 4, 6)
    )
    return Session(patient, "", contrasts, images.copy())


COHORT = Cohort(
    "alder",
    {
        "train": (session("sub-smith"), session("sub-jones", ("T1w", "T2w"))),
        "validation": (),
        "test": (session("sub-brown"),),
    },
)


def slices_of(
    cohort: Cohort, split: SplitName, pairs: tuple[ContrastPair, ...], *, each: bool = False
) -> tuple[Slice[ContrastPair], ...]:
    return list_slices(list_visits(cohort, split, pairs, each=each))


def examples(
    *pairs: ContrastPair, split: SplitName = "train", each: bool = False, **change: object
):
    found = slices_of(COHORT, split, pairs, each=each)
    return Slices(found, CODING, replace(STILL, **change))  # pyright: ignore[reportArgumentType]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ("both", [0, 1, 1, 0, 0, 0, 1, 0]),
        ("site", [0, 1, 0, 0, 0, 0, 0, 0]),
        ("task", [0, 0, 1, 0, 0, 0, 1, 0]),
        ("none", [0, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_a_code_is_site_source_and_target_one_hots_in_a_row(codes: str, code: list[int]):
    coding = replace(CODING, codes=codes)  # pyright: ignore[reportArgumentType]
    assert coding.size == 8
    assert coding.code("birch", T1_T2).tolist() == code


def test_every_site_and_pair_has_a_code_of_its_own():
    pairs = [ContrastPair(a, b) for a in CONTRASTS for b in CONTRASTS if a != b]
    codes = {tuple(CODING.code(s, p).tolist()) for s in CODING.sites for p in pairs}
    assert len(codes) == 2 * 6


def test_a_label_reads_back():
    assert ContrastPair.parse("T1w->T2w") == ContrastPair.parse(" T1w -> T2w ") == T1_T2
    assert T1_T2.label == "T1w->T2w"


def test_training_lists_each_slice_once_and_evaluation_once_for_each_pair():
    assert len(examples(T1_T2, T2_PD)) == 4
    assert len(examples(T1_T2, T2_PD, each=True)) == 6
    assert len(examples(T1_T2, T2_PD, split="test", each=True)) == 4
    assert len(examples(T1_T2, split="validation")) == 0


def test_a_slice_serves_only_pairs_whose_contrasts_its_session_has():
    served = {e.visit.patient: e.visit.labels for e in examples(T1_T2, T2_PD).slices}
    assert sorted(served.values(), key=len) == [(T1_T2,), (T1_T2, T2_PD)]
    assert len(examples(T2_PD)) == 2


def test_a_batch_pairs_source_and_target_with_their_codes():
    batch = examples(T1_T2, PD_T1, split="test", each=True).batch([0, 1, 3], None)
    source, target = batch["source"][:, 0, 0, 0], batch["target"][:, 0, 0, 0]
    assert batch["source"].shape == batch["target"].shape == (3, 1, 4, 6)
    assert ((source + 1) / 2).tolist() == pytest.approx([0.0, 0.1, 0.6])
    assert ((target + 1) / 2).tolist() == pytest.approx([0.25, 0.35, 0.1])
    assert batch["pair"].tolist() == [[0, 1], [0, 1], [2, 0]]
    assert batch["code"].tolist() == [
        CODING.code("alder", pair).tolist() for pair in (T1_T2, T1_T2, PD_T1)
    ]


def test_intensities_go_from_minus_one_to_one():
    batch = examples(T1_T2).batch([0], None)
    assert batch["source"].unique().tolist() == [-1.0]
    assert batch["target"].unique().tolist() == [-0.5]


def test_a_slice_of_two_pairs_draws_each_half_of_the_time():
    found = examples(T1_T2, PD_T1, split="test")
    sources = found.batch([0] * 1000, seeded())["pair"][:, 0]
    assert 450 < int((sources == 0).sum()) < 550


def test_the_generator_alone_decides_what_is_drawn():
    found = examples(T1_T2, PD_T1, split="test", flip=0.5)
    first, again, other = (found.batch([0, 1] * 8, seeded(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pair"], other["pair"])


def ramp() -> Tensor:
    """Source and target of a sample: columns from left to right, and twice as bright."""
    columns = torch.arange(6.0).expand(4, 6) / 12
    return torch.stack([columns, 2 * columns])


def test_a_flip_mirrors_source_and_target_together():
    flipped = Augmentation(flip=1.0)(ramp(), seeded(), training=True)
    assert torch.equal(flipped, ramp().flip(-1))


def test_half_of_the_training_slices_are_flipped():
    generator, half = seeded(), Augmentation(flip=0.5)
    flipped = [float(half(ramp(), generator, training=True)[0, 0, 0]) > 0 for _ in range(1000)]
    assert 450 < sum(flipped) < 550


@pytest.mark.parametrize(("flip", "training"), [(0.0, True), (1.0, False)])
def test_nothing_is_flipped_in_evaluation_or_at_probability_zero(flip: float, training: bool):
    found = Augmentation(flip=flip)(ramp(), seeded(), training=training)
    assert torch.equal(found, ramp())


def test_slice_intensity_scales_each_image_to_its_own_range_in_8_bits():
    found = Augmentation(flip=0.0, intensity="slice")(ramp(), seeded(), training=False)
    assert torch.equal(found[0], found[1])
    assert (found[0, 0] * 255).tolist() == pytest.approx([0, 51, 102, 153, 204, 255], abs=1e-4)


def test_slice_intensity_of_an_empty_image_is_empty():
    empty = torch.full((2, 4, 6), 0.3)
    found = Augmentation(flip=0.0, intensity="slice")(empty, seeded(), training=False)
    assert torch.equal(found, torch.zeros(2, 4, 6))


def test_resize_and_crop_keeps_the_size_and_the_range_and_moves_both_images_together():
    crop = Augmentation(flip=0.0, crop="resize-crop")
    image = torch.rand(1, 32, 32, generator=seeded())
    generator = seeded(1)
    found = [crop(image.repeat(2, 1, 1), generator, training=False) for _ in range(8)]
    assert all(f.shape == (2, 32, 32) and f.min() >= 0 and f.max() <= 1 for f in found)
    assert all(torch.equal(f[0], f[1]) for f in found)
    assert len({float(f.sum()) for f in found}) > 1


def smooth(size: int) -> Tensor:
    """Two images of 8-bit values, with edges."""
    image = torch.rand(1, 2, size // 8, size // 8, generator=seeded())
    return (nn.functional.interpolate(image, (size, size))[0] * 255).round() / 255


def pillow(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge as the released code does."""
    pixels = (image * 255).round().to(torch.uint8).numpy()
    large = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(large)).float() / 255


def place(part: Tensor, whole: Tensor) -> tuple[int, int]:
    """Where a part of a whole was cut out."""
    places = [n - m + 1 for n, m in zip(whole.shape, part.shape, strict=True)]
    corner = part[:16, :16]  # enough to tell the places apart
    windows = whole.unfold(0, 16, 1).unfold(1, 16, 1)[: places[0], : places[1]]
    return divmod(int((windows - corner).abs().mean((2, 3)).argmin()), places[1])


def test_the_released_crop_is_pillows_286_pixels_cut_at_0_to_29():
    crop, images, generator = Augmentation(flip=0.0, crop="released"), smooth(256), seeded(1)
    whole = [pillow(image, (286, 286)) for image in images]
    found = [crop(images, generator, training=False) for _ in range(4)]
    for parts in found:
        top, left = place(parts[0], whole[0])
        for part, large in zip(parts, whole, strict=True):
            difference = (part - large[top : top + 256, left : left + 256]).abs()
            assert difference.max() <= 2 / 255 + 1e-6
            assert difference.mean() < 0.05 / 255


def test_the_released_crop_begins_at_every_place_but_the_last():
    """Of 32 pixels, 36 are made: 0 to 3, as 0 to 29 of 286; "resize-crop" goes up to 4."""
    assert offsets("released") == {0, 1, 2, 3}
    assert offsets("resize-crop") == {0, 1, 2, 3, 4}


def offsets(crop: Literal["resize-crop", "released"]) -> set[int]:
    images = torch.linspace(0, 1, 32).repeat(2, 32, 1)
    whole = nn.functional.interpolate(images[None], (36, 36), mode="bicubic")[0, 0]
    augmentation, generator = Augmentation(flip=0.0, crop=crop), seeded(1)
    found = [augmentation(images, generator, training=True)[0] for _ in range(60)]
    return {place(part, whole)[1] for part in found}


def test_the_released_crop_is_of_8_bits():
    found = Augmentation(flip=0.0, crop="released")(smooth(32), seeded(), training=False)
    assert (found * 255 - (found * 255).round()).abs().max() < 1e-4


def test_evaluation_without_a_generator_is_the_same_every_time():
    found = examples(T1_T2, split="test", each=True, flip=1.0, crop="resize-crop")
    first, again = found.batch([0, 1], None), found.batch([0, 1], None)
    assert torch.equal(first["source"], again["source"])


def test_a_case_is_named_by_pseudonyms():
    found = examples(T1_T2, split="test", each=True)
    case = found.case(1)
    assert (case.site, case.case, case.task) == ("alder", "1/001", "T1w->T2w")
    assert case.patient in {"p001", "p002", "p003"}


def test_pseudonyms_hold_no_patient_label_and_do_not_follow_the_alphabet():
    patients = tuple(session(f"sub-{number:02d}") for number in range(20))
    cohort = Cohort("alder", {"train": patients, "validation": (), "test": ()})
    found = slices_of(cohort, "train", (T1_T2,))
    given = {each.visit.session.patient: each.visit.patient for each in found}
    assert sorted(given.values()) == [f"p{number:03d}" for number in range(1, 21)]
    assert [given[patient] for patient in sorted(given)] != sorted(given.values())


def test_pseudonyms_tell_nothing_of_the_split_and_differ_between_sites():
    """The numbers of a patient must not change when another split is listed."""
    train = slices_of(COHORT, "train", (T1_T2,))
    test = slices_of(COHORT, "test", (T1_T2,), each=True)
    assert len({each.visit.patient for each in (*train, *test)}) == 3
    patients = tuple(session(f"sub-{number:02d}") for number in range(20))
    orders = [
        [each.visit.patient for each in slices_of(cohort, "train", (T1_T2,))]
        for cohort in (Cohort(s, {"train": patients}) for s in ("alder", "birch"))
        for cohort in (replace(cohort, splits={**cohort.splits, "validation": (), "test": ()}),)
    ]
    assert orders[0] != orders[1]


def test_a_case_does_not_carry_the_sites_own_label_of_a_session():
    """Session labels are often dates; a case is a pseudonym that only the site can resolve."""
    dated = replace(session("sub-smith"), session="ses-20240131")
    cohort = Cohort("alder", {"train": (), "validation": (), "test": (dated,)})
    found = slices_of(cohort, "test", (T1_T2,), each=True)
    assert "20240131" not in Slices(found, CODING, STILL).case(0).case


def test_two_sessions_of_a_patient_are_one_patient_and_different_cases():
    twice = tuple(replace(session("sub-smith"), session=label) for label in ("ses-1", "ses-2"))
    cohort = Cohort("alder", {"train": (), "validation": (), "test": twice})
    found = Slices(slices_of(cohort, "test", (T1_T2,), each=True), CODING, STILL)
    cases = [found.case(index) for index in range(len(found))]
    assert {case.patient for case in cases} == {"p001"}
    assert len({case.case for case in cases}) == len(cases) == 4
