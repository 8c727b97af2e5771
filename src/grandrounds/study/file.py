"""These functions read a study file (TOML) as a checked study, and write a study as a file."""

import json
import tomllib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, asdict, is_dataclass, replace
from difflib import get_close_matches
from hashlib import sha256
from importlib.resources import files
from inspect import Parameter, signature
from pathlib import Path
from types import GenericAlias, NoneType
from typing import Any, TypeVar, cast, get_args, get_type_hints

import tomli_w
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError, create_model

from grandrounds.algorithms import DEFAULT_METHOD, METHODS, TOPOLOGIES, method_class
from grandrounds.algorithms.method import Method
from grandrounds.core.errors import BadStudy
from grandrounds.study.checks import complete
from grandrounds.study.study import Study
from grandrounds.tasks import TASKS, AnyTask, SupervisedTask, task_class

Table = dict[str, Any]
_T = TypeVar("_T")
CHOICES: dict[str, Mapping[str, type]] = {
    "method": METHODS,
    "topology": TOPOLOGIES,
}
DEFAULTS = {"method": DEFAULT_METHOD, "topology": "star"}
DEFAULT_TASK = "synthesis"
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # as pydantic calls such keys
_OF_OTHERS: Table = {
    "type": "object",
    "properties": {"kind": {"type": "string", "not": {"enum": list(METHODS)}}},
    "required": ["kind"],
    "description": "A method of an installed package, or at an address, module:Class.",
}
_OF_OTHERS_TASK: Table = {
    "type": "object",
    "properties": {"kind": {"type": "string", "not": {"enum": list(TASKS)}}},
    "required": ["kind"],
    "description": "A task of an installed package, or at an address, module:Class.",
}
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
FILLED_METHOD = (
    "averaging",
    "guards",
)  # filled in by a run, from the rest of the study: no options
FILLED_TOPOLOGY = ("seed", "server")
# Each switch can be set alone; together they are the settings of the code released with Dalmaz
# et al. 2024, with a mapper that works.
PARITY: Table = {
    "task": {
        "equalised": True,
        "norm": "batch",
        "dropout_at_evaluation": True,
        "statistics_at_evaluation": "image",
        "intensity": "slice",
        "crop": "released",
    },
    "training": {
        "batch_size": 1,
        "schedule": "reference",
        "first_broadcast": False,
        "precision": "fp32",
    },
    "stop": {"test": "last"},
}


def example(name: str) -> Path:
    """Return the path of an example study of the package, such as "tiny"."""
    return Path(str(files("grandrounds.study"))) / "examples" / f"{name}.toml"


def read_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, apply `key=value` overrides, check everything. Raises `BadStudy`."""
    return parse_study(read_table(path), overrides, source=str(path))


def read_table(path: Path) -> Table:
    """Read a TOML file. Raises `BadStudy`."""
    try:
        return tomllib.loads(read_toml_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise BadStudy(f"{path}: cannot be read as a study file ({in_words(error)})") from None
    except tomllib.TOMLDecodeError as error:
        raise BadStudy(f"{path}: not valid TOML: {error}") from None


def read_toml_text(path: Path) -> str:
    """Return a file's text; a byte order mark before it, as Windows writes one, is no part of it.

    Raises `OSError` and `UnicodeDecodeError`.
    """
    return path.read_text("utf-8-sig")


def in_words(error: OSError | ValueError) -> str:
    """Return why a text file cannot be read, so that its owner knows what to do."""
    if not isinstance(error, UnicodeDecodeError):
        return str(error)
    if error.object[:2] in (BOM_UTF16_LE, BOM_UTF16_BE):
        return "it is in UTF-16; save it as UTF-8"
    line = error.object[: error.start].count(b"\n") + 1
    return f"line {line} is not in UTF-8; save it as UTF-8"


def overridden(table: Table, overrides: Sequence[str]) -> Table:
    """Return a copy of a study's table with `key=value` overrides. Raises `BadStudy`."""
    table = {key: {"kind": default} for key, default in DEFAULTS.items()} | deepcopy(table)
    for override in overrides:
        apply_override(table, override)
    return table


def parse_study(table: Table, overrides: Sequence[str] = (), *, source: str = "study") -> Study:
    """Make a checked study from a TOML table.

    Raises `BadStudy` with the dotted path of what is wrong.
    """
    table = overridden(table, overrides)
    if table.get("parity") is True:
        table = _under(PARITY, table)
    try:
        chosen = {key: _choice(key, table[key]) for key in CHOICES}
        task = _task(table.pop("task", {}))
        if isinstance(task, SupervisedTask):
            table.setdefault("elements", {})
        study = parse_table(Study, table | chosen)
        return complete(replace(study, task=task))
    except BadStudy as error:
        raise BadStudy(f"{source}: {error}") from None


