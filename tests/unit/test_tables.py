from pathlib import Path

from grandrounds.events import RoundFinished, SiteTrained, SiteValidated
from grandrounds.messages import CaseScore
from grandrounds.tables import concatenate, write_digests, write_rounds, write_scores
from tests.federation import rows

SITES = ("alder", "birch")


def trained(round: int, site: str, **losses: float) -> SiteTrained:
    return SiteTrained(round, site, 0.123456, 8, 2, 100, 90, losses)


def test_scores_have_one_row_for_each_case_and_metric(tmp_path: Path):
    score = CaseScore(
        site="alder", patient="p001", case="1/000", task="a->b", values={"psnr": 1 / 3, "ssim": 1.0}
    )
    write_scores(tmp_path / "scores.csv", [score], arm="wide, 2", seed=7, round=3)
    head, *lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert head == "arm,seed,site,patient,case,task,metric,value,round"
    assert lines == [
        '"wide, 2",7,alder,p001,1/000,a->b,psnr,0.3333333333333333,3',
        '"wide, 2",7,alder,p001,1/000,a->b,ssim,1.0,3',
    ]


def test_scores_keep_every_bit_of_a_value(tmp_path: Path):
    value = 0.1 + 0.2
    score = CaseScore(site="a", patient="p", case="c", task="t", values={"psnr": value})
    write_scores(tmp_path / "scores.csv", [score], arm="a", seed=1, round=1)
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
