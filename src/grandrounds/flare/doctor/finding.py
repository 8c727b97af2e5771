"""Each check of the doctor looks at a party and returns a finding."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from grandrounds.flare.kit import Kit
from grandrounds.study.study import Study

Verdict: TypeAlias = Literal["ok", "soon", "bad", "skipped"]
GIB = 2**30


@dataclass(frozen=True)
class Party:
    """One party of a federation, on its own machine: its kit, and the study it is to take part in.

    `site` is a site file to look at instead of the kit's own.
    """

    kit: Kit
    study: Study | None = None
    site: Path | None = None

    @property
    def certificate(self) -> Path:
        """Return the path of the party's certificate."""
        return self.kit.certificate

    @property
    def key(self) -> Path:
        """Return the path of the certificate's private key."""
        return self.kit.key

    @property
    def authority(self) -> Path:
        """Return the path of the certificate of the federation's authority."""
        return self.kit.root


@dataclass(frozen=True)
class Finding:
    """The result of one check, in words, and what to do where it is bad."""

    verdict: Verdict
    found: str
    mend: str = ""


def ok(found: str) -> Finding:
    """Return a finding that nothing is wrong."""
    return Finding("ok", found)


def soon(found: str, mend: str) -> Finding:
    """Return a finding of what will stop a run before long, and how to prevent it."""
    return Finding("soon", found, mend)


def bad(found: str, mend: str) -> Finding:
    """Return a finding of what would stop a run, and how to mend it."""
    return Finding("bad", found, mend)


def skipped(why: str) -> Finding:
    """Return a finding that a check was not made, and why."""
    return Finding("skipped", why)
