import tomllib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from grandrounds.algorithms import METHODS, TOPOLOGIES
from grandrounds.core.errors import BadStudy
from grandrounds.study.file import (
    PARITY,
    changed_keys,
    fingerprint,
    parse_study,
    parse_table,
    read_study,
    read_table,
    study_schema,
    to_table,
    to_toml,
)
from grandrounds.study.study import Choice
from grandrounds.tasks import TASKS
from grandrounds.tasks.synthesis.task import SMALL_NETWORK
from tests.helpers.federation import TINY, synthesis_of, tiny

Table = dict[str, Any]
STUDIES = sorted(TINY.parent.glob("*.toml"))
BASE: Table = {
    "name": "s",
    "elements": {"contrasts": ["T1w", "T2w"], "size": [32, 32]},
    "site": [{"name": "alder", "tasks": ["T1w->T2w"]}],
    "method": {"kind": "pflsynth"},
    "topology": {"kind": "star"},
}


def base(**changes: Any) -> Table:
    return deepcopy(BASE) | changes


def refusal(table: Table, *overrides: str) -> str:
    with pytest.raises(BadStudy) as refused:
        parse_study(table, overrides)
    return str(refused.value)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_resolved_study_reads_back_equal(path: Path, tmp_path: Path):
    study = read_study(path)
    again = tmp_path / "study.toml"
    again.write_text(to_toml(study))
    assert read_study(again) == study
    assert to_toml(read_study(again)) == to_toml(study)


def test_a_method_with_options_reads_back_equal():
    study = tiny("method.split=wide", 'method.share=["mapper", "decoder"]')
    assert study.method == Choice("pflsynth", {"split": "wide", "share": ("mapper", "decoder")})
    assert parse_study(tomllib.loads(to_toml(study))) == study


def test_a_resolved_study_names_every_option():
    table = to_table(tiny())
    assert table["method"] == {"kind": "pflsynth", "split": "paper", "share": []}
    assert table["topology"] == {"kind": "star", "require": "all", "patience": 0.0}
    assert table["aggregation"] == {"kind": "mean", "trim": 0.1, "shares": "cases"}
    assert table["stop"] == {"patience": 0, "validate_every": 1, "test": "best"}
    assert table["task"]["generator"] == "personalised"


def test_the_fingerprint_is_of_what_a_study_means_not_of_how_it_is_written():
    implied, written = base(), base(seed=1, rounds=30, training={"batch_size": 4})
    assert fingerprint(parse_study(implied)) == fingerprint(parse_study(written))
    assert fingerprint(parse_study(base(seed=2))) != fingerprint(parse_study(implied))


def test_a_study_that_leaves_its_method_open_means_the_default_method_with_its_options():
    implied = {key: value for key, value in BASE.items() if key not in ("method", "topology")}
    assert fingerprint(parse_study(implied)) == fingerprint(parse_study(base()))


