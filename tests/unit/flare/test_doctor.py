"""What the doctor finds at real kits, by real certificates, over real sockets: good and bad."""

import json
import os
import shutil
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from grandrounds.core import device as machine
from grandrounds.core.errors import BadInput, BadSite, BadStudy
from grandrounds.core.extras import install_command
from grandrounds.flare.authority import Authority as Issuer
from grandrounds.flare.doctor import CHECKS, examine, identity
from grandrounds.flare.doctor import machine as room
from grandrounds.flare.doctor import network as wire
from grandrounds.flare.doctor import permissions as decided
from grandrounds.flare.doctor.finding import Finding, Party
from grandrounds.flare.job_store import keep_store_in_kit, store_of
from grandrounds.flare.kit import Kit
from grandrounds.flare.membership import revoke_site
from grandrounds.flare.provision import provision_kits
from grandrounds.study.acceptance import accept, save_acceptance
from grandrounds.study.file import fingerprint, read_study, to_toml
from grandrounds.study.revocation import keep_list, list_beside
from grandrounds.study.study import Study
from tests.conftest import SaveVolume
from tests.helpers.certificates import Authority, new_key
from tests.helpers.command import inside
from tests.helpers.federation import tiny

NOT_FOUND = "HTTP/1.1 404 Not Found\r\n{}Content-Length: 0\r\n\r\n"


def answer(*, minutes: float = 0) -> bytes:
    """What NVFlare's server says to who asks for a page, by a clock that is minutes ahead."""
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)
    return NOT_FOUND.format(f"Date: {date}\r\n").encode()


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


@pytest.fixture(scope="module")
def study() -> Study:
    return tiny(sites=2)


