"""With privacy.secure_sum only the sum of the updates is read, in every engine and topology."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from grandrounds.core.errors import SiteFailed
from grandrounds.core.events import RoundFinished
from grandrounds.core.ledger import LedgerEntry
from grandrounds.core.messages import (
    AdvertiseKeys,
    Merge,
    Reply,
    Request,
    ShareKeys,
    Train,
    Unmask,
    encode,
)
from grandrounds.core.weights import Weights, mean
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.privacy.secure_sum.fixed_point import FixedPoint
from grandrounds.privacy.secure_sum.guard import SUM
from grandrounds.runs.build import Federation
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.remote import run_remotely
from grandrounds.study.study import Study
from tests.helpers.federation import Spy, built, digests, fail_when, stopped, tiny
from tests.parity.test_guarded import PATIENT, guarded

pytestmark = pytest.mark.slow

NAMES = ("alder", "birch", "cedar", "elder")
PLAIN = ("method.kind=fedavg", "rounds=2")
MASKED = (*PLAIN, "privacy.secure_sum=true")
SHOWS = 16  # bytes in a row that show an update: four numbers


def only_round(study: Study, folder: Path) -> tuple[Federation, Spy, Weights]:
    federation = built(study, folder)
    spy = Spy(replace(federation.sites, on_failure=lambda _: None))
    state = federation.topology.round(federation.start, spy, federation.method).state
    return federation, spy, state.weights


@dataclass(frozen=True)
class Plain:
    """What each site would send without masks: its training does not know of them."""

    start: Weights
    updates: Mapping[str, Weights]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    federation, spy, _ = only_round(tiny(*PLAIN), tmp_path_factory.mktemp("plain"))
    return Plain(federation.start.weights, {each.site: each.weights for each in spy.replies})


def assert_is_mean(found: Weights, updates: Mapping[str, Weights], start: Weights) -> None:
    """Rounding at n sites alike moves a mean by n/2 fixed-point steps at most, whoever is left."""
    encoding, expected = FixedPoint.of(start), mean([*updates.values()], [1] * len(updates))
    for name, tensor in found.items():
        near = encoding.step(name) * (len(NAMES) / 2) * 1.01 + 2**-23 * expected[name].abs()
        assert ((tensor.double() - expected[name]).abs() <= near).all(), name


def shown_in(received: bytes, update: Mapping[str, Tensor], start: Weights) -> list[str]:
    """The tensors of an update of which something was received, as it is or in fixed point."""
    encoding, total = FixedPoint.of(start), 32
    integers = encoding.encode(update, 8, total)[:-1]
    ends = np.cumsum([shape.numel() for shape, _ in encoding.layout.values()])[:-1]
    in_fixed_point = dict(zip(encoding.layout, np.split(integers, ends), strict=True))
    return [
        name
        for name, tensor in update.items()
        for form in (tensor.numpy().tobytes(), in_fixed_point[name].tobytes())
        if len(form) >= SHOWS and len(set(form)) > SHOWS and form[:SHOWS] in received
    ]


def test_the_mean_is_the_plain_one_up_to_the_fixed_point_step(plain: Plain, tmp_path: Path):
    """Identity 12 over a whole round; and nothing that the server got shows an update."""
    _, spy, found = only_round(tiny(*MASKED), tmp_path)
    assert_is_mean(found, plain.updates, plain.start)
    received = b"".join(map(encode, spy.replies))
    for site, update in plain.updates.items():
        assert shown_in(received, update, plain.start) == [], site
        open = encode(Reply(site=site, round=1, weights=update))
        assert len(shown_in(open, update, plain.start)) > 10  # the search does find


@pytest.mark.parametrize("topology", ["star", "swarm"])
def test_sites_elsewhere_compute_the_same_bits_and_show_no_update(
    topology: str, plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Neither the coordinator nor a swarm's leader receives any site's update."""
    study, log = tiny(*MASKED, f"topology.kind={topology}", sites=3), list[LedgerEntry]()
    received, receive = {"coordinator": list[bytes]()}, SiteAgent.receive_update

    def delivered(agent: SiteAgent, packed: bytes) -> bytes:
        received.setdefault(agent.disclosure.site, []).append(packed)
        return receive(agent, packed)

    monkeypatch.setattr(SiteAgent, "receive_update", delivered)
    with guarded(study, tmp_path / "sites", log) as ask:

        def call(site: str, packed: bytes, timeout: float) -> bytes:
            received["coordinator"].append(ask(site, packed, timeout))
            return received["coordinator"][-1]

        run_remotely(study, tmp_path / "run", call, patience=PATIENT)
    run(tiny(*MASKED, sites=3), tmp_path / "here")
    assert digests(tmp_path / "run") == digests(tmp_path / "here")
    assert len(digests(tmp_path / "run")) == 2
    assert [entry for entry in log if entry.refused or entry.failed] == []
    assert ("alder" in received) == (topology == "swarm")
    for letters in received.values():
        for update in plain.updates.values():
            assert shown_in(b"".join(letters), update, plain.start) == []


def failing(*kinds: type[Request]) -> Callable[[str, Request], bool]:
    return lambda name, request: name == "birch" and isinstance(request, kinds)


