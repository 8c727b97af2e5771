"""What a run will reveal of a site's data is planned, held against limits, and set up here."""

from dataclasses import dataclass
from math import inf
from pathlib import Path

from grandrounds.algorithms.cyclic import Cyclic
from grandrounds.core.errors import BadStudy
from grandrounds.core.run_folder import RunFolder
from grandrounds.privacy.accounting import GaussianSteps, Spending, spending
from grandrounds.privacy.budget import DELTA, PrivacyBudget
from grandrounds.privacy.noise import noise_in, simulated_noise
from grandrounds.site.record_training import lots_per_epoch
from grandrounds.site.releases import SitePrivacy
from grandrounds.study.file import fingerprint
from grandrounds.study.study import Study


def delta_of(study: Study) -> float:
    """Return the delta of a study; where it says none, the usual one."""
    return DELTA if study.privacy.delta is None else study.privacy.delta


def planned_releases(study: Study, site: str, patients: int) -> tuple[GaussianSteps, ...]:
    """Return what a whole run reveals of a site with so many training patients; () without noise.

    Each round of the study in which the site takes part is counted, and each epoch that the
    method trains there.
    """
    if study.privacy.kind == "none" or site not in study.trainers:
        return ()
    first = next(each.first_round for each in study.site if each.name == site)
    rounds, noise = study.rounds - first + 1, study.privacy.noise or 0.0
    if study.privacy.kind == "client":
        return (GaussianSteps(noise, 1.0, rounds),)
    size = study.training.batch_size
    sampling = min(size, patients) / patients
    return (GaussianSteps(noise, sampling, rounds * lots_per_round(study, patients)),)


def lots_per_round(study: Study, patients: int) -> int:
    """Return how many lots a site with so many training patients draws in a round, in all."""
    topology, epochs = study.build_topology(), study.training.epochs
    if isinstance(topology, Cyclic):
        if topology.turn == "steps":
            return topology.length
        epochs = topology.length or epochs
    size, method = study.training.batch_size, study.build_method()
    return method.epochs_at_site(epochs) * lots_per_epoch(patients, size)


@dataclass(frozen=True)
class PlannedEpsilon:
    """What a planned run reveals of one site's data, and all runs on it where that is known."""

    site: str
    run: Spending
    all_runs: Spending | None = None
    limit: float | None = None


def planned_epsilon(
    study: Study, site: str, patients: int, budget: PrivacyBudget | None = None
) -> PlannedEpsilon | None:
    """Return what the planned run reveals of a site with so many training patients.

    None without noise, and for a site that does not train.
    """
    plan = planned_releases(study, site, patients)
    if not plan:
        return None
    run = spending(plan, delta_of(study))
    if budget is None:
        return PlannedEpsilon(site, run)
    limit = budget.limit.epsilon if budget.limit else None
    return PlannedEpsilon(site, run, budget.after(plan, fingerprint(study)), limit)


def epsilon_words(found: PlannedEpsilon) -> str:
    """Say what the planned run reveals of a site, and all runs on its data where that is known."""
    said = f"'{found.site}': epsilon {in_figures(found.run)} once the run is done"
    if found.all_runs is None:
        return said
    allowed = "no limit in its site file"
    if found.limit is not None:
        allowed = f"its site file allows {found.limit:g}"
    return f"{said}; all runs on its data {in_figures(found.all_runs)}, {allowed}"


def in_figures(found: Spending) -> str:
    """Write an epsilon with its delta, and how it was counted."""
    if found.epsilon == inf:
        return "without bound (there is no noise)"
    how = "exactly" if found.accountant in ("exact", "none") else f"at most, by {found.accountant}"
    return f"{found.epsilon:.3g} at delta {found.delta:g} ({how})"


UNITS = {
    "client": "of a whole site, towards whoever sees the mean of all sites' updates and no single "
    "one",
    "record": "of each patient, with all of its slices, towards whoever sees what leaves the site; "
    "patients for validation and test are not protected",
}


def privacy_words(study: Study) -> tuple[str, ...]:
    """Say whom a study's differential privacy protects, and by what; empty without it."""
    privacy = study.privacy
    if privacy.kind == "none":
        return ()
    said = f"differential privacy {UNITS[privacy.kind]}"
    if privacy.kind == "client":
        return (said,)  # its guard says the rest
    return (
        f"{said}: each patient's gradient in a step is clipped to an L2 norm of {privacy.clip:g} "
        f"and gets noise of {privacy.noise:g} times that; losses of training stay at the site",
    )


def simulated_patients(study: Study) -> dict[str, int]:
    """Count the training patients of each simulated site that trains."""
    return {
        site.name: site.patients.train
        for site in study.site
        if site.data == "simulated" and site.name in study.trainers
    }


def check_planned(study: Study, site: str, patients: int, budget: PrivacyBudget | None) -> None:
    """Refuse a run that would exceed the study's epsilon, or the budget of the site's data.

    Raises `BadStudy` and `BadSite`.
    """
    plan = planned_releases(study, site, patients)
    if not plan:
        return
    found, limit = spending(plan, delta_of(study)), study.privacy.epsilon or 0.0
    if limit and found.epsilon > limit:
        raise BadStudy(
            f"privacy.epsilon is {limit:g}, and the run would reach {found.epsilon:.3g} at delta "
            f"{found.delta:g} at site '{site}'; take more noise or fewer rounds"
        )
    if budget:
        budget.check(plan, fingerprint(study))


def site_privacy(
    study: Study, site: str, folder: Path, budget: PrivacyBudget | None, *, simulated: bool
) -> SitePrivacy | None:
    """Return how a site's data is protected in a run in `folder`; None without noise.

    The secret of a real site's noise lies with its budget; where the data is in no file, in the
    site's own folder of the run.
    """
    privacy = study.privacy
    if privacy.kind == "none":
        return None
    kept = budget.folder if budget else RunFolder(folder).site(site).path / "privacy"
    source = simulated_noise(study.training_seed, site) if simulated else noise_in(kept)
    return SitePrivacy(
        kind=privacy.kind,
        clip=privacy.clip or 0.0,
        noise=privacy.noise or 0.0,
        delta=delta_of(study),
        study=fingerprint(study),
        source=source,
        budget=budget,
    )