@pytest.fixture(scope="module")
def kits(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("federation") / "kits"
    provision_kits(study, "localhost", out, port=free_port())
    return out


@pytest.fixture(scope="module")
def foreign(study: Study, kits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another federation of the same study, at the same address."""
    out = tmp_path_factory.mktemp("foreign") / "kits"
    provision_kits(study, "localhost", out, port=Kit(kits / "server").address[1])
    return out


@pytest.fixture
def party(kits: Path, tmp_path: Path) -> Callable[[str], Party]:
    """A copy of a kit, which a test may damage."""

    def copied(name: str) -> Party:
        return Party(Kit(Path(shutil.copytree(kits / name, tmp_path / name))))

    return copied


Copied = Callable[[str], Party]


def assert_ok(finding: Finding, *words: str) -> None:
    assert finding.verdict == "ok", finding
    assert all(word in finding.found for word in words), finding
    assert not finding.mend


def assert_bad(finding: Finding, found: str, mend: str) -> None:
    assert finding.verdict == "bad", finding
    assert found in finding.found
    assert mend in finding.mend


def assert_skipped(finding: Finding, why: str) -> None:
    assert finding.verdict == "skipped", finding
    assert why in finding.found


# Who this party is.


@pytest.mark.parametrize(
    ("name", "owner"),
    [("server", "localhost"), ("alder", "alder"), ("admin", "admin@grandrounds.org")],
)
def test_a_fresh_kit_knows_who_it_is(name: str, owner: str, kits: Path):
    party = Party(Kit(kits / name))
    assert_ok(identity.chain(party), f"issued to '{owner}'", "'tiny'")
    assert_ok(identity.dates(party), "more days")
    assert_ok(identity.clock(party), "no time server was asked")
    assert_ok(identity.key(party), "mode 600")


def test_a_certificate_of_another_federation_is_bad(party: Copied, foreign: Path):
    alder = party("alder")
    shutil.copy(foreign / "alder" / "startup" / "client.crt", alder.certificate)
    assert_bad(identity.chain(alder), "client.crt was not issued by the kit's rootCA.pem", "provis")


def test_a_certificate_of_another_site_is_bad(party: Copied, kits: Path):
    alder = party("alder")
    shutil.copy(kits / "birch" / "startup" / "client.crt", alder.certificate)
    assert_bad(identity.chain(alder), "made out to 'birch', not to 'alder'", "new kit")


def issued(alder: Party, days: tuple[int, int]) -> Party:
    """The kit again, with an authority and a certificate of other dates."""
    authority = Authority("tiny", new_key())
    authority.issue("alder", alder.kit.startup, days)
    authority.root(alder.authority)
    return alder


def renewed(party: Party, days: tuple[int, int], root_days: tuple[int, int]) -> Party:
    """The kit again, with a certificate and an authority that end in so many days."""
    authority = Authority("tiny", new_key())
    key, certificate = authority.issue(party.kit.name, party.kit.folder / "made", days)
    shutil.copy(key, party.key)
    shutil.copy(certificate, party.certificate)
    authority.root(party.authority, root_days)
    return party


def test_an_expired_certificate_is_bad_and_no_fault_of_the_clock(party: Copied):
    alder = issued(party("alder"), (-10, -3))
    assert_bad(identity.dates(alder), "expired on ", "ask the coordinator for a new kit")
    assert identity.clock(alder).verdict == "ok"
    assert identity.chain(alder).verdict == "ok"


def test_a_clock_before_the_certificates_is_bad(party: Copied):
    alder = issued(party("alder"), (2, 9))
    assert_bad(identity.clock(alder), "but the kit's certificates begin at ", "NTP")
    assert "for 8 more days" in identity.dates(alder).found


def test_a_certificate_that_ends_within_30_days_is_told_of_before(party: Copied):
    assert_ok(identity.dates(issued(party("alder"), (-1, 31))), "for 30 more days")


def test_a_certificate_that_ends_in_29_days_is_to_be_renewed_soon(
    party: Copied, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    server = party("server")
    renewed(server, (-1, 29), (-1000, 1000))
    found = identity.dates(server)
    assert (found.verdict, found.mend) == ("soon", identity.NEW_KIT)
    assert "for 28 more days" in found.found
    done = inside(monkeypatch, capsys, "doctor", server.kit.folder)
    assert done.code == 0, done.out  # a warning; nothing is wrong yet
    assert "soon" in done.out


def test_an_authority_that_ends_in_29_days_asks_for_new_kits_for_all(party: Copied):
    found = identity.dates(renewed(party("server"), (-1, 29), (-1, 29)))
    assert found.verdict == "soon"
    assert "new kits for all" in found.mend
    found = identity.dates(renewed(party("admin"), (-1, 20), (-1, 29)))
    assert "for 19 more days" in found.found
    assert (
        "new kits for all" in found.mend
    )  # the party's own ends first, and a new one would not do
    assert_ok(identity.dates(renewed(party("alder"), (-1, 40), (-1, 31))), "for 30 more days")


def test_a_site_s_look_that_ends_in_29_days_is_told_of_too(party: Copied):
    alder = renewed(party("alder"), (-1, 40), (-1000, 1000))
    Authority("tiny", new_key()).issue("look", alder.kit.look.startup, (-1, 29))
    assert identity.dates(alder).verdict == "soon"


def test_a_kit_says_what_it_may_do(kits: Path):
    said = {name: identity.right(Party(Kit(kits / name))).found for name in ("server", "admin")}
    assert said["server"].startswith("coordinate: this kit runs the server")
    assert said["admin"].startswith("administer: this kit submits")
    alder = Kit(kits / "alder")
    assert identity.right(Party(alder)).found.startswith("train: this kit answers for its site")
    assert identity.right(Party(alder.look)).found.startswith("look: this kit sees")


def test_a_certificate_that_was_revoked_is_bad(party: Copied, kits: Path):
    alder, birch = party("alder"), party("birch")
    assert_ok(identity.revocation(alder), "no list")
    authority = Issuer(Path(shutil.copytree(kits / "authority", alder.kit.folder / "authority")))
    revoke_site(authority, "alder")
    for each in (alder, birch):
        keep_list(authority.revoked.read_bytes(), each.authority)
    assert_bad(identity.revocation(alder), "client.crt was revoked", "grandrounds site request")
    assert_ok(identity.revocation(birch), "not in list 1, of 2 revoked certificates")
    list_beside(birch.authority).write_text("none")
    assert_bad(identity.revocation(birch), "cannot be read", "newest list")


def test_a_server_that_lets_revoked_certificates_in_is_bad(party: Copied):
    server = party("server")
    assert_ok(decided.registration(server), "nobody is let in")
    assert_bad(decided.registration(decide(server, components=[])), "lets revoked", "add {")
    assert_skipped(decided.registration(party("alder")), "for the server alone")


def test_a_key_that_others_may_read_is_bad(party: Copied):
    alder = party("alder")
    alder.key.chmod(0o640)
    assert_bad(identity.key(alder), "open to others (mode 640)", f"chmod 600 {alder.key}")


def test_a_key_of_another_kit_is_bad(party: Copied, kits: Path):
    alder = party("alder")
    shutil.copy(kits / "birch" / "startup" / "client.key", alder.key)
    assert_bad(identity.key(alder), "client.key is not the key of client.crt", "new kit")


def test_a_key_that_is_missing_or_damaged_is_bad(party: Copied):
    alder = party("alder")
    alder.key.write_text("none")
    assert_bad(identity.key(alder), "client.key cannot be read", "new kit")
    alder.key.unlink()
    assert_bad(identity.key(alder), "client.key is missing", "grandrounds site install")


def test_a_damaged_certificate_is_said_to_be_one(party: Copied):
    alder = party("alder")
    alder.certificate.write_text("none")
    for look in (identity.chain, identity.dates, identity.clock):
        with pytest.raises(BadSite, match="a certificate cannot be read"):
            look(alder)
    with pytest.raises(BadSite, match="the kit's certificates cannot be used"):
        wire.reach(alder)


# The way to the server.


@contextmanager
def listening(kit: Path, trusted: Path, said: bytes = b"") -> Iterator[None]:
    """A server with a kit's certificate, which asks for certificates of an authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kit / "startup" / "server.crt", kit / "startup" / "server.key")
    context.load_verify_locations(trusted / "startup" / "rootCA.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", Kit(kit).address[1])) as door:
        thread = Thread(target=answer_once, args=(door, context, said or answer()))
        thread.start()
        yield
        thread.join(10)


def answer_once(door: socket.socket, context: ssl.SSLContext, said: bytes) -> None:
    bare, _ = door.accept()
    with bare:
        try:
            with context.wrap_socket(bare, server_side=True) as line:
                assert line.recv(2**16).startswith(b"GET / HTTP/1.1")
                line.sendall(said)
        except OSError:
            return  # the other side, or this one, refused


def test_a_server_of_the_same_federation_is_reached(kits: Path):
    with listening(kits / "server", trusted=kits / "server"):
        assert_ok(wire.reach(Party(Kit(kits / "alder"))), "both certificates hold")
    with listening(kits / "server", trusted=kits / "server"):
        assert_ok(wire.reach(Party(Kit(kits / "admin"))), "both certificates hold")


def test_a_server_of_a_foreign_authority_is_refused(kits: Path, foreign: Path):
    with listening(foreign / "server", trusted=kits / "server"):
        found = wire.reach(Party(Kit(kits / "alder")))
    assert_bad(found, "shows a certificate that is not this federation's", "proxy")


def test_a_server_that_trusts_a_foreign_authority_refuses_the_kit(kits: Path, foreign: Path):
    with listening(kits / "server", trusted=foreign / "server"):
        found = wire.reach(Party(Kit(kits / "alder")))
    assert_bad(found, "refuses this kit's certificate", "kits of one")


@pytest.mark.parametrize("said", [b"\n", b"SSH-2.0\r\n", NOT_FOUND.format("").encode()])
def test_what_is_no_server_of_nvflare_is_bad(said: bytes, kits: Path):
    with listening(kits / "server", kits / "server", said):
        found = wire.reach(Party(Kit(kits / "alder")))
    assert_bad(found, "is no server of NVFlare", "stop what listens there")


@pytest.mark.parametrize("minutes", [-3, 3])
def test_a_clock_that_is_not_the_server_s_is_bad(minutes: float, kits: Path):
    alder = Party(Kit(kits / "alder"))
    with listening(kits / "server", kits / "server", answer(minutes=minutes)):
        assert_bad(wire.server_clock(alder), "the server's date is ", "NTP")


def test_a_clock_is_compared_with_the_server_s(kits: Path):
    alder = Party(Kit(kits / "alder"))
    with listening(kits / "server", kits / "server", answer(minutes=1)):
        assert_ok(wire.server_clock(alder), "GMT, as here within 2 minutes")
    assert_skipped(wire.server_clock(alder), "not reached")
    assert_skipped(wire.server_clock(Party(Kit(kits / "server"))), "this is the server")


def test_a_server_that_says_nothing_is_bad(kits: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wire, "_PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", Kit(kits / "server").address[1])):
        found = wire.reach(Party(Kit(kits / "alder")))
    assert_bad(found, "cannot be reached", "firewall")


