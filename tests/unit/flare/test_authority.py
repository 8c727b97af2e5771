"""One site is added, renewed or revoked; nobody else's kit changes by a byte."""

import json
import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from grandrounds.core.errors import BadFolder, BadSite, BadStudy, WrongSignature
from grandrounds.flare import authority as issuing
from grandrounds.flare.authority import Authority
from grandrounds.flare.kit import Kit, accept_study
from grandrounds.flare.membership import add_site, hand_list, renew_site, revoke_site
from grandrounds.flare.processes import kit_command
from grandrounds.flare.provision import look_name, provision_kits
from grandrounds.flare.requests import SiteRequest, install_key, make_request
from grandrounds.study.acceptance import list_acceptances
from grandrounds.study.identity import common_name, read_certificate, role_of, sign, signer
from grandrounds.study.identity import load_key as key_of
from grandrounds.study.revocation import keep_list, known_list, list_bytes
from tests.helpers.certificates import Authority as Ended
from tests.helpers.certificates import new_key
from tests.helpers.command import inside
from tests.helpers.federation import tiny

STUDY = tiny(sites=2)


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("federation") / "kits"
    provision_kits(STUDY, "localhost", out)
    return out


@pytest.fixture
def kits(provisioned: Path, tmp_path: Path) -> Path:
    """A copy of a federation's kits, which a test may change."""
    return Path(shutil.copytree(provisioned, tmp_path / "kits"))


@pytest.fixture
def authority(kits: Path) -> Authority:
    return Authority(kits / "authority")


Asks = Callable[[str], SiteRequest]


@pytest.fixture
def asks(tmp_path: Path) -> Asks:
    """A site's new request, whose key is in the folder `keys`."""

    def ask(site: str) -> SiteRequest:
        shutil.rmtree(tmp_path / "keys", ignore_errors=True)
        return make_request(site, tmp_path / "keys")[0]

    return ask