def apply_override(table: Table, override: str) -> None:
    """Set a key of a study table by `key=value`. Raises `BadStudy`."""
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise BadStudy(f"--set {override}: write it as key=value, for example training.epochs=2")
    *parents, last = path.strip().split(".")
    for parent in parents:
        child: object = table.setdefault(parent, {})
        if not isinstance(child, dict):
            raise BadStudy(f"--set {override}: '{parent}' is not a table")
        table = cast(Table, child)
    table[last] = _value(text.strip())


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _under(defaults: Table, table: Table) -> Table:
    """Return a table completed with defaults, which never replace its own values."""
    merged = dict(table)
    for key, value in defaults.items():
        section = table.get(key)
        merged[key] = (
            _under(cast(Table, value), section or {})
            if isinstance(value, dict)
            else table.get(key, value)
        )
    return merged


def _task(table: object) -> AnyTask:
    """Make a task's options from its table and the defaults of the size that it chooses."""
    if not isinstance(table, dict):
        raise BadStudy('task must be a table with a kind, for example kind = "synthesis"')
    entries = cast(Table, table)
    kind = entries.get("kind", DEFAULT_TASK)
    options = task_class(kind)
    if issubclass(options, SupervisedTask):
        return _own_task(options, {key: entries[key] for key in entries if key != "kind"})
    size = options.sizes.get(entries.get("model", ""), {})
    return parse_table(options, _under(dict(size), entries), "task.")


def _own_task(kind: type[SupervisedTask], entries: Table) -> SupervisedTask:
    """Make a task of one's own from its options, which are its fields."""
    try:
        return parse_table(kind, entries, "task.")
    except PydanticUserError as error:
        raise BadStudy(
            f"task.kind: a field of {kind.__name__} has a type that no study file can hold; use "
            f"numbers, words, true or false, and tuples of them ({error.message.splitlines()[0]})"
        ) from None


def _known(path: str, word: object, words: Mapping[str, object]) -> str:
    if not isinstance(word, str) or word not in words:
        near = get_close_matches(str(word), words, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(words)}"
        raise BadStudy(f"{path} = '{word}' is unknown; {hint}")
    return word


def _choice(key: str, table: object) -> Table:
    """Check a `kind` and its options against its class's signature, and fill in its defaults."""
    if not isinstance(table, dict) or not isinstance(cast(Table, table).get("kind"), str):
        raise BadStudy(
            f'{key} must be a table with a kind, for example kind = "{next(iter(CHOICES[key]))}"'
        )
    entries = dict(cast(Table, table))
    kind = entries.pop("kind")
    preset = _preset(key, kind)
    options = parse_table(options_model(kind, preset), entries, f"{key}.")
    return {"kind": kind, "options": options.model_dump()}


def _preset(key: str, kind: str) -> type:
    """Return the class of a method or topology."""
    if key == "method":
        return method_class(kind)
    return CHOICES[key][_known(f"{key}.kind", kind, CHOICES[key])]


def _options(preset: type) -> dict[str, Parameter]:
    """Return the options of a method or topology, without what a run fills in."""
    filled = FILLED_METHOD if issubclass(preset, Method) else FILLED_TOPOLOGY
    made = cast(Callable[..., object], preset)
    return {n: p for n, p in signature(made).parameters.items() if n not in filled}


def options_model(kind: str, preset: type) -> Any:
    """Make a pydantic model from the options of a method or topology."""
    hints = get_type_hints(preset.__init__)
    options: Table = {n: (hints[n], p.default) for n, p in _options(preset).items()}
    return create_model(kind, __config__=_STRICT, **options)


def parse_table(kind: type[_T], table: Table, where: str = "") -> _T:
    """Make a dataclass of a TOML table. Raises `BadStudy` with the dotted path of what is wrong."""
    # In a tuple, since pydantic applies no configuration to a dataclass but the enclosing type's.
    for key in table:
        if is_dataclass(kind) and key not in (known := _keys(kind, ())):
            raise BadStudy(_unknown(where + key, key, known))
    row: Any = GenericAlias(tuple, (kind,))
    adapter: TypeAdapter[tuple[_T]] = TypeAdapter(row, config=_STRICT)
    try:
        [parsed] = adapter.validate_json(json.dumps([table], default=str), strict=True)
    except ValidationError as error:
        problems = cast(list[Table], error.errors())
        problem = next((p for p in problems if p["type"] in UNKNOWN), problems[0])
        raise BadStudy(_sentence(kind, where, _of_union([table], problem, problems))) from None
    return parsed