def test_the_fingerprint_survives_writing_and_reading():
    study = parse_study(base())
    assert fingerprint(parse_study(tomllib.loads(to_toml(study)))) == fingerprint(study)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("ruonds=3", "study: unknown key 'ruonds'; did you mean 'rounds'?"),
        (
            "training.bach_size=3",
            "study: unknown key 'training.bach_size'; did you mean 'batch_size'?",
        ),
        (
            "elements.split.tran=0.7",
            "study: unknown key 'elements.split.tran'; did you mean 'train'?",
        ),
        ("method.slpit=wide", "study: unknown key 'method.slpit'; did you mean 'split'?"),
        (
            "topology.leader=alder",
            "study: unknown key 'topology.leader'; valid here: require, patience",
        ),
        (
            "privacy.sigma=1",
            "study: unknown key 'privacy.sigma'; valid here: kind, clip, noise, "
            "delta, epsilon, secure_sum, on_dropout",
        ),
        (
            "stop.xyz=1",
            "study: unknown key 'stop.xyz'; valid here: patience, validate_every, test",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_its_path_and_the_nearest_name(override: str, sentence: str):
    assert refusal(base(), override) == sentence


@pytest.mark.parametrize(
    ("site", "sentence"),
    [
        ({"task": []}, "study: unknown key 'site[0].task'; did you mean 'tasks'?"),
        (
            {"scanner": {"feild": 3.0}},
            "study: unknown key 'site[0].scanner.feild'; did you mean 'field'?",
        ),
        (
            {"scanner": {"protocol": {"T1w": {"kind": "spin-echo", "tee": 12}}}},
            "study: unknown key 'site[0].scanner.protocol.T1w.tee'; did you mean 'te'?",
        ),
        (
            {"patients": {"trian": 2}},
            "study: unknown key 'site[0].patients.trian'; did you mean 'train'?",
        ),
    ],
)
def test_an_unknown_key_within_a_site_is_refused_with_its_path(site: Table, sentence: str):
    assert refusal(base(site=[{"name": "alder", "tasks": ["T1w->T2w"], **site}])) == sentence


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rounds=many", "rounds = 'many' is wrong; it should be a valid integer"),
        ("rounds=2.5", "rounds = 2.5 is wrong; it should be a valid integer"),
        ("rounds=true", "rounds = True is wrong; it should be a valid integer"),
        ("name=3", "name = 3 is wrong; it should be a valid string"),
        (
            "task.norm=layer",
            "task.norm = 'layer' is wrong; it should be 'auto', 'instance' or 'batch'",
        ),
        ("elements.size[0]=3", "unknown key 'elements.size[0]'; did you mean 'size'?"),
        ("site=3", "site = 3 is wrong; it should be a valid array"),
        ("training=3", "training = 3 is wrong; it should be an object"),
        (
            "method.split=narrow",
            "method.split = 'narrow' is wrong; it should be "
            "'decoder', 'paper', 'bottleneck', 'wide' or 'everything'",
        ),
        ("method.kind=fedavgg", "method.kind = 'fedavgg' is unknown; did you mean 'fedavg'?"),
        (
            "method.kind=x",
            f"method.kind = 'x' is unknown; known: {', '.join(METHODS)}",
        ),
        (
            "topology.kind=ring",
            f"topology.kind = 'ring' is unknown; known: {', '.join(TOPOLOGIES)}",
        ),
        ("method=fedavg", 'method must be a table with a kind, for example kind = "fedavg"'),
        ("task.kind=reading", f"task.kind = 'reading' is unknown; known: {', '.join(TASKS)}"),
        ("elements.spacing=[1.5]", "'elements.spacing[1]' is missing; it is needed"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(override: str, sentence: str):
    assert refusal(base(), override) == f"study: {sentence}"


@pytest.mark.parametrize("key", ["name", "elements", "site"])
def test_what_every_study_needs_is_asked_for(key: str):
    table = base()
    del table[key]
    assert refusal(table) == f"study: '{key}' is missing; it is needed"


def test_a_missing_key_within_a_site_is_asked_for():
    assert refusal(base(site=[{"name": "alder"}])) == (
        "study: 'site[0].tasks' is missing; it is needed"
    )


def test_a_file_that_is_not_toml_is_refused_with_its_path(tmp_path: Path):
    path = tmp_path / "study.toml"
    path.write_text("name = ")
    with pytest.raises(BadStudy, match=r"study.toml: not valid TOML: Invalid value \(at end of"):
        read_table(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadStudy, match=r"study.toml: cannot be read as a study file"):
        read_table(path)
    with pytest.raises(BadStudy, match=r"absent.toml: cannot be read as a study file"):
        read_table(tmp_path / "absent.toml")


def test_a_refusal_names_the_file(tmp_path: Path):
    path = tmp_path / "study.toml"
    path.write_text('name = "s"')
    with pytest.raises(BadStudy, match=f"^{path}: 'elements' is missing; it is needed$"):
        read_study(path)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.epochs=2", 2),
        ("training.epochs = 2 ", 2),
        ("training.learning_rate=1e-3", 1e-3),
        ("training.learning_rate=1", 1.0),
        ("training.compile=true", True),
        ("training.schedule=constant", "constant"),
        ('training.schedule="constant"', "constant"),
        ("training.betas=[0.9, 0.99]", (0.9, 0.99)),
    ],
)
def test_an_override_sets_a_key_as_toml_or_as_bare_text(override: str, value: object):
    key = override.partition("=")[0].strip().rpartition(".")[2]
    assert getattr(parse_study(base(), (override,)).training, key) == value


def test_a_later_override_wins_and_the_table_stays_as_it_was():
    table = base()
    assert parse_study(table, ("rounds=2", "rounds=3")).rounds == 3
    assert table == BASE


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rounds", "--set rounds: write it as key=value, for example training.epochs=2"),
        ("=3", "--set =3: write it as key=value, for example training.epochs=2"),
        ("name.first=3", "--set name.first=3: 'name' is not a table"),
    ],
)
def test_a_malformed_override_is_refused(override: str, sentence: str):
    assert refusal(base(), override).endswith(sentence)


