"""What the command `audit` prints: a verdict for each attack."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from grandrounds.cli.output import print_json
from grandrounds.report.analysis.audit import SiteAudit
from grandrounds.report.page.audit import VERDICT_WORDS


def print_findings(found: Sequence[tuple[SiteAudit, Path]], *, as_json: bool, quiet: bool) -> None:
    """Print each site's verdicts and where its page lies, or all as one JSON object."""
    if as_json:
        print_json({audit.site: {"page": str(page), **asdict(audit)} for audit, page in found})
        return
    if quiet:
        return
    for audit, page in found:
        print(f"{audit.site}:")
        for attack in audit.attacks:
            print(f"  {attack.title}\n    {VERDICT_WORDS[attack.verdict]}. {attack.sentence}")
        print(f"  page: {page}")
