"""A study is loaded from a file, an example, a table or a study, with changes, and saved again.

Where the study file has a word, Python takes an object: a class, or an instance with its options.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, cast

from grandrounds.algorithms import METHODS, TOPOLOGIES
from grandrounds.algorithms.method import Method
from grandrounds.core.errors import BadStudy, require
from grandrounds.core.extensions import only_here, word_of
from grandrounds.core.files import write_text
from grandrounds.study.checks import NETWORKS
from grandrounds.study.file import (
    DEFAULT_TASK,
    FILLED_METHOD,
    FILLED_TOPOLOGY,
    PARITY,
    Table,
    example,
    parse_study,
    read_table,
    to_table,
    to_toml,
)
from grandrounds.study.study import Choice, Study
from grandrounds.tasks import TASKS, task_class
from grandrounds.tasks.outside import Outside

Source: TypeAlias = Study | Mapping[str, Any] | str | Path

_WORDS: Mapping[str, Mapping[str, type]] = {
    "method": METHODS,
    "topology": TOPOLOGIES,
    "task": TASKS,
}  # a section of these is a word and its options; another word has other options
_WITH_KIND = (*_WORDS, "aggregation", "privacy", "exchange")
_DECIDING = {"method", "task", "parity"}  # what decides options that a study leaves open
_NO_WORDS = ("true", "false", "inf", "nan")  # what TOML reads otherwise
_PLAIN = (bool, int, float, str, Path)


def load(source: Source, /, **changes: Any) -> Study:
    """Return a checked study, from a file, an example's name, a table or a study, with changes.

    A change is a key of the study file. A method, a task, a network or a loss may be a word, a
    class, or an instance with its options; a table is laid over the section that the study has, and
    None takes an option back. What a study says of a task's own network or loss goes with it, and
    what it leaves to its method, as the network of a synthesis, follows the method when that
    changes. Raises `BadStudy`.
    """
    table, name = _read(source, changes)
    for key, value in changes.items():
        table = _with(table, key, value)
    return parse_study(table, source=name)


def table_of(source: Source) -> tuple[Table, str]:
    """Return a study as a table for arms of other methods, and what errors call it.

    Raises `BadStudy`.
    """
    return _read(source, {"method"})


def save(study: Study, path: str | Path) -> None:
    """Write a study as a file, from which `load` reads an equal one.

    Raises `BadStudy` for a study that is wrong, or that names a class which no other process can
    import.
    """
    for word in _words_only_here(study):
        raise BadStudy(
            f'{path}: a study file names what others can import, and "{word}" {_defined_here(word)}'
        )
    write_text(Path(path), to_toml(load(study)), refusal="{path}: cannot be written: {reason}")


def check_workers(study: Study, workers: int) -> None:
    """Refuse several processes for a study that names a class of this process alone."""
    for word in _words_only_here(study) if workers > 1 else ():
        raise BadStudy(
            f'workers = {workers} are processes that must import "{word}", which '
            f"{_defined_here(word)}, or use workers = 1"
        )


def _words_only_here(study: Study) -> Iterator[str]:
    """Yield the study's words for classes of this process alone."""
    return (word for word in _texts(to_table(study)) if only_here(word))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in cast(Mapping[str, object], value).values():
            yield from _texts(item)
    elif _is_list(value):
        for item in value:
            yield from _texts(item)


def _defined_here(word: str) -> str:
    """Write where a class of this process alone is defined, and what to do about that."""
    place = "script" if hasattr(sys.modules["__main__"], "__file__") else "notebook"
    if "<locals>" in word:
        return "is defined in a function; move it to the top of a module"
    return f"is defined in this {place}; move it into a module beside the {place}"


def _read(source: Source, changed: Mapping[str, object] | set[str]) -> tuple[Table, str]:
    """Return a source as a table, and what errors call it."""
    if isinstance(source, Study):
        table = _open(source) if _DECIDING.intersection(changed) else to_table(source)
        return table, f"study '{source.name}'"
    if isinstance(source, Mapping):
        table: Table = {}
        for key, value in source.items():
            table = _with(table, key, value)
        return table, "study"
    path = _path_of(source)
    return read_table(path), str(source)


