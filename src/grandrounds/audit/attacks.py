"""All attacks on one site's part of a run, and the files that say what they found."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from grandrounds.audit.activations import attack_activations
from grandrounds.audit.inversion import Reconstruction
from grandrounds.audit.membership import Fits, judge_membership
from grandrounds.audit.memorisation import COPIES, closest, judge_copies
from grandrounds.audit.subject import AuditedSite, opened_site, splits_counted
from grandrounds.audit.updates import Attempts, attack_first_round, attack_single_steps
from grandrounds.core.files import make_output_folder
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.seeds import seed_for
from grandrounds.report.analysis.audit import AuditedAttack, SiteAudit, write_audit
from grandrounds.report.page.audit import AuditPicture, write_audit_page
from grandrounds.runs.folder import TrainedRun
from grandrounds.study.site_file import SiteFile

UNTRAINED = "A network before training"
UNSEEN = "A model that never saw this site's patients"
Pictures = dict[str, Sequence[AuditPicture]]  # by the title of the attack
_Told = Callable[[str], None]


def audit_site(
    run: TrainedRun, name: str, file: SiteFile | None, attempts: Attempts, told: _Told
) -> tuple[SiteAudit, Path]:
    """Attack one site's part of a run; write and return what was found, and the page's path.

    Writes `audit.json` and `audit.html` into the site's folder of the run. Raises `BadSite`,
    `BadImage` and `DiskFailed`.
    """
    with opened_site(run, name, file) as site:
        return audit_opened(site, attempts, told)


def audit_opened(site: AuditedSite, attempts: Attempts, told: _Told) -> tuple[SiteAudit, Path]:
    """Attack an opened site's part of its run, as `audit_site` does. Raises `DiskFailed`."""
    audit, pictures = _attacked(site, attempts, told)
    folder = RunFolder(site.run.folder).site(site.name)
    make_output_folder(folder.path)  # pooled data have no folder of the site
    write_audit(folder.findings, audit)
    write_audit_page(folder.findings_page, audit, pictures if site.data.shows_images else {})
    return audit, folder.findings_page


def _attacked(site: AuditedSite, attempts: Attempts, told: _Told) -> tuple[SiteAudit, Pictures]:
    attacks: list[AuditedAttack] = []
    pictures: Pictures = {}
    for attack in (_copies, _membership):
        found, shown = attack(site)
        attacks.append(found)
        pictures[found.title] = shown
        told(found.title)
    for attack in (attack_single_steps, attack_first_round, attack_activations):
        found, rebuilt = attack(site, attempts)
        attacks.append(found)
        pictures[found.title] = _rebuilt(rebuilt)
        told(found.title)
    label = site.run.score_label
    study = site.run.study
    counted = {str(split): count for split, count in splits_counted(site).items()}
    audit = SiteAudit(
        study.name, site.name, label.arm, label.seed, label.round, counted, tuple(attacks)
    )
    return audit, pictures


def _seed(site: AuditedSite) -> int:
    return seed_for(site.run.study.seed, site.name, "audit")


def _copies(site: AuditedSite) -> tuple[AuditedAttack, Sequence[AuditPicture]]:
    made, real = site.images(site.tested)
    if not made:
        return AuditedAttack(COPIES, "not applicable", "This task makes no images."), ()
    controls = {UNTRAINED: site.copies(*site.images(site.untrained))}
    if site.unseen:
        controls[UNSEEN] = site.copies(*site.images(site.unseen[0]))
    found = judge_copies(site.copies(made, real), controls, seed=_seed(site))
    label = next(iter(made))
    names = ("Synthetic image", "Nearest training image", "Nearest test image")
    shown = closest(made[label], real[label], site.trained)
    pairs = zip(names, shown, strict=True)
    return found, tuple(AuditPicture(name, image[0].numpy()) for name, image in pairs)


def _membership(site: AuditedSite) -> tuple[AuditedAttack, Sequence[AuditPicture]]:
    unseen = [site.fits(model) for model in site.unseen]
    fits = Fits.of(site.fits(site.tested), unseen)
    controls = {UNTRAINED: site.fits(site.untrained)}
    if unseen:
        controls[UNSEEN] = unseen[0]
    return judge_membership(fits, site.members, controls, seed=_seed(site)), ()


def _rebuilt(found: Sequence[Reconstruction]) -> Sequence[AuditPicture]:
    """Show the attempt in the middle: the patient's source, what was found, and the mean."""
    if not found:
        return ()
    shown = sorted(found, key=lambda each: each.detail)[len(found) // 2]
    images = {
        "The patient's image": shown.true,
        "What the attack made of its trace": shown.found,
        "Mean of other patients, where the attack began": shown.mean,
    }
    return tuple(AuditPicture(name, _grey(image)) for name, image in images.items())


def _grey(image_CHW: Tensor) -> NDArray[np.float32]:
    return ((image_CHW[0] + 1) / 2).clamp(0, 1).float().numpy()
