from pathlib import Path

import pytest

from grandrounds.core.events import (
    Event,
    RoundFinished,
    SiteExchanged,
    SiteMissed,
    SiteMonitored,
    SiteTrained,
    SiteValidated,
)
from grandrounds.core.messages import CaseScore
from grandrounds.core.quoting import original
from grandrounds.runs.tables import (
    ScoreLabel,
    concatenate,
    write_digests,
    write_forgetting,
    write_rounds,
    write_scores,
)
from tests.helpers.federation import rows

SITES = ("alder", "birch")


def trained(round: int, site: str, **losses: float) -> SiteTrained:
    return SiteTrained(round, site, 0.123456, 8, 2, 100, 90, losses)


def test_scores_have_one_row_for_each_case_and_metric(tmp_path: Path):
    score = CaseScore(
        site="alder", patient="p001", case="1/000", task="a->b", values={"psnr": 1 / 3, "ssim": 1.0}
    )
    write_scores(tmp_path / "scores.csv", [score], ScoreLabel("wide, 2", 7, 3))
    head, *lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert head == "arm,seed,site,patient,case,task,metric,value,round"
    assert lines == [
        '"wide, 2",7,alder,p001,1/000,a->b,psnr,0.3333333333333333,3',
        '"wide, 2",7,alder,p001,1/000,a->b,ssim,1.0,3',
    ]


def test_words_that_a_spreadsheet_would_compute_are_text_and_are_read_back(tmp_path: Path):
    """A hospital chooses its pseudonyms, which others open in a spreadsheet."""
    words = [
        "=cmd|' /C calc'!A0",
        "+1+1",
        "-2+3",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "'=1",
        "a\nb",
        "a;=1",
    ]
    scores = [
        CaseScore(site="alder", patient=word, case=word, task=word, values={"psnr": -1.5})
        for word in words
    ]
    write_scores(tmp_path / "one.csv", scores, ScoreLabel("fedavg", 7, 3))
    for row, word in zip(rows(tmp_path / "one.csv"), words, strict=True):
        assert row["patient"][0] in "'a"
        assert row["value"] == "-1.5"
        assert {original(row[name]) for name in ("patient", "case", "task")} == {word}
    concatenate(tmp_path / "both.csv", [tmp_path / "one.csv"] * 2)
    assert rows(tmp_path / "both.csv") == rows(tmp_path / "one.csv") * 2


def test_scores_keep_every_bit_of_a_value(tmp_path: Path):
    value = 0.1 + 0.2
    score = CaseScore(site="a", patient="p", case="c", task="t", values={"psnr": value})
    write_scores(tmp_path / "scores.csv", [score], ScoreLabel("a", 1, 1))
    assert float(rows(tmp_path / "scores.csv")[0]["value"]) == value


def test_rounds_have_one_row_for_each_round_and_site_of_the_roster(tmp_path: Path):
    events = [
        trained(1, "alder", generator=0.5),
        trained(1, "birch", generator=0.25, critic=0.125),
        SiteValidated(1, "alder", 0.1, 4, 20.5, 30),
        trained(2, "alder", generator=0.5),
    ]
    write_rounds(tmp_path / "rounds.csv", events, SITES)
    head, *lines = (tmp_path / "rounds.csv").read_text().splitlines()
    assert head == (
        "round,site,took_part,seconds,bytes_up,bytes_down,loss:generator,loss:critic,validation"
    )
    assert lines == [
        "1,alder,True,0.1235,100,120,0.5,,20.5",
        "1,birch,True,0.1235,100,90,0.25,0.125,",
        "2,alder,True,0.1235,100,90,0.5,,",
        "2,birch,False,,,,,,",
    ]


def test_a_validation_without_cases_has_no_score(tmp_path: Path):
    events = [trained(1, "alder"), SiteValidated(1, "alder", 0.1, 0, 0.0, 30)]
    write_rounds(tmp_path / "rounds.csv", events, SITES[:1])
    assert rows(tmp_path / "rounds.csv")[0]["validation"] == ""


def bytes_of(path: Path) -> list[tuple[str, str]]:
    return [(row["bytes_up"], row["bytes_down"]) for row in rows(path)]


