"""Every hospital's model at every hospital: the numbers, the sentence and the heat map."""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.core.errors import BadFolder
from grandrounds.core.run_folder import SCORE_COLUMNS
from grandrounds.report.analysis.cross_site import CrossSiteMatrix, cross_site_matrices
from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.page.html import write_report
from grandrounds.report.prose.generalisation import alike, travels
from tests.helpers.run_folders import FEDAVG, PFLSYNTH, Plan, run_folder, write_comparison

SITES = ("alder", "birch", "cedar")
APART = {  # whose model -> whose patients, in dB
    "alder": {"alder": 30.0, "birch": 19.0, "cedar": 24.0},
    "birch": {"alder": 26.0, "birch": 20.0, "cedar": 22.0},
    "cedar": {"alder": 29.5, "birch": 20.5, "cedar": 25.0},
}
ALIKE: dict[str, dict[str, float]] = dict.fromkeys(SITES, APART["alder"])


def small(plan: Plan) -> Plan:
    return replace(plan, sites=SITES)


def write_matrix(
    folder: Path, means: Mapping[str, Mapping[str, float]], *, metric: str = "psnr", seed: int = 7
) -> None:
    """Write two patients of each site, one of them with two slices."""
    with (folder / "matrix.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", *SCORE_COLUMNS))
        for model, row in means.items():
            for site, mean in row.items():
                head = [model, "an-arm", seed, site]
                for patient, case, off in (("a", "1", -1), ("a", "2", -3), ("b", "1", 2)):
                    writer.writerow([*head, patient, case, "T1w->T2w", metric, mean + off, 10])


def crossed(tmp_path: Path, *, rivals: Mapping[str, Mapping[str, float]] = ALIKE) -> Path:
    """Write a comparison whose protagonist's models are APART."""
    folder = write_comparison(tmp_path / "c", [small(PFLSYNTH), small(FEDAVG)])
    write_matrix(run_folder(folder, "pflsynth"), APART)
    write_matrix(run_folder(folder, "fedavg"), rivals)
    return folder


def first(folder: Path) -> CrossSiteMatrix:
    return cross_site_matrices(read_facts(folder))[0]


def test_a_cell_is_the_mean_over_patients_whatever_slices_they_have(tmp_path: Path):
    assert first(crossed(tmp_path)).means == APART


def test_seeds_are_averaged_after_patients(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [small(PFLSYNTH)], seeds=(7, 8))
    higher = {model: {site: v + 1 for site, v in row.items()} for model, row in APART.items()}
    write_matrix(run_folder(folder, "pflsynth", 7), APART)
    write_matrix(run_folder(folder, "pflsynth", 8), higher, seed=8)
    assert first(folder).means["birch"]["cedar"] == 22.5


def test_a_model_is_judged_beside_the_other_hospitals_own_models(tmp_path: Path):
    crossing = first(crossed(tmp_path))
    assert crossing.better("alder") == ((19 - 20) + (24 - 25)) / 2
    assert crossing.better("birch") == ((26 - 30) + (22 - 25)) / 2
    assert crossing.better("cedar") == ((29.5 - 30) + (20.5 - 20)) / 2


def test_the_sentence_names_the_best_and_the_worst_traveller_and_the_mean_loss(tmp_path: Path):
    assert travels(first(crossed(tmp_path))).replace("\u00a0", " ") == (
        "Of the models of pFLSynth, Cedar's travels best and Birch's worst (PSNR): at the other "
        "hospitals Cedar's is on average practically as good as these hospitals' own, and Birch's "
        "3.5 dB worse than them. A hospital that uses another's model instead of its own loses "
        "1.5 dB on average."
    )


def test_where_lower_is_better_a_higher_score_is_a_loss(tmp_path: Path):
    folder = crossed(tmp_path)
    for arm in ("pflsynth", "fedavg"):
        scores = run_folder(folder, arm) / "scores.csv"
        kept = [line for line in scores.read_text().splitlines() if ",psnr," not in line]
        scores.write_text("\n".join(line for line in kept if ",ssim," not in line) + "\n")
    write_matrix(run_folder(folder, "pflsynth"), APART, metric="nrmse")
    crossing = first(folder)
    assert crossing.better("alder") == 1.0
    assert [crossing.shade(model, "alder") for model in SITES] == [0.0, 1.0, 0.125]


def test_the_tint_runs_from_the_worst_to_the_best_of_a_column(tmp_path: Path):
    crossing = first(crossed(tmp_path))
    assert [crossing.shade(model, "alder") for model in SITES] == [1.0, 0.0, 0.875]


@pytest.mark.slow
def test_equal_rows_are_a_sentence_instead_of_a_table(tmp_path: Path):
    folder = crossed(tmp_path)
    found = cross_site_matrices(read_facts(folder))
    assert [crossing.alike for crossing in found] == [False, True]
    said = "With FedAvg all hospitals have the same model"
    assert alike(found).startswith(said)
    page = write_report(folder).read_text()
    assert said in page
    assert page.count('<table class="matrix">') == 1


def test_a_pooled_model_is_nobodys_and_serves_all(tmp_path: Path):
    folder = crossed(tmp_path, rivals={"pooled": APART["alder"]})
    assert cross_site_matrices(read_facts(folder))[1].alike


def test_the_own_model_is_framed_and_said_in_words_and_other_arms_are_folded(tmp_path: Path):
    page = write_report(crossed(tmp_path, rivals=APART)).read_text()
    section = page[page.index('<section id="crossing"') : page.index('<section id="learning"')]
    assert section.count('class="own"') == section.count("its own model") == 2 * len(SITES)
    assert section.index("30.00") < section.index("<details>") < section.index("FedAvg")


def test_held_out_hospitals_are_columns_without_a_model_of_their_own(tmp_path: Path):
    folder = crossed(tmp_path)
    study = run_folder(folder, "pflsynth") / "study.toml"
    site = '[[site]]\nname = "elder"\ndata = "simulated"\n'
    study.write_text('holdout_sites = ["elder"]\n' + study.read_text() + site)
    held = {model: row | {"elder": 21.0} for model, row in APART.items()}
    write_matrix(run_folder(folder, "pflsynth"), held)
    crossing = first(folder)
    assert (crossing.models, crossing.sites) == (SITES, (*SITES, "elder"))
    assert crossing.better("alder") == -1.0
    assert "<td" in write_report(folder).read_text()


def test_without_a_matrix_there_is_no_section(tmp_path: Path):
    page = write_report(write_comparison(tmp_path / "c", [PFLSYNTH])).read_text()
    assert 'id="crossing"' not in page


def test_a_matrix_without_its_first_column_is_explained(tmp_path: Path):
    folder = crossed(tmp_path)
    (run_folder(folder, "pflsynth") / "matrix.csv").write_text(",".join(SCORE_COLUMNS) + "\n")
    with pytest.raises(BadFolder, match=r"matrix\.csv: no column model"):
        read_facts(folder)
