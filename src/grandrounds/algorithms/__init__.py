"""Methods and topologies define what happens in a round; a study file names them.

Nothing here knows a task, a dataset, a model or an engine.
"""

from dataclasses import replace

from grandrounds.algorithms.cyclic import Cyclic
from grandrounds.algorithms.method import Method
from grandrounds.algorithms.methods.apfl import APFL
from grandrounds.algorithms.methods.comparisons import PGAN, Central, Local, Pix2Pix
from grandrounds.algorithms.methods.ditto import Ditto
from grandrounds.algorithms.methods.fedavg import FedAvg
from grandrounds.algorithms.methods.fedbadam import FedBAdam
from grandrounds.algorithms.methods.fedbn import FedBN
from grandrounds.algorithms.methods.fedcyclegan import FedCycleGAN
from grandrounds.algorithms.methods.fedgan import FedGAN
from grandrounds.algorithms.methods.fedmedgan import FedMedGAN
from grandrounds.algorithms.methods.fedmmgan import FedMMGAN
from grandrounds.algorithms.methods.fedmri import FedMRI
from grandrounds.algorithms.methods.fedopt import FedOpt
from grandrounds.algorithms.methods.fedper import FedPer
from grandrounds.algorithms.methods.fedprox import FedProx
from grandrounds.algorithms.methods.fedrep import FedRep
from grandrounds.algorithms.methods.lg_fedavg import LGFedAvg
from grandrounds.algorithms.methods.mrmtl import MRMTL
from grandrounds.algorithms.methods.pflsynth import PFLSynth
from grandrounds.algorithms.methods.scaffold import Scaffold
from grandrounds.algorithms.relay import Relay
from grandrounds.algorithms.split import Split
from grandrounds.algorithms.star import Star
from grandrounds.algorithms.swarm import Swarm
from grandrounds.algorithms.topology import Topology
from grandrounds.core.extensions import METHOD_WORDS, chosen_class

METHODS: dict[str, type[Method]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedopt": FedOpt,
    "fedbn": FedBN,
    "fedbadam": FedBAdam,
    "scaffold": Scaffold,
    "lg_fedavg": LGFedAvg,
    "fedper": FedPer,
    "fedrep": FedRep,
    "ditto": Ditto,
    "mrmtl": MRMTL,
    "apfl": APFL,
    "pflsynth": PFLSynth,
    "fedgan": FedGAN,
    "fedmri": FedMRI,
    "fedmedgan": FedMedGAN,
    "fedmmgan": FedMMGAN,
    "fedcyclegan": FedCycleGAN,
    "pgan": PGAN,
    "pix2pix": Pix2Pix,
    "local": Local,
    "central": Central,
}
DEFAULT_METHOD = "pflsynth"
DEMO_ARMS = (
    "pflsynth@relay:split=wide:topology.groups=4",
    *("fedavg", "local:task.generator=personalised", "local"),
)
TOPOLOGIES: dict[str, type[Star | Swarm | Cyclic | Relay | Split]] = {
    "star": Star,
    "swarm": Swarm,
    "cyclic": Cyclic,
    "relay": Relay,
    "split": Split,
}


def method_class(word: object) -> type[Method]:
    """Return the class that a study's word for a method names. Raises `BadStudy`."""
    return chosen_class("method.kind", word, Method, METHODS, METHOD_WORDS)


def proposed_method(sites: int, task: str, why: str) -> tuple[str, str]:
    """Return the method to begin with for so many sites and a kind of task, and why."""
    if sites == 1:
        return "local", why
    if task == "synthesis":
        return DEFAULT_METHOD, f"{why}, with a part of its own for each scanner"
    return "fedavg", why


def with_seed(topology: Topology, seed: int) -> Topology:
    """Return the topology with the study's seed, where it draws leaders or orders."""
    draws = isinstance(topology, Swarm | Cyclic | Relay | Split)
    return replace(topology, seed=seed) if draws else topology


__all__ = [
    "DEFAULT_METHOD",
    "DEMO_ARMS",
    "METHODS",
    "TOPOLOGIES",
    "method_class",
    "proposed_method",
    "with_seed",
]
