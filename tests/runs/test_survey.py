"""Sites' statistics from their files to the coordinator: whole answers, and what is refused."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from grandrounds.core.errors import BadFolder, BadSite, SiteFailed
from grandrounds.core.failures import Disclosure
from grandrounds.core.ledger import OPEN, LedgerEntry
from grandrounds.core.messages import Describe, Reply, Survey, Train
from grandrounds.core.site_statistics import SiteStatistics
from grandrounds.engines.remote import Timeouts
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.runs.costs import leaving_words, statistics_words
from grandrounds.runs.survey import (
    SurveyEngine,
    ask_statistics,
    plan_statistics,
    problem_in_statistics,
    read_release,
    read_statistics,
    serve_statistics,
    survey_run,
    survey_sites,
    write_statistics,
)
from grandrounds.site.guard import Refused, SurveyGuard
from grandrounds.study.acceptance import Acceptance, save_acceptance
from grandrounds.study.file import fingerprint, read_study
from grandrounds.study.site_file import read_site
from grandrounds.study.study import Study
from tests.helpers.surveyed_sites import Hospital, write_study

QUICK = Timeouts(poll=0.2, silence=5.0, start=10.0, connect_every=0.05)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return read_study(write_study(tmp_path_factory.mktemp("study")))


def answer_of(study: Study, hospital: Hospital, folder: Path) -> SiteStatistics:
    """What a hospital tells that has told nothing before."""
    file = read_site(hospital.write(folder))
    [surveyed] = survey_sites(study, [file], (hospital.name,))
    return surveyed.answer


def test_a_site_answers_with_people_and_not_with_files(study: Study, tmp_path: Path):
    told = answer_of(study, Hospital("alder", patients=14, flair=7), tmp_path)
    assert told.counts == {
        "patients": 10,
        "T1w": 10,
        "FLAIR": 5,
        "age": 10,
        "T1w->FLAIR": 5,
    }
    assert told.unmet["field_strengths"] == {"T1w": None, "FLAIR": None}
    strength = told.quantiles["field_strength"]
    assert [(each.share, each.low, each.high) for each in strength["T1w"] or ()] == [
        *((0.05, 2.5, 3.5), (0.95, 2.5, 3.5)),
    ]
    assert strength["FLAIR"] is None
    assert told.kinds["orientation"] == {"T1w": ("axial",), "FLAIR": None}
    assert told.kinds["sequence"] == {"T1w": None, "FLAIR": None}
    histogram = told.histograms["T1w"]
    assert histogram
    assert sum(histogram) == pytest.approx(1, abs=0.1)
    assert told.histograms["FLAIR"] is None
    assert problem_in_statistics(told, plan_statistics(study, "alder"), "alder") == ""


@pytest.mark.parametrize("patients", [1, 4])
def test_an_answer_is_the_same_for_a_few_patients_and_for_none(
    study: Study, tmp_path: Path, patients: int
):
    none = answer_of(study, Hospital("alder", patients=0), tmp_path / "none")
    few = answer_of(study, Hospital("alder", patients=patients), tmp_path / "few")
    assert few == none
    assert set(few.counts.values()) == {None}


def test_a_group_of_a_few_changes_nothing_of_an_answer(study: Study, tmp_path: Path):
    without = answer_of(study, Hospital("alder", flair=0), tmp_path / "without")
    few = answer_of(study, Hospital("alder", flair=4), tmp_path / "few")
    hidden = replace(few, histograms=without.histograms)
    assert hidden == without  # slices that FLAIR does not show are left out, so T1w's may differ


def test_a_few_people_who_miss_an_element_change_nothing(study: Study, tmp_path: Path):
    usual = Hospital("alder")
    others = replace(usual, odd={n: {"MagneticFieldStrength": 1.5} for n in range(4)})
    whole = answer_of(study, usual, tmp_path / "usual")
    assert answer_of(study, others, tmp_path / "others") == whole


def test_at_the_site_everything_is_said_to_the_patient(study: Study, tmp_path: Path):
    odd: dict[int, Mapping[str, object]] = {
        0: {"MagneticFieldStrength": 1.5},
        1: {"MagneticFieldStrength": 15000},
    }
    hospital = Hospital("alder", patients=8, flair=2, thickness=8.0, odd=odd)
    [surveyed] = survey_sites(study, [read_site(hospital.write(tmp_path))], ("alder",))
    notes = [str(note) for note in surveyed.notes]
    doubts = [note for note in notes if "cannot be" in note]
    notes = notes[len(doubts) :]
    assert doubts[1] == (
        "T1w: in 1 volume, a field strength of 15000.0 T cannot be (in gauss it would be 1.5 T): "
        "taken as unknown"
    )
    assert notes[0].startswith(
        "T1w: 1 of 8 patients with a field strength that elements.field_strengths does not name"
    )
    assert notes[1].startswith("T1w: of 1 of 8 patients, the field strength is unknown")
    assert notes[2].startswith("T1w: 8 of 8 patients with slices outside of")
    assert notes[-1].startswith("T1w->FLAIR: 2 of at least 10 patients")


def test_what_leaves_is_listed_before_it_leaves(study: Study):
    assert statistics_words(study) in leaving_words(study)
    assert "at least 5 people" in statistics_words(study)


def signed(study: Study, folder: Path, *policy: str) -> None:
    """Put an acceptance into a site's folder."""
    save_acceptance(Acceptance("alder", fingerprint(study), "now", "", "", policy), folder)


