"""The server lets in nobody whose certificate the federation's authority has revoked."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import NotAuthenticated

from grandrounds.core.errors import WrongSignature
from grandrounds.study.identity import role_of
from grandrounds.study.revocation import check_not_revoked

_SITE = "regular"  # NVFlare's word for a client that trains
_SHOWN = "grandrounds.certificate"


class Registration(FLComponent):
    """Stands in the server's kit, and looks at every certificate that NVFlare has verified.

    NVFlare 2.9 shows a component no certificate, so this one puts itself behind the verifiers of
    sites and users, and in front of the sites' heartbeats, before the first party registers. Where
    it cannot, no site is let in.
    """

    def __init__(self) -> None:
        super().__init__()
        self._door: Door | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Guard the door from the start on. Raises `NotAuthenticated` where that is impossible."""
        if event_type not in (EventType.SYSTEM_START, EventType.CLIENT_REGISTER_RECEIVED):
            return
        engine = cast(Any, fl_ctx.get_engine())
        try:
            if self._door is None:
                startup = Path(engine.get_workspace().get_startup_kit_dir())
                self._door = guard_door(engine.server, startup / "rootCA.pem")
        except (AttributeError, TypeError) as error:
            raise NotAuthenticated(f"this NVFlare shows no certificate: {error}") from error


@dataclass
class Door:
    """Lets a party in by its certificate, and a site's heartbeats as long as this still counts.

    `root` is the authority's certificate in the server's kit; `manager` is NVFlare's, of the sites
    that are connected. What a site has shown is kept by the token that NVFlare gave it.
    """

    root: Path
    manager: Any
    _shown: dict[str, x509.Certificate] = field(default_factory=dict[str, x509.Certificate])

    def refusal(self, certificate: x509.Certificate) -> str:
        """Say why a certificate does not count; empty where it does."""
        try:
            check_not_revoked(certificate, self.root)
        except WrongSignature as error:
            return str(error)
        return ""

    def verifier(self, verifier_of: Callable[[FLContext], Any], context: FLContext) -> "Verifier":
        """Return NVFlare's verifier, with this door behind it."""
        return Verifier(self, verifier_of(context), context)

    def authenticate(
        self, admit: Callable[[Any, FLContext], Any], request: Any, context: FLContext
    ) -> Any:
        """Let NVFlare admit a site, and remember by which certificate."""
        client = admit(request, context)
        if client and (certificate := context.get_prop(_SHOWN)):
            self._shown[client.token] = certificate
        return client

    def heartbeat(
        self,
        beat: Callable[[str, str, str, FLContext], bool],
        token: str,
        name: str,
        address: str,
        context: FLContext,
    ) -> bool:
        """Let NVFlare note a site's heartbeat; a site whose certificate was revoked is put out."""
        certificate = self._shown.get(token)
        problem = self.refusal(certificate) if certificate else ""
        if not problem:
            return beat(token, name, address, context)
        if token in self.manager.clients:
            self.manager.remove_client(token)
        context.set_prop(FLContextKey.UNAUTHENTICATED, problem, private=True, sticky=False)
        return False


@dataclass(frozen=True)
class Verifier:
    """NVFlare's verifier of certificates, and after it the door."""

    door: Door
    verifier: Any
    context: FLContext

    def verify_common_name(self, *, asserter_cert: x509.Certificate, **others: Any) -> bool:
        """Verify a party as NVFlare does; a revoked one is refused. Raises `NotAuthenticated`."""
        verified = self.verifier.verify_common_name(asserter_cert=asserter_cert, **others)
        problem = self.door.refusal(asserter_cert)
        if self.context.get_prop(FLContextKey.CLIENT_TYPE) == _SITE and role_of(asserter_cert):
            problem = "the certificate is a user's, not a site's"
        if problem:
            words = f"'{others.get('asserted_cn')}': {problem}"
            self.context.set_prop(FLContextKey.UNAUTHENTICATED, words, private=True, sticky=False)
            raise NotAuthenticated(words)
        self.context.set_prop(_SHOWN, asserter_cert, private=True, sticky=False)
        return verified


def guard_door(server: Any, root: Path) -> Door:
    """Put a door into NVFlare's server: at the sites' registration, and at the users' once it is.

    Raises `AttributeError` where this NVFlare is built otherwise.
    """
    manager = server.client_manager
    door = Door(root, manager)
    _guard(manager, "authenticate", door.authenticate)
    _guard(manager, "heartbeat", door.heartbeat)
    _guard(manager.cred_keeper, "get_id_verifier", door.verifier)

    def set_users(users_set: Callable[[Any], None], users: Any) -> None:
        _guard(users.cred_keeper, "get_id_verifier", door.verifier)
        users_set(users)

    _guard(server, "set_admin_server", set_users)
    return door


def _guard(owner: Any, method: str, guard: Callable[..., Any]) -> None:
    """Let `guard` have the first and the last word of a method, which it is given."""
    setattr(owner, method, partial(guard, getattr(owner, method)))
