"""Model card and data sheet: every figure is the run's, and what nobody told is left blank."""

import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from markdown_it import MarkdownIt

from grandrounds.core.errors import BadFolder, BadInput
from grandrounds.core.events import RoundFinished, RunFinished
from grandrounds.core.journal import read_journal
from grandrounds.report.cards.write import write_cards
from grandrounds.report.prose.protection import left_open
from grandrounds.runs.arms import ArmChoice
from grandrounds.runs.loop import run_study as run
from grandrounds.study.file import example, read_table
from tests.helpers.command import loaded_by
from tests.helpers.federation import rows, tiny
from tests.helpers.run_folders import FEDAVG, PFLSYNTH, write_arms, write_run

BLANK = "to be completed by the site"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose third site did not train."""
    folder = tmp_path_factory.mktemp("cards") / "jane-doe-hospital"
    run(replace(tiny("rounds=2", sites=3), holdout_sites=("cedar",)), folder)
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms with two seeds, as a comparison lays them down."""
    folder, table = tmp_path_factory.mktemp("compared"), read_table(example("tiny"))
    for label in ("fedavg", "local"):
        for seed in (1, 2):
            study = ArmChoice(label).study(table, ["rounds=1", f"seed={seed}"])
            study = replace(study, site=study.site[:2])
            run(study, folder / "arms" / label / f"seed-{seed}")
    plans = [replace(FEDAVG, name="fedavg"), replace(PFLSYNTH, name="local", title="Alone")]
    write_arms(folder, plans, seeds=(1, 2))
    return folder


def cards(folder: Path, out: Path, *, arm: str | None = None, seed: int | None = None) -> list[str]:
    return [path.read_text() for path in write_cards(folder, out=out, arm=arm, seed=seed)]


def table_rows(card: str) -> set[tuple[str, ...]]:
    lines = [line for line in card.splitlines() if line.startswith("|")]
    return {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines}