def test_a_site_that_has_not_accepted_answers_nothing(study: Study, tmp_path: Path):
    site = Hospital("alder").write(tmp_path)

    def opened() -> None:
        files = lambda: [read_site(site)]  # noqa: E731
        with serve_statistics(study, "alder", files, tmp_path / "local"):
            pass

    with pytest.raises(BadSite, match="has not accepted this study"):
        opened()
    signed(study, tmp_path / "local", "in each of 2 rounds: all")
    with pytest.raises(BadSite, match="when no statistics were listed in what leaves"):
        opened()
    signed(study, tmp_path / "local", statistics_words(study))
    opened()


@pytest.mark.slow
def test_one_more_patient_changes_no_answer_and_five_do(study: Study, tmp_path: Path):
    site = Hospital("alder").write(tmp_path)
    signed(study, tmp_path / "local", statistics_words(study))

    def asked() -> SiteStatistics | None:
        files = lambda: [read_site(site)]  # noqa: E731
        with serve_statistics(study, "alder", files, tmp_path / "local") as (engine, _):
            [reply] = engine.ask({"alder": Survey()})
        return reply.statistics

    first, data = asked(), tmp_path / "alder"
    for number in range(4):
        for file in data.glob("sub-alder000_*"):
            shutil.copy(file, data / file.name.replace("alder000", f"alder90{number}"))
        if number in (0, 3):
            assert asked() == first
    for file in data.glob("sub-alder000_*"):
        shutil.copy(file, data / file.name.replace("alder000", "alder904"))
    last = asked()
    assert first
    assert last
    assert (first.counts["T1w"], last.counts["T1w"]) == (10, 15)
    [stored] = (tmp_path / "local" / "statistics").iterdir()
    assert stored.stat().st_mode & 0o777 == 0o600
    assert "alder000" not in stored.read_text()
    stored.write_text("{}")
    with pytest.raises(BadFolder, match="is damaged"):
        asked()


def test_data_that_cannot_be_read_are_told_in_one_sentence(study: Study, tmp_path: Path):
    site = Hospital("alder").write(tmp_path)
    (tmp_path / "alder" / "sub-alder003_T1w.nii.gz").write_bytes(b"none")
    [surveyed] = survey_sites(study, [read_site(site)], ("alder",))
    engine = SurveyEngine(surveyed, Disclosure("alder"), None)
    with pytest.raises(BadSite) as refusal:
        engine.ask({"alder": Survey()})
    told = Disclosure("alder", study.names).message(refusal.value)
    assert told == (
        "its data cannot be read for the statistics of this study; see the log of site 'alder'"
    )


# Between a coordinator and sites.


def asked_of(
    study: Study,
    folder: Path,
    log: list[LedgerEntry],
    change: Callable[[SiteStatistics], SiteStatistics] = lambda told: told,
) -> tuple[SiteStatistics, ...]:
    """Ask agents of both sites, without keys; one of them may change its answer."""
    with ExitStack() as stack:
        agents = {
            name: agent_of(study, folder, name, log, change if name == "birch" else lambda t: t)
            for name in study.trainers
        }
        for agent in agents.values():
            stack.callback(agent.close)
        return ask_statistics(
            study, folder, lambda site, data, _: agents[site].answer(data), patience=QUICK
        )


def agent_of(
    study: Study,
    folder: Path,
    name: str,
    log: list[LedgerEntry],
    change: Callable[[SiteStatistics], SiteStatistics],
) -> SiteAgent:
    plan = plan_statistics(study, name)

    def problem(told: SiteStatistics) -> str:
        return "" if name == "birch" else problem_in_statistics(told, plan, name)

    host = serve_statistics(study, name, lambda: [read_site(folder / f"{name}.toml")])
    return SiteAgent(
        changed(host, change) if name == "birch" else host,
        lambda peer, data: data,
        Disclosure(name, study.names),
        guard=lambda _: SurveyGuard(problem),
        ledger=log.append,
    )


class changed:  # noqa: N801 - reads as what it does
    """A host whose engine changes what it tells."""

    def __init__(self, host: Any, change: Callable[[SiteStatistics], SiteStatistics]) -> None:
        self.host, self.change = host, change

    def __enter__(self) -> tuple[Any, bytes]:
        self.engine, facts = self.host.__enter__()
        return self, facts

    def __exit__(self, *error: object) -> None:
        self.host.__exit__(*error)

    @property
    def sites(self) -> Any:
        return self.engine.sites

    def ask(self, requests: Mapping[str, Any]) -> list[Reply]:
        [reply] = self.engine.ask(requests)
        return [replace(reply, statistics=self.change(reply.statistics))]


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospitals")
    Hospital("alder").write(folder)
    Hospital("birch", patients=16, flair=4, gain=1.5).write(folder)
    return folder


