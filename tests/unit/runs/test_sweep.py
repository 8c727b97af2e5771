"""What a sweep tries, and how it chooses: by validation, and never by a test."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from grandrounds.core.errors import BadFolder, BadInput, BadStudy, RunFailed
from grandrounds.core.events import Failed, RoundFinished
from grandrounds.core.journal import Journal
from grandrounds.core.run_folder import ComparisonFolder
from grandrounds.runs.comparison import Comparison
from grandrounds.runs.sweep import Sweep, SweepAxis, candidate_studies, combinations, read_axis
from grandrounds.study.file import Table, example, read_study, read_table

TINY = read_table(example("tiny"))
RATE = "training.learning_rate"


def sweep_of(folder: Path, *texts: str, seeds: int = 1, table: Table = TINY) -> Sweep:
    axes = [read_axis(text) for text in texts]
    studies = candidate_studies(table, [], combinations(axes, random=0, seed=1))
    return Sweep.of(Comparison(folder, studies, num_seeds=seeds), axes)


def told(search: Sweep, *scores: Sequence[float | None], diverges: int | None = None) -> None:
    """Write the journal of each run of a sweep: its rounds' validation scores."""
    search.comparison.folder.mkdir(exist_ok=True)
    search.comparison.describe()
    for number, (cell, rounds) in enumerate(zip(search.comparison.cells, scores, strict=True)):
        folder = search.comparison.run_folder(cell)
        folder.mkdir(parents=True)
        journal = Journal(folder / "journal.jsonl")
        for round, score in enumerate(rounds, start=1):
            journal.append(RoundFinished(round, "", score, 1, 1.0))
        if number == diverges:
            journal.append(Failed("alder", 1, "train", "FloatingPointError", "", ""))


def test_a_grid_has_every_combination_of_the_values():
    axes = [read_axis("mu=0.1,1"), read_axis("task.hidden=[8, 4],[16]")]
    assert combinations(axes, random=0, seed=1) == [
        ("mu=0.1", "task.hidden=[8, 4]"),
        ("mu=0.1", "task.hidden=[16]"),
        ("mu=1", "task.hidden=[8, 4]"),
        ("mu=1", "task.hidden=[16]"),
    ]


def test_ranges_are_drawn_from_within_their_ends_and_the_same_for_a_seed():
    axes = [
        read_axis(f"{RATE}=log:1e-4..1e-1"),
        read_axis("training.epochs=1..3"),
        read_axis("training.momentum=0.1..0.9"),
        read_axis("training.batch_size=log:1..64"),
        read_axis("training.optimizer=adam,sgd"),
    ]
    found = combinations(axes, random=60, seed=3)
    assert found == combinations(axes, random=60, seed=3)
    assert found != combinations(axes, random=60, seed=4)
    values = [[pair.partition("=")[2] for pair in column] for column in zip(*found, strict=True)]
    rates, epochs, momenta, batches, optimisers = values
    assert all(1e-4 <= float(rate) <= 1e-1 for rate in rates)
    below = sum(float(rate) < 10**-2.5 for rate in rates)
    assert 15 < below < 45  # evenly in the logarithm: half lie below the middle
    assert set(epochs) == {"1", "2", "3"}
    assert all(0.1 <= float(momentum) <= 0.9 for momentum in momenta)
    assert all(1 <= int(batch) <= 64 for batch in batches)
    assert set(optimisers) == {"adam", "sgd"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("training.epochs", "write it as KEY=VALUE,VALUE"),
        ("training.epochs=", "write it as KEY=VALUE,VALUE"),
        ("training.epochs=1,,2", "a value is missing between two commas"),
        ("training.epochs=1,1", "1 stands there twice"),
        ("training.epochs=3..1", "the lower end of a range comes first"),
        (f"{RATE}=log:0..1", "a logarithmic range begins above 0"),
        ("elements.size=[32, 32],[64, 64]", "elements changes what is scored, or on whom"),
        ("seed=1,2", "seed changes what is scored"),
        ("stop.test=best,last", "stop.test changes what is scored"),
        ("method.kind=fedavg,fedbn", "to compare methods, give them as arms"),
        ("rounds=10,20", "rounds need no sweep"),
    ],
)
def test_an_axis_that_cannot_be_swept_is_refused_in_one_sentence(text: str, sentence: str):
    with pytest.raises(BadInput, match=sentence) as refused:
        read_axis(text)
    assert str(refused.value).startswith(f"--over {text}: ")


