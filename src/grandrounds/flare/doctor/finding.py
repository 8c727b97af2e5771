"""Each check of the doctor looks at a party and returns a finding."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from grandrounds.flare.kit import Kit
from grandrounds.study.study import Study

Verdict: TypeAlias = Literal["ok", "bad", "skipped"]
GIB = 2**30


@dataclass(frozen=True)
class Party:
    """One party of a federation, on its own machine: its kit, and what it is asked to take part in.

    `site` is a site file to look at instead of the kit's own.
    """

    kit: Kit
    study: Study | None = None
    site: Path | None = None

    @property
    def certificate(self) -> Path:
        """Give the certificate that says who this party is."""
        return self.kit.startup / f"{self._pair}.crt"

    @property
    def key(self) -> Path:
        """Give the private key of the certificate."""
        return self.kit.startup / f"{self._pair}.key"

    @property
    def authority(self) -> Path:
        """Give the certificate of the federation's authority."""
        return self.kit.startup / "rootCA.pem"

    @property
    def _pair(self) -> str:
        return "server" if self.kit.kind == "server" else "client"


@dataclass(frozen=True)
class Finding:
    """What one check found, in words, and what to do where that is bad."""

    verdict: Verdict
    found: str
    mend: str = ""


def ok(found: str) -> Finding:
    """Say that something is as it should be."""
    return Finding("ok", found)


def bad(found: str, mend: str) -> Finding:
    """Say that something would stop a run, and what helps."""
    return Finding("bad", found, mend)


def skipped(why: str) -> Finding:
    """Say why something was not looked at."""
    return Finding("skipped", why)
