"""Attacks on what crosses the cut of a split network: images from the features of their source.

The server is taken to know the site's stages, too: He et al. 2019 (white box). A cut that sends the
source itself needs no attack.
"""

from grandrounds.algorithms.split import Split
from grandrounds.audit.inversion import (
    ImagePrior,
    Objective,
    Reconstruction,
    attacked,
    judge_reconstructions,
)
from grandrounds.audit.subject import AuditedSite
from grandrounds.audit.traces import (
    Attackable,
    attacked_images,
    noise_like,
    others_images,
    pairs_of,
    why_not,
)
from grandrounds.audit.updates import Attempts
from grandrounds.report.analysis.audit import AuditedAttack
from grandrounds.site.cut import cut_model

_TITLE = "Activation inversion: what crosses the cut of a split network"
_NOISE = "Noise in place of the activations"
_ANOTHER = "Another patient's activations"
_REMEDIES = (
    "Cut the network deeper: later features have fewer pixels.",
    "Use a topology in which updates travel, and not activations of single images.",
    "A machine for the server that all sites trust; activations have no differential privacy here.",
)
_SENTENCES = (
    "From the activations that cross the cut, the server can rebuild what is particular to a "
    "patient's image.",
    "From the activations that cross the cut, the attack rebuilds no more of a patient than it "
    "does from noise.",
)


def attack_activations(
    site: AuditedSite, attempts: Attempts
) -> tuple[AuditedAttack, list[Reconstruction]]:
    """Attack the activations of single images of some training patients, at the tested weights."""
    topology = site.run.study.build_topology()
    if not isinstance(topology, Split):
        sentence = f'Over topology "{site.run.study.topology.kind}" no activations travel.'
        return AuditedAttack(_TITLE, "not applicable", sentence), []
    reason = why_not(site)
    if reason:
        return AuditedAttack(_TITLE, "not applicable", f"{reason}."), []
    head = cut_model(topology, site.task, site.scorer.trainer.model).head
    prior = _of_source(others_images(site, attempts.search.components))
    examples, chosen = attacked_images(site, attempts.patients)
    known = examples.batch(chosen, None)
    sources_N1HW = pairs_of(known)[:, :1]
    found: list[Reconstruction] = []
    for place, true_1HW in enumerate(sources_N1HW):
        own = {name: tensor[place : place + 1] for name, tensor in known.items()}
        network = Attackable.of(site, site.tested.weights, own)
        sent = {name: each.detach() for name, each in network.output(true_1HW, head).items()}
        noise = dict(zip(sent, noise_like(list(sent.values()), place), strict=True))
        traces = {"": sent, _NOISE: noise}
        if len(sources_N1HW) > 1:
            other = network.output(sources_N1HW[(place + 1) % len(sources_N1HW)], head)
            traces[_ANOTHER] = {name: each.detach() for name, each in other.items()}
        objectives: dict[str, Objective] = {
            name: network.from_features(head, trace) for name, trace in traces.items()
        }
        found.append(attacked(objectives, true_1HW[None], prior, attempts.search))
    return judge_reconstructions(_TITLE, found, _SENTENCES, _REMEDIES), found


def _of_source(prior: ImagePrior) -> ImagePrior:
    return ImagePrior(prior.mean[:1], prior.axes[:, :1])
