"""Whatever befalls a run, it ends with the digests of a quiet one, or says what happened.

Each schedule is drawn from its seed; `make nemesis` plays others. A run that failed is resumed,
and where files were lost, those are put back from a copy: then it must end well.
"""

from collections.abc import Iterator, Sequence

import pytest

from grandrounds.core.run_folder import RunFolder
from tests.helpers.flare_federation import needs_flare
from tests.helpers.grids import with_representatives
from tests.nemesis.faults import SERVER, Damage, Harm, Schedule, Trouble
from tests.nemesis.nemesis import Nemesis
from tests.nemesis.schedule import schedule_of
from tests.nemesis.story import Story

SEEDS = range(24)
QUICK = (3,)  # of those that need no NVFlare, for `make test`


@pytest.fixture(scope="module")
def nemesis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nemesis]:
    nemesis = Nemesis(tmp_path_factory.mktemp("nemesis"))
    yield nemesis
    nemesis.close()


def marked(seed: int) -> object:
    in_federation = schedule_of(seed).world == "federation"
    marks = [pytest.mark.slow, *([] if seed in QUICK else [pytest.mark.full])]
    return pytest.param(
        seed, marks=[*marks, pytest.mark.engine, needs_flare] if in_federation else marks
    )


@pytest.mark.parametrize("seed", [marked(seed) for seed in SEEDS])
def test_a_run_under_a_schedule_ends_as_a_quiet_one_or_says_why_not(seed: int, nemesis: Nemesis):
    schedule = schedule_of(seed)
    print(schedule)
    story, problems = nemesis.judge(schedule)
    assert problems == [], told(story, problems)


def told(story: Story, problems: Sequence[str]) -> str:
    ends = [f"{attempt.code}: {attempt.said}" for attempt in story.attempts]
    return "\n".join((str(story.schedule), *ends, *problems))


KILLED = Harm(SERVER, 3, "written", "kill")
FIRST = Harm(SERVER, 1, "journal", "kill")
ONCE_WRONG: dict[str, tuple[tuple[Damage, ...], list[int], str]] = {
    "the journal is cut and the state kept": ((Damage("cut", "journal", 0.8),), [0], ""),
    "a bit of the newest round is flipped": ((Damage("flip", "newest state", 0.9),), [0], ""),
    "a digit of the journal is flipped": (
        (Damage("flip", "journal", 0.7),),
        [2, 0],
        "its sum differs, so the disk or a copy changed it",
    ),
    "a bit of the journal is flipped before anything was saved": (
        (Damage("flip", "journal", 0.2),),
        [2, 0],
        "is no event that this version knows",
    ),
    "a site's state is deleted": (
        (Damage("delete", "sites/birch/state"),),
        [2, 0],
        "site 'birch' has no intact state of round 2",
    ),
    "a site's folder is deleted": (
        (Damage("delete", "sites/birch"),),
        [2, 0],
        "Put what is lost back from a copy",
    ),
}


