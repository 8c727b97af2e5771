"""What the privacy audit finds at every hospital of every arm of a finished comparison.

Its sites are simulated. Each audit also writes its page into the run's folder. With --json: for
each arm the share of hospitals at which each attack succeeded.

    python benchmarks/memorisation.py runs/demo [--attempts 3] [--steps 150] [--json]
"""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

from grandrounds.audit.attacks import audit_site
from grandrounds.audit.inversion import Search
from grandrounds.audit.sites import sites_asked
from grandrounds.audit.updates import Attempts
from grandrounds.report.analysis.audit import SiteAudit
from grandrounds.runs.folder import find_runs


def audits_of(folder: Path, attempts: Attempts) -> list[SiteAudit]:
    return [
        audit_site(run, name, file, attempts, lambda _: None)[0]
        for run in find_runs(folder)
        for name, file in sites_asked(run, [], []).items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--attempts", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    audits = audits_of(options.folder, Attempts(options.attempts, Search(steps=options.steps)))
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for audit in audits:
        for attack in audit.attacks:
            counts[audit.arm, attack.title][attack.verdict] += 1
    if options.json:
        shares = {
            f"{arm}: {title}": each["found"] / each.total() for (arm, title), each in counts.items()
        }
        print(json.dumps(shares))
        return
    print("| arm | attack | found | not found | too few patients | not made |")
    print("|---|---|---|---|---|---|")
    for (arm, title), each in counts.items():
        told = " | ".join(str(each[v]) for v in ("found", "not found", "too few", "not applicable"))
        print(f"| {arm} | {title} | {told} |")


if __name__ == "__main__":
    main()
