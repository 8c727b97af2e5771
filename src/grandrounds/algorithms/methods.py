"""A method defines which tensors are shared, how a site trains and how updates are combined."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from grandrounds.algorithms.aggregation import CONTROL, UPLOAD, Combine, ServerStep
from grandrounds.core.errors import BadStudy
from grandrounds.core.messages import LocalPlan
from grandrounds.core.state import State
from grandrounds.core.weights import OPTIMIZER, Filter, Weights, name_starts, select


@dataclass(frozen=True)
class Method:
    """What is shared, how a site trains, how updates are combined; tables show the `title`.

    `shared` and `private` name parameter groups of the task; a tensor travels if a shared group
    holds it and no private group does. `pooled` trains one model on all sites' data in one place:
    the centralised comparison, no federation.
    """

    title: str
    shared: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    plan: LocalPlan = field(default_factory=LocalPlan)
    combine: Combine = field(default_factory=Combine)
    pooled: bool = False

    def broadcast(self, state: State, site: str) -> Weights:
        """Return what a site needs to train from a state: the weights, and what its plan adds."""
        plan, uploads = self.plan, self.plan.contrast > 0 and self.plan.negatives == "all"
        names = (CONTROL,) * plan.controls + (OPTIMIZER,) * plan.carries + (UPLOAD,) * uploads
        weights = self.combine.of_site(state.weights, site)
        return weights | select(state.memory, name_starts(*names))

    def travels(self, groups: Mapping[str, Filter]) -> Filter:
        """Return the filter of what leaves a site. Raises `BadStudy` for an unknown group."""
        for name in (*self.shared, *self.private):
            if name not in groups:
                known = ", ".join(groups)
                raise BadStudy(f"method: no parameter group '{name}'; this task has {known}")
        shared = [groups[name] for name in self.shared]
        private = [groups[name] for name in self.private]
        return lambda name: any(f(name) for f in shared) and not any(f(name) for f in private)


def fedavg() -> Method:
    """McMahan et al. 2017: every site trains all of the network, the server averages all of it."""
    return Method("FedAvg", shared=("all",))


def fedbn() -> Method:
    """Li et al. 2021: FedAvg, but batch-norm parameters and statistics stay at the site."""
    return Method("FedBN", shared=("all",), private=("norm",))


def fedprox(*, mu: float = 0.01) -> Method:
    """Li et al. 2020: FedAvg with a proximal pull of strength mu towards the round's start."""
    return Method("FedProx", shared=("all",), plan=LocalPlan(prox=mu))


