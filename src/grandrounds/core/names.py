"""A name that becomes a folder, a file or an address is checked here, and nowhere else.

The rule is the narrowest of all that read such names: file systems (also those of Windows and
macOS, which ignore case), certificates, NVFlare, and the people who have to tell names apart.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

from grandrounds.core.errors import BadStudy

MOST = 64  # characters: a certificate's common name has no more
POOLED = "pooled"  # stands for all sites where one model is trained on all their data
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_RULE = (
    "a name has letters (a-z, A-Z), digits, '-', '_' and '.', begins with a letter or a digit, and "
    "does not end with '.'"
)
# Windows opens a device under these names, with any extension.
_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)),
}
# In NVFlare the server is "server"; kits are made in folders of these names, beside the sites'.
_NO_SITE = {
    "server": "the coordinator's server",
    "admin": "who submits studies",
    "authority": "who issues the certificates",
    POOLED: "all sites",
}
_HOST = re.compile(r"(?!.{254})([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.(?!$)|$))+")
_HASH = re.compile(r"[0-9a-f]{64}")
_SHOWN = 80  # characters of a wrong name that a message shows


def check_name(name: object, of: str, refuse: type[Exception] = BadStudy) -> str:
    """Return a name that can be a folder anywhere; `of` says whose it is.

    Raises `refuse` for any other value: a path, another type, a look-alike of another alphabet.
    """
    if not isinstance(name, str):
        raise refuse(f"{of} is {_shown(name)}; it must be a name, in quotes")
    if len(name) > MOST:
        raise refuse(f"{of} {_shown(name)} has {len(name)} characters; a name has at most {MOST}")
    if not _NAME.fullmatch(name):
        raise refuse(f"{of} {_shown(name)}: {_RULE}")
    if name.partition(".")[0].lower() in _DEVICES:
        raise refuse(f"{of} {_shown(name)}: Windows keeps this name for a device; choose another")
    return name


def check_site_name(name: object, of: str = "site", refuse: type[Exception] = BadStudy) -> str:
    """Return a site's name that every engine takes. Raises `refuse`.

    NVFlare 2.9 takes letters, digits, '-' and '_' (`client` in its apis/utils/format_check.py): a
    '.' separates a site from its jobs in the addresses of its messages.
    """
    known = check_name(name, of, refuse)
    if "." in known:
        raise refuse(f"{of} {_shown(known)}: a site's name has no '.'; write '-' or '_' instead")
    if owner := _NO_SITE.get(known.lower()):
        raise refuse(f"{of} {_shown(known)}: is kept for {owner}; choose another")
    return known


def check_distinct(names: Iterable[str], of: str, refuse: type[Exception] = BadStudy) -> None:
    """Check that names differ in more than case: many disks would give two of them one folder.

    Raises `refuse`.
    """
    known = dict[str, str]()
    for name in names:
        other = known.setdefault(name.lower(), name)
        if other != name:
            raise refuse(f"{of} '{other}' and '{name}' differ in case alone; choose another")


def check_host(host: str, of: str) -> str:
    """Return the host name or IPv4 address by which sites reach the server.

    NVFlare 2.9 parts an address from its port at the first ':' (fuel/f3/drivers/net_utils.py), so
    it takes no IPv6 address. Raises `BadStudy`.
    """
    if problem := _host_problem(host):
        raise BadStudy(f"{of} {_shown(host)}: {problem}")
    return host


def _host_problem(host: str) -> str:
    """Say why a host is not taken; empty where it is."""
    with suppress(ValueError):
        return _address_problem(ip_address(host.removeprefix("[").removesuffix("]")))
    if "/" in host:
        return "give the host alone, without scheme and path, for example fl.example.org"
    if ":" in host:
        return "give the host alone, and its port with --port"
    if re.fullmatch(r"[0-9.]+", host):
        return "an IPv4 address has four numbers from 0 to 255, for example 192.0.2.10"
    if not _HOST.fullmatch(host):
        return (
            "a host name has letters (a-z, A-Z), digits and '-' between its dots, up to 63 of them "
            "and '-' neither first nor last, for example fl.example.org"
        )
    return ""


def _address_problem(address: IPv4Address | IPv6Address) -> str:
    if isinstance(address, IPv6Address):
        return "NVFlare 2.9 takes no IPv6 address; give a host name or an IPv4 address"
    if address.is_unspecified or address.is_multicast:
        return "no site can reach the server by this address; give the server's own"
    return ""


def check_hash(value: object, of: str, refuse: type[Exception] = BadStudy) -> str:
    """Return a SHA-256 in hexadecimal. Raises `refuse` for any other value."""
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise refuse(f"{of} {_shown(value)}: it must be a SHA-256, 64 digits of 0-9 and a-f")
    return value


def _shown(value: object) -> str:
    """Return a wrong value so that a terminal shows it, and no character acts on the terminal."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
