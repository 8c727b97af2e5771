import pickle
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest
import torch

from grandrounds.algorithms.star import Star
from grandrounds.algorithms.topology import Quorum
from grandrounds.core.errors import BadFolder, DiskFailed, FailureCard, SiteFailed
from grandrounds.core.failures import HINTS, Disclosure
from grandrounds.core.messages import Describe, Reply, Request, Train
from grandrounds.core.sentence import Name, phrase
from grandrounds.core.weights import digest, num_bytes
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.site.site import Promise, Site
from tests.helpers.federation import built, ignore, tiny

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Odd(Site):
    """A site that fails, or sends one number that is none."""

    error: Exception | None = None

    def begin(self, request: Request) -> Promise:
        if self.error:
            raise self.error
        promise = super().begin(request)
        return lambda: spoiled(promise())


def spoiled(reply: Reply) -> Reply:
    weights = dict(reply.weights)
    name = next(iter(weights))
    weights[name] = weights[name].clone().index_fill_(0, torch.tensor([0]), float("nan"))
    return replace(reply, weights=weights)


class SlowDisk(ThreadPoolExecutor):
    """A disk that takes its time."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        def late() -> T:
            time.sleep(0.2)
            return fn(*args, **kwargs)

        return super().submit(late)


def odd(site: Site, error: Exception | None = None) -> Odd:
    return Odd(**{f.name: getattr(site, f.name) for f in fields(Site)}, error=error)


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Site, ...]:
    return built(tiny(sites=3), tmp_path).sites.sites


ORDER = Train(round=1, since=0)


def test_replies_come_in_roster_order_whatever_the_order_of_the_requests(sites: tuple[Site, ...]):
    engine = InProcessEngine(sites, ignore)
    assert engine.names == ("alder", "birch", "cedar")
    for names in (("cedar", "alder", "birch"), ("cedar", "alder")):
        replies = engine.ask(dict.fromkeys(names, Describe()))
        assert [reply.site for reply in replies] == sorted(names)


def test_every_reply_is_heard_as_it_comes(sites: tuple[Site, ...]):
    heard: list[tuple[Request, str]] = []
    engine = InProcessEngine(sites, lambda request, reply: heard.append((request, reply.site)))
    engine.ask(dict.fromkeys(engine.names, Describe()))
    assert heard == [(Describe(), name) for name in engine.names]


def failure(sites: tuple[Site, ...], failing: Site, request: Request = ORDER) -> SiteFailed:
    """What stops a round in which the second of three sites fails: the third never begins."""
    heard: list[str] = []
    engine = InProcessEngine(
        (sites[0], failing, sites[2]), lambda request, reply: heard.append(reply.site)
    )
    with pytest.raises(SiteFailed) as stopped:
        engine.ask(dict.fromkeys(engine.names, request))
    assert not {"birch", "cedar"} & set(heard)
    return stopped.value


def test_a_site_that_raises_stops_the_round_with_its_failure_card(sites: tuple[Site, ...]):
    failed = failure(sites, odd(sites[1], ValueError("no such slice")))
    card = replace(failed.card, trace=())
    assert card == FailureCard("birch", 1, "train", "ValueError", "no such slice")
    assert failed.card.trace[-1].startswith("test_in_process.py:")
    assert failed.card.trace[-1].endswith(" begin")
    assert str(failed) == ("site 'birch' failed in round 1 (train): ValueError: no such slice")
    assert isinstance(failed.__cause__, ValueError)


@pytest.mark.parametrize(
    "error",
    [FloatingPointError("x"), MemoryError("x"), torch.OutOfMemoryError("x"), DiskFailed("x")],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_card_hints_at_what_may_help(sites: tuple[Site, ...], error: Exception):
    failed = failure(sites, odd(sites[1], error))
    assert failed.card.hint == HINTS[type(error).__name__]
    assert str(failed).endswith(f"x. {failed.card.hint}")


def test_a_reply_that_is_not_finite_stops_the_round_and_names_the_tensor(sites: tuple[Site, ...]):
    failed = failure(sites, odd(sites[1]))
    assert failed.card.error == "FloatingPointError"
    assert failed.card.message.endswith("' is not finite")
    assert failed.card.hint.startswith("Lower training.learning_rate")


def test_a_card_names_the_stage(sites: tuple[Site, ...]):
    failed = failure(sites, odd(sites[1], OSError("gone")), Describe())
    assert (failed.card.stage, failed.card.round) == ("describe", 0)


def real(site: Site, *, reveals: bool = False) -> Site:
    """The same site as if its data were real."""
    disclosure = Disclosure(site.name, frozenset({"T1w"}), reveals)
    return replace(site, ready=replace(site.ready, simulated=False), disclosure=disclosure)


def test_the_card_of_a_real_site_has_no_text_of_an_error_and_its_log_has_it(
    sites: tuple[Site, ...], caplog: pytest.LogCaptureFixture
):
    error = ValueError("/data/p001/t1.nii.gz of p001 is odd")
    card = failure(sites, odd(real(sites[1]), error)).card
    assert (card.error, card.message) == ("ValueError", "see the log of site 'birch'")
    assert str(error) in caplog.text


def test_a_simulated_site_and_one_that_may_reveal_its_failures_tell_the_whole(
    sites: tuple[Site, ...], caplog: pytest.LogCaptureFixture
):
    error = ValueError("/data/p001/t1.nii.gz of p001 is odd")
    for site in (sites[1], real(sites[1], reveals=True)):
        assert failure(sites, odd(site, error)).card.message == str(error)
    assert caplog.text == ""


def test_bad_input_of_a_real_site_is_raised_as_what_others_may_know(
    sites: tuple[Site, ...], caplog: pytest.LogCaptureFixture
):
    error = BadFolder("/run/anna: no round", safe=phrase("no {name}", name=Name("T1w")))
    engine = InProcessEngine((odd(real(sites[1]), error),), ignore)
    with pytest.raises(BadFolder, match=r"^no T1w; see the log of site 'birch'$") as told:
        engine.ask({"birch": ORDER})
    assert told.value.safe == error.safe
    assert str(error) in caplog.text


def test_a_quorum_goes_on_without_a_site_and_tells_its_card(sites: tuple[Site, ...]):
    told: list[FailureCard] = []
    broken = (sites[0], odd(sites[1], ValueError("x")), sites[2])
    engine = InProcessEngine(broken, ignore, told.append)
    replies = engine.ask(dict.fromkeys(engine.names, Describe()), quorum=Quorum(2))
    assert [reply.site for reply in replies] == ["alder", "cedar"]
    assert [(card.site, card.stage, card.message) for card in told] == [("birch", "describe", "x")]
    with pytest.raises(SiteFailed, match="site 'birch' failed"):
        engine.ask(dict.fromkeys(engine.names, Describe()), quorum=Quorum(3))


def test_a_reply_that_a_quorum_drops_is_heard_of_by_nobody(sites: tuple[Site, ...]):
    """A reply with a number that is none never reaches a listener."""
    heard: list[str] = []
    told: list[FailureCard] = []
    engine = InProcessEngine(
        (sites[0], odd(sites[1])), lambda _, reply: heard.append(reply.site), told.append
    )
    engine.ask(dict.fromkeys(engine.names, ORDER), quorum=Quorum(1))
    assert heard == ["alder"]
    assert [card.error for card in told] == ["FloatingPointError"]


def test_what_is_delivered_to_peers_leaves_a_receipt(sites: tuple[Site, ...]):
    """Sent twice: to birch and cedar, but not to alder itself."""
    engine = InProcessEngine(sites, ignore)
    [whole] = engine.ask({"alder": ORDER})
    [receipt] = engine.ask({"alder": ORDER}, deliver_to=engine.names)
    assert receipt.weights == {}
    assert receipt.sent == 2 * num_bytes(whole.weights)
    for site in sites:
        [update] = site.mailbox.updates(["alder"], 1)
        assert digest(update.weights) == digest(whole.weights)


def test_bad_input_of_a_site_stays_bad_input(sites: tuple[Site, ...]):
    engine = InProcessEngine((odd(sites[0], BadFolder("not here")),), ignore)
    with pytest.raises(BadFolder, match="not here"):
        engine.ask({"alder": Describe()})


def test_a_failure_crosses_a_process_boundary_with_its_card(sites: tuple[Site, ...]):
    failed = failure(sites, odd(sites[1], ValueError("x")))
    again = pickle.loads(pickle.dumps(failed))
    assert (again.card, str(again)) == (failed.card, str(failed))


@pytest.mark.slow
def test_no_round_comes_of_a_round_in_which_a_site_failed(tmp_path: Path):
    federation = built(tiny(sites=2), tmp_path)
    alder, birch = federation.sites.sites
    engine = InProcessEngine((alder, odd(birch, ValueError("x"))), ignore)
    with pytest.raises(SiteFailed):
        Star().round(federation.start, engine, federation.method)


@pytest.mark.slow
def test_a_reply_is_released_only_when_the_disk_has_taken_the_private_state(
    sites: tuple[Site, ...],
):
    held: list[tuple[int, ...]] = []
    slow = tuple(replace(site, disk=SlowDisk(2)) for site in sites[:2])
    by_name = {site.name: site for site in slow}
    engine = InProcessEngine(
        slow, lambda _, reply: held.append(by_name[reply.site].answer(Describe()).rounds)
    )
    engine.ask(dict.fromkeys(engine.names, ORDER))
    assert held == [(1,), (1,)]


def test_nothing_is_still_being_written_when_a_round_has_failed(sites: tuple[Site, ...]):
    """The run then gives its folder free; a late write would fall into the next run's."""
    disk = SlowDisk(2)
    alder = replace(sites[0], disk=disk)
    failure((alder, *sites[1:]), odd(sites[1], ValueError("x")))
    held = alder.answer(Describe()).rounds
    disk.shutdown(wait=True)
    assert alder.answer(Describe()).rounds == held


def test_a_disk_that_fails_behind_a_sites_back_stops_the_round(
    sites: tuple[Site, ...], tmp_path: Path
):
    """The disk of the first site fails while the second computes: the first one's card comes."""
    (tmp_path / "sites" / "alder").mkdir(parents=True)
    (tmp_path / "sites" / "alder" / "state").symlink_to("/proc/self")
    heard: list[str] = []
    engine = InProcessEngine(sites, lambda _, reply: heard.append(reply.site))
    with pytest.raises(SiteFailed) as stopped:
        engine.ask(dict.fromkeys(engine.names, ORDER))
    assert heard == []
    assert (stopped.value.card.site, stopped.value.card.error) == ("alder", "DiskFailed")