@pytest.mark.parametrize(
    "kind", [pytest.param(AdvertiseKeys, marks=pytest.mark.full), ShareKeys, Train, Unmask]
)
def test_a_site_that_falls_silent_at_any_step_is_recovered_from(
    kind: type[Request], plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Only at the last step is its update in the sum: it was there before it fell silent."""
    fail_when(monkeypatch, failing(kind))
    _, _, found = only_round(tiny(*MASKED, "topology.require=3"), tmp_path)
    counted = [name for name in NAMES if kind is Unmask or name != "birch"]
    assert_is_mean(found, {name: plain.updates[name] for name in counted}, plain.start)


def test_a_round_is_repeated_without_a_site_that_falls_silent(
    plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_when(monkeypatch, failing(Train))
    study = tiny(*MASKED, "topology.require=3", "privacy.on_dropout=repeat")
    _, spy, found = only_round(study, tmp_path)
    left = {name: update for name, update in plain.updates.items() if name != "birch"}
    assert_is_mean(found, left, plain.start)
    masked = [reply.weights[SUM] for reply in spy.replies if SUM in reply.weights]
    assert len(masked) == 6  # three sites, twice
    assert not (masked[0] == masked[3]).any()  # with fresh masks
    revealed = [request.survivors for _, request in spy.asked if isinstance(request, Unmask)]
    assert revealed == [("alder", "cedar", "elder")] * 3


@pytest.mark.parametrize("lost", [("birch", "cedar"), ("birch",)])
def test_below_the_threshold_or_where_all_are_required_the_run_stops(
    lost: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_when(monkeypatch, lambda name, request: name in lost and isinstance(request, Train))
    require = "topology.require=1" if len(lost) > 1 else 'topology.require="all"'
    with pytest.raises(SiteFailed, match="out of luck"):
        only_round(tiny(*MASKED, require), tmp_path)


def test_a_run_that_was_killed_goes_on_to_the_same_bits_with_fresh_masks(tmp_path: Path):
    study = tiny(*MASKED, sites=3)
    run(study, tmp_path / "whole")
    stopped(study, tmp_path / "killed", lambda e: isinstance(e, RoundFinished) and e.round == 1)
    run(study, tmp_path / "killed", resume=True)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def asked(federation: Federation, *requests: Request) -> list[Reply]:
    """Ask all sites, one request after another, and return the last replies."""
    replies = list[Reply]()
    for request in requests:
        replies = federation.sites.ask(dict.fromkeys(NAMES, request))
    return replies


def keys_of(replies: list[Reply]) -> Weights:
    return {name: tensor for reply in replies for name, tensor in reply.weights.items()}


def trained(federation: Federation) -> dict[str, Weights]:
    """Let all sites exchange keys and train; return what each sealed for the others."""
    keys = keys_of(asked(federation, AdvertiseKeys(round=1)))
    sealed = {r.site: r.weights for r in asked(federation, ShareKeys(round=1, weights=keys))}
    asked(federation, Train(round=1, since=0, weights=federation.start.weights))
    return sealed


def unmasking(sealed: dict[str, Weights], site: str, survivors: tuple[str, ...]) -> Unmask:
    theirs = {f"shares/{n}": t[f"shares/{site}"] for n, t in sealed.items() if n != site}
    return Unmask(round=1, survivors=survivors, weights=theirs)


def test_a_round_that_is_repeated_is_not_unmasked_for_other_sites(tmp_path: Path):
    """The attack: two sums of one round, with and without a site; in memory and after a restart."""
    federation = built(tiny(*MASKED), tmp_path)
    sealed = trained(federation)
    federation.sites.ask({"alder": unmasking(sealed, "alder", NAMES)})
    for attempt in (federation, built(tiny(*MASKED), tmp_path)):
        sealed = trained(attempt)
        with pytest.raises(SiteFailed, match="unmasked before with other survivors"):
            attempt.sites.ask({"alder": unmasking(sealed, "alder", NAMES[:3])})
        attempt.sites.ask({"alder": unmasking(sealed, "alder", NAMES)})


def test_no_update_leaves_before_keys_were_exchanged_or_twice(tmp_path: Path):
    federation = built(tiny(*MASKED), tmp_path)
    train = Train(round=1, since=0, weights=federation.start.weights)
    with pytest.raises(SiteFailed, match="no keys were asked for"):
        federation.sites.ask({"alder": train})
    asked(federation, AdvertiseKeys(round=1))
    with pytest.raises(SiteFailed, match="were not exchanged"):
        federation.sites.ask({"alder": train})
    trained(federation)
    with pytest.raises(SiteFailed, match="used already"):
        federation.sites.ask({"alder": train})


def test_a_coordinator_that_puts_its_own_key_in_place_of_a_site_s_is_refused(tmp_path: Path):
    federation = built(tiny(*MASKED), tmp_path)
    keys = keys_of(asked(federation, AdvertiseKeys(round=1)))
    words = bytes(keys["keys/birch"].tolist()).replace(b'"masking": "', b'"masking": "00')
    changed = words.replace(b'00"', b'"', 1) if b'00"' in words else words
    keys["keys/birch"] = torch.frombuffer(bytearray(changed), dtype=torch.uint8)
    with pytest.raises(SiteFailed, match="secure sum"):
        federation.sites.ask({"alder": ShareKeys(round=1, weights=keys)})


def test_a_leader_without_what_unmasks_merges_nothing(tmp_path: Path):
    federation = built(tiny(*MASKED, "topology.kind=swarm"), tmp_path)
    keys = keys_of(asked(federation, AdvertiseKeys(round=1)))
    asked(federation, ShareKeys(round=1, weights=keys))
    train = Train(round=1, since=0)
    federation.sites.ask(dict.fromkeys(NAMES, train), deliver_to=("alder",))
    with pytest.raises(SiteFailed, match="no share of a key of alder, birch, cedar, elder"):
        federation.sites.ask({"alder": Merge(round=1, since=0, peers=NAMES)})
