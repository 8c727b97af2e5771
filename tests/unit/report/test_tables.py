"""Rows of the page's tables, and of those that a command prints."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.cli.output import show
from grandrounds.report.analysis.facts import Facts, read_facts
from grandrounds.report.analysis.metrics import METRICS
from grandrounds.report.analysis.statistics import Spread
from grandrounds.report.page import tables
from tests.helpers.run_folders import (
    ALONE_PLAIN,
    ARMS,
    FEDAVG,
    PFLSYNTH,
    run_folder,
    write_comparison,
)

PSNR = METRICS["psnr"]
SEEDS = (7, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arms = [replace(PFLSYNTH, drift=1.0), *ARMS[1:]]
    return write_comparison(tmp_path_factory.mktemp("comparison"), arms, seeds=SEEDS)


@pytest.fixture(scope="module")
def facts(folder: Path) -> Facts:
    return read_facts(folder)


@pytest.mark.parametrize(
    ("metric", "means", "best"),
    [
        ("psnr", [24.0, 25.0, None], [False, True, False]),
        ("nrmse", [0.2, 0.1], [False, True]),
        ("ssim", [0.911, 0.909], [True, True]),
        ("psnr", [None], [False]),
    ],
)
def test_the_best_as_printed_is_marked(metric: str, means: list[float | None], best: list[bool]):
    spreads = [None if mean is None else Spread(mean, 0.5, 8) for mean in means]
    assert [cell.best for cell in tables.cells(spreads, METRICS[metric])] == best


def test_a_standing_tells_the_worst_site_and_how_far_sites_lie_apart(facts: Facts):
    first, second, *_ = tables.standings(facts, PSNR)
    assert (first.seeds, first.cell.mean, first.seed_sd) == ("2 of 2", "24.73", "0.71")
    assert first.worst.replace("\u00a0", " ") == "23.9 dB, Birch"
    assert first.apart.replace("\u00a0", " ") == "2.1 dB"
    assert (second.worst.split(", ")[1], second.worse_than_alone) == ("Cedar", 4)
    assert [row.cell.best for row in tables.standings(facts, PSNR)] == [True, False, False, False]


def test_arms_are_rows_and_sites_are_columns(facts: Facts):
    rows = tables.overview(facts, PSNR)
    assert [row.arm.name for row in rows] == [plan.name for plan in ARMS]
    assert [cell.mean for cell in rows[1].cells] == ["24.50", "21.30", "19.90", "22.90"]


def test_differences_share_an_axis_that_holds_zero(facts: Facts):
    gains = tables.site_gains(facts)
    assert [gain.label for gain in gains.rows][-1] == "All hospitals"
    assert gains.rows[-1].composite
    assert all(0 <= gains.axis.share(value) <= 1 for value in (0.0, gains.rows[0].paired.mean))
    assert {gain.label for gain in tables.arm_gains(facts).rows} == {p.title for p in ARMS[1:]}


def test_what_a_run_cost_is_averaged_over_seeds(facts: Facts):
    first = tables.costs(facts)[0]
    assert (first.parameters, first.moved) == ("545,569", "137.0 MB")
    assert first.seconds == pytest.approx(76.0)


def printed(folder: Path, capsys: pytest.CaptureFixture[str], *, as_json: bool = False) -> str:
    show(folder, folder / "report.html", as_json=as_json, quiet=False)
    return capsys.readouterr().out


def test_few_arms_are_printed_as_columns(folder: Path, capsys: pytest.CaptureFixture[str]):
    said = printed(folder, capsys)
    assert "of 2 seeds" in said
    assert "T2w->PDw" in said


@pytest.mark.slow
def test_many_arms_are_printed_as_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    more = [replace(FEDAVG, name=f"m{n}", title=f"M{n}") for n in range(2)]
    write_comparison(tmp_path, [*ARMS, *more], seeds=SEEDS)
    (run_folder(tmp_path, "m1", 8) / "scores.csv").unlink()
    lines = printed(tmp_path, capsys).splitlines()
    row, costs = [line for line in lines if "M1" in line]
    assert "720 │      720 │     22.0 s │ 137.0 MB" in costs
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        *("M1", "22.15", "24.50", "21.30", "19.90", "22.90", "1"),
    ]


@pytest.mark.slow
def test_json_has_seeds_means_and_statistics(folder: Path, capsys: pytest.CaptureFixture[str]):
    told = json.loads(printed(folder, capsys, as_json=True))
    assert (told["seeds"], told["metric"], told["unfinished"]) == ([7, 8], "psnr", [])
    assert len(told["summary"]) == 6
    first, other = told["arms"]["pflsynth"], told["arms"][ALONE_PLAIN.name]
    assert first["seeds"]["8"]["psnr"] - first["seeds"]["7"]["psnr"] == pytest.approx(1.0)
    overall = first["statistics"]["overall"]["psnr"]
    assert (overall["worst_site"], overall["n"]) == ("birch", 4)
    assert overall["interval"]["low"] < overall["mean"] < overall["interval"]["high"]
    difference = other["statistics"]["first_arm_minus_this"]
    assert difference["mean"] == pytest.approx(0.15 + 0.5)
    assert difference["p"] <= difference["p_holm"]
    assert other["statistics"]["first_arm_minus_this_at"]["birch"]["n"] == 16
    assert first["statistics"]["first_arm_minus_this"] is None
