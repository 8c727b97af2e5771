import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from threading import Event

import pytest
from safetensors.torch import save as safetensors
from torch import tensor

from grandrounds.algorithms.topology import Quorum
from grandrounds.core.errors import BadImage, BadSite, FailureCard, SiteFailed
from grandrounds.core.failures import Disclosure
from grandrounds.core.messages import (
    Describe,
    Evaluate,
    Message,
    Reply,
    Request,
    Train,
    encode,
)
from grandrounds.core.state import State
from grandrounds.core.weights import digest
from grandrounds.engines import remote
from grandrounds.engines.envelope import ReplyEnvelope, RequestEnvelope, pack, unpack
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.engines.remote import Call, RemoteEngine, SiteConnection, ready
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.engines.replies import in_roster_order
from grandrounds.runs.build import host_sites, make_blueprint
from grandrounds.runs.costs import plan_run
from grandrounds.runs.loop import run_study as run
from grandrounds.site.site import Site
from tests.helpers.federation import digests, ignore, rows, tiny
from tests.helpers.remote_sites import (
    LONG,
    NAMES,
    NEXT,
    ORDER,
    QUICK,
    Attend,
    Counted,
    Slow,
    Way,
    answered,
    attending,
    card_of,
    engine,
    failing,
    no_thread_left,
    nowhere,
    odd,
    reached,
    sites_of,
    traits,
)
from tests.helpers.site_processes import one_site, run_elsewhere, town


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Site]:
    return sites_of(tmp_path_factory.mktemp("sites"))


@pytest.fixture
def attend(sites: Mapping[str, Site]) -> Iterator[Attend]:
    with attending(sites) as attend:
        yield attend


def asked_in_turn(sites: InProcessEngine | RemoteEngine, start: State) -> list[Reply]:
    """What alder answers when it is described, trained and scored."""

    def ask(request: Request) -> Reply:
        [reply] = sites.ask({"alder": request})
        return reply

    trained = ask(Train(round=1, since=0, weights=start.weights))
    scored = Evaluate(round=1, since=1, split="test", cases=True, weights=trained.weights)
    return [ask(Describe()), trained, ask(scored)]


def test_a_site_elsewhere_answers_what_it_answers_in_this_process_to_the_bit(tmp_path: Path):
    study = tiny(sites=2)
    drawn = make_blueprint(plan_run(study), study.machine())
    with host_sites(study, (), tmp_path / "here", 1, ("alder",)) as simulation:
        here = asked_in_turn(simulation, drawn.start)
    host = one_site(study, tmp_path / "there", "alder")
    attendant = SiteAgent(host, nowhere, Disclosure("alder", study.names))
    heard: list[Reply] = []
    line = SiteConnection("alder", Way({"alder": attendant}), replace(QUICK, start=LONG))
    assert ready([line]) == {"alder": b"alder"}
    engine = RemoteEngine((line,), lambda _, reply: heard.append(reply))
    there = asked_in_turn(engine, drawn.start)
    attendant.close()
    assert [traits(reply) for reply in there] == [traits(reply) for reply in here]
    assert heard == there[1:2] + there[:1] + there[2:]
    described, trained, scored = there
    assert described.ready is not None
    assert trained.digest
    assert digest(trained.weights) != digest(drawn.start.weights)
    assert len(scored.scores) == scored.cases > 0


def saying(message: Message | bytes) -> Call:
    """A site that answers this, whatever it is asked."""
    body = message if isinstance(message, bytes) else encode(message)

    def call(site: str, sealed: bytes, timeout: float) -> bytes:
        number = unpack(sealed, RequestEnvelope).number
        return pack(ReplyEnvelope(number=number, state="done", body=body))

    return call


OTHER = "it does not answer what 'alder' was asked in round 1"
NAN = {"a": tensor([1.0]), "b": tensor([math.nan])}
ODD: dict[str, tuple[Message, str, str]] = {
    "no number": (
        Reply(site="alder", round=1, weights=NAN),
        "FloatingPointError",
        "'b' is not finite",
    ),
    "another site": (answered("birch", ORDER), "BadUpdate", OTHER),
    "another round": (answered("alder", NEXT), "BadUpdate", OTHER),
    "no reply": (ORDER, "BadUpdate", OTHER),
}


@pytest.mark.parametrize("body", [b"", b"nonsense", encode(ORDER)[:-1] + b"x", safetensors({})])
def test_bytes_that_are_no_reply_are_a_failure_of_their_site(body: bytes):
    card = card_of(engine(saying(body)))
    assert (card.site, card.error) == ("alder", "BadUpdate")
    assert "'alder'" in card.message