NAMED = (
    "the journal is cut and the state kept",
    "a bit of the newest round is flipped",
    "a site's state is deleted",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", with_representatives(ONCE_WRONG, NAMED))
def test_what_once_went_wrong_in_silence_goes_well_or_is_told(name: str, nemesis: Nemesis):
    """The server is killed; what is damaged then costs a round, or stops the run."""
    damages, ends, words = ONCE_WRONG[name]
    killed = FIRST if "before anything was saved" in name else KILLED
    number = 1000 + list(ONCE_WRONG).index(name)
    story, problems = nemesis.judge(Schedule(number, "remote", "ditto", (killed, *damages)))
    assert problems == [], told(story, problems)
    assert [attempt.code for attempt in story.attempts[1:]] == ends
    assert words in story.attempts[1].said


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("arm", ["fedavg", "swarm"])
def test_a_run_whose_only_finished_round_is_damaged_repeats_it(arm: str, nemesis: Nemesis):
    """It was killed in round 2, when all had trained that: no other finished round is lost."""
    killed = Harm(SERVER, 2, "written", "kill")
    damage = Damage("flip", "oldest state", 0.9)
    number = 2000 + len(arm)
    story, problems = nemesis.judge(Schedule(number, "remote", arm, (killed, damage)))
    assert problems == [], told(story, problems)
    assert [attempt.code for attempt in story.attempts[1:]] == [0]


@pytest.mark.slow
@pytest.mark.full
def test_sites_that_are_a_round_ahead_repeat_what_the_server_lost(nemesis: Nemesis):
    """They have trained round 3, and the server's round 2 is damaged: it goes back to round 1."""
    damage = Damage("flip", "newest state", 0.9)
    story, problems = nemesis.judge(Schedule(3000, "remote", "swarm", (KILLED, damage)))
    assert problems == [], told(story, problems)
    assert [attempt.code for attempt in story.attempts[1:]] == [0]


@pytest.mark.slow
@pytest.mark.full
def test_letters_of_an_earlier_round_or_session_count_for_nothing(nemesis: Nemesis):
    """In a swarm letters between sites have no session: what is repeated meets the round's own."""
    faults = (
        *(Trouble(site, "mail", 2, "old letter") for site in ("alder", "birch", "cedar")),
        KILLED,
        *(Trouble(site, "mail", 1, "old letters", attempt=2) for site in ("alder", "birch")),
    )
    story, problems = nemesis.judge(Schedule(4000, "remote", "swarm", faults))
    assert problems == [], told(story, problems)
    assert len(story.struck) >= 4


@pytest.mark.slow
@pytest.mark.full
def test_an_update_of_an_earlier_round_in_place_of_this_one_is_not_merged(nemesis: Nemesis):
    """Alder leads rounds 1 and 3; in the third birch's first update is delivered as its new one.

    Alder refuses it where it has trained already, and else has no update to merge.
    """
    fault = Trouble("alder", "mail", 3, "older instead")
    story, problems = nemesis.judge(Schedule(4500, "remote", "swarm of two", (fault,)))
    assert problems == [], told(story, problems)
    log = RunFolder(story.folders["alder"]).site("alder").ledger.read_text()
    refused = "an update of round 1; this site is at round 3" in log
    assert refused or "no update of birch was delivered" in story.run.journal.read_text()


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("kit", ["old kit", "foreign kit"])
def test_a_site_that_comes_back_with_another_kit_does_not_count(kit: str, nemesis: Nemesis):
    """The quorum goes on without it, and says why."""
    fault = Trouble("birch", "ask", 4, kit)
    story, problems = nemesis.judge(Schedule(5000 + len(kit), "remote", "quorum", (fault,)))
    assert problems == [], told(story, problems)
    assert [attempt.code for attempt in story.attempts] == [0]
    journal = story.run.journal.read_text()
    assert '"error": "ForgedEnvelope"' in journal
    assert "is not signed by a party of this federation" in journal


def test_a_schedule_follows_from_its_seed_alone():
    assert [str(schedule_of(seed)) for seed in range(200)] == [
        str(schedule_of(seed)) for seed in range(200)
    ]
    worlds = [schedule_of(seed).world for seed in SEEDS]
    assert {world: worlds.count(world) for world in sorted(set(worlds))} == {
        "federation": 3,
        "remote": 15,
        "workers": 6,
    }


def test_the_schedules_of_many_seeds_know_every_fault():
    kinds = {
        getattr(fault, "what", getattr(fault, "deed", ""))
        for seed in range(400)
        for fault in schedule_of(seed).faults
    }
    assert kinds >= {
        *("kill", "stop", "full disk", "clock", "flip", "cut", "delete"),
        *("lost", "unanswered", "twice", "corrupt", "corrupt answer", "older answer"),
        *(
            "old letter",
            "old letters",
            "older instead",
            "late",
            "late answer",
            "overtaken",
            "slow",
            "cut off",
        ),
        *("kill server", "restart", "old kit", "foreign kit", "second server", "second site"),
    }
