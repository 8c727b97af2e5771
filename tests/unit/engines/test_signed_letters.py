"""A letter counts only where the right party signed it, for this party, run and session."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from grandrounds.core.errors import BadSite, DiskFailed, SiteFailed
from grandrounds.core.ledger import OPEN, LedgerEntry
from grandrounds.core.messages import Reply, encode
from grandrounds.engines.envelope import (
    READY,
    CorruptEnvelope,
    ForgedEnvelope,
    Identity,
    PeerEnvelope,
    ReplyEnvelope,
    RequestEnvelope,
    SealingKey,
    pack,
    unpack,
)
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.engines.remote import RemoteEngine, SiteConnection, ready
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.site.site import Site
from grandrounds.study.identity import load_key, sign, signer
from grandrounds.study.revocation import keep_list, known_list
from tests.helpers.certificates import Authority, new_key
from tests.helpers.federation import ignore
from tests.helpers.remote_sites import (
    NEXT,
    ORDER,
    QUICK,
    Counted,
    card_of,
    nowhere,
    odd,
    sites_of,
    traits,
)

RUN = "study/run"
HASTY = replace(QUICK, start=0.5, silence=0.5)


@dataclass(frozen=True)
class Parties:
    """The parties of one federation, each with a key of its own."""

    authority: Authority
    root: Path

    def __call__(self, name: str, *, run: str = RUN, days: tuple[int, int] = (-1, 1)) -> Identity:
        """Issue a new kit's key and certificate to a party."""
        folder = self.root.parent / f"{name}{days[1]}"
        key, certificate = self.authority.issue(name, folder, days)
        signs = partial(sign, key=load_key(key))
        return Identity(
            name, run, SealingKey(certificate.read_text(), signs, partial(signer, root=self.root))
        )


@pytest.fixture(scope="module")
def party(tmp_path_factory: pytest.TempPathFactory) -> Parties:
    authority = Authority("tiny", new_key())
    return Parties(authority, authority.root(tmp_path_factory.mktemp("kits") / "rootCA.pem"))


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Site]:
    return sites_of(tmp_path_factory.mktemp("sites"))


ASK = RequestEnvelope(number=1, wait=1.0, body=encode(ORDER))


def test_a_letter_is_opened_by_whom_it_is_for_and_names_who_signed_it(party: Parties):
    envelope, stamp = party("alder").unpack(
        party("server").pack(ASK, "alder", "s"), RequestEnvelope
    )
    assert envelope == ASK
    assert (stamp.sender, stamp.to, stamp.run, stamp.session) == ("server", "alder", RUN, "s")


def foreign(root: Path) -> Identity:
    """A party of the same name in another federation of the same name."""
    folder = root.parent / "foreign"
    folder.mkdir(exist_ok=True)
    authority = Authority("tiny", new_key())
    return Parties(authority, authority.root(folder / "rootCA.pem"))("server")


FORGED: dict[str, Callable[[Parties], bytes]] = {
    "for another party": lambda party: party("server").pack(ASK, "birch", "s"),
    "for another run": lambda party: party("server", run="study/other").pack(ASK, "alder", "s"),
    "unsigned": lambda party: pack(ASK),
    "a seal of noise": lambda party: pack(ASK, lambda digest: b"\xff{"),
    "in another's name": lambda party: replace(party("birch"), name="server").pack(ASK, "alder"),
    "of another federation": lambda party: foreign(party.root).pack(ASK, "alder"),
    "with a certificate that expired": lambda party: party("server", days=(-2, -1)).pack(
        ASK, "alder"
    ),
    "with the seal of another letter": lambda party: pack(
        replace(ASK, number=2), lambda digest: seal_of(party("server").pack(ASK, "alder"))
    ),
}


def seal_of(packed: bytes) -> bytes:
    """The seal at the front of a letter, after its checksum and the seal's length."""
    return packed[36 : 36 + int.from_bytes(packed[32:36], "little")]


@pytest.mark.parametrize("name", FORGED)
def test_a_letter_that_is_not_rightly_signed_is_not_opened(name: str, party: Parties):
    with pytest.raises(ForgedEnvelope):
        party("alder").unpack(FORGED[name](party), RequestEnvelope)


