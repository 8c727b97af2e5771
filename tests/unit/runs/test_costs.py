"""What `check` says of a study's topology, and of those that it could have chosen."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from grandrounds.algorithms import TOPOLOGIES
from grandrounds.runs.costs import (
    estimate,
    leaving_words,
    plan_run,
    planned_steps,
    topologies,
)
from grandrounds.study.file import example
from tests.helpers.command import inside
from tests.helpers.federation import tiny

TINY = example("tiny")
FEDAVG = 'method={kind="fedavg"}'
MODEL = 198_340  # bytes that the plain network of the tiny study sends one way


@pytest.fixture
def checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What `check` prints of the tiny study with overrides."""

    def check(*overrides: str, more: Sequence[str] = ()) -> str:
        words = [word for override in overrides for word in ("--set", override)]
        return inside(monkeypatch, capsys, "check", TINY, *words, *more).out

    return check


@pytest.mark.parametrize(
    ("topology", "models"),
    [("star", 4 * 3), ("swarm", 2 * 3), ("cyclic", 4 * (3 + 4))],
)
def test_a_round_is_counted_over_all_links(topology: str, models: int):
    cost = estimate(plan_run(tiny(f"topology.kind={topology}", FEDAVG)))
    assert cost.topology.kind == topology
    assert cost.bytes_per_round == models * MODEL
    assert cost.bytes_per_run == 3 * models * MODEL


@pytest.mark.slow
def test_every_topology_is_told_the_study_s_own_with_its_options():
    found = topologies(plan_run(tiny("topology.kind=cyclic", "topology.monitor=0", FEDAVG)))
    assert list(found) == list(TOPOLOGIES)
    told = {kind: account for kind, account in found.items() if not isinstance(account, str)}
    assert told["cyclic"].bytes_per_round == 4 * 3 * MODEL
    assert told["star"].sees["server"].startswith("every site's own update")


def test_a_topology_that_the_method_refuses_says_why():
    refusal = topologies(plan_run(tiny('method={kind="scaffold"}')))["cyclic"]
    assert isinstance(refusal, str)
    assert "control variates are means" in refusal


def test_check_prints_who_sees_what_and_the_other_topologies(checked: Callable[..., str]):
    said = checked("topology.kind=swarm", 'method={kind="fedopt"}')
    assert "Who sees what over topology 'swarm'" in said
    assert "leader of the round" in said
    assert "over all links" in said
    assert "the slowest site's time" in said
    assert "not cyclic:" in said


def test_check_says_that_nothing_is_seen_where_nothing_travels(checked: Callable[..., str]):
    said = checked('method={kind="local"}')
    assert "Who sees what" not in said
    assert "nothing" in said


def test_check_tells_topologies_as_json(checked: Callable[..., str]):
    facts = json.loads(checked('method={kind="fedopt"}', more=["--json"]))
    assert facts["topology"] == facts["topologies"]["star"]
    assert facts["topology"]["bytes_per_round"] == facts["bytes_per_round"]
    assert "makes no sense" in facts["topologies"]["cyclic"]["refused"]


def test_a_site_signs_that_its_updates_are_compared_and_nothing_of_it_where_they_are_not():
    watched, plain = tiny("aggregation.cosines_every=5"), tiny()
    [words] = set(leaving_words(watched)) - set(leaving_words(plain))
    assert words == (
        "computed of its updates by the coordinator every 5 rounds, stored in the run folder and "
        "shown in the report: the cosine with the update of every other site, a number for each of "
        "the groups mapper, bottleneck_late, decoder, all"
    )
    assert set(leaving_words(plain)) < set(leaving_words(watched))


@pytest.mark.parametrize(
    ("options", "beside"),
    [
        ((), "; the mapper that reads it travels, and from its changes it may be guessed"),
        (("method.share=['decoder']",), ""),
        (
            ("method.split=everything", "topology.kind=split", "topology.cut=encoder.2"),
            "; the mapper that reads it travels, and from its changes it may be guessed; what the "
            "mapper makes of it crosses the cut with every batch",
        ),
    ],
)
def test_a_site_signs_what_may_be_learned_of_how_it_scans(options: tuple[str, ...], beside: str):
    by_name = set(leaving_words(tiny(*options)))
    [words] = {w for w in leaving_words(tiny("task.codes=protocol", *options)) if "scanned" in w}
    assert words == f"how its volumes were scanned (times, angles, field) stays there{beside}"
    assert not any("scanned" in word for word in by_name)


def test_check_says_that_updates_are_compared(checked: Callable[..., str]):
    said = " ".join(checked("aggregation.cosines_every=1").split())
    assert "note: the coordinator computes the cosines between the sites' updates" in said
    assert "cosines" not in checked()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["topology.kind=swarm"], "2 at a site, 2 in a row for one model"),
        (["topology.kind=cyclic"], "2 at a site, 8 in a row for one model"),
        (['method={kind="central"}'], "8 on pooled data, 8 in a row for one model"),
        (["topology.kind=cyclic", "topology.turn=steps", "topology.length=5"], "5 at a site, 20"),
    ],
)
def test_check_tells_the_steps_of_a_round_before_it_trains(
    checked: Callable[..., str], options: list[str], said: str
):
    method = [] if "method" in options[0] else [FEDAVG]
    assert f"steps in a round: {said}" in checked(*method, *options)


def test_check_tells_a_topology_s_steps_in_a_row_beside_its_wall_clock(
    checked: Callable[..., str],
):
    said = checked(FEDAVG, "training.fine_tune=2")
    [cyclic] = [line for line in said.splitlines() if line.startswith("│ cyclic")]
    assert "8, of all sites" in cyclic
    assert "the sum of all sites' times" in cyclic
    assert "the run: up to 6 steps in a row, in 3 rounds" in said
    assert "besides: 2 more epochs at each site in the end" in said


def test_steps_are_untold_where_they_hang_on_files(checked: Callable[..., str]):
    shares = ("topology.kind=cyclic", "topology.turn=steps", "topology.length=2")
    said = checked(FEDAVG, *shares, "topology.proportional=true")
    assert "steps in a round: known once every site has told its files" in said
    files = tiny(FEDAVG)
    files = replace(files, site=tuple(replace(site, data="files") for site in files.site))
    assert planned_steps(files) == {}


def test_check_says_how_many_groups_of_a_relay_to_try(checked: Callable[..., str]):
    said = " ".join(checked(FEDAVG).split())
    assert "topology.groups = 4 gives the model the steps of all 4 sites in a row" in said
    assert "4 times the wall-clock" in said
    relay = ("topology.kind=relay", "topology.groups=2")
    assert "2 times the wall-clock" in " ".join(checked(FEDAVG, *relay).split())
    for done in (("topology.groups=4",), ()):
        kind = "topology.kind=relay" if done else "topology.kind=swarm"
        assert "gives the model" not in checked(FEDAVG, kind, *done)
    assert "gives the model" not in checked('method={kind="fedopt"}')
