"""Names that are data: a rename of one moves digests, or breaks old folders, kits or signatures.

No type checker says so, hence these tables. The long ones are in `names.json`, which no
program writes anew: who changes it says in the commit what becomes of the folders, kits and
signatures that are out there.
"""

import ast
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import grandrounds
from grandrounds.algorithms import METHODS, TOPOLOGIES
from grandrounds.algorithms.aggregation import Aggregation, ServerStep
from grandrounds.algorithms.policy import CUT, LABEL
from grandrounds.algorithms.split import SERVER_STATE
from grandrounds.core.errors import FailureCard
from grandrounds.core.events import (
    EVENT_KINDS,
    Event,
    GroupPolicy,
    RoundFinished,
    RunFinished,
    SiteExchanged,
    SiteMissed,
    SiteMonitored,
    SiteTested,
    SiteTrained,
    SiteTuned,
    SiteValidated,
    StoppedEarly,
)
from grandrounds.core.messages import CaseScore, Reply, Request, decode, encode
from grandrounds.core.seeds import seed_for
from grandrounds.core.state import State, load_state, save_state
from grandrounds.core.weights import OPTIMIZER
from grandrounds.data.availability import Count, Geometry, SiteSummary
from grandrounds.data.elements import Elements, Fractions
from grandrounds.data.simulation.signal import Sequence
from grandrounds.data.simulation.simulate import Patients, Scanner
from grandrounds.flare.doctor.finding import Finding
from grandrounds.flare.job import ALLOWED, REGISTRATION, export_job
from grandrounds.models.layers import Dropout
from grandrounds.privacy.settings import Exchange, Privacy
from grandrounds.report.analysis.statistics import PairedDifference, Spread
from grandrounds.report.tracking.points import Gathering
from grandrounds.runs.adapt import ADAPTED, ALONE
from grandrounds.runs.tables import (
    ScoreLabel,
    write_digests,
    write_forgetting,
    write_matrix,
    write_rounds,
    write_scores,
)
from grandrounds.site.model_state import MEMORY, PERSONAL
from grandrounds.site.training import Training
from grandrounds.study.acceptance import Acceptance
from grandrounds.study.file import (
    FILLED_METHOD,
    fingerprint,
    parse_study,
    read_study,
    read_table,
    study_schema,
)
from grandrounds.study.study import SiteSpec, Stop, Study
from grandrounds.tasks import TASKS, Classification, Segmentation, Synthesis, Tabular
from tests.helpers.command import inside
from tests.helpers.federation import TINY, tiny
from tests.helpers.run_folders import FEDAVG, PFLSYNTH, write_comparison
from tests.helpers.task_studies import tiny_of

NAMES: Mapping[str, Any] = json.loads(Path(__file__).with_name("names.json").read_text())
STUDIES = TINY.parent


def names_of(kind: type) -> list[str]:
    """The fields of a dataclass, in order."""
    return [each.name for each in fields(kind)]


def fields_by_class(*kinds: type) -> dict[str, list[str]]:
    return {kind.__name__: names_of(kind) for kind in kinds}


def parameters_of(function: Callable[..., object]) -> dict[str, str]:
    """The parameters of a function, in order, each with its default in Python."""
    parameters = signature(function).parameters.items()
    return {name: repr(each.default) for name, each in parameters if name not in FILLED_METHOD}


def first_line(function: Callable[..., object]) -> str:
    return (function.__doc__ or "").splitlines()[0]


# What sites are asked: the class's name is in the seed of the answer, and on the wire.

REQUESTS = [
    *("Describe", "Train", "Merge", "Adopt", "Tune", "Evaluate"),
    *("Forward", "Tail", "Backward", "Finish", "Survey"),
    *("AdvertiseKeys", "ShareKeys", "Unmask"),
]


def test_requests_are_called_as_ever():
    assert [kind.__name__ for kind in get_args(Request)] == REQUESTS


def test_messages_have_the_same_fields_as_ever():
    kinds = (*get_args(Request), Reply, CaseScore, FailureCard)
    assert fields_by_class(*kinds) == NAMES["messages"]


def test_a_message_is_the_same_bytes_as_ever():
    data = encode(Reply(site="alder", round=2, weights={"w": torch.ones(1)}))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["message"])["kind"] == "Reply"
    assert list(header) == ["__metadata__", "w"]
    assert isinstance(decode(data), Reply)


