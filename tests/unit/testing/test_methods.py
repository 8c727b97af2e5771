"""A planted fault of each relation of a method is found, and told as a researcher can use it."""

import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from grandrounds.algorithms.method import Method
from grandrounds.core import messages
from grandrounds.core.errors import BadStudy
from grandrounds.core.weights import Weights, to_cpu
from grandrounds.site.local_round import SiteRound
from grandrounds.study.file import example, read_study, to_toml
from grandrounds.testing import Broken, Relation, check_method
from tests.helpers import faulty_methods as faulty

FINITE = "weights are finite and moved"
RESUMED = "stopped in any round and resumed = never stopped"
PROCESSES = "two processes = one"
ORDER = "the order of sites changes no update"
SWARM = "a swarm = the star"
WIRE = "bytes on the wire are the tensors, bit for bit, and no pickle"
POLICY = "what leaves and comes is what the policy says"
ALONE = "with nothing shared it is local training"
STUDY = "a study file names it and reads it back"
ALL = (FINITE, RESUMED, PROCESSES, ORDER, SWARM, WIRE, POLICY, ALONE, STUDY)


def broken(method: Method, *, alone: bool = True) -> dict[str, str]:
    """The relations of a method that do not hold, with what was found."""
    with pytest.raises(Broken) as caught:
        check_method(method, alone=alone)
    assert str(caught.value).startswith(f"{type(method).__name__}: ")
    return caught.value.found