def test_bytes_are_added_up_whatever_they_were_for(tmp_path: Path):
    events: list[Event] = [
        trained(1, "alder"),
        SiteExchanged(1, "alder", "merge", 0.1, 1000, 0),
        SiteExchanged(1, "alder", "adopt", 0.1, 0, 2000),
        SiteMonitored(1, "alder", "birch", 0.1, 4, 20.5, 30),
        trained(1, "birch"),
        SiteMonitored(1, "birch", "birch", 0.1, 4, 20.5, 30),
        SiteValidated(1, "birch", 0.1, 4, 20.5, 7),
        trained(2, "alder"),
    ]
    write_rounds(tmp_path / "rounds.csv", events, SITES)
    assert bytes_of(tmp_path / "rounds.csv") == [
        ("1100", "2090"),
        ("100", "157"),
        ("100", "90"),
        ("", ""),
    ]


def test_a_round_that_a_new_leader_had_trained_again_counts_all_its_bytes(tmp_path: Path):
    events = [trained(1, "alder"), trained(1, "alder")]
    write_rounds(tmp_path / "rounds.csv", events, SITES[:1])
    assert bytes_of(tmp_path / "rounds.csv") == [("200", "180")]


def missed(site: str, stage: str, round: int = 1) -> SiteMissed:
    return SiteMissed(site, round, stage, "OSError", "gone", "")


@pytest.mark.parametrize(
    ("events", "took_part"),
    [
        ([missed("birch", "train")], "False"),
        ([trained(1, "birch"), missed("birch", "train")], "False"),
        ([trained(1, "birch"), missed("birch", "merge")], "True"),
        ([trained(1, "birch"), missed("birch", "evaluate")], "True"),
        ([trained(1, "birch"), missed("birch", "train", round=2)], "True"),
    ],
    ids=["failed", "late", "no leader", "unscored", "next"],
)  # fmt: skip
def test_a_site_that_was_missed_in_training_took_no_part(
    tmp_path: Path, events: list[Event], took_part: str
):
    write_rounds(tmp_path / "rounds.csv", [trained(1, "alder"), *events], SITES)
    found = [row["took_part"] for row in rows(tmp_path / "rounds.csv")]
    assert found == ["True", took_part]


def test_forgetting_has_one_row_for_each_turn_and_site(tmp_path: Path):
    events = [
        trained(1, "alder"),
        SiteMonitored(1, "alder", "alder", 0.1, 4, 0.1 + 0.2, 30),
        SiteMonitored(1, "alder", "birch", 0.1, 0, 0.0, 30),
    ]
    write_forgetting(tmp_path / "forgetting.csv", events)
    assert (tmp_path / "forgetting.csv").read_text() == (
        "round,after,site,score,cases\n1,alder,alder,0.30000000000000004,4\n1,alder,birch,,0\n"
    )


def test_where_no_cycle_was_watched_there_is_no_table_of_forgetting(tmp_path: Path):
    write_forgetting(tmp_path / "forgetting.csv", [trained(1, "alder")])
    assert not (tmp_path / "forgetting.csv").exists()


def test_digests_have_one_row_for_each_round(tmp_path: Path):
    events = [RoundFinished(1, "ab", 20.0, 1, 0.1), RoundFinished(2, "cd", None, 1, 0.1)]
    write_digests(tmp_path / "digests.csv", [events[0], trained(2, "alder"), events[1]])
    assert (tmp_path / "digests.csv").read_text() == "round,digest\n1,ab\n2,cd\n"


def test_tables_without_events_have_their_head(tmp_path: Path):
    write_rounds(tmp_path / "rounds.csv", [], SITES)
    assert (tmp_path / "rounds.csv").read_text() == (
        "round,site,took_part,seconds,bytes_up,bytes_down,validation\n"
    )


def test_tables_join_under_one_head(tmp_path: Path):
    for name, value in {"a": "1,x\n2,y\n", "b": "3,z\n"}.items():
        (tmp_path / name).write_text("round,digest\n" + value)
    concatenate(tmp_path / "all.csv", [tmp_path / "a", tmp_path / "b"])
    assert (tmp_path / "all.csv").read_text() == "round,digest\n1,x\n2,y\n3,z\n"