def test_a_changed_letter_is_damaged_and_not_forged(party: Parties):
    """So that it is sent again, and nobody is accused."""
    letter, alder = party("server").pack(ASK, "alder"), party("alder")
    for place in range(0, len(letter), 97):
        changed = letter[:place] + bytes([letter[place] ^ 1]) + letter[place + 1 :]
        with pytest.raises(CorruptEnvelope):
            alder.unpack(changed, RequestEnvelope)


@dataclass
class Opened:
    """A site of a federation, what it was asked, and what it wrote down."""

    agent: SiteAgent
    counted: Counted
    lines: list[LedgerEntry] = field(default_factory=list[LedgerEntry])

    def call(self, site: str, packed: bytes, timeout: float) -> bytes:
        return self.agent.answer(packed)


def noting(lines: list[LedgerEntry]) -> Callable[[LedgerEntry], None]:
    """Return a ledger that keeps what it hears, but for the opening of a session."""
    return lambda entry: None if entry.asked == OPEN else lines.append(entry)


def opened(party: Parties, sites: Mapping[str, Site]) -> Opened:
    """Open the site alder anew, as every job does."""
    counted, lines = Counted(), list[LedgerEntry]()
    engine = InProcessEngine((odd(sites["alder"], counted),), ignore)
    agent = SiteAgent(
        nullcontext((engine, b"alder")),
        nowhere,
        sites["alder"].disclosure,
        identity=party("alder"),
        coordinator="server",
        ledger=noting(lines),
    )
    return Opened(agent, counted, lines)


@pytest.fixture
def alder(party: Parties, sites: Mapping[str, Site]) -> Iterator[Opened]:
    site = opened(party, sites)
    with closing(site.agent):
        yield site


def asking(party: Parties, call: Callable[[str, bytes, float], bytes]) -> RemoteEngine:
    """A coordinator that signs, and has not asked anything yet."""
    return RemoteEngine((SiteConnection("alder", call, HASTY, party("server")),), ignore)


def test_a_coordinator_and_a_site_that_sign_understand_each_other(party: Parties, alder: Opened):
    engine = asking(party, alder.call)
    assert ready(engine.connections) == {"alder": b"alder"}
    for order in (ORDER, NEXT):
        [reply] = engine.ask({"alder": order})
        assert traits(reply)[0].round == order.round
    assert alder.counted.asked == [ORDER, NEXT]
    assert [(line.who, line.asked, line.round) for line in alder.lines] == [
        ("server", "train", 1),
        ("server", "train", 2),
    ]


def test_letters_of_an_earlier_session_are_refused_and_written_down(
    party: Parties, sites: Mapping[str, Site], alder: Opened
):
    heard = list[bytes]()

    def noted(site: str, packed: bytes, timeout: float) -> bytes:
        heard.append(packed)
        return alder.call(site, packed, timeout)

    engine = asking(party, noted)
    ready(engine.connections)
    engine.ask({"alder": ORDER})
    later = opened(party, sites)
    with closing(later.agent):
        answer = unpack(later.agent.answer(heard[-1]), ReplyEnvelope)
    assert (answer.state, answer.body) == ("refused", b"")
    assert later.counted.asked == []
    assert [line.refused for line in later.lines] == ["a letter is of another session"]


@pytest.mark.slow
def test_answers_of_an_earlier_session_are_not_taken(
    party: Parties, sites: Mapping[str, Site], alder: Opened
):
    said = list[bytes]()

    def noted(site: str, packed: bytes, timeout: float) -> bytes:
        said.append(alder.call(site, packed, timeout))
        return said[-1]

    first = asking(party, noted)
    ready(first.connections)
    first.ask({"alder": ORDER})
    again = opened(party, sites)
    with closing(again.agent):
        later = asking(party, again.call)
        ready(later.connections)
        [connection] = later.connections
        connection.call = lambda site, packed, timeout: said[-1]
        card = card_of(later)
    assert (card.error, card.message) == (
        "ForgedEnvelope",
        "5 letters did not count, one after the other: a reply is of another session",
    )