def test_a_server_that_is_not_there_is_bad(kits: Path):
    assert_bad(wire.reach(Party(Kit(kits / "alder"))), "cannot be reached", "start the server")


def test_a_proxy_that_is_set_is_said_not_to_be_used(kits: Path, monkeypatch: pytest.MonkeyPatch):
    alder = Party(Kit(kits / "alder"))
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    assert_bad(wire.reach(alder), "cannot be reached", "; a proxy (https_proxy) is not used")


def test_a_name_that_does_not_resolve_is_bad(party: Copied):
    alder = party("alder")
    settings = alder.kit.startup / "fed_client.json"
    settings.write_text(settings.read_text().replace("localhost", "server.invalid"))
    assert_bad(wire.reach(alder), "server.invalid:", "let its name resolve")


def test_the_server_needs_its_own_port_free(kits: Path):
    server = Party(Kit(kits / "server"))
    number = server.kit.address[1]
    assert_ok(wire.port(server), f"port {number} is free")
    with socket.create_server(("127.0.0.1", number)):
        assert_bad(wire.port(server), f"port {number} cannot be opened", f"sport = :{number}")
    assert_skipped(wire.port(Party(Kit(kits / "alder"))), "nothing listens here")
    assert_skipped(wire.reach(server), "this is the server")


