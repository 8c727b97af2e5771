"""Attacks on what a site sends in a round: the worst case, and the study's own setting."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from grandrounds.audit.inversion import (
    Objective,
    Reconstruction,
    Search,
    attacked,
    judge_reconstructions,
)
from grandrounds.audit.subject import AuditedSite
from grandrounds.audit.traces import (
    Attackable,
    attacked_images,
    first_update,
    noise_like,
    others_images,
    pairs_of,
    why_not,
)
from grandrounds.report.analysis.audit import AuditedAttack

SINGLE_STEP = "Update inversion, worst case: one image, one step"
FIRST_ROUND = "Update inversion, the study's own setting: round 1 as it was sent"
_NOISE = "Noise in place of the update"
_ANOTHER = "Another patient's update"
_REMEDIES = (
    "Larger batches and more local steps before a site sends: an update then mixes more patients.",
    "Secure sum ([privacy] secure_sum = true): nobody sees a site's own update, only the sum.",
    'Client-level differential privacy ([privacy] kind = "client"): clipped updates with noise.',
)
_WORST_SENTENCES = (
    "From the gradient of a single image the attack rebuilds what is particular to the patient: a "
    "study must not send such updates unprotected.",
    "Even from the gradient of a single image the attack rebuilds no more of a patient than it "
    "does from noise.",
)
_OWN_SENTENCES = (
    "From the update that the site sent in round 1 the attack rebuilds what is particular to one "
    "of its patients.",
    "From the update that the site sent in round 1 the attack rebuilds no more of any patient than "
    "it does from noise.",
)


@dataclass(frozen=True)
class Attempts:
    """How many patients are attacked, and how long each is sought."""

    patients: int = 3
    search: Search = field(default_factory=Search)


def attack_single_steps(
    site: AuditedSite, attempts: Attempts
) -> tuple[AuditedAttack, list[Reconstruction]]:
    """Attack the gradients of single images of some training patients, at the tested weights."""
    reason = _no_update(site) or why_not(site)
    if reason:
        return AuditedAttack(SINGLE_STEP, "not applicable", f"{reason}."), []
    prior = others_images(site, attempts.search.components)
    examples, chosen = attacked_images(site, attempts.patients)
    known = examples.batch(chosen, None)
    images_NCHW = pairs_of(known)
    found: list[Reconstruction] = []
    for place, true_CHW in enumerate(images_NCHW):
        own = {name: tensor[place : place + 1] for name, tensor in known.items()}
        network = Attackable.of(site, site.tested.weights, own)
        observed = network.true_gradient(true_CHW)
        objectives = {"": network.from_update(observed)} | _controls(
            network, observed, images_NCHW, place
        )
        found.append(attacked(objectives, true_CHW[None], prior, attempts.search))
    return judge_reconstructions(SINGLE_STEP, found, _WORST_SENTENCES, _REMEDIES), found


def _controls(
    network: Attackable, observed: list[Tensor], images_NCHW: Tensor, place: int
) -> dict[str, Objective]:
    """Return what an attacker has who knows nothing of a patient: noise, or another's update."""
    found = {_NOISE: network.from_update(noise_like(observed, place))}
    if len(images_NCHW) > 1:
        other = network.true_gradient(images_NCHW[(place + 1) % len(images_NCHW)])
        found[_ANOTHER] = network.from_update(other)
    return found


def attack_first_round(
    site: AuditedSite, attempts: Attempts
) -> tuple[AuditedAttack, list[Reconstruction]]:
    """Attack the update that the site sent in round 1, guards included, made once more."""
    reason = _no_update(site) or _not_seen(site) or why_not(site)
    if reason:
        return AuditedAttack(FIRST_ROUND, "not applicable", f"{reason}."), []
    start, sent = first_update(site)
    prior = others_images(site, attempts.search.components)
    examples, every = attacked_images(site, len(site.trained))
    network = Attackable.of(site, start, examples.batch(every[:1], None))
    observed = [start[name].float() - sent[name].float() for name in network.shared]
    objectives = {
        "": network.from_update(observed),
        _NOISE: network.from_update(noise_like(observed, 0)),
    }
    true_NCHW = torch.cat([pairs_of(examples.batch([index], None)) for index in every])
    found = [attacked(objectives, true_NCHW, prior, attempts.search)]
    return judge_reconstructions(FIRST_ROUND, found, _OWN_SENTENCES, _REMEDIES), found


def _no_update(site: AuditedSite) -> str:
    """Say why no update of the run could leave a site; empty where one does."""
    sharing = site.run.study.build_method().sharing()
    if sharing.pooled:
        return "All data were in one place, so nothing was sent"
    if sharing.alone:
        return "Every site trains alone, so nothing is sent"
    return ""


def _not_seen(site: AuditedSite) -> str:
    """Say why nobody sees a site's own update of a round; empty where somebody does."""
    study = site.run.study
    if study.privacy.secure_sum:
        return "Updates are masked (secure_sum), and nobody sees a site's own"
    if study.topology.kind == "split":
        return "A split network sends activations; see the attack on these"
    return ""