FAULTS: dict[type[Method], tuple[str, str]] = {
    faulty.Still: (FINITE, "after 2 rounds site 'alder' has not moved critics.T1w->T2w, and 5"),
    faulty.HalfStill: (FINITE, "after 2 rounds site 'alder' has not moved generator.encoder"),
    faulty.Infinite: (FINITE, "norms/gradient of site 'alder' is not finite after round 2"),
    faulty.Counting: (RESUMED, "stopped in round 1 and resumed, it ends with other weights: "),
    faulty.Drawing: (RESUMED, "stopped in round 1 and resumed, it ends with other weights: "),
    faulty.Hashing: (PROCESSES, "in two processes it ends with other weights: generator."),
    faulty.InPlace: (ORDER, "where the sites train in another order, generator."),
    faulty.Scored: (SWARM, "over a swarm it ends with other weights than in a star: generator."),
    faulty.Untold: (POLICY, "Untold would send 'more/loss', which its sharing does not name in"),
    faulty.Promising: (POLICY, "its sharing names 'control' in sends, and no site ever sent it"),
    faulty.Expecting: (POLICY, "its sharing names 'control' in receives, and no site ever got it"),
    faulty.Whole: (POLICY, "what leaves site 'alder' in round 1 is not what the policy says: "),
    faulty.Damped: (ALONE, "with nothing shared it is not local training: critics.T1w->T2w."),
    faulty.Doubling: (STUDY, "a study file gives back strength = 0.4, not 0.2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", FAULTS, ids=lambda method: method.__name__)
def test_a_planted_fault_is_found(method: type[Method]):
    relation, sentence = FAULTS[method]
    found = broken(method())
    assert sentence in found[relation]


def test_every_relation_but_that_of_bytes_has_a_method_that_breaks_it():
    assert {relation for relation, _ in FAULTS.values()} == {*ALL} - {WIRE}


@pytest.mark.slow
def test_what_differs_is_named_with_round_site_and_distance():
    found = broken(faulty.Counting())
    assert re.fullmatch(
        r"stopped in round 1 and resumed, it ends with other weights: "
        r"generator\.encoder\.0\.convolution\.weight of site 'alder' differs in round 1 "
        r"\(largest difference [0-9.e-]+\), and [0-9]+ more",
        found[RESUMED],
    )


@pytest.mark.slow
def test_bytes_that_lose_a_bit_are_found(monkeypatch: pytest.MonkeyPatch):
    """A fault of the house: no method can change what is encoded."""
    save = messages.save

    def lossy(weights: Weights, notes: dict[str, str]) -> bytes:
        return save({name: rounded(tensor) for name, tensor in weights.items()}, notes)

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.half().to(tensor.dtype)

    monkeypatch.setattr(messages, "save", lossy)
    found = broken(faulty.Damped(), alone=False)
    assert re.match(r"what site 'alder' is sent in round 1 has other bytes than 'gen", found[WIRE])


@pytest.mark.slow
def test_a_tensor_that_must_stay_is_found_when_it_leaves(monkeypatch: pytest.MonkeyPatch):
    """A fault of the house: it selects what leaves."""
    leaving = SiteRound.leaving

    def all_of_it(self: SiteRound, update: object) -> Weights:
        return leaving(self, update) | to_cpu(self.network.state_dict())  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(SiteRound, "leaving", all_of_it)
    found = broken(faulty.Damped(), alone=False)
    assert found[POLICY].startswith("what leaves site 'alder' in round 1 is not what the policy ")
    assert "'critics.T1w->T2w.entry.weight' stays at the site" in found[POLICY]


@pytest.mark.slow
def test_a_method_that_does_not_train_says_why():
    @dataclass(frozen=True)
    class Tripping(faulty.Damped):
        pass

    with pytest.raises(BadStudy, match="Tripping"):
        check_method(Tripping())  # no study can name a class within a function
    found = broken(faulty.Tripping())
    assert found == {
        FINITE: f"{FINITE}: it fails: site 'alder' failed in round 1 (train): ZeroDivisionError: "
        "division by zero"
    }


def names(relations: tuple[Relation, ...]) -> tuple[str, ...]:
    return tuple(relation.name for relation in relations)


@pytest.mark.slow
@pytest.mark.parametrize("method", [faulty.Transposed, faulty.Twice])
def test_tensors_that_share_memory_or_lie_askew_are_no_fault(method: type[Method]):
    """They travel and are saved as any others."""
    relations = check_method(method)
    assert names(relations) == ALL
    assert not [relation for relation in relations if relation.reason]


@pytest.mark.slow
def test_a_relation_that_is_not_meant_to_hold_is_left_out_and_said():
    relations = check_method(faulty.Damped, alone=False)
    assert [str(relation) for relation in relations if relation.reason] == [
        f"does not apply: {ALONE}: alone = False: with nothing shared it is another method"
    ]
    assert str(relations[0]) == f"holds: {FINITE}"


NOTEBOOK = """
from dataclasses import dataclass
from grandrounds.algorithms.method import Method
from grandrounds.testing import check_method

@dataclass(frozen=True)
class Mine(Method):
    pass

for relation in check_method(Mine):
    print(relation)
"""


@pytest.mark.slow
@pytest.mark.full
def test_a_class_of_a_notebook_is_tried_in_its_own_process():
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    here = "is defined in this notebook; move it into a module beside the notebook"
    assert [line for line in lines if not line.startswith("holds: ")] == [
        f'does not apply: {PROCESSES}: workers = 2 are processes that must import "__main__:Mine", '
        f"which {here}, or use workers = 1",
        f"does not apply: {STUDY}: a study file names what others can import, and "
        f'"__main__:Mine" {here}',
    ]
    assert len(lines) == len(ALL)


@pytest.mark.slow
def test_a_method_is_tried_on_a_study_of_ones_own(tmp_path: Path):
    study = read_study(example("tiny"), ["method.kind=fedavg", "rounds=1", "task.norm=batch"])
    study = replace(study, site=study.site[:1])
    path = tmp_path / "own.toml"
    path.write_text(to_toml(study), "utf-8")
    for source in (study, path):
        reasons = {each.name: each.reason for each in check_method("fedbn", source) if each.reason}
        assert reasons == {
            PROCESSES: "one process has all there is to train",
            ORDER: "a single site trains",
        }


def test_a_study_that_cannot_have_the_method_is_refused(tmp_path: Path):
    path = tmp_path / "plain.toml"
    path.write_text(to_toml(read_study(example("tiny"), ["method.kind=fedavg"])), "utf-8")
    with pytest.raises(BadStudy, match=r'method "pflsynth" needs task\.generator'):
        check_method("pflsynth", path)
    with pytest.raises(BadStudy, match="'fedprocks' is unknown; did you mean 'fedprox'"):
        check_method("fedprocks")