def test_a_site_that_was_started_anew_in_the_midst_of_a_run_is_told_as_that(
    party: Parties, sites: Mapping[str, Site], alder: Opened
):
    engine = asking(party, alder.call)
    ready(engine.connections)
    again = opened(party, sites)
    with closing(again.agent):
        [connection] = engine.connections
        connection.call = again.call
        card = card_of(engine)
    assert card.error == "ForgedEnvelope"
    assert "the site knows no such session, as if its process had been started anew" in card.message
    assert "resume" in card.hint


@pytest.mark.slow
def test_a_site_whose_certificate_has_ended_is_told_as_that(party: Parties, alder: Opened):
    engine, old = asking(party, alder.call), party("alder", days=(-2, -1))

    def signed_with_an_old_kit(site: str, packed: bytes, timeout: float) -> bytes:
        answer, stamp = party("server").unpack(alder.call(site, packed, timeout), ReplyEnvelope)
        return old.pack(answer, "server", stamp.session)

    ready(engine.connections)
    [connection] = engine.connections
    connection.call = signed_with_an_old_kit
    card = card_of(engine)
    assert card.error == "ForgedEnvelope"
    assert "not signed by a party of this federation: the certificate is valid from" in card.message


def test_a_request_that_comes_damaged_again_and_again_is_told_as_damaged(
    party: Parties, alder: Opened
):
    engine = asking(party, alder.call)
    ready(engine.connections)
    [connection] = engine.connections
    connection.call = lambda site, packed, timeout: alder.call(site, packed[:-1] + b"?", timeout)
    card = card_of(engine)
    assert (card.error, card.message) == (
        "CorruptEnvelope",
        "5 letters came damaged, one after the other",
    )


@pytest.mark.slow
def test_a_reply_that_another_site_signed_is_not_taken(party: Parties, alder: Opened):
    engine, birch, said = asking(party, alder.call), party("birch"), list[str]()

    def signed_by_birch(site: str, packed: bytes, timeout: float) -> bytes:
        answer, stamp = party("server").unpack(alder.call(site, packed, timeout), ReplyEnvelope)
        said.append(answer.state)
        return birch.pack(answer, "server", stamp.session)

    ready(engine.connections)
    [connection] = engine.connections
    connection.call = signed_by_birch
    assert card_of(engine).error == "ForgedEnvelope"
    assert set(said) == {"done"}  # what alder itself said would have been taken


def test_another_site_cannot_ask_and_an_unsigned_update_is_refused(party: Parties, alder: Opened):
    update = PeerEnvelope(body=encode(Reply(site="birch", round=1)))
    letters = (
        alder.agent.answer(party("birch").pack(ASK, "alder", "s")),
        alder.agent.answer(
            party("birch").pack(RequestEnvelope(number=READY, wait=1.0), "alder", "s")
        ),
        alder.agent.receive_update(pack(update)),
    )
    assert [unpack(letter, ReplyEnvelope).state for letter in letters] == ["refused"] * 3
    assert [line.who for line in alder.lines] == ["unknown"] * 3
    assert alder.counted.asked == []


def test_nothing_leaves_that_could_not_be_written_down(party: Parties, sites: Mapping[str, Site]):
    def full(entry: LedgerEntry) -> None:
        raise DiskFailed("the log cannot be written")

    site = opened(party, sites)
    site.agent.ledger = full
    with closing(site.agent):
        engine = asking(party, site.call)
        ready(engine.connections)
        with pytest.raises((DiskFailed, SiteFailed)):
            engine.ask({"alder": ORDER})


# Certificates that were revoked.


@dataclass(frozen=True)
class Revoking:
    """A federation in which each party keeps its own list of what was revoked."""

    authority: Authority
    folder: Path

    def root(self, name: str) -> Path:
        """Give the authority's certificate in a party's kit, beside which its list is kept."""
        root = self.folder / name / "startup" / "rootCA.pem"
        return root if root.exists() else self.authority.root(root)

    def __call__(self, name: str) -> Identity:
        root = self.root(name)
        certificate = root.with_name("client.crt")
        if not certificate.exists():
            self.authority.issue(name, root.parent)
        signs = partial(sign, key=load_key(root.with_name("client.key")))
        key = SealingKey(certificate.read_text(), signs, partial(signer, root=root))
        return Identity(name, RUN, key)

    def revoked(self, number: int, *names: str) -> bytes:
        """Sign a list of what these parties have."""
        paths = [self.root(name).with_name("client.crt") for name in names]
        return self.authority.revoke(number, *paths)