# The machine.


def test_the_installed_versions_are_told(kits: Path):
    assert_ok(room.versions(Party(Kit(kits / "alder"))), "torch ", "nvflare 2.9.", "Python 3.")


def test_another_nvflare_is_bad(kits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    older = tmp_path / "nvflare-2.8.1.dist-info"
    older.mkdir()
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: nvflare\nVersion: 2.8.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = room.versions(Party(Kit(kits / "alder")))
    assert_bad(found, "nvflare 2.8.1", install_command("flare"))


def test_the_disk_must_hold_the_states_of_a_run(
    kits: Path, study: Study, monkeypatch: pytest.MonkeyPatch
):
    alder = Party(Kit(kits / "alder"))
    assert_ok(room.disk(alder), "2.0 GiB wanted")
    monkeypatch.setattr(room, "STATES", 2**40)
    assert_bad(room.disk(replace(alder, study=study)), "GiB free where runs lie", "make room")
    assert room.disk(alder).verdict == "ok"


def test_where_a_server_stores_jobs_is_said_before_it_is_started_and_after_it_was_moved(
    party: Copied,
):
    server = party("server").kit
    assert_ok(room.store(Party(server)), "jobs are stored in /tmp/nvflare, until `gr")
    keep_store_in_kit(server)
    own = str(store_of(server))
    assert_ok(room.store(Party(server)), "jobs are stored in the kit")
    moved = Kit(server.folder.rename(server.folder.with_name("moved")))
    assert_ok(room.store(Party(moved)), "the kit was moved or copied", f"in {own}, until `gr")


def test_a_store_outside_the_server_s_kit_is_bad(party: Copied):
    server = party("server")
    path = server.kit.local / "resources.json"
    path.write_text(path.read_text().replace("/tmp/nvflare/jobs", "/srv/jobs"))
    own = str(store_of(server.kit))
    assert_bad(room.store(server), "nothing settles a lost job", f"resources.json lie in {own}")
    assert_skipped(room.store(party("alder")), "for the server alone")


def test_memory_is_held_against_the_study(kits: Path, study: Study):
    alder = Party(Kit(kits / "alder"))
    assert_skipped(room.memory(alder), "with --study")
    assert_ok(room.memory(replace(alder, study=study)), "GiB wanted")
    huge = replace(study, elements=replace(study.elements, size=(2**15, 2**15)))
    assert_bad(room.memory(replace(alder, study=huge)), "GiB wanted", "a larger machine")


def test_a_container_has_the_memory_that_it_was_given(
    kits: Path, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "CGROUP", limit)
    alder = Party(Kit(kits / "alder"), study)
    limit.write_text(f"{2**28}\n")
    assert_bad(room.memory(alder), "0.2 GiB, ", "a larger machine")
    limit.write_text("max\n")
    assert room.memory(alder).verdict == "ok"


def test_shared_memory_may_be_too_little(
    kits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    alder = Party(Kit(kits / "alder"))
    monkeypatch.setattr(room, "SHARED", tmp_path)
    assert_ok(room.shared_memory(alder), "64 MiB wanted")
    monkeypatch.setattr(room, "LEAST_SHARED", 2**60)
    assert_bad(room.shared_memory(alder), "MiB free in", "--shm-size")
    monkeypatch.setattr(room, "SHARED", tmp_path / "none")
    assert_skipped(room.shared_memory(alder), "has no")


@pytest.mark.skipif(sys.platform != "linux", reason="as on a machine without a GPU")
def test_a_gpu_that_torch_cannot_use_is_bad(
    kits: Path, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if room.choose_device().type == "cuda":
        pytest.skip("torch can use this machine's GPU")
    alder = Party(Kit(kits / "alder"))
    assert_ok(room.accelerator(alder), "none: cpu will train")
    monkeypatch.setattr(room, "DRIVER", tmp_path)
    assert_bad(room.accelerator(alder), "would train on cpu", "torch for CUDA")
    wishes = replace(study, training=replace(study.training, device="cuda"))
    with pytest.raises(BadStudy, match="no device 'cuda'"):
        room.accelerator(replace(alder, study=wishes))


@pytest.mark.gpu
def test_a_gpu_is_named(kits: Path):
    assert_ok(room.accelerator(Party(Kit(kits / "alder"))), "NVIDIA")


# What a party decides for itself.


def decide(party: Party, **settings: object) -> Party:
    """The kit with other words in local/resources.json; None takes one out."""
    path = party.kit.local / "resources.json"
    found: dict[str, Any] = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    return party


OURS = list(decided.ALLOWED)


@pytest.mark.parametrize("name", ["server", "alder"])
def test_a_fresh_kit_allows_our_classes_and_streams_no_log(name: str, kits: Path):
    party = Party(Kit(kits / name))
    assert_ok(decided.classes(party), "no other")
    assert_ok(decided.log_rules(party), "stays here")


def test_nothing_runs_from_the_admin_s_kit(kits: Path):
    admin = Party(Kit(kits / "admin"))
    assert_skipped(decided.classes(admin), "nothing runs")
    assert_skipped(decided.log_rules(admin), "nothing runs")
    assert_skipped(decided.code(admin), "nothing runs")


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"class_allow_list": None}, "lacks grandrounds.flare.controller.StudyController, "),
        ({"class_allow_list": OURS[:1]}, "lacks grandrounds.flare.executor.SiteExecutor"),
        ({"class_allow_list": [*OURS, "*"]}, "allows '*', too"),
        ({"class_allow_list": [*OURS, "nvflare"]}, "allows 'nvflare', too"),
        ({"class_list_enforcement_mode": "warn"}, "only warned about"),
    ],
)
def test_a_list_that_lets_other_code_run_is_bad(
    settings: dict[str, object], found: str, party: Copied
):
    assert_bad(decided.classes(decide(party("alder"), **settings)), found, "local/resources.json")