def contents(folder: Path, *without: str) -> dict[str, bytes]:
    """Every file below a folder, except those in some of its folders."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {path.relative_to(folder): path.read_bytes() for path in files}
    return {str(path): data for path, data in found.items() if path.parts[0] not in without}


def signed(kit: Kit, reader: Kit) -> str:
    """Who signed a letter with a kit, as another party takes it."""
    signature = sign(b"letter", key_of(kit.key))
    return signer(kit.certificate.read_text(), signature, b"letter", reader.root)


def test_an_authority_s_key_is_kept_for_its_owner_alone(kits: Path, authority: Authority):
    modes = {
        name: stat.S_IMODE((kits / "authority" / name).stat().st_mode)
        for name in ("", "rootCA.key")
    }
    assert modes == {"": 0o700, "rootCA.key": 0o600}
    assert list(kits.rglob("rootCA.key")) == [kits / "authority" / "rootCA.key"]
    assert (
        key_of(kits / "authority" / "rootCA.key").public_key()
        == read_certificate(Kit(kits / "alder").root).public_key()
    )


def test_the_register_has_every_certificate_of_the_kits(kits: Path, authority: Authority):
    paths = [kit.certificate for kit in (Kit(kits / "server"), Kit(kits / "admin"))]
    for site in STUDY.trainers:
        paths += [Kit(kits / site).certificate, Kit(kits / site).look.certificate]
    found = {f"{each.serial_number:x}": common_name(each) for each in map(read_certificate, paths)}
    assert {each.serial: each.name for each in authority.register} == found
    assert [each.owner for each in authority.of("alder")] == ["alder", "alder"]


def test_a_kit_s_certificates_say_what_it_may_do(kits: Path):
    rights = {name: Kit(kits / name).right for name in ("server", "admin", *STUDY.trainers)}
    assert rights == {
        "server": "coordinate",
        "admin": "administer",
        "alder": "train",
        "birch": "train",
    }
    look = Kit(kits / "alder").look
    assert (look.right, look.user) == ("look", "alder@look.grandrounds.org")
    assert role_of(read_certificate(Kit(kits / "alder").certificate)) == ""
    assert len(look_name("x" * 64)) == 64


def test_a_look_has_the_rights_that_the_status_needs_and_no_other(kits: Path):
    for name in ("server", "alder"):
        roles = json.loads((kits / name / "local" / "authorization.json").read_text())[
            "permissions"
        ]
        assert set(roles) == {"project_admin", "member"}
        may = {right for right, who in roles["member"].items() if who != "none"}
        assert may == {"list_jobs", "check_status", "report_version", "app_command"}


def test_a_new_site_gets_a_kit_and_nobody_else_another(
    kits: Path, authority: Authority, asks: Asks, tmp_path: Path
):
    before = contents(kits, "authority")
    kit = Kit(add_site(authority, asks("cedar"), tmp_path / "cedar"))
    assert contents(kits, "authority") == before
    assert not kit.key.exists()
    install_key(kit, tmp_path / "keys")
    assert (kit.name, kit.right, kit.address) == ("cedar", "train", ("localhost", 8002))
    assert kit.look.user == "cedar@look.grandrounds.org"
    assert signed(kit, Kit(kits / "alder")) == "cedar"
    same = ("startup/fed_client.json", "startup/rootCA.pem", "local/authorization.json")
    for name in same:
        ours = (kit.folder / name).read_text().replace("cedar", "alder")
        assert ours == (kits / "alder" / name).read_text()


@pytest.mark.parametrize("name", ["alder", "Alder", "localhost"])
def test_a_name_that_is_taken_is_not_added(
    name: str, authority: Authority, asks: Asks, tmp_path: Path
):
    before = authority.register
    with pytest.raises(BadStudy):
        add_site(authority, asks(name), tmp_path / "new")
    assert authority.register == before
    assert not (tmp_path / "new").exists()


def test_a_key_of_another_site_is_not_taken(kits: Path, authority: Authority, tmp_path: Path):
    public = read_certificate(Kit(kits / "alder").certificate).public_key()
    with pytest.raises(BadStudy, match="the key of 'cedar' is that of 'alder'"):
        add_site(authority, SiteRequest("cedar", public), tmp_path / "cedar")  # pyright: ignore[reportArgumentType]


def test_no_kit_is_overwritten(kits: Path, authority: Authority, asks: Asks):
    with pytest.raises(BadFolder, match="is there already"):
        renew_site(authority, asks("alder"), kits / "birch", revoke=True)
    assert authority.list.number == 0  # nor is anything revoked for a kit that was not made


def test_a_renewed_site_keeps_all_but_its_certificate_and_key(
    kits: Path, authority: Authority, asks: Asks, tmp_path: Path
):
    alder, reader = Kit(kits / "alder"), Kit(kits / "birch")
    accept_study(STUDY, alder)
    (alder.local / "site.toml").write_text('name = "alder"\n')
    (alder.folder / "grandrounds").mkdir()
    (alder.folder / "grandrounds" / "run").write_text("private")
    old, others = alder.certificate.read_bytes(), contents(kits, "authority", "alder")
    own = contents(alder.folder, "startup", "look")

    new = Kit(renew_site(authority, asks("alder"), tmp_path / "new"))
    assert install_key(new, tmp_path / "keys", alder) == alder

    assert alder.certificate.read_bytes() != old
    assert contents(alder.folder, "startup", "look") == own
    assert contents(kits, "authority", "alder") == others
    assert not new.key.exists()  # one copy of a key is enough
    assert stat.S_IMODE(alder.key.stat().st_mode) == 0o600
    assert sorted(path.name for path in alder.folder.iterdir() if path.name[0] == ".") == []
    assert signed(alder, reader) == "alder"
    assert len(list_acceptances(alder.local)) == 1
    assert kit_command(alder)


@pytest.mark.slow
def test_what_a_site_had_before_is_revoked_with_its_renewal_if_asked(
    kits: Path, authority: Authority, asks: Asks, tmp_path: Path
):
    stolen = Kit(Path(shutil.copytree(kits / "alder", tmp_path / "stolen")))
    server, alder = Kit(kits / "server"), Kit(kits / "alder")
    new = Kit(renew_site(authority, asks("alder"), tmp_path / "new", revoke=True))
    hand_list(authority, server.folder)
    install_key(new, tmp_path / "keys", alder)
    assert signed(alder, server) == "alder"
    assert list_bytes(alder.root) == authority.revoked.read_bytes()  # it came with the kit
    for reader in (server, alder):
        with pytest.raises(WrongSignature, match="was revoked"):
            signed(stolen, reader)
    keep_list(authority.revoked.read_bytes(), stolen.root)
    with pytest.raises(BadSite, match=r"was revoked .*; ask the coordinator for a new kit"):
        kit_command(stolen)


@pytest.mark.slow
def test_a_revoked_key_comes_back_under_no_certificate(
    authority: Authority, asks: Asks, tmp_path: Path
):
    request = asks("cedar")
    add_site(authority, request, tmp_path / "cedar")
    revoke_site(authority, "cedar")
    with pytest.raises(BadStudy, match="was revoked; make a new one"):
        renew_site(authority, request, tmp_path / "again")
    assert Kit(renew_site(authority, asks("cedar"), tmp_path / "again")).name == "cedar"


@pytest.mark.slow
def test_a_site_is_revoked_with_its_look_and_the_number_only_grows(
    kits: Path, authority: Authority, asks: Asks, tmp_path: Path
):
    server, before = Kit(kits / "server"), contents(kits, "authority", "server")
    assert len(revoke_site(authority, "alder")) == 2
    add_site(authority, asks("cedar"), tmp_path / "cedar")
    revoke_site(authority, "cedar")
    assert (authority.list.number, len(authority.list.serials)) == (2, 4)
    hand_list(authority, server.folder)
    assert known_list(server.root) == authority.list
    with pytest.raises(WrongSignature, match="was revoked"):
        signed(Kit(kits / "alder"), server)
    assert signed(Kit(kits / "birch"), server) == "birch"
    assert contents(kits, "authority", "server") == before
    with pytest.raises(BadStudy, match="has no certificate that still counts"):
        revoke_site(authority, "alder")


def test_a_list_outlives_a_register_that_was_put_back(kits: Path, authority: Authority):
    """What a list has revoked stays revoked, whatever became of the register."""
    register = (kits / "authority" / "register.json").read_text()
    revoke_site(authority, "alder")
    (kits / "authority" / "register.json").write_text(register)
    revoke_site(authority, "birch")
    assert len(authority.list.serials) == 4


def test_an_authority_that_was_put_back_does_not_revoke_in_vain(kits: Path, authority: Authority):
    """A list with a number that the server has seen would be passed over."""
    revoke_site(authority, "alder")
    hand_list(authority, kits / "server")
    hand_list(authority, kits / "server")
    newest = authority.revoked.read_bytes()
    authority.revoked.unlink()
    revoke_site(authority, "birch")
    with pytest.raises(BadSite, match=r"has list 1 .*; copy .* and revoke again"):
        hand_list(authority, kits / "server")
    authority.revoked.write_bytes(newest)
    revoke_site(authority, "birch")
    hand_list(authority, kits / "server")
    assert len(known_list(Kit(kits / "server").root).serials) == 4


@pytest.mark.parametrize("name", ["register.json", "settings.json", "revoked.pem"])
@pytest.mark.parametrize("text", ["", "[1]", '{"study": 1}', "null"])
def test_a_damaged_folder_of_an_authority_is_said_to_be_one(
    name: str, text: str, authority: Authority, asks: Asks, tmp_path: Path
):
    (authority.folder / name).write_text(text or "x")
    with pytest.raises(BadSite, match=rf"is no folder of an authority \({name}"):
        add_site(authority, asks("cedar"), tmp_path / "cedar")
    assert not (tmp_path / "cedar").exists()


@pytest.mark.parametrize("name", ["server", "admin", "elder", "alder@look.grandrounds.org"])
def test_only_a_known_site_is_revoked(name: str, authority: Authority):
    with pytest.raises(BadStudy, match=r"is no site|issued nothing to"):
        revoke_site(authority, name)


@pytest.mark.slow
def test_a_list_goes_to_the_server_of_the_same_federation(
    kits: Path, authority: Authority, tmp_path: Path
):
    revoke_site(authority, "alder")
    with pytest.raises(BadSite, match="is not the server's kit"):
        hand_list(authority, kits / "birch")
    provision_kits(tiny(sites=1), "localhost", tmp_path / "other")
    with pytest.raises(BadSite, match="give the kit of the same federation"):
        hand_list(authority, tmp_path / "other" / "server")


@pytest.mark.slow
def test_kits_of_two_sites_or_federations_are_kept_apart(
    kits: Path, authority: Authority, asks: Asks, tmp_path: Path
):
    new = Kit(renew_site(authority, asks("alder"), tmp_path / "new"))
    with pytest.raises(BadSite, match="is of site 'alder'"):
        install_key(new, tmp_path / "keys", Kit(kits / "birch"))
    provision_kits(tiny(sites=1), "localhost", tmp_path / "other")
    with pytest.raises(BadSite, match="are of two federations"):
        install_key(new, tmp_path / "keys", Kit(tmp_path / "other" / "alder"))


def test_no_certificate_outlives_the_authority(
    authority: Authority, asks: Asks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(issuing, "PARTY_DAYS", issuing.ROOT_DAYS + 100)
    kit = Kit(add_site(authority, asks("cedar"), tmp_path / "cedar"))
    end = read_certificate(kit.certificate).not_valid_after_utc
    assert end == read_certificate(kit.root).not_valid_after_utc


def test_an_authority_that_has_ended_issues_nothing(
    authority: Authority, asks: Asks, tmp_path: Path
):
    Ended("tiny", new_key()).root(authority.root, (-10, -1))
    before = authority.register
    with pytest.raises(BadSite, match=r"not now; provision the federation anew"):
        authority.issue("cedar", "cedar", asks("cedar").key, organisation="cedar")
    assert authority.register == before


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--json",)])
def test_the_commands_go_from_a_request_to_a_kit_and_back(
    words: tuple[str, ...],
    kits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def said(*command: str | Path) -> str:
        done = inside(monkeypatch, capsys, *command, *words)
        assert done.code == 0, done.err
        return done.out

    by = ("--authority", kits / "authority")
    asked = said("site", "request", "cedar", "--out", tmp_path / "keys")
    digest = read_digest(asked)
    made = said(
        "federation", "add", tmp_path / "keys" / "cedar.csr", *by, "--out", tmp_path / "one"
    )
    assert read_digest(made) == digest
    said("site", "install", tmp_path / "one", "--key", tmp_path / "keys")
    said("site", "request", "cedar", "--out", tmp_path / "keys2")
    request, to = tmp_path / "keys2" / "cedar.csr", ("--kit", kits / "server")
    said("federation", "renew", request, *by, "--out", tmp_path / "two", "--revoke-old", *to)
    said(
        "site", "install", tmp_path / "two", "--key", tmp_path / "keys2", "--into", tmp_path / "one"
    )
    assert signed(Kit(tmp_path / "one"), Kit(kits / "server")) == "cedar"
    assert "2" in said("federation", "revoke", "cedar", *by, *to)
    with pytest.raises(WrongSignature, match="was revoked"):
        signed(Kit(tmp_path / "one"), Kit(kits / "server"))


def read_digest(told: str) -> str:
    [found] = [word.strip('",') for word in told.split() if len(word.strip('",')) == 64]
    return found


def test_a_folder_that_is_no_authority_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    done = inside(monkeypatch, capsys, "federation", "revoke", "alder", "--authority", tmp_path)
    assert done.code == 2
    assert "is no folder of an authority" in done.err


def test_certificates_last_a_year_and_the_authority_two(kits: Path):
    now = datetime.now(UTC)
    alder = Kit(kits / "alder")
    ends = {
        days: read_certificate(path).not_valid_after_utc
        for days, path in ((360, alder.certificate), (730, alder.root))
    }
    for days, end in ends.items():
        assert timedelta(days - 1) < end - now <= timedelta(days)