# What happened: the journal.


def test_events_and_their_fields_are_called_as_ever():
    assert fields_by_class(*get_args(Event), GroupPolicy) == NAMES["events"]
    assert list(EVENT_KINDS) == [name for name in NAMES["events"] if name != "GroupPolicy"]


# What was agreed on: the study's SHA-256 is of all names in it, in this order.

OPTIONS = (
    *(Study, SiteSpec, Stop, Privacy, Exchange, Training, Aggregation, Elements, Fractions),
    *(Scanner, Sequence, Patients, Synthesis, Segmentation, Classification, Tabular),
)


def test_options_of_a_study_are_called_as_ever_and_stand_in_the_same_order():
    assert fields_by_class(*OPTIONS) == NAMES["options"]


def test_tasks_are_called_as_ever():
    assert list(TASKS) == ["synthesis", "segmentation", "classification", "tabular"]


@pytest.mark.parametrize("name", NAMES["studies"])
def test_a_packaged_study_has_the_sha256_that_sites_have_signed(name: str):
    assert fingerprint(read_study(STUDIES / name)) == NAMES["studies"][name]


def test_every_packaged_study_is_looked_at():
    assert {path.name for path in STUDIES.glob("*.toml")} == set(NAMES["studies"])


@pytest.mark.parametrize("name", NAMES["variants"])
def test_a_variant_of_the_tiny_study_has_the_same_sha256_as_ever(name: str):
    """Options that no packaged study has."""
    assert fingerprint(tiny(*name.split())) == NAMES["variants"][name]


def test_the_schema_is_the_same_as_ever():
    assert sorted(study_schema()["$defs"]) == NAMES["schema"]


def test_an_acceptance_has_the_same_fields_as_ever():
    assert names_of(Acceptance) == [
        *("site", "study", "time", "certificate", "signature", "policy", "code"),
    ]


def test_methods_have_the_same_parameters_and_first_lines_as_ever():
    found = {
        name: {"says": first_line(method), "parameters": parameters_of(method)}
        for name, method in METHODS.items()
    }
    assert found == NAMES["methods"]
    assert list(found) == list(NAMES["methods"])


def test_topologies_have_the_same_parameters_as_ever():
    found = {name: parameters_of(kind) for name, kind in TOPOLOGIES.items()}
    assert found == NAMES["topologies"]
    assert list(found) == list(NAMES["topologies"])


# What is computed: tensor names are in digests and files.

NETWORKS: dict[str, tuple[str, ...]] = {
    "pflsynth": ("method.kind=pflsynth",),
    "pflsynth, equalised and normed by batches": ("parity=true", "training.device=cpu"),
    "fedavg": ("method.kind=fedavg",),
    "fedbn": ("method.kind=fedbn", "task.norm=batch"),
    "fedmri": ("method.kind=fedmri",),
    "fedmmgan": ("method.kind=fedmmgan",),
    "coded": ("method.kind=fedavg", "task.generator=coded-unet"),
    "pix2pix": ("method.kind=pix2pix",),
}


def tensors_of(model: nn.Module) -> list[str]:
    return list(model.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_tensors_of_a_generator_and_its_critics_are_called_as_ever(name: str):
    model = tiny(*NETWORKS[name]).make_task().build(1)
    assert tensors_of(model) == NAMES["networks"][name]


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_tensors_of_other_networks_are_called_as_ever(kind: str):
    assert tensors_of(tiny_of(kind).make_task().build(1)) == NAMES["networks"][kind]


def test_tensors_of_a_perceptron_are_called_as_ever():
    options = Tabular(hidden=(4, 3))
    task = options.bind(Elements(variables=("age", "num")), {"alder": ("variables->num",)})
    assert tensors_of(task.build(1)) == NAMES["networks"]["tabular"]


@pytest.mark.parametrize("kind", ["synthesis", "segmentation", "classification"])
def test_parameter_groups_are_called_as_ever(kind: str):
    task = tiny_of(kind).make_task()
    assert list(task.groups(task.build(1))) == NAMES["groups"][kind]


def test_prefixes_of_tensors_are_the_same_as_ever():
    found = (OPTIMIZER, PERSONAL, MEMORY, SERVER_STATE, CUT, LABEL)
    assert found == ("optimizer/", "personal/", "memory/", "server/", "cut/", "label/")


def test_sets_that_travel_are_called_as_ever():
    assert {n: METHODS[n]().sharing().receives for n in ("scaffold", "fedmri")} == {
        "scaffold": ("control",),
        "fedmri": ("upload",),
    }


def test_a_state_is_saved_under_the_same_names_as_ever(tmp_path: Path):
    state = State({"w": torch.ones(1)}, 3, {"m/w": torch.zeros(1)}, 2)
    save_state(tmp_path, state)
    [path] = (tmp_path / "state").iterdir()
    assert path.name == "round-000003.safetensors"
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"weights/w", "memory/m/w"}
    assert load_state(tmp_path, 3).memory.keys() == {"m/w"}


