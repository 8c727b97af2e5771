"""Every topology beside training alone and beside pooled data, for one study and several seeds.

All arms have the same data, splits, optimiser and local steps. A model is scored on its own site's
test cases, and on those of all sites: a model trained alone meets the others' scanners only there.

    python benchmarks/configurations.py studies/segmentation.toml --cut decoder.0 --seeds 3
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from grandrounds.core.device import deterministic
from grandrounds.core.events import Event, SiteTested
from grandrounds.core.journal import read_journal
from grandrounds.core.messages import Evaluate
from grandrounds.core.weights import read
from grandrounds.runs.arms import ArmChoice
from grandrounds.runs.build import build_federation
from grandrounds.runs.comparison import Comparison, ComparisonRun
from grandrounds.runs.costs import plan_run
from grandrounds.runs.listeners import SilentListener
from grandrounds.runs.site_data import open_sites
from grandrounds.study.file import read_table
from grandrounds.study.site_file import SiteFile, read_site
from grandrounds.study.study import Study

Summary = Mapping[str, float]


def main() -> None:
    """Run all arms and print a table, or with --json one object."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("study", type=Path)
    options.add_argument("--site", type=Path, action="append", default=[])
    options.add_argument("--cut", required=True, help="first stage of the server in split learning")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--set", dest="overrides", action="append", default=[])
    options.add_argument("--out", type=Path, default=Path("runs/configurations"))
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    files = tuple(read_site(path) for path in given.site)
    labels = (
        *("central", "local", "fedavg", "fedavg@swarm", "fedavg@cyclic"),
        f"fedavg@split:topology.cut={given.cut}",
        f"fedavg@split:topology.cut={given.cut}:topology.variant=splitfed1",
    )
    found = {
        seed: _seed(given.study, seed, labels, given.overrides, files, given.out)
        for seed in range(1, given.seeds + 1)
    }
    print(json.dumps(found, indent=2) if given.json else _table(found))


def _seed(
    path: Path,
    seed: int,
    labels: Sequence[str],
    overrides: Sequence[str],
    files: tuple[SiteFile, ...],
    out: Path,
) -> dict[str, dict[str, Summary]]:
    """Run one seed's arms; give for each its scores on own and on all test sets."""
    table = read_table(path)
    arms = [ArmChoice(label) for label in labels]
    own = (*overrides, f"seed={seed}", "training.threads=1")
    studies = {arm: arm.study(table, own) for arm in arms}
    folder = out / path.stem / f"seed-{seed}"
    comparison = Comparison(folder, studies, files, workers=2)
    comparison.run(_unheard)
    found = {arm.label: _scores(comparison.run_folder(ComparisonRun(arm, seed))) for arm in arms}
    star, swarm = (
        comparison.run_folder(ComparisonRun(ArmChoice(label), seed))
        for label in ("fedavg", "fedavg@swarm")
    )
    equal = (star / "digests.csv").read_bytes() == (swarm / "digests.csv").read_bytes()
    found["fedavg@swarm"]["bitwise"] = {"equal": float(equal)}
    for label in ("central", "local"):
        trained = comparison.run_folder(ComparisonRun(ArmChoice(label), seed)) / "sites"
        models = sorted(trained.glob("*/private.safetensors"))
        found[label]["all"] = _scored_everywhere(
            studies[ArmChoice("fedavg")], files, models, folder
        )
    return found


def _unheard(cell: ComparisonRun, event: Event) -> None:
    """Hear an event and do nothing."""


def _scores(folder: Path) -> dict[str, Summary]:
    events = [event for _, event in read_journal(folder / "journal.jsonl")]
    sites = [event.summary for event in events if isinstance(event, SiteTested)]
    return {"own": _means(sites), "all": _means(sites)}


def _means(summaries: Sequence[Summary]) -> Summary:
    return {name: fmean(each[name] for each in summaries) for name in summaries[0]}


def _scored_everywhere(
    study: Study, files: tuple[SiteFile, ...], models: Sequence[Path], folder: Path
) -> Summary:
    """Score each whole model on every site's test cases."""
    machine = study.training.machine()
    with deterministic(machine):
        federation = build_federation(
            plan_run(study), open_sites(study, files), folder / "crossed", machine, SilentListener()
        )
        orders = [Evaluate(round=0, since=0, split="test", weights=read(m)[0]) for m in models]
        replies = [site.answer(order) for order in orders for site in federation.sites.sites]
    return _means([reply.metrics for reply in replies])


def _table(found: Mapping[int, Mapping[str, Mapping[str, Summary]]]) -> str:
    first = next(iter(found.values()))
    metrics = list(first["fedavg"]["own"])
    lines = [" | ".join(["arm", "test sets", *metrics])]
    for label in first:
        for where in ("own", "all") if label == "local" else ("all",):
            columns = [[seed[label][where][m] for seed in found.values()] for m in metrics]
            lines.append(" | ".join([label, where, *map(_spread, columns)]))
    equal = all(seed["fedavg@swarm"]["bitwise"]["equal"] for seed in found.values())
    lines.append(f"swarm equals star to the bit in every round: {equal}")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    deviation = f" (sd {stdev(values):.4f})" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{deviation}"


if __name__ == "__main__":
    main()
