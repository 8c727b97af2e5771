"""The JSON Schema of the study file, for editors."""

from collections.abc import Callable

from pydantic import TypeAdapter

from grandrounds.study import Study
from grandrounds.study_file import CHOICES, Table, options_model


def schema() -> Table:
    """Give the JSON Schema of the study file."""
    made = TypeAdapter(Study).json_schema()
    for key, presets in CHOICES.items():
        variants = [_variant(kind, preset) for kind, preset in presets.items()]
        made["properties"][key] = {"oneOf": variants}
    for name, definition in made["$defs"].items():
        definition["additionalProperties"] = definition.get(
            "additionalProperties", name == "Choice"
        )
    made["$defs"].pop("Choice", None)
    return made | {"additionalProperties": False}


def _variant(kind: str, preset: Callable[..., object]) -> Table:
    variant: Table = TypeAdapter(options_model(kind, preset)).json_schema()
    variant["properties"] = {"kind": {"const": kind}} | variant.get("properties", {})
    return variant | {"required": ["kind"], "description": preset.__doc__}