@pytest.mark.parametrize("odd", ODD)
def test_a_reply_that_cannot_be_right_is_a_failure_of_its_site(odd: str):
    message, error, sentence = ODD[odd]
    card = card_of(engine(saying(message)))
    assert (card.site, card.round, card.stage) == ("alder", 1, "train")
    assert (card.error, card.message) == (error, sentence)
    assert card.hint


def test_a_sites_own_failure_arrives_with_its_whole_card(attend: Attend, sites: Mapping[str, Site]):
    act = failing(FloatingPointError("loss is nan"))
    with pytest.raises(SiteFailed) as here:
        InProcessEngine((odd(sites["alder"], act),), ignore).ask({"alder": NEXT})
    card = card_of(reached(("alder", attend("alder", act))), NEXT)
    told = "a loss or a tensor is not finite; see the log of site 'alder'"
    assert replace(card, trace=()) == replace(here.value.card, message=told, trace=())
    assert here.value.card.trace[-1].startswith("remote_sites.py:")
    assert all(line.startswith("engines/in_process.py:") for line in card.trace)
    assert "learning_rate" in card.hint


def test_bad_input_at_a_site_arrives_as_what_the_site_may_tell_of_it(
    attend: Attend, caplog: pytest.LogCaptureFixture
):
    sentence = "/data/t1.nii.gz: spacing 2 mm, but site 'alder' declares 1 mm."
    act = failing(BadImage(sentence))
    with pytest.raises(BadSite) as told:
        reached(("alder", attend("alder", act))).ask({"alder": ORDER})
    assert str(told.value) == (
        "site 'alder' refuses in round 1 (train): an image at the site cannot be used; "
        "see the log of site 'alder'"
    )
    assert sentence in caplog.text


def test_a_quorum_leaves_a_slow_site_behind_and_takes_no_late_answer_for_a_later_one(
    attend: Attend,
):
    slow = Slow(attend.gate)
    way = Way({"alder": attend("alder", slow), "birch": attend("birch")})
    missed: list[FailureCard] = []
    engine = RemoteEngine(
        tuple(SiteConnection(n, way, QUICK) for n in ("alder", "birch")), ignore, missed.append
    )
    began = time.monotonic()
    with no_thread_left():
        replies = engine.ask(dict.fromkeys(engine.names, ORDER), quorum=Quorum(1, patience=0.3))
    assert 0.3 <= time.monotonic() - began < LONG / 2
    assert [reply.site for reply in replies] == ["birch"]
    [card] = missed
    assert (card.site, card.round, card.stage, card.error) == ("alder", 1, "train", "TimeoutError")
    assert card.message == "has not answered in 0.3 s, the patience"
    assert "topology.patience" in card.hint
    threading.Timer(0.2, attend.gate.set).start()
    replies = engine.ask(dict.fromkeys(engine.names, NEXT))
    assert [(r.site, r.round, float(r.weights["w"])) for r in replies] == [
        ("alder", 2, 2.0),
        ("birch", 2, 2.0),
    ]
    assert slow.asked[-1] == NEXT


def test_patience_waits_until_enough_have_answered(attend: Attend):
    attendants = [(name, attend(name, Slow(attend.gate))) for name in ("alder", "birch")]
    threading.Timer(0.3, attend.gate.set).start()
    engine = reached(*attendants)
    replies = engine.ask(dict.fromkeys(engine.names, ORDER), quorum=Quorum(2, patience=0.05))
    assert [reply.site for reply in replies] == ["alder", "birch"]


def test_a_quorum_goes_on_without_a_site_that_fails_or_hears_that_too_many_did(attend: Attend):
    acts = {"alder": failing(ValueError("out of luck")), "birch": answered, "cedar": answered}
    way, missed = Way({name: attend(name, act) for name, act in acts.items()}), list[FailureCard]()
    engine = RemoteEngine(
        tuple(SiteConnection(name, way, QUICK) for name in NAMES), ignore, missed.append
    )
    replies = engine.ask(dict.fromkeys(NAMES, ORDER), quorum=Quorum(2))
    assert [reply.site for reply in replies] == ["birch", "cedar"]
    assert [card.site for card in missed] == ["alder"]
    with pytest.raises(SiteFailed, match="'alder' failed in round 1"):
        engine.ask(dict.fromkeys(NAMES, ORDER), quorum=Quorum(3))


def test_a_failure_is_raised_before_slower_sites_answer_and_leaves_no_thread(attend: Attend):
    slow = attend("alder", Slow(attend.gate))
    fails = attend("birch", failing(ValueError("no luck")))
    with no_thread_left():
        card = card_of(reached(("alder", slow), ("birch", fails)))
    assert (card.site, card.error) == ("birch", "ValueError")
    assert not attend.gate.is_set()


