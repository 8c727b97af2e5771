"""NVFlare's own manager of sites lets in nobody whose certificate was revoked."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import NotAuthenticated
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.defs import IdentityChallengeKey, MessageHeaderKey
from nvflare.private.defs import (
    CellMessageHeaderKeys,
    ClientRegSession,
    InternalFLContextKey,
    new_cell_message,
)
from nvflare.private.fed.server.client_manager import ClientManager
from nvflare.private.fed.server.cred_keeper import CredKeeper
from nvflare.private.fed.utils.identity_utils import IdentityAsserter

from grandrounds.flare.authority import Authority
from grandrounds.flare.kit import Kit
from grandrounds.flare.membership import hand_list, revoke_site
from grandrounds.flare.provision import provision_kits
from grandrounds.flare.registration import Registration, guard_door
from tests.helpers.federation import tiny


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("federation") / "kits"
    provision_kits(tiny(sites=2), "localhost", out)
    return out


@dataclass
class Server:
    """What NVFlare's server is to a party that registers: its own manager, and a door."""

    kits: Path
    manager: Any = field(default_factory=lambda: ClientManager("tiny"))
    users: Any = field(default_factory=lambda: SimpleNamespace(cred_keeper=CredKeeper()))

    def __post_init__(self) -> None:
        server = SimpleNamespace(client_manager=self.manager, set_admin_server=lambda _: None)
        guard_door(server, Kit(self.kits / "server").root)
        server.set_admin_server(self.users)

    def context(self, kind: str = "regular") -> FLContext:
        context, root = FLContext(), Kit(self.kits / "server").root
        context.set_prop(FLContextKey.SERVER_CONFIG, [{"ssl_root_cert": str(root)}])
        context.set_prop(FLContextKey.SECURE_MODE, True)
        context.set_prop(FLContextKey.CLIENT_TYPE, kind, private=False, sticky=False)
        return context

    def registers(self, kit: Kit, kind: str = "regular") -> tuple[Any, str]:
        """Let a kit's holder register; return what NVFlare admitted, and why not."""
        key = kit.folder.parent / "startup" / "client.key" if kit.folder.name == "look" else kit.key
        holder, session = IdentityAsserter(str(key), str(kit.certificate)), ClientRegSession("x")
        context = self.context(kind)
        context.set_prop(InternalFLContextKey.CLIENT_REG_SESSION, session, sticky=False)
        shown = Shareable()
        shown[IdentityChallengeKey.CERT] = holder.cert_data
        shown[IdentityChallengeKey.SIGNATURE] = holder.sign_common_name(session.nonce)
        headers = {
            CellMessageHeaderKeys.CLIENT_NAME: holder.cn,
            CellMessageHeaderKeys.PROJECT_NAME: "tiny",
            CellMessageHeaderKeys.CLIENT_TYPE: kind,
            CellMessageHeaderKeys.CLIENT_IP: "127.0.0.1",
            MessageHeaderKey.ORIGIN: holder.cn,
        }
        admitted = self.manager.authenticate(new_cell_message(headers, shown), context)
        return admitted, context.get_prop(FLContextKey.UNAUTHENTICATED) or ""

    def beats(self, client: Any) -> str:
        """Let a site's heartbeat come; return why it is refused."""
        context = self.context()
        self.manager.heartbeat(client.token, client.name, client.name, context)
        return context.get_prop(FLContextKey.UNAUTHENTICATED) or ""

    def revokes(self, site: str) -> None:
        authority = Authority(self.kits / "authority")
        revoke_site(authority, site)
        hand_list(authority, self.kits / "server")


@pytest.fixture
def server(provisioned: Path, tmp_path: Path) -> Server:
    return Server(Path(shutil.copytree(provisioned, tmp_path / "kits")))


def test_a_site_of_the_federation_is_let_in_and_its_heartbeats_are_taken(server: Server):
    client, why = server.registers(Kit(server.kits / "alder"))
    assert (client.name, why) == ("alder", "")
    assert server.beats(client) == ""
    assert list(server.manager.name_to_clients) == ["alder"]


def test_a_revoked_site_is_not_let_in_and_is_told_why_and_others_are(server: Server):
    server.revokes("alder")
    client, why = server.registers(Kit(server.kits / "alder"))
    assert client is None
    assert why.startswith("'alder': the certificate with the serial number ")
    assert why.endswith("was revoked by the federation's authority")
    assert server.registers(Kit(server.kits / "birch"))[0].name == "birch"


def test_a_site_that_is_revoked_later_is_put_out_at_its_next_heartbeat(server: Server):
    alder, _ = server.registers(Kit(server.kits / "alder"))
    birch, _ = server.registers(Kit(server.kits / "birch"))
    server.revokes("alder")
    for _ in range(2):  # NVFlare would let it in again by the second
        assert "was revoked" in server.beats(alder)
        assert list(server.manager.name_to_clients) == ["birch"]
    assert server.beats(birch) == ""


def test_a_user_s_certificate_registers_no_site(server: Server):
    """Else a hospital could send a second site into the federation with its look."""
    alder = Kit(server.kits / "alder")
    client, why = server.registers(alder.look)
    assert client is None
    assert "is a user's, not a site's" in why
    assert server.registers(alder.look, "admin")[0].name == "alder@look.grandrounds.org"


def test_a_revoked_site_cannot_look_either(server: Server):
    look = Kit(server.kits / "alder").look
    holder = IdentityAsserter(str(Kit(server.kits / "alder").key), str(look.certificate))

    def logs_in() -> bool:
        verifier = server.users.cred_keeper.get_id_verifier(server.context("admin"))
        return verifier.verify_common_name(
            asserter_cert=holder.cert,
            asserted_cn=holder.cn,
            signature=holder.sign_common_name(""),
            nonce="",
            intermediate_certs=[],
        )

    assert logs_in()
    server.revokes("alder")
    with pytest.raises(NotAuthenticated, match="was revoked"):
        logs_in()
    assert server.registers(look, "admin")[0] is None


def test_where_the_door_cannot_be_guarded_nobody_is_let_in(provisioned: Path):
    """NVFlare's server refuses who registers when a component raises this at that event."""
    context = FLContext()
    workspace = SimpleNamespace(get_startup_kit_dir=lambda: str(provisioned / "server" / "startup"))
    odd = SimpleNamespace(get_workspace=lambda: workspace, server=SimpleNamespace())
    context.get_engine = lambda *_: odd  # pyright: ignore[reportAttributeAccessIssue]
    for event in (EventType.SYSTEM_START, EventType.CLIENT_REGISTER_RECEIVED):
        with pytest.raises(NotAuthenticated, match="shows no certificate"):
            Registration().handle_event(event, context)
    Registration().handle_event(EventType.START_RUN, context)
