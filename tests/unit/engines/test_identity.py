"""Letters are signed: what somebody else made, kept or changed is refused, whoever delivers it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from grandrounds.core.messages import encode
from grandrounds.engines.envelope import (
    CorruptEnvelope,
    ForgedEnvelope,
    Identity,
    PeerEnvelope,
    ReplyEnvelope,
    RequestEnvelope,
    SealingKey,
    pack,
)
from grandrounds.engines.remote import SiteConnection
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.site.site import Site
from grandrounds.study.identity import load_key, sign, signer
from tests.helpers.certificates import Authority, new_key
from tests.helpers.remote_sites import LONG, ORDER, QUICK, Counted, answered, attending, sites_of

RUN = "0f" * 32 + "/tiny"
ASKED = RequestEnvelope(number=1, wait=1.0, body=b"train")


@dataclass(frozen=True)
class Federation:
    """An authority and its folder, where each party gets a key of its own."""

    authority: Authority
    folder: Path

    def party(self, name: str, run: str = RUN, says: str = "") -> Identity:
        """A party, which may say that it is another one."""
        key, certificate = self.authority.issue(name, self.folder / name)
        root = self.authority.root(self.folder / "root.pem")
        sealing = SealingKey(
            certificate.read_text(),
            partial(sign, key=load_key(key)),
            partial(signer, root=root),
        )
        return Identity(says or name, run, sealing)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(Authority("tiny", new_key()), tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Site]:
    return sites_of(tmp_path_factory.mktemp("sites"))


def test_a_letter_is_opened_by_whom_it_is_for(ours: Federation):
    server, alder = ours.party("server"), ours.party("alder")
    opened, seal = alder.unpack(server.pack(ASKED, "alder", "s"), RequestEnvelope)
    assert opened == ASKED
    assert (seal.sender, seal.to, seal.run, seal.session) == ("server", "alder", RUN, "s")


def foreign(ours: Federation) -> Identity:
    """A server of another federation of the same name."""
    return Federation(Authority("tiny", new_key()), ours.folder / "theirs").party("server")


FORGED: dict[str, Callable[[Federation], bytes]] = {
    "unsigned": lambda ours: pack(ASKED),
    "for another party": lambda ours: ours.party("server").pack(ASKED, "birch"),
    "of another study": lambda ours: ours.party("server", "ab" * 32).pack(ASKED, "alder"),
    "of another run": lambda ours: ours.party("server", RUN + "2").pack(ASKED, "alder"),
    "in another's name": lambda ours: ours.party("birch", says="server").pack(ASKED, "alder"),
    "by another authority": lambda ours: foreign(ours).pack(ASKED, "alder"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_letter_is_refused(ours: Federation, name: str):
    (ours.folder / "theirs").mkdir(exist_ok=True)
    letter = FORGED[name](ours)
    with pytest.raises(ForgedEnvelope):
        ours.party("alder").unpack(letter, RequestEnvelope)


def test_a_seal_is_of_one_letter_alone(ours: Federation):
    """The seal of one letter on another is not damaged, and not believed."""
    server, alder, kept = ours.party("server"), ours.party("alder"), list[bytes]()
    key = server.key
    assert key

    def first_of_all(statement: bytes) -> bytes:
        kept.append(key.sign(statement))
        return kept[0]

    replaying = replace(server, key=replace(key, sign=first_of_all))
    alder.unpack(replaying.pack(ASKED, "alder"), RequestEnvelope)
    with pytest.raises(ForgedEnvelope):
        alder.unpack(replaying.pack(replace(ASKED, number=2), "alder"), RequestEnvelope)


def test_a_changed_letter_is_damaged_and_not_forged(ours: Federation):
    """So that it is sent again, and nobody is accused."""
    letter, alder = ours.party("server").pack(ASKED, "alder"), ours.party("alder")
    for place in range(0, len(letter), 97):
        changed = letter[:place] + bytes([letter[place] ^ 1]) + letter[place + 1 :]
        with pytest.raises(CorruptEnvelope):
            alder.unpack(changed, RequestEnvelope)


def test_a_letter_of_an_earlier_session_is_refused(ours: Federation, sites: Mapping[str, Site]):
    """A site that was started again, in the same run, has another session."""
    server, alder = ours.party("server"), ours.party("alder")
    heard: list[bytes] = []
    with attending(sites) as attend:
        agents = [replace_identity(attend("alder", Counted()), alder) for _ in range(2)]

        def call(name: str, packed: bytes, timeout: float) -> bytes:
            heard.append(packed)
            return agents[0].answer(packed)

        line = SiteConnection("alder", call, QUICK, server)
        assert line.ask(0, b"").state == "done"
        assert line.ask(line.begin(), encode(ORDER)).state == "done"
        for letter, state in ((heard[0], "done"), (heard[-1], "refused")):
            answer, _ = server.unpack(agents[1].answer(letter), ReplyEnvelope)
            assert answer.state == state


def replace_identity(agent: SiteAgent, identity: Identity) -> SiteAgent:
    """The agent in a federation whose coordinator is the server."""
    agent.identity, agent.coordinator = identity, "server"
    return agent


def test_only_the_coordinator_is_answered(ours: Federation, sites: Mapping[str, Site]):
    birch, site = ours.party("birch"), Counted()
    with attending(sites) as attend:
        agent = replace_identity(attend("alder", site), ours.party("alder"))
        for letter in (
            birch.pack(ASKED, "alder", "a.b"),
            birch.pack(replace(ASKED, number=0), "alder", "a"),
            ours.party("birch", says="server").pack(ASKED, "alder", "a.b"),
            pack(ASKED),
        ):
            answer, _ = ours.party("server").unpack(agent.answer(letter), ReplyEnvelope)
            assert (answer.state, answer.body) == ("refused", b"")
    assert site.asked == []


def test_an_update_of_a_stranger_does_not_reach_the_mailbox(
    ours: Federation, sites: Mapping[str, Site]
):
    server, birch = ours.party("server"), ours.party("birch")
    update = PeerEnvelope(body=encode(answered("birch", ORDER)))
    with attending(sites) as attend:
        agent = replace_identity(attend("alder"), ours.party("alder"))
        agent.answer(server.pack(RequestEnvelope(number=0, wait=LONG), "alder", "a"))
        for letter in (
            pack(update),
            foreign(ours).pack(update, "alder"),
            birch.pack(update, "cedar"),
        ):
            answer, _ = server.unpack(agent.receive_update(letter), ReplyEnvelope)
            assert answer.state == "refused"
        taken, _ = birch.unpack(agent.receive_update(birch.pack(update, "alder")), ReplyEnvelope)
        assert taken.state == "done"