def fedopt(
    *,
    server: Literal["momentum", "adam", "yogi", "adagrad"] = "adam",
    rate: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> Method:
    """Reddi et al. 2021: the server takes the sites' mean move as the gradient of its optimiser."""
    step = ServerStep(server, rate, beta1, beta2, tau, start=tau**2)
    return Method(f"Fed{server.capitalize()}", shared=("all",), combine=Combine(step=step))


def fedbadam(
    *, rate: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
) -> Method:
    """FedBAdam: Adam at the server, batch norms stay at the site (10.1016/j.bspc.2026.109649)."""
    step = ServerStep("adam", rate, beta1, beta2, tau)
    return Method("FedBAdam", shared=("all",), private=("norm",), combine=Combine(step=step))


def scaffold(*, rate: float = 1.0) -> Method:
    """Karimireddy et al. 2020: control variates correct each gradient for the site's drift.

    `rate` is the server's.
    """
    step = ServerStep("replace", rate)
    plan = LocalPlan(controls=True)
    return Method("SCAFFOLD", shared=("all",), plan=plan, combine=Combine(step=step))


def lg_fedavg() -> Method:
    """Liang et al. 2020: the lower layers stay at the site, the upper ones are averaged."""
    return Method("LG-FedAvg", shared=("upper",))


def fedper() -> Method:
    """Arivazhagan et al. 2019: the head stays at the site, all below it is averaged."""
    return Method("FedPer", shared=("all",), private=("head",))


def fedrep(*, head_epochs: int = 1) -> Method:
    """Collins et al. 2021: as FedPer, but each round trains first the head alone, then the rest."""
    plan = LocalPlan(private_epochs=head_epochs)
    return Method("FedRep", shared=("all",), private=("head",), plan=plan)


def ditto(*, strength: float = 0.1) -> Method:
    """Li et al. 2021: FedAvg, and beside it each site's own model, pulled towards the shared."""
    return Method("Ditto", shared=("all",), plan=LocalPlan(personal=strength))


PARAMETER_SPLITS: dict[str, tuple[str, ...]] = {
    "decoder": ("mapper", "decoder"),
    "paper": ("mapper", "bottleneck_late", "decoder"),
    "bottleneck": ("mapper", "bottleneck_early", "bottleneck_late", "decoder"),
    "wide": ("all",),
    "everything": ("all",),
}


def pflsynth(
    *,
    split: Literal["decoder", "paper", "bottleneck", "wide", "everything"] = "paper",
    share: tuple[str, ...] = (),
) -> Method:
    """Dalmaz et al. 2024: personalised synthesis; mapper and later layers travel, the rest stays.

    `paper` shares mapper, late bottleneck and decoder; `decoder` less than that, `bottleneck` all
    of it too; `wide` shares all but the personalisation blocks, which suits sites with few
    patients, and `everything` these too; `share` names the parameter groups instead.
    """
    private = () if share or split == "everything" else ("personal",)
    return Method("pFLSynth", shared=share or PARAMETER_SPLITS[split], private=private)


def fedgan(*, share_discriminator: bool = True) -> Method:
    """Rasouli et al. 2020: generators are averaged, and each critic among the sites of its task."""
    return Method("FedGAN", shared=("all", "critic") if share_discriminator else ("all",))


def fedmri(*, beta: float = 1000.0, negatives: Literal["all", "own"] = "all") -> Method:
    """Feng et al. 2023: the encoder travels, and is kept near the average and off the last uploads.

    `beta` weighs that term; "all" sends each site's last encoder to all others, "own" to none.
    """
    plan = LocalPlan(contrast=beta, negatives=negatives)
    combine = Combine(uploads=beta > 0 and negatives == "all")
    return Method("FedMRI", shared=("encoder",), plan=plan, combine=combine)


def fedmedgan(*, broadcast: Literal["mean", "best"] = "mean") -> Method:
    """Wang et al. 2023 (FedMed-GAN): the generators are averaged, critics stay.

    With "best" all sites go on from the generator of the one whose own validates best.
    """
    best = broadcast == "best"
    title = "FedMed-GAN, best site's" if best else "FedMed-GAN"
    plan, combine = LocalPlan(validates=best), Combine(best=best)
    return Method(title, shared=("all",), plan=plan, combine=combine)


def fedmmgan() -> Method:
    """MM-GAN (Sharma and Hamarneh 2020) under FedAvg: one network with a channel per contrast."""
    return Method("FedMM-GAN", shared=("all",))


def fedcyclegan() -> Method:
    """Song and Ye 2021: one generator that a code switches between directions is averaged."""
    return Method("FedCycleGAN", shared=("all",))


def pgan() -> Method:
    """Dar et al. 2019, on pooled data: a ResNet with a critic; without its perceptual loss."""
    return Method("pGAN, centralised", pooled=True)


def pix2pix() -> Method:
    """Isola et al. 2017, on pooled data: a U-Net with a critic."""
    return Method("pix2pix, centralised", pooled=True)


def local() -> Method:
    """No federation: every site trains alone, from the same first weights."""
    return Method("Local only")


def central() -> Method:
    """No federation: one model on all sites' pooled data, which a consortium could not have."""
    return Method("Centralised", pooled=True)


METHODS: dict[str, Callable[..., Method]] = {
    "fedavg": fedavg,
    "fedprox": fedprox,
    "fedopt": fedopt,
    "fedbn": fedbn,
    "fedbadam": fedbadam,
    "scaffold": scaffold,
    "lg_fedavg": lg_fedavg,
    "fedper": fedper,
    "fedrep": fedrep,
    "ditto": ditto,
    "pflsynth": pflsynth,
    "fedgan": fedgan,
    "fedmri": fedmri,
    "fedmedgan": fedmedgan,
    "fedmmgan": fedmmgan,
    "fedcyclegan": fedcyclegan,
    "pgan": pgan,
    "pix2pix": pix2pix,
    "local": local,
    "central": central,
}
