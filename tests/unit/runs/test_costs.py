"""What `check` says of a study's topology, and of those that it could have chosen."""

import json
from collections.abc import Callable, Sequence

import pytest

from grandrounds.algorithms import TOPOLOGIES
from grandrounds.runs.costs import estimate, plan_run, topologies
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