@pytest.mark.parametrize("name", ["server", "alder"])
def test_a_fresh_kit_lets_nobody_bring_code(name: str, kits: Path):
    kit = Kit(kits / name)
    assert_ok(decided.code(Party(kit)), "no job may bring code")
    assert not (kit.local / "authorization.json.default").exists()
    roles = json.loads((kit.local / "authorization.json").read_text())["permissions"]
    words = ("byoc", "server-predeployed-flwr", "shell_commands")
    for rights in roles.values():
        assert {rights[word] for word in words} == {"none"}
    assert roles["project_admin"]["submit_job"] == "any"


@pytest.mark.parametrize("rights", ["any", {"byoc": "any"}, {"submit_job": "any"}])
def test_a_role_that_may_bring_code_is_bad(rights: object, party: Copied):
    alder = party("alder")
    path = alder.kit.local / "authorization.json"
    found = json.loads(path.read_text())
    found["permissions"]["project_admin"] = rights
    path.write_text(json.dumps(found))
    assert_bad(decided.code(alder), "role 'project_admin' may bring code", "as none")
    path.unlink()
    assert_bad(decided.code(alder), "is missing", "as none")


@pytest.mark.parametrize("stream", [True, None, "false"])
def test_a_log_that_may_leave_is_bad(stream: object, party: Copied):
    alder = decide(party("alder"), allow_log_streaming=stream)
    assert_bad(decided.log_rules(alder), "is not false", "allow_log_streaming")


