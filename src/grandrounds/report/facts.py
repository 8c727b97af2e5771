"""What a report or a table says, as numbers: one run, or several of the same study side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from grandrounds.events import SiteReady
from grandrounds.report.arm import Arm, arm_of
from grandrounds.report.discrimination import Discrimination
from grandrounds.report.folder import ArmEntry, Panel, read_runs
from grandrounds.report.metrics import METRICS, Metric


@dataclass(frozen=True)
class Facts:
    """Everything that a report says, as numbers; it is about the arm named `first`."""

    arms: tuple[Arm, ...]
    waiting: tuple[ArmEntry, ...]
    first: str

    @property
    def name(self) -> str:
        """Name the study."""
        return self.arms[0].started.name

    @property
    def sites(self) -> tuple[str, ...]:
        """List the sites in the study's order."""
        return self.arms[0].study.sites

    @property
    def protagonist(self) -> Arm | None:
        """Give the arm that the report is about, once it has started."""
        return self.arms[0] if self.arms[0].entry.name == self.first else None

    @cached_property
    def ready(self) -> Mapping[str, SiteReady]:
        """Give what each site delivered, from the first arm that says so."""
        found: dict[str, SiteReady] = {}
        for arm in self.arms:
            found |= {site: event for site, event in arm.ready.items() if site not in found}
        return found

    @property
    def simulated(self) -> tuple[str, ...]:
        """List the sites whose data are simulated."""
        return tuple(site for site, event in self.ready.items() if event.simulated)

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """List the metrics of all arms, the main one first."""
        present = set(chain.from_iterable(arm.metrics for arm in self.arms))
        return tuple(metric for key, metric in METRICS.items() if key in present)

    @property
    def main_metric(self) -> Metric | None:
        """Give the metric that sentences speak of; nothing before there are scores."""
        return self.metrics[0] if self.metrics else None

    @property
    def num_test_patients(self) -> int:
        """Count the test patients that were scored, site by site."""
        rows = {(s, p) for arm in self.arms for (s, *_), found in arm.scores.items() for p in found}
        return len(rows)

    def tasks(self, site: str) -> tuple[str, ...]:
        """List a site's tasks."""
        declared = self.ready[site].tasks if site in self.ready else ()
        scored = (task for arm in self.arms for at, task, _ in arm.scores if at == site)
        return tuple(dict.fromkeys((*declared, *scored)))

    @cached_property
    def discrimination(self) -> Mapping[tuple[str, str], tuple[Discrimination | None, ...]]:
        """Put each (site, task) that has an AUC beside the arms, in their order."""
        cells = [(site, task) for site in self.sites for task in self.tasks(site)]
        rows = {cell: tuple(arm.discrimination.get(cell) for arm in self.arms) for cell in cells}
        return {cell: row for cell, row in rows.items() if any(row)}

    def best_local(self, site: str, metric: str) -> Arm | None:
        """Give the local-only arm with the best score at a site."""
        scored = [arm for arm in self.arms if arm.local and arm.site_spread(site, metric)]
        return max(scored, key=lambda arm: self._worth(arm, site, metric), default=None)

    def _worth(self, arm: Arm, site: str, metric: str) -> float:
        spread = arm.site_spread(site, metric)
        value = spread.mean if spread else float("nan")
        return value if METRICS[metric].higher_is_better else -value

    def gain(self, arm: Arm, reference: Arm, site: str, metric: str) -> float:
        """Tell by how much an arm is better than another at a site; negative where it is worse."""
        return self._worth(arm, site, metric) - self._worth(reference, site, metric)

    def wins(self, arm: Arm, reference: Arm, site: str, metric: str) -> tuple[int, int]:
        """Count the patients of a site that an arm serves better than another does, of how many."""
        ours, theirs = arm.site_patients(site, metric), reference.site_patients(site, metric)
        shared = [patient for patient in ours if patient in theirs]
        sign = 1 if METRICS[metric].higher_is_better else -1
        return sum(sign * (ours[p] - theirs[p]) > 0 for p in shared), len(shared)

    def panels(self, site: str, task: str) -> tuple[tuple[Arm, Panel], ...]:
        """List the pictures of one site and task, in the order of the arms."""
        pairs = ((arm, panel) for arm in self.arms for panel in arm.panels)
        return tuple(pair for pair in pairs if (pair[1].site, pair[1].task) == (site, task))


def read_facts(folder: Path) -> Facts:
    """Compute the facts of a run folder or of a comparison folder. Raises `BadFolder`."""
    found = read_runs(folder)
    return Facts(tuple(arm_of(run) for run in found.runs), found.waiting, found.first)
