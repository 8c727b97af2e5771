"""The pictures of the page: whose, by which rule, and of which arms."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from grandrounds.cli.app import app
from grandrounds.core.errors import BadFolder, BadStudy
from grandrounds.core.events import SiteReady
from grandrounds.core.journal import Journal, read_journal
from grandrounds.report.analysis.facts import Facts, read_facts
from grandrounds.report.page.html import write_report
from grandrounds.report.page.pictures import PanelChoice, choices, panel_rows, panels_of, rule
from grandrounds.report.prose.sentences import no_pictures
from tests.helpers.run_folders import (
    ALONE_PLAIN,
    ARMS,
    FEDAVG,
    PFLSYNTH,
    real,
    run_folder,
    write_comparison,
    write_run,
)

pytestmark = pytest.mark.slow

ALL = tuple(range(8))
TASK = "T1w->T2w"


def pictured(folder: Path, *, seeds: tuple[int, ...] = (7,)) -> Facts:
    arms = [replace(plan, pictured=ALL) for plan in ARMS[:2]]
    return read_facts(write_comparison(folder, arms, seeds=seeds))


def at(chosen: list[PanelChoice], site: str, task: str = TASK) -> dict[str, set[str]]:
    found = [choice for choice in chosen if (choice.site, choice.task) == (site, task)]
    return {choice.role: {p.patient for _, _, p in choice.panels} for choice in found}


def test_the_median_and_the_worst_patient_of_the_protagonist_are_shown(tmp_path: Path):
    # pFLSynth's patients: -1.4 + 0.35, -1.0 - 0.35, ... the second is worst, median the third.
    facts = pictured(tmp_path / "c")
    psnr = facts.arms[0].runs[0].scores["alder", TASK, "psnr"]
    by_worth = sorted(psnr, key=lambda patient: psnr[patient])
    assert at(choices(facts), "alder") == {
        "Median patient": {by_worth[3]},
        "Worst patient": {by_worth[0]},
    }
    assert by_worth[0] == "alder-1"


def test_every_arm_shows_the_same_patient_of_the_same_seed(tmp_path: Path):
    facts = pictured(tmp_path / "c", seeds=(7, 8))
    for choice in choices(facts):
        assert [arm.name for arm, _, _ in choice.panels] == ["pflsynth", "fedavg"]
        assert {run.seed for _, run, _ in choice.panels} == {7}


def test_where_lower_is_better_the_worst_is_the_highest(tmp_path: Path):
    folder = write_run(tmp_path / "run", replace(PFLSYNTH, pictured=ALL))
    text = (folder / "scores.csv").read_text().splitlines()
    kept = [line for line in text if ",nrmse," in line or line.startswith("arm")]
    (folder / "scores.csv").write_text("\n".join(kept) + "\n")
    facts = read_facts(folder)
    nrmse = facts.arms[0].runs[0].scores["birch", TASK, "nrmse"]
    worst = max(nrmse, key=lambda patient: nrmse[patient])
    assert at(choices(facts), "birch")["Worst patient"] == {worst}


@pytest.mark.parametrize(
    ("kept", "role"),
    [((3,), "The only patient whose pictures were kept"), ((3, 5), "Worst of two patients")],
)
def test_a_few_kept_patients_are_called_what_they_are(
    tmp_path: Path, kept: tuple[int, ...], role: str
):
    facts = read_facts(write_run(tmp_path / "run", replace(PFLSYNTH, pictured=kept)))
    assert at(choices(facts), "alder") == {role: {"alder-3"}}


def test_an_arm_that_kept_no_picture_of_the_patient_is_left_out(tmp_path: Path):
    arms = [PFLSYNTH, replace(FEDAVG, pictured=(5,)), ALONE_PLAIN]
    facts = read_facts(write_comparison(tmp_path / "c", arms))
    rows = panel_rows(facts, choices(facts), 0.2)
    titles = [[view.arm.name for view in row.shown] for row in rows["alder", TASK]]
    assert titles == [["pflsynth", "local-plain"]]


def test_of_many_arms_the_others_are_folded_and_have_no_error_maps(tmp_path: Path):
    more = [replace(FEDAVG, name=f"m{n}", title=f"M{n}") for n in range(4)]
    facts = read_facts(write_comparison(tmp_path / "c", [*ARMS, *more]))
    [row] = panel_rows(facts, choices(facts), 0.2)["birch", TASK]
    assert len(row.shown) + len(row.folded) == 8
    assert all(view.error for view in row.shown)
    assert not any(view.error for view in row.folded)


def test_the_rule_is_told_with_the_pictures(tmp_path: Path):
    facts = pictured(tmp_path / "c")
    assert rule(facts) == (
        "the median and the worst of the patients whose pictures were kept, by pFLSynth's mean "
        "PSNR, and the middle image of each; the figure below a picture is that patient's mean PSNR"
    )


def test_missing_pictures_of_real_patients_are_explained(tmp_path: Path):
    folder = write_run(tmp_path / "run", real(PFLSYNTH))
    (folder / "sites" / "alder" / "panels.npz").unlink()
    facts = read_facts(folder)
    assert "images of patients stay at the hospital" in no_pictures(facts, "alder")
    assert "images of patients stay at the hospital" in write_report(folder).read_text()


def test_pictures_of_real_patients_are_shown_only_where_the_report_is_asked_for_them(
    tmp_path: Path,
):
    folder = write_comparison(tmp_path / "c", [real(PFLSYNTH), real(FEDAVG)])
    page = write_report(folder).read_text()
    assert "<img" not in page
    assert "lets its run keep some" in page
    assert "--include-images" in page
    assert write_report(folder, include_images=True).read_text().count("<img") == 4 * 2 * 6


def test_of_a_mixed_study_the_simulated_hospitals_are_shown(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH)
    journal = folder / "journal.jsonl"
    told = [event for _, event in read_journal(journal)]
    journal.unlink()
    for event in told:
        is_real = isinstance(event, SiteReady) and event.site == "birch"
        Journal(journal)(replace(event, simulated=False) if is_real else event)
    facts = read_facts(folder)
    assert {choice.site for choice in choices(facts)} == {"alder", "cedar", "dogwood"}
    assert len({choice.site for choice in choices(facts, include_images=True)}) == 4


def test_the_command_passes_the_wish_for_images_on(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [real(PFLSYNTH)])
    assert CliRunner().invoke(app, ["report", str(folder), "--quiet"]).exit_code == 0
    assert "<img" not in (folder / "report.html").read_text()
    done = CliRunner().invoke(app, ["report", str(folder), "--quiet", "--include-images"])
    assert done.exit_code == 0
    assert "<img" in (folder / "report.html").read_text()


def test_a_live_report_shows_no_images_of_real_patients(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [real(PFLSYNTH)])
    done = CliRunner().invoke(app, ["report", str(folder), "--serve", "--include-images"])
    assert isinstance(done.exception, BadStudy)


def test_pictures_that_nobody_scored_are_shown_without_a_claim(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH)
    (folder / "scores.csv").unlink()
    assert at(choices(read_facts(folder)), "alder") == {"Test patient": {"alder-3"}}


def test_only_what_is_shown_is_read(tmp_path: Path):
    facts = pictured(tmp_path / "c")
    assert len(panels_of(choices(facts))) == 4 * 2 * 2 * 2  # sites, tasks, patients, arms


def test_a_picture_that_lacks_an_image_is_explained(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [PFLSYNTH])
    path = run_folder(folder, "pflsynth") / "sites" / "alder" / "panels.npz"
    arrays = {name: array for name, array in np.load(path).items() if name != "0/target"}
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadFolder, match="not a file of panels"):
        write_report(folder)