def _path_of(source: str | Path) -> Path:
    """Return the path of a study file, or of an example by its name. Raises `BadStudy`."""
    path = Path(source)
    if path.exists() or path.suffix or len(path.parts) != 1 or isinstance(source, Path):
        return path
    if not (packaged := example(source)).exists():
        known = sorted(each.stem for each in packaged.parent.glob("*.toml"))
        near = get_close_matches(str(source), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        raise BadStudy(f"'{source}' is neither a study file nor an example; {hint}")
    return packaged


def _open(study: Study) -> Table:
    """Return a study's table without what its method, size or parity would choose again."""
    table = to_table(study)
    task = table["task"]
    sizes = type(study.task).sizes.get(task.get("model", ""), {})
    decided = {**PARITY, "task": dict.fromkeys([*PARITY["task"], *NETWORKS, "block_place", *sizes])}
    for section, keys in decided.items():
        for key in set(table[section]).intersection(keys):
            rest = {name: value for name, value in table[section].items() if name != key}
            if _makes({**table, section: rest}, study):
                table[section] = rest
    return table


def _makes(table: Table, study: Study) -> bool:
    try:
        return parse_study(table) == study
    except BadStudy:
        return False


def _with(table: Table, key: str, value: object) -> Table:
    """Return a table with one key's value: laid over a section, or in the place of another."""
    if value is None:
        return {name: old for name, old in table.items() if name != key}
    new = _plain(key, value)
    if key in _WITH_KIND and isinstance(new, str):
        new = {"kind": new}
    old = cast(object, table.get(key))
    if _is_table(old) and _is_table(new) and not _is_whole(key, value, old):
        gone = _replaced(old, new) if key == "task" else ()
        new = {**{name: item for name, item in old.items() if name not in gone}, **new}
    return {**table, key: _without_none(new)}


def _replaced(old: Table, new: Table) -> set[str]:
    """Return the options of a task's own network or loss that a new one takes the place of."""
    kind = task_class(old.get("kind", DEFAULT_TASK))
    own = kind.replaced if issubclass(kind, Outside) else Outside.replaced
    return {name for option, names in own.items() if new.get(option) for name in names}


def _is_whole(key: str, value: object, old: Mapping[str, object]) -> bool:
    """Tell whether a value takes the place of a section: an object or word, or another kind's."""
    if not isinstance(value, Mapping):
        return is_dataclass(value) or key in _WORDS
    kind = cast(Mapping[str, object], value).get("kind", old.get("kind"))
    return key in _WORDS and _plain(f"{key}.kind", kind) != old.get("kind")


def _without_none(value: object) -> object:
    if not _is_table(value):
        return value
    return {name: item for name, item in value.items() if item is not None}


def _is_table(value: object) -> TypeGuard[Table]:
    return isinstance(value, dict)


def _plain(path: str, value: object) -> object:
    """Return a value as the study file has it; `path` is where. Raises `BadStudy`."""
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, type):
        return _word(path, value)
    if isinstance(value, Mapping):
        table = cast(Mapping[str, object], value)
        return {name: _plain(f"{path}.{name}", item) for name, item in table.items()}
    if _is_list(value):
        return [_plain(f"{path}[{place}]", item) for place, item in enumerate(value)]
    if isinstance(value, Choice):
        return {"kind": value.kind, **value.options}
    if is_dataclass(value):
        return _instance(path, value)
    raise BadStudy(
        f"{path} is an object of {_full_name(type(value))}, which no study file can hold; give a "
        "class here, and its options as values"
    )


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, list | tuple)


def _word(path: str, kind: type) -> str:
    """Return the word of a class. Raises `BadStudy` for one that a function makes."""
    word = word_of(kind, _WORDS.get(path.partition(".")[0], {}))
    require(
        "<locals>" not in word,
        f'{path}: "{word}" is defined in a function, where no study can name it; move it to the '
        "top of a module, or of a notebook's cell",
    )
    return word


def _instance(path: str, value: object) -> Table:
    """Return the options of a method, topology, task or section, as the study file has them.

    A task's word is that of its class, whoever wrote it.
    """
    own = _WORDS.get(path)
    filled = FILLED_METHOD if isinstance(value, Method) else FILLED_TOPOLOGY if own else ()
    options: Table = {}
    for field in fields(cast(Any, value)):
        if field.name in filled:
            _check_not_filled(path, value, field)
        elif (item := getattr(value, field.name)) is not None:
            options[field.name] = _plain(f"{path}.{field.name}", item)
    return {**options, "kind": _word(path, type(value))} if own is not None else options


def _check_not_filled(path: str, value: object, field: Field[Any]) -> None:
    """Refuse a value of what a run fills in, which would be lost."""
    require(
        getattr(value, field.name) == _default(field),
        f"{path}.{field.name} would do nothing: a run fills it in, as the rest of the study says",
    )


def _default(field: Field[Any]) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


def arm_label(path: str, method: object) -> str:
    """Return a method as an arm of a comparison has it, `METHOD[:KEY=VALUE...]`.

    A class or an instance becomes its word and the options that are not its defaults. Raises
    `BadStudy`.
    """
    if isinstance(method, str):
        return method
    if isinstance(method, type):
        return _word("method", method)
    if not isinstance(method, Method):
        raise BadStudy(
            f"{path} is an object of {_full_name(type(method))}; give a word, a class of methods, "
            "or one of its instances"
        )
    table = _instance("method", method)
    kind = table.pop("kind")
    same = {f.name for f in fields(method) if getattr(method, f.name) == _default(f)}
    said = [f"{key}={_text(value)}" for key, value in table.items() if key not in same]
    return ":".join((kind, *said))


def _text(value: object) -> str:
    """Write an option as an arm has it: a value of TOML, or a word by itself."""
    if isinstance(value, str):
        return value if value.isidentifier() and value not in _NO_WORDS else json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