def patients(table: Path, site: str, task: str, metric: str) -> list[float]:
    """Average each patient's cases in a table of scores."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows(table):
        if (row["site"], row["task"], row["metric"]) == (site, task, metric):
            found[row["patient"]].append(float(row["value"]))
    return [fmean(values) for values in found.values()]


HOSTILE = (
    "x\n\n# Approved | <img src=x onerror=alert(1)> [see](http://evil.example) `*y*` "
    "www.evil.example"
)
FIELDS = """
[elements]
contrasts = [{0}]
{0} = {0}
split = {{ train = 0.7, validation = 0.1, test = 0.2 }}
[stop]
test = {0}
[privacy]
kind = {0}
[topology]
kind = {0}
[aggregation]
shares = {0}
"""


def hostile(folder: Path) -> Path:
    """A run whose every word that somebody chose would act on a card."""
    word = json.dumps(HOSTILE)
    study, journal = folder / "study.toml", folder / "journal.jsonl"
    write_run(folder, replace(PFLSYNTH, title=HOSTILE))
    text = study.read_text().replace('"synthesis"', word).replace('"pflsynth"', word)
    study.write_text(text + FIELDS.format(word))
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        del line["sum"]  # as older versions wrote it
        if line["event"] == "RunStarted":
            line |= dict.fromkeys(("name", "title", "study", "version", "device"), HOSTILE)
        if line["event"] == "SiteReady":
            [counts, *_] = line["cases"].values()
            line |= {"notes": [HOSTILE], "tasks": [HOSTILE], "cases": {HOSTILE: counts}}
        if line["event"] == "RunFinished":
            line |= {"digest": HOSTILE}
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_no_word_that_somebody_chose_acts_on_a_card(tmp_path: Path):
    model, sheet = cards(hostile(tmp_path / "run"), tmp_path)
    for card in (model, sheet):
        page = MarkdownIt("commonmark").enable("table").parse(card)
        parts = [part for token in page for part in (token, *(token.children or []))]
        kinds = {part.type for part in parts}
        assert not kinds & {"html_block", "html_inline", "image", "autolink"}
        links = [part.attrGet("href") for part in parts if part.type == "link_open"]
        assert set(links) <= {"data-sheet.md"}
        headings = [page[i + 1].content for i, t in enumerate(page) if t.type == "heading_open"]
        assert not [heading for heading in headings if heading.startswith("Approved")]
        shown = "".join(part.content for part in parts if part.type in ("text", "code_inline"))
        assert "<img src=x onerror=alert(1)>" in shown
        assert "[see](http://evil.example)" in shown
    assert not re.search(r"(?<![`(\w])(?:\[see\]\()?(?:http://|www\.)evil", model + sheet)


@pytest.mark.slow
@pytest.mark.parametrize("table", ["scores.csv", "unseen.csv"])
def test_each_score_is_that_of_the_table(finished: Path, tmp_path: Path, table: str):
    model, _ = cards(finished, tmp_path)
    shown = table_rows(model)
    cells = {(row["site"], row["task"]) for row in rows(finished / table)}
    assert cells
    for site, task in cells:
        psnr, ssim = (patients(finished / table, site, task, m) for m in ("psnr", "ssim"))
        number = str(len(psnr))
        assert (site, task, "PSNR", f"{fmean(psnr):.2f} dB", f"{stdev(psnr):.2f}", number) in shown
        assert (site, task, "SSIM", f"{fmean(ssim):.3f}", f"{stdev(ssim):.3f}", number) in shown


@pytest.mark.slow
def test_the_worst_site_is_the_one_with_the_lowest_mean(finished: Path, tmp_path: Path):
    model, _ = cards(finished, tmp_path)
    means: dict[str, float] = {}
    for site in ("alder", "birch"):
        tasks = {row["task"] for row in rows(finished / "scores.csv") if row["site"] == site}
        means[site] = fmean(
            fmean(patients(finished / "scores.csv", site, task, "psnr")) for task in tasks
        )
    worst = min(means, key=lambda site: means[site])
    assert f"Worst site: {worst}, PSNR {means[worst]:.2f} dB over 2 patients" in model


@pytest.mark.slow
def test_digests_bytes_and_counts_are_the_run_s(finished: Path, tmp_path: Path):
    model, sheet = cards(finished, tmp_path)
    events = [event for _, event in read_journal(finished / "journal.jsonl")]
    tested = rows(finished / "scores.csv")[0]["round"]
    [digest] = [e.digest for e in events if isinstance(e, RoundFinished) and str(e.round) == tested]
    [last] = [event.digest for event in events if isinstance(event, RunFinished)]
    shown = table_rows(model)
    assert ("digest of the tested round", f"`{digest}`") in shown
    assert ("digest of the last model", f"`{last}`") in shown
    for site in ("alder", "birch"):
        told = [row for row in rows(finished / "rounds.csv") if row["site"] == site]
        up, down = (sum(int(row[word]) for row in told) for word in ("bytes_up", "bytes_down"))
        assert (site, f"{up:,}", f"{down:,}") in shown
    assert ("alder", "simulated", "2 / 1 / 2", "2 / 1 / 2", "8 / 4 / 8") in table_rows(sheet)
    steps = str(2 * int(tested))  # two a round, side by side
    assert ("a site's own steps for the tested model", steps) in shown
    assert ("steps in a row of the tested model", steps) in shown


@pytest.mark.slow
def test_what_only_people_know_is_left_to_them(finished: Path, tmp_path: Path):
    model, sheet = cards(finished, tmp_path)
    for card, words in (
        (model, ("Ethics approval", "Consent of the patients", "licence of the model", "contact")),
        (sheet, ("Ethics approval", "Consent of the patients", "Licence of the data", "Contact")),
    ):
        for word in words:
            assert re.search(rf"{word}[: |]+\*{BLANK}\*", card), word
    assert re.search(rf"age, sex, origin and state of health: \*{BLANK}\*", sheet)


@pytest.mark.slow
def test_no_card_names_a_patient_or_a_folder(finished: Path, tmp_path: Path):
    names = {row["patient"] for row in rows(finished / "scores.csv")}
    for card in cards(finished, tmp_path):
        assert str(finished.parent) not in card
        assert "jane-doe" not in card
        assert not [name for name in names if name in card]


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ({"exchange": {"kind": "int8"}}, 'Fewer bits (exchange.kind = "int8") hide nothing.'),
        ({"privacy": {"kind": "none", "secure_sum": True}}, "could read their sum alone"),
        ({"privacy": {"kind": "client", "noise": 0.0}}, "or masks (privacy.noise = 0)"),
        ({"privacy": {"kind": "client", "noise": 0.5}}, "its site's share of the noise alone"),
        ({"privacy": {"kind": "record", "noise": 2.0}}, "(epsilon up to 3.14 at delta 1e-05)"),
    ],
)
def test_a_card_says_what_protection_leaves_open(study: dict[str, Any], words: str):
    assert words in left_open(study, 3.14159)


@pytest.mark.slow
def test_limitations_are_those_of_the_facts(finished: Path, compared: Path, tmp_path: Path):
    single, _ = cards(finished, tmp_path / "single")
    for words in (
        "are simulated: no patient was scanned",
        "Few test patients: alder 2 and birch 2.",
        "better off training alone is unknown",
        "One random seed",
        "not protected by noise or masks",
    ):
        assert words in single
    assert "none was held out" not in single, "cedar was held out"
    fedavg, _ = cards(compared, tmp_path / "fedavg", arm="fedavg", seed=2)
    assert "none was held out" in fedavg
    assert "about seed 2; the comparison has seeds 1 and 2" in fedavg
    assert ("seed", "2") in table_rows(fedavg)
    assert "training alone is unknown" not in fedavg
    local, _ = cards(compared, tmp_path / "local", arm="local")
    assert "Every site trained alone" in local
    assert "not protected by noise" not in local, "nothing travelled"


@pytest.mark.slow
def test_sites_that_are_better_off_alone_are_named(compared: Path, tmp_path: Path):
    card, _ = cards(compared, tmp_path, arm="fedavg", seed=1)
    for site in ("alder", "birch"):
        means: dict[str, float] = {}
        for arm in ("fedavg", "local"):
            table = compared / "arms" / arm / "seed-1" / "scores.csv"
            tasks = {row["task"] for row in rows(table) if row["site"] == site}
            means[arm] = fmean(fmean(patients(table, site, task, "psnr")) for task in tasks)
        named = f"{site} ({means['fedavg']:.2f} dB; alone {means['local']:.2f} dB)"
        assert (named in card) == (means["local"] > means["fedavg"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "seed", "sentence"),
    [
        (None, None, "is a comparison, and a card is about one arm; give --arm, one of fedavg, l"),
        ("swarm", None, "has no arm 'swarm'; give --arm, one of fedavg, local"),
        ("fedavg", 5, "has no seed 5; its seeds: 1, 2"),
    ],
)
def test_a_comparison_s_card_needs_an_arm_that_it_has(
    compared: Path, tmp_path: Path, arm: str | None, seed: int | None, sentence: str
):
    with pytest.raises(BadInput, match=sentence):
        write_cards(compared, out=tmp_path, arm=arm, seed=seed)


def test_a_run_that_is_not_finished_has_no_card(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH, until=2)
    with pytest.raises(BadFolder, match=r"holds no finished run \(no scores.csv\)"):
        write_cards(folder, out=None, arm=None, seed=None)


@pytest.mark.slow
def test_a_card_needs_no_torch(finished: Path, tmp_path: Path):
    statement = (
        "from grandrounds.report.cards.write import write_cards; from pathlib import Path; "
        f"write_cards(Path({str(finished)!r}), out=Path({str(tmp_path)!r}), arm=None, seed=None)"
    )
    assert not loaded_by(statement) & {"torch", "monai", "safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {"model-card.md", "data-sheet.md"}