@pytest.mark.parametrize(
    ("preset", "given"),
    [(PARITY, {"parity": True}), ({"task": SMALL_NETWORK}, {"task": {"model": "small"}})],
    ids=["parity", "small"],
)
def test_a_preset_lies_under_what_the_study_says_itself(preset: Table, given: Table):
    plain = to_table(parse_study(base()))
    found = to_table(parse_study(base(**given)))
    for section, options in preset.items():
        for key, value in options.items():
            default = plain[section].get(key, "running")  # of statistics_at_evaluation, not written
            assert default != value, f"{section}.{key} is the default already"
            assert found[section][key] == value
            own = {**deepcopy(given), section: {**given.get(section, {}), key: default}}
            kept = to_table(parse_study(base(**own)))
            assert kept[section][key] == default


# What the code released with Dalmaz et al. 2024 does.
RELEASED = {
    "equalised linear layers, with the intended first weights": ("task", "equalised", True),
    "batch norm in generator and critics": ("task", "norm", "batch"),
    "never leaves training mode: dropout": ("task", "dropout_at_evaluation", True),
    "never leaves training mode: norms": ("task", "statistics_at_evaluation", "image"),
    "each slice scaled by itself, in 8 bits": ("task", "intensity", "slice"),
    "bicubic to 286, crops of 256 at 0 to 29": ("task", "crop", "released"),
    "a critic for each task": ("task", "critics", "per-task"),
    "least squares once, L1 a hundred times": ("task", "l1", 100.0),
    "dropout of one half": ("task", "dropout", 0.5),
    "one slice at a time": ("training", "batch_size", 1),
    "one epoch a round": ("training", "epochs", 1),
    "Adam at 2e-4": ("training", "learning_rate", 2e-4),
    "whose moments decay by 0.5 and 0.999": ("training", "betas", [0.5, 0.999]),
    "each site keeps Adam's state": ("training", "reset_optimizer", False),
    "the last round at rate 0": ("training", "schedule", "reference"),
    "each site begins with weights of its own": ("training", "first_broadcast", False),
    "single precision": ("training", "precision", "fp32"),
    "no round is chosen by validation": ("stop", "test", "last"),
    "never stops early": ("stop", "patience", 0),
}


@pytest.mark.parametrize("fact", RELEASED)
def test_parity_is_what_the_released_code_does(fact: str):
    section, key, value = RELEASED[fact]
    assert to_table(parse_study(base(parity=True)))[section][key] == value


def test_presets_can_be_laid_one_over_the_other():
    study = parse_study(base(parity=True, task={"model": "small"}))
    task = synthesis_of(study)
    assert (task.width, task.norm, study.training.batch_size) == (16, "batch", 1)


def test_overrides_come_before_presets():
    study = parse_study(base(), ("parity=true", "training.batch_size=2"))
    assert (synthesis_of(study).norm, study.training.batch_size) == ("batch", 2)


def test_a_resolved_parity_study_means_the_same_without_the_preset():
    study = parse_study(base(parity=True))
    assert parse_study(to_table(study) | {"parity": False}).task == study.task


def test_changed_keys_are_named_by_their_paths():
    old, new = to_table(tiny()), to_table(tiny("rounds=9", "training.batch_size=2"))
    assert changed_keys(old, new) == ["rounds", "training.batch_size"]
    assert changed_keys(old, old) == []
    assert changed_keys({"a": {"b": 1}}, {"a": {}, "c": 1}) == ["a.b", "c"]


# The schema, without a validator: walk the table beside it, as an editor does.


def definition(made: Table, rule: Table) -> Table:
    name = rule.get("$ref", "").removeprefix("#/$defs/")
    return made["$defs"][name] if name else rule


def misfits(made: Table, rule: Table, value: Any, where: str) -> Iterator[str]:
    """Paths in a TOML value that a schema has no place for."""
    rule = variant(made, definition(made, rule), value)
    if isinstance(value, dict):
        yield from misfits_of_table(made, rule, value, where)
    elif isinstance(value, list):
        rules = rule.get("prefixItems") or [rule["items"]] * len(value)
        for item, inner in zip(value, rules, strict=True):
            yield from misfits(made, inner, item, f"{where}[].")
    elif value not in rule.get("enum", [rule.get("const", value)]):
        yield f"{where} = {value}"


def misfits_of_table(made: Table, rule: Table, table: Table, where: str) -> Iterator[str]:
    open_to = rule.get("additionalProperties", True)
    for key, item in table.items():
        inner = rule.get("properties", {}).get(key) or open_to
        if inner is False:
            yield f"{where}{key}"
        elif isinstance(inner, dict):
            yield from misfits(made, inner, item, f"{where}{key}.")
    yield from (f"{where}{name} missing" for name in rule.get("required", ()) if name not in table)


