"""These checks test the connection between a site and the server."""

import os
import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.client import HTTPException, HTTPSConnection

from grandrounds.core.errors import BadSite
from grandrounds.flare.doctor.finding import Finding, Party, bad, ok, skipped
from grandrounds.flare.doctor.identity import NEW_KIT

_PATIENCE = 10.0  # seconds for the connection, and for each answer
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
MOST_APART = timedelta(minutes=2)  # so that the logs of all parties can be compared


def reach(party: Party) -> Finding:
    """Check that the server can be reached, with both certificates verified.

    Raises `BadSite` where the kit's certificate cannot be loaded.
    """
    if party.kit.kind == "server":
        return skipped("this is the server")
    context, where = _showing(party), "{}:{}".format(*party.kit.address)
    proxy = next((name for name in _PROXIES if os.environ.get(name)), "")
    try:
        _date(party, context)
    except ssl.SSLCertVerificationError as error:
        return bad(
            f"{where} shows a certificate that is not this federation's ({error.verify_message})",
            "compare the address with the coordinator's; a proxy that opens TLS must let it pass",
        )
    except ssl.SSLError as error:
        return bad(
            f"{where} refuses this kit's certificate ({error.reason})",
            "server and site need kits of one `grandrounds federation provision`",
        )
    except OSError as error:
        mend = "start the server; let its name resolve here, and let the firewall pass its port"
        return bad(
            f"{where} cannot be reached ({error})",
            f"{mend}; a proxy ({proxy}) is not used" if proxy else mend,
        )
    except HTTPException as error:
        return bad(f"{where} is no server of NVFlare ({error!r})", "stop what listens there")
    return ok(f"{where} answers, and both certificates hold")


def server_clock(party: Party) -> Finding:
    """Check this machine's clock against the date of the server's answer.

    Raises `BadSite` where the kit's certificate cannot be loaded.
    """
    if party.kit.kind == "server":
        return skipped("this is the server")
    try:
        theirs = _date(party, _showing(party))
    except (OSError, HTTPException):
        return skipped("the server was not reached")
    ours = datetime.now(UTC)
    found = f"the server's date is {format_datetime(theirs, usegmt=True)}"
    if abs(ours - theirs) > MOST_APART:
        return bad(f"{found}, here it is {format_datetime(ours, usegmt=True)}", "set both by NTP")
    return ok(f"{found}, as here within {MOST_APART.seconds // 60} minutes")


def port(party: Party) -> Finding:
    """Check that nothing else listens on the server's port."""
    if party.kit.kind != "server":
        return skipped("nothing listens here")
    host, number = party.kit.address
    listens = "127.0.0.1" if host == "localhost" else ""
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((listens, number))
        except OSError as error:
            return bad(
                f"port {number} cannot be opened ({error.strerror})",
                f"stop what holds it, perhaps this server itself: ss -ltnp 'sport = :{number}'",
            )
    return ok(f"port {number} is free to open")


def _showing(party: Party) -> ssl.SSLContext:
    """Return a context that trusts only the federation's authority, with the kit's certificate."""
    try:
        context = ssl.create_default_context(cafile=str(party.authority))
        context.load_cert_chain(party.certificate, party.key)
    except OSError as error:
        raise BadSite(f"the kit's certificates cannot be used ({error}); {NEW_KIT}") from None
    return context


def _date(party: Party, context: ssl.SSLContext) -> datetime:
    """Request any page from the server, and return the date of its answer, whatever its status.

    With TLS 1.3 the server's refusal of a certificate comes only after the handshake. Raises
    `OSError` and `HTTPException`.
    """
    host, number = party.kit.address
    line = HTTPSConnection(host, number, timeout=_PATIENCE, context=context)
    try:
        line.request("GET", "/")
        date = line.getresponse().getheader("Date")
    finally:
        line.close()
    if date is None:
        raise HTTPException("an answer without a date")
    return parsedate_to_datetime(date)
