"""What is asked and sent of the keys of a secure sum is held against the accepted study."""

from dataclasses import replace

import pytest
import torch

from grandrounds.algorithms.policy import TensorPolicy
from grandrounds.algorithms.sharing import Sharing
from grandrounds.algorithms.star import Star
from grandrounds.algorithms.swarm import Swarm
from grandrounds.algorithms.topology import Topology
from grandrounds.core.messages import AdvertiseKeys, Reply, Request, ShareKeys, Train, Unmask
from grandrounds.core.weights import Weights
from grandrounds.engines.reply_guard import ReplyGuard
from grandrounds.privacy.guard import Guards
from grandrounds.privacy.secure_sum.guard import SUM, SecureSum
from grandrounds.site.guard import Refused, StudyGuard

ROSTER = ("alder", "birch", "cedar")
SHAPES = {"body.weight": (torch.Size((2, 3)), torch.float32)}
MASKS = Guards((SecureSum(),), dict.fromkeys(ROSTER, 1), "recover")


def policy_with(guards: Guards) -> TensorPolicy:
    return TensorPolicy(SHAPES, frozenset(), Sharing(), sites=ROSTER, guards=guards)


def guard(guards: Guards = MASKS, topology: Topology | None = None) -> StudyGuard:
    """The guard of alder, which has trained two of five rounds."""
    policy = policy_with(guards)
    peers: dict[str, TensorPolicy] = dict.fromkeys(("", *ROSTER), policy)
    where = topology or Star()
    return StudyGuard(5, 0, True, ROSTER, where, policy, peers, lambda: (1, 2))


def octets(number: int) -> torch.Tensor:
    return torch.zeros(number, dtype=torch.uint8)


PUBLIC: Weights = {f"keys/{name}": octets(900) for name in ROSTER}
SHARES: Weights = {f"shares/{name}": octets(82) for name in ROSTER[1:]}
REVEALED: Weights = {f"revealed/{name}": octets(33) for name in ROSTER}
UNMASK = Unmask(round=2, survivors=ROSTER, weights=SHARES)


@pytest.mark.parametrize(
    "request_", [AdvertiseKeys(round=3), ShareKeys(round=3, weights=PUBLIC), UNMASK]
)
def test_the_protocol_s_own_requests_pass(request_: Request):
    guard().check(request_)
    to = ("birch",) if isinstance(request_, Unmask) else ()
    guard(topology=Swarm()).check(request_, to)


@pytest.mark.parametrize(
    ("request_", "site", "to", "words"),
    [
        (AdvertiseKeys(round=3), guard(Guards()), (), "no update is masked"),
        (ShareKeys(round=3, weights=PUBLIC), guard(Guards()), (), "no update is masked"),
        (UNMASK, guard(Guards()), (), "no update is masked"),
        (AdvertiseKeys(round=5), guard(), (), "this site's next is 3"),
        (AdvertiseKeys(round=6), guard(), (), "not one of the study's 5"),
        (replace(UNMASK, round=3), guard(), (), "cannot be unmasked here"),
        (replace(UNMASK, survivors=("elder",)), guard(), (), "not in this study"),
        (UNMASK, guard(), ("birch",), "no site's tensors go to another"),
        (UNMASK, guard(topology=Swarm()), (), "go to the leader"),
        (AdvertiseKeys(round=3), guard(topology=Swarm()), ("birch",), "go to the leader"),
        (ShareKeys(round=3, weights=SHARES), guard(), (), "no part of this step"),
        (replace(UNMASK, weights={"shares/elder": octets(82)}), guard(), (), "no part of"),
        (replace(UNMASK, weights={"shares/birch": octets(83)}), guard(), (), "not of the size"),
        (
            ShareKeys(round=3, weights={"keys/birch": torch.zeros(900)}),
            guard(),
            (),
            "not of the size",
        ),
    ],
)
def test_any_other_request_about_keys_is_refused(
    request_: Request, site: StudyGuard, to: tuple[str, ...], words: str
):
    with pytest.raises(Refused, match=words):
        site.check(request_, to)


def test_an_update_in_the_clear_does_not_leave_a_site_that_masks():
    train = Train(round=3, since=2)
    with pytest.raises(Refused, match=f"'{SUM}' is missing"):
        guard().check_reply(
            train, Reply(site="alder", round=3, weights={"body.weight": torch.ones(2, 3)})
        )
    guard().check_reply(
        train, Reply(site="alder", round=3, weights={SUM: torch.zeros(7, dtype=torch.int32)})
    )


@pytest.mark.parametrize(
    ("request_", "weights", "words"),
    [
        (AdvertiseKeys(round=3), {"keys/alder": octets(2**15)}, "not of the size"),
        (ShareKeys(round=3), {"shares/elder": octets(82)}, "no part of this step"),
        (UNMASK, {"revealed/birch": octets(32)}, "not of the size"),
        (UNMASK, {"body.weight": torch.ones(2, 3)}, "no part of this step"),
        (Train(round=3, since=2), {SUM: torch.zeros(8, dtype=torch.int32)}, "must be"),
        (Train(round=3, since=2), {"body.weight": torch.ones(2, 3)}, "is missing"),
    ],
)
def test_a_reply_that_is_no_part_of_the_protocol_is_not_believed(
    request_: Request, weights: Weights, words: str
):
    check = ReplyGuard(5, dict.fromkeys(ROSTER, policy_with(MASKS)))
    reply = Reply(site="birch", round=request_.round, examples=8, weights=weights)
    assert words in check(request_, reply, False)


def test_a_peer_reveals_shares_only_where_updates_are_masked():
    revealed = Reply(site="birch", round=2, weights=REVEALED)
    guard(topology=Swarm()).check_peer("birch", revealed)
    with pytest.raises(Refused, match="no update is masked"):
        guard(Guards(), Swarm()).check_peer("birch", revealed)
    mixed = replace(revealed, weights=REVEALED | {"body.weight": torch.ones(2, 3)})
    with pytest.raises(Refused, match="no part of this step"):
        guard(topology=Swarm()).check_peer("birch", mixed)
