"""The doctor checks a party of a federation for what may stop a run, and tells how to mend it."""

from collections.abc import Callable, Mapping

from grandrounds.core.errors import BadInput
from grandrounds.flare.doctor.finding import Finding, Party
from grandrounds.flare.doctor.identity import chain, clock, dates, key, revocation, right
from grandrounds.flare.doctor.machine import (
    accelerator,
    disk,
    memory,
    shared_memory,
    store,
    versions,
)
from grandrounds.flare.doctor.network import port, reach, server_clock
from grandrounds.flare.doctor.permissions import (
    acceptance,
    classes,
    code,
    elements,
    log_rules,
    registration,
)

CHECKS: Mapping[str, Callable[[Party], Finding]] = {
    "this kit": right,
    "versions": versions,
    "clock": clock,
    "certificate dates": dates,
    "certificate chain": chain,
    "private key": key,
    "revocation": revocation,
    "port": port,
    "server": reach,
    "server's clock": server_clock,
    "disk": disk,
    "store": store,
    "memory": memory,
    "GPU": accelerator,
    "shared memory": shared_memory,
    "allowed classes": classes,
    "foreign code": code,
    "logs": log_rules,
    "registration": registration,
    "acceptance": acceptance,
    "data elements": elements,
}


def examine(party: Party) -> dict[str, Finding]:
    """Return the findings of all checks of a party; a check's `BadInput` is its finding."""
    return {name: _finding(look, party) for name, look in CHECKS.items()}


def _finding(look: Callable[[Party], Finding], party: Party) -> Finding:
    try:
        return look(party)
    except BadInput as error:
        return Finding("bad", str(error))