@pytest.mark.parametrize(
    ("kind", "remembered"),
    [("momentum", {"m/w"}), *((k, {"m/w", "v/w"}) for k in ("adam", "yogi", "adagrad"))],
)
def test_the_servers_optimiser_remembers_under_the_same_names_as_ever(
    kind: Any, remembered: set[str]
):
    average: dict[str, Tensor] = {"w": torch.ones(1)}
    stepped = ServerStep(kind)(State({"w": torch.zeros(1)}), average)
    assert stepped.memory.keys() == remembered


def test_the_compiled_operator_is_called_as_ever():
    assert Dropout.__name__ == "Dropout"  # what draws by it is imported
    assert torch.ops.grandrounds.kept_mask.default.name() == "grandrounds::kept_mask"


# What is drawn: a seed is of the words that it is asked with.

SEED_WORDS = {
    *("audit", "back", "batches", "classifier", "critic", "example", "first weights", "generator"),
    *(
        "leader",
        "network",
        "noise",
        "noise in place of a trace",
        "order",
        "partition",
        "perceptron",
        "server",
        "sweep",
    ),
    *("trained again", "uncertainty", "unet"),
}


def test_a_seed_is_the_same_number_as_ever():
    assert seed_for(1, "alder", 2, "Train") == 705991894923489109
    assert seed_for() == 8203414616412130826


@pytest.mark.slow
def test_the_words_given_to_seeds_are_the_same_as_ever():
    assert words_given_to("seed_for") == SEED_WORDS


def test_the_words_given_to_seeds_of_a_new_site_are_the_same_as_ever():
    assert (ADAPTED, ALONE) == ("adapted", "alone")


@pytest.mark.slow
def test_the_words_given_to_the_streams_of_a_simulated_patient_are_the_same_as_ever():
    assert words_given_to("streams") == set(NAMES["streams"])


def words_given_to(function: str) -> set[str]:
    """The words in all calls of a function; of an f-string, what stands before its first value."""
    return {
        word.value
        for call in calls_of(function)
        for argument in call.args
        for word in ast.walk(argument)
        if isinstance(word, ast.Constant) and isinstance(word.value, str) and word.value
    }


