"""One dataset dealt to pseudo-sites."""

import json
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.core.errors import BadFolder, BadImage, BadSite, BadStudy
from grandrounds.data.partition import PartitionPlan, assign, counts, read_dataset, write_sites
from grandrounds.runs.site_data import open_sites
from grandrounds.study.file import example, read_study
from grandrounds.study.site_file import read_site
from tests.helpers.command import inside

LABELS = np.array([1.0] * 300 + [0.0] * 100)
PLAN = PartitionPlan(4, 2.0, 1, least=1)


def spread(alpha: float) -> float:
    """How far the sites' shares of positives lie apart, over several seeds."""
    dealt = [assign(LABELS, replace(PLAN, alpha=alpha, seed=s, least=0)) for s in range(10)]
    return float(np.mean([np.std([LABELS[hand].mean() for hand in hands]) for hands in dealt]))


@pytest.mark.slow
@given(
    sites=st.integers(2, 6), alpha=st.sampled_from([0.1, 1.0, 100.0, inf]), seed=st.integers(0, 50)
)
def test_every_patient_goes_to_exactly_one_site(sites: int, alpha: float, seed: int):
    dealt = assign(LABELS, PartitionPlan(sites, alpha, seed, least=0))
    assert sorted(int(i) for hand in dealt for i in hand) == list(range(len(LABELS)))
    sizes = [len(hand) for hand in dealt]
    assert max(sizes) - min(sizes) <= 1


def test_a_seed_deals_the_same_again_and_another_does_not():
    first, again, other = (assign(LABELS, replace(PLAN, seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_larger_alpha_makes_sites_more_alike():
    assert spread(0.5) > 2 * spread(50.0)
    assert spread(inf) < 0.06  # that of 100 draws at 3 in 4 is 0.043


def test_cases_limits_every_site():
    dealt = assign(LABELS, replace(PLAN, cases=30))
    assert [len(hand) for hand in dealt] == [30] * 4
    assert len({int(i) for hand in dealt for i in hand}) == 120


def test_counts_are_of_each_class_at_each_site():
    hands = (np.array([0, 1, 399]), np.array([398]))
    assert counts(LABELS, hands) == [{"0": 1, "1": 2}, {"0": 1, "1": 0}]


def test_a_site_with_too_few_of_a_class_is_refused():
    with pytest.raises(BadSite, match=r"would get \d+ of class 0, fewer than --least 40"):
        assign(LABELS, replace(PLAN, least=40))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sites": 1}, "--sites is 1; it must be 2 or more"),
        ({"alpha": 0.0}, "--alpha is 0; it must be above 0"),
        ({"alpha": float("nan")}, "--alpha is nan"),
        ({"least": -1}, "--least is -1"),
        ({"cases": -5}, "--cases is -5"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(options: dict[str, float], says: str):
    with pytest.raises(BadStudy, match=says):
        replace(PLAN, **options)  # pyright: ignore[reportArgumentType]


def test_more_cases_than_there_are_is_refused():
    with pytest.raises(BadStudy, match="4 sites then need 800 patients, but there are 400"):
        assign(LABELS, replace(PLAN, cases=200))


def medmnist(folder: Path, **arrays: np.ndarray) -> Path:
    parts = {"train": 30, "val": 10, "test": 20}
    images = {f"{part}_images": np.full((n, 4, 4), n, np.uint8) for part, n in parts.items()}
    labels = {f"{part}_labels": np.arange(n)[:, None] % 2 for part, n in parts.items()}
    np.savez(folder / "source.npz", **{**images, **labels, **arrays})  # pyright: ignore[reportArgumentType]
    return folder / "source.npz"


def test_the_parts_of_a_medmnist_file_are_laid_together(tmp_path: Path):
    pool = read_dataset(medmnist(tmp_path), "ill")
    assert pool.labels.tolist() == [n % 2 for parts in (30, 10, 20) for n in range(parts)]
    assert [int(image[0, 0]) for image in pool.arrays["images"]] == [30] * 30 + [10] * 10 + [
        20
    ] * 20


def test_a_file_with_many_labels_an_image_is_refused(tmp_path: Path):
    many = {
        f"{part}_labels": np.zeros((n, 14))
        for part, n in (("train", 30), ("val", 10), ("test", 20))
    }
    with pytest.raises(BadImage, match=r"shape \(60, 14\); each image must have one"):
        read_dataset(medmnist(tmp_path, **many), "ill")


def test_a_patient_keeps_all_images_and_a_missing_label_is_refused(tmp_path: Path):
    patients = np.array([f"sub-{n // 3}" for n in range(60)])
    images, ill = np.arange(60 * 4, dtype=np.uint8).reshape(60, 2, 2), (np.arange(60) // 3) % 2.0
    np.savez(tmp_path / "s.npz", images=images, patient=patients, ill=ill, age=np.arange(60.0))
    pool = read_dataset(tmp_path / "s.npz", "ill")
    plan = PartitionPlan(2, inf, 1, least=1)
    write_sites(pool, assign(pool.labels, plan), plan, tmp_path / "out")
    found = [dict(np.load(tmp_path / "out" / name / "images.npz")) for name in plan.names]
    assert sorted(age for own in found for age in own["age"]) == list(range(60))
    assert not set(found[0]["patient"]) & set(found[1]["patient"])
    for own in found:
        assert [images[int(age)].tolist() for age in own["age"]] == own["images"].tolist()
        assert [patients[int(age)] for age in own["age"]] == own["patient"].tolist()
    np.savez(tmp_path / "m.npz", images=images, ill=np.where(ill > 0, ill, np.nan))
    with pytest.raises(BadImage, match="'ill' is missing for some"):
        read_dataset(tmp_path / "m.npz", "ill")


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path):
    pool = read_dataset(medmnist(tmp_path), "ill")
    with pytest.raises(BadFolder, match="is not empty"):
        write_sites(pool, assign(pool.labels, PLAN), PLAN, tmp_path)


def test_real_radiographs_become_the_sites_of_the_study(
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    source = real_data / "classification" / "pneumoniamnist_subset.npz"
    options = ("--sites", "4", "--alpha", "2", "--cases", "200", "--variable", "pneumonia")
    out = tmp_path / "xray"
    done = inside(monkeypatch, capsys, "partition", source, *options, "--out", out, "--json")
    told = json.loads(done.out)["sites"]
    files = [read_site(path) for path in sorted(out.glob("*.toml"))]
    opened = open_sites(read_study(example("xray")), files)
    assert list(opened) == list(told)
    for name, site in opened.items():
        values = [session.values["pneumonia"] for session in site.cohorts[0]]
        assert {"0": values.count(0), "1": values.count(1)} == told[name]
        assert len(values) == 200
        assert min(told[name].values()) >= 10


def test_the_table_names_every_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ("--sites", "2", "--alpha", "inf", "--variable", "ill", "--out", tmp_path / "out")
    done = inside(monkeypatch, capsys, "partition", medmnist(tmp_path), *words)
    assert done.code == 0
    for word in ("site-1", "site-2", "ill 0", "ill 1"):
        assert word in done.out
