"""Every site's model on every site's test patients: whose model travels, and what it loses."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from grandrounds.report.arm import Arm, over_tasks, tasks_of, units_of
from grandrounds.report.facts import Facts
from grandrounds.report.metrics import Metric
from grandrounds.report.run import Run
from grandrounds.report.words import amount, listed, shown


@dataclass(frozen=True)
class Crossing:
    """What the models of an arm score: `means` maps whose model to whose patients to the mean."""

    arm: Arm
    metric: Metric
    means: Mapping[str, Mapping[str, float]]

    @property
    def models(self) -> tuple[str, ...]:
        """List whose models there are."""
        return tuple(self.means)

    @property
    def sites(self) -> tuple[str, ...]:
        """List whose patients there are, held-out sites last."""
        return tuple(dict.fromkeys(site for row in self.means.values() for site in row))

    @property
    def alike(self) -> bool:
        """Tell whether it makes no difference whose model a site uses."""
        rows = list(self.means.values())
        return all(row == rows[0] for row in rows)

    def better(self, model: str) -> float | None:
        """Tell how much better a model is than the own ones of the other sites, on average.

        Above 0 it is better, also where a lower score is. Nothing where no other site has a model.
        """
        sign = 1 if self.metric.higher_is_better else -1
        row = self.means[model]
        others = [site for site in row if site != model and site in self.means]
        found = [sign * (row[site] - self.means[site][site]) for site in others]
        return fmean(found) if found else None

    def shade(self, model: str, site: str) -> float:
        """Place a mean between the worst (0) and the best (1) of its column."""
        column = [row[site] for row in self.means.values() if site in row]
        low, high = min(column), max(column)
        if low == high:
            return 0.0
        share = (self.means[model][site] - low) / (high - low)
        return share if self.metric.higher_is_better else 1 - share


def crossings(facts: Facts) -> list[Crossing]:
    """List the arms whose models were scored everywhere."""
    metric = facts.main_metric
    found = [_crossing(arm, metric) for arm in facts.arms] if metric else []
    return [crossing for crossing in found if crossing.means]


def _crossing(arm: Arm, metric: Metric) -> Crossing:
    runs = [run for run in arm.runs if run.crossed]
    sites = (*arm.study.sites, *arm.study.held_out)
    models = dict.fromkeys(model for run in runs for model in run.crossed)
    means = {
        model: {s: mean for s in sites if (mean := _mean(runs, model, s, metric)) is not None}
        for model in models
    }
    return Crossing(arm, metric, means)


def _mean(runs: Iterable[Run], model: str, site: str, metric: Metric) -> float | None:
    """Average over tasks, patients and then seeds."""
    found = [_patients(run, model, site, metric) for run in runs if model in run.crossed]
    return fmean(fmean(each) for each in found if each) if any(found) else None


def _patients(run: Run, model: str, site: str, metric: Metric) -> list[float]:
    scores = run.crossed[model]
    cells = [(site, task, metric.key) for task in tasks_of(scores, site, metric.key)]
    each = [units_of({run.seed: scores}, cell, simulated=True) for cell in cells]
    return list(over_tasks(each).values())


def alike(found: Iterable[Crossing]) -> str:
    """Name the arms with which it makes no difference whose model a hospital uses."""
    titles = [crossing.arm.title for crossing in found if crossing.alike]
    if not titles:
        return ""
    return (
        f"With {listed(titles)} all hospitals have the same model, so whose model a hospital uses "
        "makes no difference."
    )


def travels(crossing: Crossing) -> str:
    """Say whose model travels best and worst, and what another's model costs on average."""
    worth = {m: better for m in crossing.models if (better := crossing.better(m)) is not None}
    best, worst = (choose(worth, key=lambda model: worth[model]) for choose in (max, min))
    metric = crossing.metric
    return (
        f"Of the models of {crossing.arm.title}, {shown(best)}'s travels best and "
        f"{shown(worst)}'s worst ({metric.label}): at the other hospitals {shown(best)}'s is on "
        f"average {_beside(worth[best], metric)} these hospitals' own, and {shown(worst)}'s "
        f"{_beside(worth[worst], metric)} them. {_instead(fmean(worth.values()), metric)}"
    )


def _beside(better: float, metric: Metric) -> str:
    if abs(better) < metric.negligible:
        return "practically as good as"
    return f"{amount(better, metric)} {'better' if better > 0 else 'worse'} than"


def _instead(better: float, metric: Metric) -> str:
    verb = "gains" if better > 0 else "loses"
    much = amount(better, metric) if abs(better) >= metric.negligible else "practically nothing"
    return f"A hospital that uses another's model instead of its own {verb} {much} on average."
