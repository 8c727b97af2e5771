"""What a paper takes from a folder: valid files, the report's own numbers, and the same bytes."""

import csv
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from grandrounds.cli.app import app
from grandrounds.core.errors import DiskFailed
from grandrounds.report.analysis.cross_site import cross_site_matrices
from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.analysis.statistics import Interval, paired
from grandrounds.report.page.style import styles
from grandrounds.report.paper.figures import curves_figure, gains_figure, matrix_figure
from grandrounds.report.paper.latex import best_rows, digits, escaped, number, p_value_text
from grandrounds.report.paper.publish import SUFFIXES, publish
from grandrounds.report.paper.style import MIDDLE, WIDE, house_style
from tests.helpers.run_folders import (
    ALONE_PLAIN,
    ARMS,
    FEDAVG,
    PFLSYNTH,
    SITES,
    real,
    run_folder,
    write_comparison,
    write_matrix,
    write_run,
)

pytestmark = pytest.mark.slow

FIGURES = ("gains", "overall", "curves", "matrix", "panels")
ODD = "50 % of_arms & #1 {x} ~ \\ $"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a comparison of four arms with two seeds and a matrix, and publish it."""
    folder = tmp_path_factory.mktemp("comparison")
    arms = [replace(PFLSYNTH, drift=0.2), *ARMS[1:]]
    write_comparison(folder, arms, seeds=(7, 8))
    for seed in (7, 8):
        write_matrix(run_folder(folder, "pflsynth", seed), replace(arms[0], seed=seed))
    publish(folder)
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> dict[str, bytes]:
    found = [path for part in ("figures", "tables") for path in (folder / part).iterdir()]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in found}


def words_of(path: Path) -> list[str]:
    return [text.text or "" for text in ElementTree.parse(path).iter(f"{SVG}text")]


def test_every_figure_is_there_in_all_formats_and_every_table_as_csv_and_tex(published: Path):
    figures = {f"figures/{name}{suffix}" for name in FIGURES for suffix in SUFFIXES}
    names = ("arms", "sites", "pairs", "costs")
    tables = {f"tables/{name}{suffix}" for name in names for suffix in (".csv", ".tex")}
    assert set(files(published)) == figures | tables


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_valid_and_a_column_wide_at_300_dpi(published: Path, name: str):
    root = ElementTree.parse(published / "figures" / f"{name}.svg").getroot()
    with Image.open(published / "figures" / f"{name}.png") as image:
        image.load()
        inches = float(root.attrib["width"].removesuffix("pt")) / 72
        assert image.width == pytest.approx(300 * inches, abs=1)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert MIDDLE - 0.01 <= inches <= WIDE + 0.01
        assert np.asarray(image.convert("L")).std() > 5


def test_letters_of_an_svg_are_text_that_says_the_numbers(published: Path):
    figures, facts = published / "figures", read_facts(published)
    overall = facts.arms[0].overall("psnr")
    assert overall
    assert f"{overall.mean:.2f}" in words_of(figures / "overall.svg")
    assert {"Alder", "vs Local-only (plain generator)"} <= set(words_of(figures / "gains.svg"))


def test_the_same_folder_gives_the_same_bytes(published: Path):
    before = files(published)
    publish(published)
    assert files(published) == before
    assert not any(re.search(rb"<dc:date>|202\d-", data) for data in before.values())


def test_another_matplotlibrc_changes_nothing(published: Path, monkeypatch: pytest.MonkeyPatch):
    import matplotlib as mpl

    before = files(published)
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "savefig.dpi": 20}):
        publish(published)
    assert files(published) == before


def test_the_table_of_arms_holds_the_facts(published: Path):
    facts = read_facts(published)
    rows = {
        row["arm"]: row for row in read(published / "tables/arms.csv") if row["metric"] == "psnr"
    }
    assert list(rows) == [arm.name for arm in facts.arms]
    for arm in facts.arms:
        overall, row = arm.overall("psnr"), rows[arm.name]
        assert overall
        assert overall.interval
        assert float(row["mean"]) == overall.mean
        assert float(row["interval_low"]) == overall.interval.low
        assert float(row["sd_over_seeds"]) == arm.seed_sd("psnr")
        assert int(row["sites_worse_than_local"]) == facts.num_worse_than_alone(arm)
    for name, difference in facts.compared.items():
        assert float(rows[name]["difference"]) == difference.paired.mean
        assert float(rows[name]["p_holm"]) == difference.corrected
    assert rows["pflsynth"]["difference"] == ""


def test_the_worst_site_is_the_one_with_the_lowest_mean_and_the_highest_error(published: Path):
    rows = {(r["arm"], r["metric"]): r for r in read(published / "tables/arms.csv")}
    assert rows["fedavg", "psnr"]["worst_site"] == "cedar"
    assert rows["fedavg", "nrmse"]["worst_site"] == "cedar"
    assert float(rows["fedavg", "psnr"]["best_minus_worst_site"]) == pytest.approx(4.6)


def test_the_table_of_sites_holds_every_arm_site_task_and_metric(published: Path):
    facts = read_facts(published)
    rows = read(published / "tables/sites.csv")
    assert len(rows) == 4 * 4 * 2 * 3
    for row in rows:
        [arm] = [arm for arm in facts.arms if arm.name == row["arm"]]
        spread = arm.spread(row["site"], row["task"], row["metric"])
        assert spread
        assert (float(row["mean"]), float(row["sd"])) == (spread.mean, spread.sd)
        assert int(row["patients"]) == spread.n == 16


def test_the_table_of_pairs_compares_every_two_arms_and_corrects_for_all(published: Path):
    rows = read(published / "tables/pairs.csv")
    assert len(rows) == 6
    row = next(r for r in rows if (r["first"], r["second"]) == ("fedavg", "local-plain"))
    strata = [[FEDAVG.levels[s] - ALONE_PLAIN.levels[s]] * 16 for s in SITES]
    assert float(row["difference"]) == pytest.approx(paired(strata).mean)
    assert int(row["pairs"]) == 64
    smallest = min(rows, key=lambda row: float(row["p"]))
    assert float(smallest["p_holm"]) == pytest.approx(6 * float(smallest["p"]))


def test_latex_tables_are_whole_and_every_row_has_all_its_cells(published: Path):
    for path in (published / "tables").glob("*.tex"):
        for columns, body in tabulars(path.read_text()):
            assert body[0] == r"\toprule"
            assert body[2] == r"\midrule"
            assert body[-1] == r"\bottomrule"
            for line in [body[1], *body[3:-1]]:
                assert line.endswith(r" \\")
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
                assert line.count("{") == line.count("}")
                assert line.isascii()


def tabulars(text: str) -> list[tuple[str, list[str]]]:
    found = re.findall(r"\\begin{tabular}{(\w+)}\n(.*?)\n\\end{tabular}", text, re.DOTALL)
    assert found
    return [(columns, body.split("\n")) for columns, body in found]


def test_latex_prints_the_best_in_bold_and_rounds_to_the_interval(published: Path):
    text = (published / "tables/arms.tex").read_text()
    overall = read_facts(published).arms[0].overall("psnr")
    assert overall
    assert rf"pFLSynth & \textbf{{{overall.mean:.2f}}} &" in text
    assert "FedAvg & 22.15 &" in text
    [_, *tables] = tabulars((published / "tables/sites.tex").read_text())
    assert len(tables) == 7
    assert all(r"\textbf{" in "".join(body) for _, body in tables)


def test_special_characters_of_titles_reach_latex_escaped_and_figures_as_they_are(tmp_path: Path):
    title = ODD.replace("\\", "\\\\")
    folder = write_comparison(tmp_path / "c", [replace(PFLSYNTH, title=title), FEDAVG])
    publish(folder)
    wanted = r"50 \% of\_arms \& \#1 \{x\} \textasciitilde{} \textbackslash{} \$"
    assert wanted in (folder / "tables/arms.tex").read_text()
    assert ODD in " ".join(words_of(folder / "figures/overall.svg"))


@pytest.mark.parametrize(
    ("width", "decimals"),
    [(0.062, 3), (0.7, 2), (1.9, 2), (2.4, 1), (60.0, 0), (1e-7, 4), (0.0, 2)],
)
def test_a_column_keeps_two_figures_of_its_widest_interval(width: float, decimals: int):
    assert digits([Interval(0, width), None, Interval(0, width / 9)]) == decimals


def test_numbers_have_real_signs_and_a_rounded_zero_has_none():
    assert number(-1.25, 1) == "$-$1.2"
    assert number(0.31, 2, signed=True) == "$+$0.31"
    assert number(-0.001, 2, signed=True) == "0.00"
    assert (p_value_text(None), p_value_text(0.0002), p_value_text(0.04)) == (
        "--",
        "$<$0.001",
        "0.040",
    )
    assert escaped("T1w->T2w") == r"T1w$\rightarrow$T2w"


def test_all_that_print_as_the_best_are_best():
    assert best_rows([1.004, 1.0, None, 0.9], 2, highest=True) == [True, True, False, False]
    assert best_rows([1.0, 0.9], 2, highest=False) == [False, True]


def test_the_matrix_figure_draws_the_means_and_frames_each_own_model(published: Path):
    [crossing] = cross_site_matrices(read_facts(published))
    with house_style():
        axes = matrix_figure(crossing).axes[0]
    drawn = np.asarray(axes.images[0].get_array())
    assert drawn[0] == pytest.approx([crossing.means["alder"][site] for site in SITES])
    assert drawn[0, 0] - drawn[1, 0] == pytest.approx(3)
    assert len(axes.child_axes) == len(SITES)


def test_the_gains_figure_draws_dots_and_intervals_of_the_facts(published: Path):
    facts = read_facts(published)
    assert facts.gains
    with house_style():
        figure = gains_figure(facts)
    assert figure
    lines = [np.asarray(line.get_xdata(), float) for line in figure.axes[0].get_lines()]
    first = facts.gains.sites["alder"].paired
    assert first.interval
    assert any(line.tolist() == [first.interval.low, first.interval.high] for line in lines)
    assert any(line.tolist() == [facts.gains.overall.mean] for line in lines)


def test_images_of_real_patients_are_drawn_only_on_request(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [real(PFLSYNTH), real(FEDAVG)])
    assert folder / "figures/panels.png" in publish(folder, include_images=True)
    assert folder / "figures/panels.png" not in publish(folder)
    assert not list((folder / "figures").glob("panels*"))


def test_a_run_alone_has_the_figures_and_tables_that_it_can_fill(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH)
    names = {str(path.relative_to(folder)) for path in publish(folder)}
    figures = {f"figures/{n}{s}" for n in ("overall", "curves", "panels") for s in SUFFIXES}
    assert names == figures | {
        f"tables/{n}{s}" for n in ("arms", "sites", "costs") for s in (".csv", ".tex")
    }


def test_a_run_without_scores_has_its_curves(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH, until=3)
    assert {path.name for path in publish(folder)} == {f"curves{suffix}" for suffix in SUFFIXES}


@pytest.mark.full
def test_many_arms_and_seeds_are_drawn_and_all_stand_in_the_tables(tmp_path: Path):
    more = [replace(FEDAVG, name=f"m{n}", title=f"Method {n}", drift=0.1 * n) for n in range(13)]
    folder = write_comparison(tmp_path / "c", [*ARMS, *more], seeds=(7, 8))
    publish(folder)
    assert len(tabulars((folder / "tables/arms.tex").read_text())[0][1]) == 17 + 4
    assert len(read(folder / "tables/pairs.csv")) == 17 * 16 / 2
    assert {f"Method {n}" for n in range(13)} <= set(words_of(folder / "figures/overall.svg"))


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH)
    (folder / "tables").write_text("in the way")
    with pytest.raises(DiskFailed, match="tables"):
        publish(folder)


def test_the_command_writes_figures_unless_told_not_to(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH)
    assert CliRunner().invoke(app, ["report", str(folder), "--no-figures"]).exit_code == 0
    assert (folder / "tables/arms.csv").exists()
    assert not (folder / "figures").exists()
    assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0
    assert (folder / "figures/overall.svg").exists()


def test_matplotlib_is_loaded_only_for_figures(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH)
    program = (
        "import sys; from pathlib import Path; "
        "from grandrounds.report.paper.publish import SUFFIXES, publish; "
        f"publish(Path({str(folder)!r}), figures=False); print('matplotlib' in sys.modules); "
        f"publish(Path({str(folder)!r})); print('matplotlib' in sys.modules); "
        "print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:3] == ["False", "True", "set()"]


def test_curves_have_ticks_at_validated_rounds_and_each_arm_its_look_of_the_page(published: Path):
    facts = read_facts(published)
    with house_style():
        figure = curves_figure(facts)
    assert figure
    axes = figure.axes[0]
    assert [int(place) for place in axes.get_xticks()] == [2, 4, 6, 8, 10]
    looks = [styles(facts)[arm.name] for arm in facts.notable]
    assert [line.get_color() for line in axes.get_lines()] == [look.colour for look in looks]
    assert [line.get_marker() for line in axes.get_lines()] == ["o", "s", "^", "D"]


def test_an_svg_asks_for_arial_and_a_pdf_embeds_its_letters(published: Path):
    assert (
        b"font-family: Arial, Helvetica, 'DejaVu Sans'"
        in (published / "figures/overall.svg").read_bytes()
    )
    written = (published / "figures/overall.pdf").read_bytes()
    assert b"/FontFile2" in written
    assert b"/Type3" not in written