@pytest.fixture(scope="module")
def birch(study: Study, hospitals: Path) -> SiteStatistics:
    files = [read_site(hospitals / "birch.toml")]
    return survey_sites(study, files, ("birch",))[0].answer


def test_a_coordinator_gets_what_the_sites_tell_here_and_each_logs_it(
    study: Study, hospitals: Path
):
    files = [read_site(hospitals / f"{name}.toml") for name in study.trainers]
    here = tuple(site.answer for site in survey_sites(study, files, study.trainers))
    log: list[LedgerEntry] = []
    assert asked_of(study, hospitals, log) == here
    log = [entry for entry in log if entry.asked != OPEN]
    assert [(entry.asked, entry.bytes > 500, len(entry.digest)) for entry in log] == [
        *(("survey", True, 64), ("survey", True, 64)),
    ]


HOSTILE: dict[str, Callable[[SiteStatistics], SiteStatistics]] = {
    "another site's name": lambda told: replace(told, site="alder"),
    "another floor": lambda told: replace(told, floor=1),
    "an exact count": lambda told: replace(told, counts={**told.counts, "T1w": 16}),
    "a count below the floor": lambda told: replace(told, counts={**told.counts, "T1w": 0}),
    "a group of its own": lambda told: replace(told, counts={**told.counts, "<script>": 5}),
    "a missing group": lambda told: replace(told, counts={"patients": 5}),
    "a word of its own": lambda told: replace(
        told, kinds={**told.kinds, "sequence": {"T1w": ("John Doe",), "FLAIR": None}}
    ),
    "a value that is no bin": lambda told: replace(
        told,
        quantiles={
            **told.quantiles,
            "value": {
                "age": tuple(replace(q, low=67.0) for q in told.quantiles["value"]["age"] or ())
            },
        },
    ),
    "a histogram in fine steps": lambda told: replace(
        told, histograms={**told.histograms, "T1w": (0.0512, *[0.05] * 19)}
    ),
    "a histogram of another length": lambda told: replace(
        told, histograms={**told.histograms, "T1w": (0.5, 0.5)}
    ),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_answer_is_not_read(
    study: Study, birch: SiteStatistics, change: Callable[[SiteStatistics], SiteStatistics]
):
    assert problem_in_statistics(change(birch), plan_statistics(study, "birch"), "birch")


@pytest.mark.parametrize("name", ["an exact count", "a group of its own"])
def test_a_hostile_answer_ends_as_a_card_of_its_sender(study: Study, hospitals: Path, name: str):
    with pytest.raises(SiteFailed, match="its statistics") as failure:
        asked_of(study, hospitals, [], HOSTILE[name])
    assert failure.value.card.site == "birch"


def test_a_site_is_asked_for_statistics_and_nothing_else_in_such_a_job():
    guard = SurveyGuard(lambda _: "")
    for request in (Describe(), Train(round=1, since=0), Survey(round=1)):
        with pytest.raises(Refused, match="asks for a site's statistics"):
            guard.check(request)
    with pytest.raises(Refused, match="asks for a site's statistics"):
        guard.check(Survey(), ("birch",))
    with pytest.raises(Refused, match="nothing else in it"):
        guard.check_reply(Survey(), Reply(site="alder", round=0))
    with pytest.raises(Refused, match="send each other nothing"):
        guard.check_peer("birch", Reply(site="birch", round=1))


def test_statistics_are_read_back_and_those_of_others_refused(
    study: Study, birch: SiteStatistics, tmp_path: Path
):
    told, path = (birch,), tmp_path / "statistics.json"
    write_statistics(study, told, path)
    assert read_statistics(path, study) == told
    with pytest.raises(BadFolder, match="of another study"):
        read_statistics(path, replace(study, seed=9))
    for text in ("", "[]", '{"study": 3}', json.dumps({"study": "0" * 64, "sites": [{}]})):
        path.write_text(text)
        with pytest.raises(BadFolder):
            read_statistics(path, study)
    changed = {"study": fingerprint(study), "sites": [asdict(replace(told[0], floor=1))]}
    path.write_text(json.dumps(changed))
    with pytest.raises(BadFolder, match="of at least 1 people"):
        read_statistics(path, study)


def test_a_run_for_statistics_has_a_name_of_its_own():
    assert survey_run("tiny-0123456789ab") == "tiny-0123456789ab-check"
    assert len(survey_run("x" * 51 + "-0123456789ab")) == 64
    assert survey_run("x" * 51 + "-0123456789ab").endswith("-0123456789ab-check")


def test_without_an_answer_before_there_is_no_release(tmp_path: Path):
    assert read_release(tmp_path / "none.json") is None