def test_settings_that_cannot_be_read_are_said_to_be(party: Copied):
    alder = party("alder")
    (alder.kit.local / "resources.json").write_text("{")
    with pytest.raises(BadSite, match="cannot be read"):
        decided.classes(alder)


def test_a_study_must_be_accepted_here(party: Copied, study: Study):
    alder = replace(party("alder"), study=study)
    assert_bad(decided.acceptance(alder), "is not accepted", "grandrounds site accept STUDY --kit")
    save_acceptance(accept(fingerprint(study), alder.key, alder.certificate), alder.kit.local)
    assert_ok(decided.acceptance(alder), fingerprint(study)[:12])
    other = replace(alder, study=replace(study, seed=study.seed + 1))
    assert_bad(decided.acceptance(other), "is not accepted", "site accept")


def test_an_acceptance_by_a_kit_of_another_federation_does_not_count(
    party: Copied, study: Study, foreign: Path
):
    alder = replace(party("alder"), study=study)
    other = foreign / "alder" / "startup"
    save_acceptance(
        accept(fingerprint(study), other / "client.key", other / "client.crt"), alder.kit.local
    )
    with pytest.raises(BadSite, match="is not valid"):
        decided.acceptance(alder)


def test_a_study_without_this_site_is_bad(kits: Path, study: Study):
    alone = Party(Kit(kits / "alder"), replace(study, site=study.site[1:]))
    for look in (decided.acceptance, decided.elements):
        assert_bad(look(alone), "the study has no site 'alder'; it has birch", "give its study")


def test_only_a_site_accepts_and_has_data(kits: Path, study: Study):
    for look in (decided.acceptance, decided.elements):
        assert_skipped(look(Party(Kit(kits / "server"), study)), "for sites alone")
        assert_skipped(look(Party(Kit(kits / "alder"))), "no --study")


def test_a_simulated_site_can_deliver(kits: Path, study: Study):
    found = decided.elements(Party(Kit(kits / "alder"), study))
    assert_ok(found, "patients: 2 train", "simulated by the study")


