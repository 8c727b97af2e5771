"""What an audit of one site found: counts and rates alone, as `audit.json` has them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from grandrounds.core.errors import BadFolder
from grandrounds.core.files import write_text

AuditVerdict: TypeAlias = Literal["found", "not found", "too few", "not applicable"]
VERDICTS: tuple[AuditVerdict, ...] = ("found", "not found", "too few", "not applicable")


@dataclass(frozen=True)
class AuditFigure:
    """A count or a rate, and the ends of its interval where it has one; `note` says what it lacks.

    Without a value there were too few patients for it.
    """

    what: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class AuditedAttack:
    """One attack: its verdict in a sentence, its figures, its controls, and what lowers the risk.

    `curve` is a rate over another, such as true over false positives, from (0, 0) to (1, 1).
    """

    title: str
    verdict: AuditVerdict
    sentence: str
    figures: tuple[AuditFigure, ...] = ()
    controls: tuple[AuditFigure, ...] = ()
    remedies: tuple[str, ...] = ()
    curve: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class SiteAudit:
    """What attacks on one site's part of a run found; patients are counted by split."""

    study: str
    site: str
    arm: str
    seed: int
    round: int
    patients: Mapping[str, int]
    attacks: tuple[AuditedAttack, ...]

    @property
    def found(self) -> tuple[AuditedAttack, ...]:
        """Return the attacks that succeeded."""
        return tuple(each for each in self.attacks if each.verdict == "found")


def write_audit(path: Path, audit: SiteAudit) -> None:
    """Write an audit as JSON, whole or not at all. Raises `DiskFailed`."""
    text = json.dumps(asdict(audit), indent=1) + "\n"
    write_text(path, text, refusal="{path}: the audit cannot be written: {reason}")


def read_site_audit(path: Path) -> SiteAudit:
    """Read an audit. Raises `BadFolder` where the file is none."""
    try:
        return _audit_from(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise BadFolder(
            f"{path}: is not an audit as `grandrounds audit` writes it; give that command again, "
            "or move the file away"
        ) from None


def _audit_from(read: Mapping[str, Any]) -> SiteAudit:
    attacks = tuple(_attack_from(each) for each in read["attacks"])
    patients = {str(split): int(count) for split, count in read["patients"].items()}
    return SiteAudit(
        study=str(read["study"]),
        site=str(read["site"]),
        arm=str(read["arm"]),
        seed=int(read["seed"]),
        round=int(read["round"]),
        patients=patients,
        attacks=attacks,
    )


def _attack_from(read: Mapping[str, Any]) -> AuditedAttack:
    if read["verdict"] not in VERDICTS:
        raise ValueError("an unknown verdict")
    return AuditedAttack(
        title=str(read["title"]),
        verdict=read["verdict"],
        sentence=str(read["sentence"]),
        figures=tuple(_figure_from(each) for each in read["figures"]),
        controls=tuple(_figure_from(each) for each in read["controls"]),
        remedies=tuple(str(each) for each in read["remedies"]),
        curve=tuple((float(x), float(y)) for x, y in read["curve"]),
    )


def _figure_from(read: Mapping[str, Any]) -> AuditFigure:
    numbers = (None if read[n] is None else float(read[n]) for n in ("value", "low", "high"))
    return AuditFigure(str(read["what"]), *numbers, note=str(read["note"]))
