"""How often the audit flags a model that memorised, and one that never saw the patients.

Twenty planted memories, and twenty that hold others (`tests/helpers/planted_models.py`); an attack
flags a model where its p-value, times the number of its tests, is at most a threshold. The table is
written into docs/reference/privacy.md, between the marks of this program.

    python benchmarks/audit_curve.py [--number 20] [--json]
"""

import argparse
import json
import sys
from pathlib import Path

from grandrounds.audit.exchangeability import FLAGGED_AT

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers.planted_models import operating_curve  # noqa: E402 - it lies beside

PAGE = ROOT / "docs/reference/privacy.md"
BEGIN, END = "<!-- audit_curve: begin -->", "<!-- audit_curve: end -->"
THRESHOLDS = (0.003, 0.01, 0.05, 0.1, 0.2)


def table_of(curve: dict[str, dict[str, list[float]]], number: int) -> str:
    rows = [f"| threshold | attack | {' | '.join(f'flagged, {kind}' for kind in curve)} |"]
    rows.append("|---|---|---|---|")
    for threshold in THRESHOLDS:
        mark = " (the audit's)" if threshold == FLAGGED_AT else ""
        for attack in curve["memorised"]:
            counts = [sum(p <= threshold for p in curve[kind][attack]) for kind in curve]
            told = " | ".join(f"{count} of {number}" for count in counts)
            rows.append(f"| {threshold}{mark} | {attack} | {told} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    curve = operating_curve(options.number)
    if options.json:
        flagged = {
            f"{attack}, {kind}": sum(p <= FLAGGED_AT for p in found) / options.number
            for kind, attacks in curve.items()
            for attack, found in attacks.items()
        }
        print(json.dumps(flagged))
        return
    table = table_of(curve, options.number)
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", "utf-8")
    print(table)


if __name__ == "__main__":
    main()