def calls_of(function: str) -> Iterator[ast.Call]:
    for path in sorted(Path(grandrounds.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == function:
                yield node


# What kits allow.


def test_kits_allow_the_same_two_classes_as_ever(tmp_path: Path):
    ours = (
        "grandrounds.flare.controller.StudyController",
        "grandrounds.flare.executor.SiteExecutor",
    )
    assert ours == ALLOWED
    assert REGISTRATION == "grandrounds.flare.registration.Registration"  # in the server's kit
    export_job(tiny(), tmp_path)
    config = tmp_path / "app" / "config"
    server = json.loads((config / "config_fed_server.json").read_text())
    client = json.loads((config / "config_fed_client.json").read_text())
    assert server["workflows"][0]["path"] == ours[0]
    assert client["executors"][0]["executor"]["path"] == ours[1]
    assert server["workflows"][0]["args"].keys() == {"run"}
    assert client["executors"][0]["executor"]["args"].keys() == {"run"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("grandrounds.flare.controller.StudyController", NAMES["controller"]),
        ("grandrounds.flare.executor.SiteExecutor", ["run", "survey"]),
    ],
)
def test_the_classes_that_kits_allow_are_there(path: str, arguments: list[str]):
    pytest.importorskip("nvflare")
    module, _, name = path.rpartition(".")
    kind = getattr(import_module(module), name)
    assert kind.__module__ == module
    assert list(signature(kind).parameters) == arguments


# What other tools read.


def keys_of(value: object) -> object:
    """The keys of a JSON value, all the way down; a list has those of its first value."""
    if isinstance(value, dict):
        return {key: keys_of(below) for key, below in value.items()}
    if isinstance(value, list):
        return [keys_of(value[0])] if value and isinstance(value[0], dict | list) else "list"
    return "value"


def test_a_finding_of_the_doctor_has_the_same_keys_as_ever():
    assert names_of(Finding) == ["verdict", "found", "mend"]


def test_statistics_and_counts_have_the_same_keys_as_ever():
    kinds = {
        "spread": Spread,
        "difference": PairedDifference,
        "site": SiteSummary,
        "count": Count,
        "geometry": Geometry,
    }
    assert {name: names_of(kind) for name, kind in kinds.items()} == NAMES["json values"]


@pytest.mark.parametrize("command", ["check", "report", "federation export"])
def test_json_has_the_same_keys_as_ever(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    folder = write_comparison(tmp_path / "compared", (PFLSYNTH, FEDAVG), seeds=(7, 8))
    words: dict[str, tuple[str | Path, ...]] = {
        "check": ("check", TINY, "--json"),
        "report": ("report", folder, "--no-figures", "--json"),
        "federation export": ("federation", "export", TINY, "--out", tmp_path / "job", "--json"),
    }
    done = inside(monkeypatch, capsys, *words[command])
    assert done.code == 0, done.err
    assert keys_of(json.loads(done.out)) == NAMES["json"][command]


TOLD: tuple[Event, ...] = (
    SiteTrained(1, "alder", 1.0, 8, 2, 10, 20, {"network": 0.5}),
    SiteValidated(1, "alder", 1.0, 2, 24.0, 5, 0),
    SiteMonitored(1, "alder", "birch", 1.0, 2, 23.0, 5),
    SiteExchanged(1, "alder", "merge", 1.0, 5, 5),
    SiteMissed("cedar", 1, "train", "ValueError", "out of luck", "none"),
    RoundFinished(1, "ab", 24.0, 1, 3.0),
    StoppedEarly(1, 1),
    SiteTuned(1, "alder", 1.0, 2, "cd", {"network": 0.4}),
    SiteTested(1, "alder", 1.0, 2, {"psnr": 24.0}),
    RunFinished(1, 1, "ab", 9.0, 1000),
)


def test_a_tracker_is_told_the_same_names_as_ever():
    gathering = Gathering()
    told = [gathering.hear(0.0, event) for event in TOLD]
    batches = [batch for batch in told if batch]
    assert [sorted(batch.metrics) for batch in batches] == NAMES["tracked"]["metrics"]
    assert [sorted(batch.tags) for batch in batches] == NAMES["tracked"]["tags"]


def test_tables_have_the_same_columns_as_ever(tmp_path: Path):
    score = CaseScore(site="alder", patient="p", case="c", task="T1w->T2w", values={"psnr": 1.0})
    told = ScoreLabel("fedavg", 1, 2)
    write_scores(tmp_path / "scores.csv", [score], told)
    write_matrix(tmp_path / "matrix.csv", {"alder": [score]}, told)
    write_rounds(tmp_path / "rounds.csv", TOLD, ["alder", "birch"])
    write_digests(tmp_path / "digests.csv", TOLD)
    write_forgetting(tmp_path / "forgetting.csv", TOLD)
    assert {path.name: path.read_text().splitlines()[0] for path in tmp_path.iterdir()} == {
        "scores.csv": "arm,seed,site,patient,case,task,metric,value,round",
        "matrix.csv": "model,arm,seed,site,patient,case,task,metric,value,round",
        "rounds.csv": "round,site,took_part,seconds,bytes_up,bytes_down,loss:network,validation",
        "digests.csv": "round,digest",
        "forgetting.csv": "round,after,site,score,cases",
    }


def test_the_tiny_study_is_read_without_any_kind():
    """The words that stand where a file says none are part of its SHA-256, too."""
    table = read_table(TINY)
    del table["method"]
    study = parse_study(table)
    assert (study.method.kind, study.topology.kind) == ("pflsynth", "star")
    assert fingerprint(study) == NAMES["studies"]["tiny.toml"]
