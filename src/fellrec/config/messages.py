"""Turns what pydantic found wrong with a configuration into one line for a person.

The line names the key, says what it must be (read from the model's own JSON schema, so it can't
drift from the check) and what it was: "train.rounds: must be a whole number of at least 0, got 'x'
(demo.toml)". An unknown key comes with the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from fellrec.config.sections import MOST

Schema = Mapping[str, Any]


def explain(
    model: type[BaseModel], error: ValidationError, origin: str, overridden: Iterable[str]
) -> str:
    """Return one line on the first thing wrong.

    Args:
        model: what was validated.
        error: what pydantic raised.
        origin: the file's name.
        overridden: dotted keys whose values did not come from the file.

    """
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    reason = f"{key}: {_reason(model, first, key)}"
    if first["type"] == "value_error":  # a check across sections, which names its key itself
        reason = str(first["ctx"]["error"])
        key = reason.partition(":")[0]
    related = (f"{key}.".startswith(f"{o}.") or f"{o}.".startswith(f"{key}.") for o in overridden)
    return f"{reason} ({'override' if any(related) else origin})"


def _reason(model: type[BaseModel], first: Mapping[str, Any], key: str) -> str:
    schema = model.model_json_schema()
    if first["type"] == "extra_forbidden":
        nearest = _nearest(key, _keys(schema, schema))
        if nearest:
            return f"unknown key; did you mean {nearest}?"
        section = _find(schema, first["loc"][:-1])
        return f"unknown key; there are {', '.join(section.get('properties', {}))}"
    wanted = _find(schema, first["loc"])
    if first["type"] == "missing":
        return f"is missing; it must be {_expected(wanted)}"
    if first["type"] != "less_than_equal" and wanted.get("maximum") == MOST:
        # What no setting passes is said only of one that does.
        wanted = {key: value for key, value in wanted.items() if key != "maximum"}
    given = repr(first["input"])
    given = given if len(given) <= 60 else f"{given[:57]}..."
    return f"must be {_expected(wanted)}, got {given}"


def _nearest(key: str, known: list[str]) -> str | None:
    """Return a key of the same name elsewhere, or of a like name: in the section, then anywhere.

    Names are compared without their sections, whose letters would make all keys of one alike.
    """
    section, _, last = key.rpartition(".")
    split = [other.rpartition(".") for other in known]
    inside = {name: f"{where}{dot}{name}" for where, dot, name in split if where == section}
    anywhere = {name: f"{where}{dot}{name}" for where, dot, name in split}
    if last in anywhere:
        return anywhere[last]
    for names, cutoff in ((inside, 0.6), (anywhere, 0.75)):
        found = difflib.get_close_matches(last, names, n=1, cutoff=cutoff)
        if found:
            return names[found[0]]
    return None


def _keys(schema: Schema, root: Schema, prefix: str = "") -> list[str]:
    keys = []
    for name, field in schema["properties"].items():
        field = _resolve(field, root)
        keys.append(prefix + name)
        if "properties" in field:
            keys += _keys(field, root, f"{prefix}{name}.")
    return keys


def _find(root: Schema, location: tuple[str | int, ...]) -> Schema:
    """Return the schema of a place, as far as the schema knows it."""
    schema = root
    for part in location:
        named = schema.get("properties", {}).get(part) or schema.get("additionalProperties")
        inner = schema.get("items") if isinstance(part, int) else named
        if not isinstance(inner, Mapping):
            break  # pydantic also names which of several types it tried, which is no place
        schema = _resolve(inner, root)
    return schema


def _resolve(schema: Schema, root: Schema) -> Schema:
    if "$ref" in schema:
        resolved: Schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
        return resolved
    return schema


def _expected(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(_expected(each) for each in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    match schema["type"]:
        case "integer":
            return f"a whole number{_bounds(schema)}"
        case "number":
            return f"a number{_bounds(schema)}"
        case "boolean":
            return "true or false"
        case "array":
            return f"a list, not empty, each {_expected(schema['items'])}"
        case "object":
            return "a table"
    if "examples" in schema:
        return f"a text such as {' or '.join(map(repr, schema['examples']))}"
    return "a text that is not empty" if schema.get("minLength") else "a text"


def _bounds(schema: Schema) -> str:
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    said = [f"{word} {schema[bound]:.12g}" for bound, word in words.items() if bound in schema]
    return " " + " and ".join(said) if said else ""