def _of_union(found: object, problem: Table, problems: Sequence[Table]) -> Table:
    """Join the problems of a value that fits none of several types, as pydantic lists them.

    Each of them has the type's name in its place, where nothing lies in the table.
    """
    if problem["type"] in (*UNKNOWN, "missing", "missing_argument"):
        return problem
    place = problem["loc"]
    for depth, step in enumerate(place):
        if not _has(found, step):
            same = [p for p in problems if p["loc"][:depth] == place[:depth]]
            messages = [p["msg"] for p in same if len(p["loc"]) == depth + 1] or [problem["msg"]]
            words = dict.fromkeys(m.removeprefix("Input should be ") for m in messages)
            return {"type": "union", "loc": place[:depth], "msg": _or(list(words)), "input": found}
        found = cast(Any, found)[step]
    return problem


def _has(found: object, step: str | int) -> bool:
    if isinstance(found, list):
        return isinstance(step, int) and step < len(cast(list[object], found))
    return isinstance(found, dict) and step in found


def _or(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _sentence(kind: type, where: str, problem: Table) -> str:
    """Return a sentence on what pydantic found wrong in a table of this kind, with its path."""
    [_, *place] = problem["loc"]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    path = where + path.removeprefix(".")
    if problem["type"] in UNKNOWN:
        return _unknown(path, place[-1], _keys(kind, place[:-1]))
    if problem["type"] in ("missing", "missing_argument"):
        return f"'{path}' is missing; it is needed"
    if problem["type"] in ("too_long", "too_short"):
        found, most = problem["ctx"]["actual_length"], problem["ctx"].get("max_length")
        return f"{path} has {found} items; it should have {most or problem['ctx']['min_length']}"
    message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{path} = {problem['input']!r} is wrong; it should be {message}"


def _unknown(path: str, key: str, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"valid here: {', '.join(known)}"
    return f"unknown key '{path}'; {hint}"


def _keys(kind: Any, place: Sequence[str | int]) -> Sequence[str]:
    """List the keys that are known at a place below a table of this kind."""
    for step in place:
        if is_dataclass(kind):
            kind = _unless_none(get_type_hints(kind)[str(step)])
        else:  # a tuple's item by its number, a mapping's by its key
            kind = get_args(kind)[0 if isinstance(step, int) else 1]
    return tuple(signature(kind).parameters) or ("kind",)  # a preset without options has its kind


def _unless_none(kind: Any) -> Any:
    """Return the type of an option that may be left out."""
    kinds = [each for each in get_args(kind) if each is not NoneType]
    return kinds[0] if NoneType in get_args(kind) and len(kinds) == 1 else kind


def to_table(study: Study) -> Table:
    """Return a study as a TOML table with every option, including defaults."""
    table = asdict(study)
    for key in CHOICES:
        table[key] = {"kind": table[key]["kind"], **table[key]["options"]}
    table["task"] = {"kind": study.task.kind, **table["task"]}
    return _without_none(table)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        table = cast(Table, value)
        return {key: _without_none(item) for key, item in table.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in cast(Sequence[object], value)]
    return value


def to_toml(study: Study) -> str:
    """Return the text of the resolved study file."""
    return tomli_w.dumps(to_table(study))


def fingerprint(study: Study) -> str:
    """Return the SHA-256 of the resolved study, which every site accepts."""
    return sha256(to_toml(study).encode()).hexdigest()


def changed_keys(old: Table, new: Table, where: str = "") -> list[str]:
    """List the dotted paths in which two study tables differ."""
    paths: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key, MISSING), new.get(key, MISSING)
        if isinstance(before, dict) and isinstance(after, dict):
            paths += changed_keys(cast(Table, before), cast(Table, after), f"{where}{key}.")
        elif before != after:
            paths.append(where + key)
    return paths


def study_schema() -> Table:
    """Return the JSON Schema of the study file."""
    schema = TypeAdapter(Study).json_schema()
    for key, presets in CHOICES.items():
        variants = [_variant(kind, preset) for kind, preset in presets.items()]
        schema["properties"][key] = {"oneOf": variants}
    schema["properties"]["method"]["oneOf"].append(_OF_OTHERS)
    for name, definition in schema["$defs"].items():
        definition["additionalProperties"] = definition.get(
            "additionalProperties", name == "Choice"
        )
    schema["$defs"].pop("Choice", None)
    schema["$defs"][SupervisedTask.__name__] = _OF_OTHERS_TASK
    return schema | {"additionalProperties": False}


def _variant(kind: str, preset: type) -> Table:
    variant: Table = TypeAdapter(options_model(kind, preset)).json_schema()
    variant["properties"] = {"kind": {"const": kind}} | variant.get("properties", {})
    return variant | {"required": ["kind"], "description": preset.__doc__}