@pytest.fixture
def revoking(party: Parties, tmp_path: Path) -> Revoking:
    return Revoking(party.authority, tmp_path)


@pytest.fixture
def learning(revoking: Revoking, sites: Mapping[str, Site]) -> Iterator[Opened]:
    """The site alder, which learns at the opening what was revoked."""
    counted, lines = Counted(), list[LedgerEntry]()
    agent = SiteAgent(
        nullcontext((InProcessEngine((odd(sites["alder"], counted),), ignore), b"alder")),
        nowhere,
        sites["alder"].disclosure,
        identity=revoking("alder"),
        coordinator="server",
        ledger=noting(lines),
        learn=partial(keep_list, root=revoking.root("alder")),
    )
    with closing(agent):
        yield Opened(agent, counted, lines)


def coordinator(revoking: Revoking, call: Callable[[str, bytes, float], bytes]) -> RemoteEngine:
    return RemoteEngine((SiteConnection("alder", call, HASTY, revoking("server")),), ignore)


def mailed(revoking: Revoking, site: Opened, sender: str) -> str:
    """What a site says to a peer's update: done, where it is taken."""
    update = PeerEnvelope(body=encode(Reply(site=sender, round=1)))
    packed = revoking(sender).pack(update, "alder")
    return unpack(site.agent.receive_update(packed), ReplyEnvelope).state


@pytest.mark.slow
def test_a_site_learns_at_the_opening_who_was_revoked_and_takes_no_more_of_its_mail(
    revoking: Revoking, learning: Opened
):
    engine = coordinator(revoking, learning.call)
    for name in ("birch", "cedar"):
        revoking(name)
    ready(engine.connections)
    assert mailed(revoking, learning, "birch") == "done"
    again = coordinator(revoking, learning.call)
    ready(again.connections, revoking.revoked(1, "birch"))
    assert mailed(revoking, learning, "birch") == "refused"
    assert mailed(revoking, learning, "cedar") == "done"
    [line] = [line for line in learning.lines if line.refused]
    assert (line.who, line.asked) == ("unknown", "deliver")
    assert "was revoked by the federation's authority" in line.refused


def test_a_coordinator_with_an_older_list_does_not_bring_a_site_back(
    revoking: Revoking, learning: Opened
):
    revoking("birch")
    ready(coordinator(revoking, learning.call).connections, revoking.revoked(2, "birch"))
    for older in (b"", revoking.revoked(1)):
        ready(coordinator(revoking, learning.call).connections, older)
    assert known_list(revoking.root("alder")).number == 2
    assert mailed(revoking, learning, "birch") == "refused"


def test_a_list_that_is_not_the_authority_s_is_refused_and_written_down(
    revoking: Revoking, learning: Opened
):
    revoking("birch")
    certificate = revoking.root("birch").with_name("client.crt")
    forged = Authority("tiny", new_key()).revoke(9, certificate)
    with pytest.raises((SiteFailed, BadSite)):
        ready(coordinator(revoking, learning.call).connections, forged)
    assert mailed(revoking, learning, "birch") == "done"
    assert {line.refused for line in learning.lines if line.refused} == {
        "what came with the opening does not count: the list of revoked certificates is not of "
        "this federation"
    }


def test_a_coordinator_takes_nothing_that_a_revoked_site_signed_and_says_why(
    revoking: Revoking, learning: Opened
):
    engine = coordinator(revoking, learning.call)
    ready(engine.connections)
    engine.ask({"alder": ORDER})
    keep_list(revoking.revoked(1, "alder"), revoking.root("server"))  # while the run goes on
    with pytest.raises(SiteFailed) as failed:
        engine.ask({"alder": NEXT})
    assert failed.value.card.error == "ForgedEnvelope"
    assert "was revoked by the federation's authority" in failed.value.card.message


def test_a_site_answers_no_coordinator_whose_certificate_was_revoked(
    revoking: Revoking, learning: Opened
):
    engine = coordinator(revoking, learning.call)
    ready(engine.connections)
    keep_list(revoking.revoked(1, "server"), revoking.root("alder"))
    with pytest.raises(SiteFailed):
        engine.ask({"alder": ORDER})
    assert learning.counted.asked == []
