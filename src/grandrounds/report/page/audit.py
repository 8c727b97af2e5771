"""The page of an audit: what attacks on one site's part of a run found, as one HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grandrounds.core.files import write_bytes
from grandrounds.core.run_folder import SiteFolder
from grandrounds.report.analysis.audit import (
    AuditedAttack,
    AuditFigure,
    AuditVerdict,
    SiteAudit,
    read_site_audit,
)
from grandrounds.report.analysis.folder import Image
from grandrounds.report.page.style import grey

SIDE = 200  # of the chart of rates
VERDICT_WORDS: Mapping[AuditVerdict, str] = {
    "found": "The attack succeeded",
    "not found": "The attack failed",
    "too few": "Too few patients to say",
    "not applicable": "Not made",
}


@dataclass(frozen=True)
class AuditPicture:
    """An image in [0, 1] that shows what an attack found; it stays at the site."""

    caption: str
    image: Image

    @property
    def encoded(self) -> str:
        """Return the image as a data: URI."""
        return grey(self.image)


def write_audit_page(
    path: Path, audit: SiteAudit, pictures: Mapping[str, Sequence[AuditPicture]]
) -> None:
    """Write the page for its owner alone, whole or not at all. Raises `DiskFailed`.

    `pictures` are by the attack's title, and empty where the site allows none.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("audit.html.j2").render(
        audit=audit,
        pictures=pictures,
        words=VERDICT_WORDS,
        said=said,
        curve=curve_points,
        side=SIDE,
    )
    refusal = "{path}: the page cannot be written: {reason}"
    write_bytes(path, page.encode(), refusal=refusal, private=True)


def said(figure: AuditFigure) -> str:
    """Return a figure with its interval in words."""
    if figure.value is None:
        return figure.note
    value = _number(figure.value)
    if figure.low is None or figure.high is None:
        return value
    return f"{value} ({_number(figure.low)} to {_number(figure.high)})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) > 1 else f"{value:.3g}"


def curve_points(attack: AuditedAttack) -> str:
    """Return the steps of a curve as points of an SVG, from the lower left to the upper right."""
    return " ".join(f"{x * SIDE:.1f},{(1 - y) * SIDE:.1f}" for x, y in attack.curve)


@dataclass(frozen=True)
class Annex:
    """An audit that stands in a run's folder, and where its page lies from the report."""

    audit: SiteAudit
    page: str


def annexes(report: Path, runs: Sequence[Path]) -> tuple[Annex, ...]:
    """Find the audits of runs, for the report in this folder. Raises `BadFolder`."""
    found = [
        SiteFolder(path.parent)
        for run in runs
        for path in sorted(run.glob(f"sites/*/{SiteFolder.findings}"))
    ]
    return tuple(
        Annex(read_site_audit(each.findings), each.findings_page.relative_to(report).as_posix())
        for each in found
    )