def test_a_range_needs_draws_and_draws_need_candidates():
    with pytest.raises(BadInput, match="a range is drawn from; say how often: --random 8"):
        combinations([read_axis("training.epochs=1..3")], random=0, seed=1)
    with pytest.raises(BadInput, match="only 2 different candidates; leave --random out"):
        combinations([SweepAxis("mu", ("1", "2"))], random=3, seed=1)
    with pytest.raises(BadInput, match="--over mu: is given 2 times"):
        combinations([SweepAxis("mu", ("1",)), SweepAxis("mu", ("2",))], random=0, seed=1)


def test_a_candidate_is_the_study_but_for_what_is_tried():
    table = {**TINY, "method": {"kind": "pflsynth", "split": "wide"}}
    found = candidate_studies(table, ["rounds=2"], [(f"{RATE}=0.1",), (f"{RATE}=0.01",)])
    assert [study.training.learning_rate for study in found.values()] == [0.1, 0.01]
    assert {study.method.options["split"] for study in found.values()} == {"wide"}
    assert {study.rounds for study in found.values()} == {2}
    with pytest.raises(BadStudy, match="a value has no ':' and no '='"):
        candidate_studies(table, [], [("task.norm=a:b=c",)])


def test_what_validates_best_on_average_over_seeds_is_chosen_and_written(tmp_path: Path):
    search = sweep_of(tmp_path / "s", f"{RATE}=0.1,0.01,0.001", seeds=2)
    told(search, [1.0, 9.0], [3.0], [2.0, 4.0], [None, 8.0], [5.0, 7.0], [4.0])
    found, best = search.choose()
    assert [candidate.score for candidate in found] == [8.5, 5.0, 4.0]
    assert (best.scores, best.rounds) == ({1: 9.0, 2: 8.0}, {1: 2, 2: 2})
    files = ComparisonFolder(tmp_path / "s")
    chosen = read_study(files.chosen)
    assert (chosen.training.learning_rate, chosen.arm, chosen.seed) == (0.1, "", 1)
    comment = files.chosen.read_text().splitlines()[0]
    assert comment == (
        "# Chosen by validation, of 3 candidates: pFLSynth (learning rate 0.1). Validation PSNR of "
        "its best round: 8.5, the mean over 2 seeds. The others: pFLSynth (learning rate 0.01): 5; "
        "pFLSynth (learning rate 0.001): 4."
    )
    assert "No candidate was tested" in files.arms.read_text()


def test_a_candidate_that_diverges_with_one_seed_is_never_chosen(tmp_path: Path):
    search = sweep_of(tmp_path / "s", f"{RATE}=0.1,0.01", seeds=2)
    told(search, [99.0], [1.0], [1.0], [1.0], diverges=0)
    found, best = search.choose()
    assert found[0].score is None
    assert best.name.endswith("0-01")


def test_where_nothing_validated_nothing_is_chosen(tmp_path: Path):
    search = sweep_of(tmp_path / "s", f"{RATE}=0.1,0.01")
    told(search, [None], [None])
    with pytest.raises(RunFailed, match="no candidate has a validation score"):
        search.choose()
    assert not ComparisonFolder(tmp_path / "s").chosen.exists()


def test_a_study_that_keeps_no_patient_for_validation_is_refused(tmp_path: Path):
    sites = [
        {**site, "patients": {"train": 2, "validation": 0, "test": 2}} for site in TINY["site"]
    ]
    with pytest.raises(BadStudy, match="a sweep chooses by validation, and the study keeps no"):
        sweep_of(tmp_path, f"{RATE}=0.1,0.01", table={**TINY, "site": sites})


def test_a_folder_of_other_candidates_or_of_tested_arms_is_refused(tmp_path: Path):
    first = sweep_of(tmp_path / "s", f"{RATE}=0.1,0.01")
    told(first, [1.0], [2.0])
    first.check_folder()
    with pytest.raises(BadFolder, match="holds a sweep with other candidates"):
        sweep_of(tmp_path / "s", f"{RATE}=0.1,0.02").check_folder()
    comparison = Comparison(tmp_path / "c", first.comparison.studies)
    comparison.folder.mkdir()
    comparison.describe()
    other = sweep_of(tmp_path / "c", f"{RATE}=0.1,0.01")
    with pytest.raises(BadFolder, match="holds a comparison, whose arms were tested"):
        other.check_folder()


def test_of_many_candidates_the_sentence_names_the_best_four(tmp_path: Path):
    rates = [f"0.{number}" for number in range(1, 7)]
    search = sweep_of(tmp_path / "s", f"{RATE}={','.join(rates)}")
    told(search, *([number] for number in map(float, range(6))))
    said = search.sentences(*search.choose())[0]
    assert said.startswith("Chosen by validation, of 6 candidates: pFLSynth (learning rate 0.6).")
    assert said.endswith(
        "The next ones: pFLSynth (learning rate 0.5): 4; pFLSynth (learning rate 0.4): 3; "
        "pFLSynth (learning rate 0.3): 2."
    )