def test_no_thread_asks_on_while_the_failure_is_looked_at(attend: Attend):
    slow = attend("alder", Slow(attend.gate))
    fails = attend("birch", failing(ValueError("no luck")))
    engine = reached(("alder", slow), ("birch", fails))
    with no_thread_left(), pytest.raises(SiteFailed) as stopped:
        engine.ask(dict.fromkeys(engine.names, ORDER))
    assert stopped.value.__traceback__ is not None


def test_no_thread_asks_on_when_who_hears_the_replies_stops_the_run(attend: Attend):
    def stop(request: Request, reply: Reply) -> None:
        raise KeyboardInterrupt

    way = Way({"alder": attend("alder"), "birch": attend("birch", Slow(attend.gate))})
    engine = RemoteEngine(tuple(SiteConnection(name, way, QUICK) for name in way.attendants), stop)
    with no_thread_left(), pytest.raises(KeyboardInterrupt) as stopped:
        engine.ask(dict.fromkeys(engine.names, ORDER))
    assert stopped.value.__traceback__ is not None


@pytest.mark.parametrize(
    ("other", "packed"),
    [(ORDER, 1), (NEXT, 2), (replace(ORDER, weights={"a": tensor([2.0])}), 2)],
    ids=["the same", "another round", "other weights"],
)
def test_what_several_sites_get_is_packed_once(
    other: Train, packed: int, attend: Attend, monkeypatch: pytest.MonkeyPatch
):
    made: list[Message] = []

    def counted(request: Request) -> bytes:
        made.append(request)
        return encode(request)

    monkeypatch.setattr(remote, "encode", counted)
    sites = {name: Counted() for name in ("alder", "birch")}
    engine = reached(*((name, attend(name, site)) for name, site in sites.items()))
    engine.ask({"alder": ORDER, "birch": other})
    assert len(made) == packed
    [[first], [second]] = [site.asked for site in sites.values()]
    assert isinstance(first, Train)
    assert isinstance(second, Train)
    assert digest(first.weights) == digest(ORDER.weights)
    assert (second.round, digest(second.weights)) == (other.round, digest(other.weights))


def test_replies_are_heard_in_roster_order_as_soon_as_those_before_are_there(attend: Attend):
    """Birch answers first and is heard second, cedar answers only after that."""
    alder = Event()
    gates = {"alder": alder, "birch": Event(), "cedar": attend.gate}
    gates["birch"].set()
    heard: list[str] = []

    def hear(request: Request, reply: Reply) -> None:
        heard.append(reply.site)
        if heard == ["alder", "birch"]:
            attend.gate.set()

    way = Way({name: attend(name, Slow(gates[name])) for name in NAMES})
    engine = RemoteEngine(tuple(SiteConnection(name, way, QUICK) for name in NAMES), hear)
    threading.Timer(0.2, alder.set).start()
    replies = engine.ask(dict.fromkeys(reversed(NAMES), ORDER))
    assert [reply.site for reply in replies] == heard == list(NAMES)


def test_only_who_is_asked_is_asked(attend: Attend):
    way = Way({name: attend(name) for name in NAMES})
    [reply] = engine(way, *NAMES).ask({"birch": ORDER})
    assert reply.site == "birch"
    assert len(way.letters) == 1


@pytest.mark.parametrize("came", list(permutations(NAMES)))
def test_results_come_in_turn_whatever_order_they_come_in(came: Sequence[str]):
    results = [(name, name.upper()) for name in came]
    turns = list(in_roster_order((*NAMES, "elder"), set(NAMES), results, fail_fast=True))
    assert turns == [(name, name.upper()) for name in NAMES]


ARMS = {
    "pflsynth over star": (),
    "fedavg over swarm": (),
    "fedavg over cyclic": (),
    "pflsynth over relay": ("topology.handover=sites", "rounds=2"),
    "fedavg over split": ("topology.cut=encoder.2", "rounds=1"),
}


@pytest.mark.slow
def test_sites_in_processes_of_their_own_run_the_in_process_engines_rounds(tmp_path: Path):
    """One pair of processes hosts one study after the other."""
    with town(("alder", "birch")) as houses:
        for arm, more in ARMS.items():
            method, topology = arm.split(" over ")
            kinds = (f"method.kind={method}", f"topology.kind={topology}")
            study = tiny("rounds=2", *kinds, *more, sites=2)
            here, there = tmp_path / arm / "here", tmp_path / arm / "there"
            run(study, here)
            run_elsewhere(study, there, houses.open(study, there))
            assert digests(there) == digests(here), arm
            assert rows(there / "scores.csv") == rows(here / "scores.csv"), arm
            assert len(digests(here)) == study.rounds