def variant(made: Table, rule: Table, value: Any) -> Table:
    """The one variant of a choice that the value's kind names; a task is synthesis by default."""
    found = [definition(made, v) for v in rule.get("oneOf", rule.get("anyOf", ()))]
    if not found or not isinstance(value, dict):
        return rule
    kind = value.get("kind", "synthesis")
    [named] = [v for v in found if v["properties"]["kind"].get("const") == kind]
    return named


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_schema_has_a_place_for_every_key_of_the_studies(path: Path):
    made = study_schema()
    assert list(misfits(made, made, read_table(path), "")) == []
    assert list(misfits(made, made, to_table(read_study(path)), "")) == []


@pytest.mark.parametrize(
    ("change", "misfit"),
    [
        ({"ruonds": 3}, "ruonds"),
        ({"training": {"bach_size": 3}}, "training.bach_size"),
        ({"method": {"kind": "pflsynth", "slpit": "wide"}}, "method.slpit"),
        ({"topology": {"kind": "star", "leader": 1}}, "topology.leader"),
        ({"site": [{"name": "a", "tasks": [], "task": 1}]}, "site.[].task"),
        ({"site": [{"name": "a"}]}, "site.[].tasks missing"),
        ({"task": {"norm": "layer"}}, "task.norm. = layer"),
    ],
)
def test_the_schema_refuses_what_the_study_file_refuses(change: Table, misfit: str):
    made = study_schema()
    assert list(misfits(made, made, base(**change), "")) == [misfit]


def test_the_schema_refers_only_to_what_it_defines():
    made = study_schema()
    text = str(made)
    assert all(text.count(f"'#/$defs/{name}'") for name in made["$defs"])
    assert text.count("'$ref'") == sum(text.count(f"'#/$defs/{name}'") for name in made["$defs"])


@pytest.mark.parametrize("key", ["sizes", "metric", "has_statistics", "check", "bind"])
@pytest.mark.parametrize("kind", TASKS)
def test_what_a_task_has_beside_its_options_is_no_key(kind: str, key: str):
    with pytest.raises(BadStudy, match=rf"unknown key 'task\.{key}'"):
        parse_table(TASKS[kind], {"kind": kind, key: {}}, "task.")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "key",
    [
        *("training.learning_rate", "training.momentum", "elements.split.train"),
        *("site.share", "method.mu"),
    ],
)
def test_a_number_that_is_none_is_refused_wherever_it_stands(key: str, number: str):
    table = read_table(TINY)
    table["method"] = {"kind": "fedprox"}
    overrides = [f"{key}={number}"]
    if key == "site.share":
        table["site"][0]["share"] = float(number)
        overrides = []
    with pytest.raises(BadStudy):
        parse_study(table, overrides)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_file_of_windows_is_the_same_study(tmp_path: Path, mark: bytes, end: bytes):
    path = tmp_path / "study.toml"
    path.write_bytes(mark + TINY.read_bytes().replace(b"\n", end))
    assert read_study(path) == read_study(TINY)


def test_a_window_survives_the_file_and_its_absence_leaves_the_fingerprint(tmp_path: Path):
    table = read_table(TINY)
    assert "intensity" not in to_table(parse_study(table))["elements"]
    table["elements"]["intensity"] = {"T1w": [0, 80]}
    for site in table["site"]:
        site.clear()
        site.update({"name": f"s{id(site)}", "tasks": ["T1w->T2w"]})
    study = parse_study(table)
    (tmp_path / "study.toml").write_text(to_toml(study))
    assert read_study(tmp_path / "study.toml") == study


def test_a_resolved_study_says_where_its_blocks_stand_if_it_has_any():
    assert to_table(parse_study(base()))["task"]["block_place"] == "branch"
    assert "block_place" not in to_table(parse_study(base(), ("method.kind=fedavg",)))["task"]
    study = parse_study(base(), ("task.block_place=after",))
    assert parse_study(tomllib.loads(to_toml(study))) == study
    assert fingerprint(study) != fingerprint(parse_study(base()))


@pytest.mark.parametrize("window", [[0], [0, 80, 100]])
def test_a_window_has_two_ends(window: list[int]):
    table = read_table(TINY)
    table["elements"]["intensity"] = {"T1w": window}
    with pytest.raises(BadStudy, match=r"elements\.intensity\.T1w"):
        parse_study(table)