@pytest.fixture
def real(study: Study) -> Study:
    """The study, in which alder has images of its own."""
    alder, birch = study.site
    only = replace(alder, data="files", tasks=("T1w->T2w",), patients=None, scanner=None)
    return replace(study, site=(only, birch))


def images(folder: Path, save: SaveVolume, head: Any, contrasts: tuple[str, ...]) -> Path:
    for patient in range(40):
        for contrast in contrasts:
            save(folder / f"sub-{patient:02d}_{contrast}.nii.gz", head)
    return folder


@pytest.mark.slow
def test_a_site_s_own_images_can_be_delivered(
    party: Copied, real: Study, tmp_path: Path, save_volume: SaveVolume, head: Any
):
    alder = replace(party("alder"), study=real)
    assert_bad(decided.elements(alder), "site.toml is missing", "where this site's data lies")
    images(alder.kit.local / "images", save_volume, head, ("T1w", "T2w"))
    (alder.kit.local / "site.toml").write_text('name = "alder"\ndata = "images"\n')
    assert_ok(decided.elements(alder), "patients: ", "site.toml")


def test_another_site_file_may_be_looked_at(
    party: Copied, real: Study, tmp_path: Path, save_volume: SaveVolume, head: Any
):
    elsewhere = tmp_path / "elsewhere.toml"
    alder = replace(party("alder"), study=real, site=elsewhere)
    with pytest.raises(BadSite, match="cannot be read as a site file"):
        decided.elements(alder)
    images(tmp_path / "images", save_volume, head, ("T1w",))
    elsewhere.write_text('name = "alder"\ndata = "images"\n')
    with pytest.raises(BadInput, match="T2w"):
        decided.elements(alder)


# The command.


def test_a_party_s_every_line_has_a_word_and_a_mend_where_it_is_bad(kits: Path, study: Study):
    found = examine(Party(Kit(kits / "birch"), study))
    assert list(found) == list(CHECKS)
    bad = {name for name, finding in found.items() if finding.verdict == "bad"}
    assert bad == {"server", "acceptance"}
    assert all(found[name].mend for name in bad)


def test_a_sentence_of_a_check_is_its_finding(party: Copied):
    alder = party("alder")
    alder.certificate.write_text("none")
    found = examine(alder)["certificate chain"]
    assert found.verdict == "bad"
    assert "a certificate cannot be read" in found.found


def test_the_command_ends_with_0_where_nothing_is_bad(
    kits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    done = inside(monkeypatch, capsys, "doctor", kits / "server")
    assert done.code == 0, done.out
    lines = done.out.splitlines()
    assert len(lines) == len(CHECKS)
    assert {line.split()[0] for line in lines} == {"ok", "skipped"}


def test_the_command_ends_with_1_and_says_how_to_mend(
    party: Copied,
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    alder, path = party("alder"), tmp_path / "study.toml"
    path.write_text(to_toml(study))
    words = ("doctor", alder.kit.folder, "--study", path, "--set", "rounds=2")
    told = inside(monkeypatch, capsys, *words)
    assert told.code == 1
    assert "mend: grandrounds site accept STUDY --kit" in told.out
    done = inside(monkeypatch, capsys, *words, "--json")
    assert done.code == 1
    lines = {line.pop("check"): line for line in json.loads(done.out)}
    assert list(lines) == list(CHECKS)
    sha = fingerprint(read_study(path, ["rounds=2"]))
    assert lines["acceptance"]["found"] == f"study {sha[:12]}... is not accepted"
    assert lines["acceptance"]["verdict"] == "bad"


def test_a_folder_that_is_no_kit_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    done = inside(monkeypatch, capsys, "doctor", tmp_path)
    assert done.code == 2
    assert "no startup kit" in done.err


def test_a_key_that_even_its_owner_cannot_read_is_bad(party: Copied):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    alder = party("alder")
    alder.key.chmod(0)
    assert_bad(identity.key(alder), "cannot be read", "new kit")
