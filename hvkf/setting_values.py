"""Settings as text of the command line: a setting's own type says how its text is read."""

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from hvkf.yaml_text import read_yaml


def read_value(model: type[BaseModel], key: str, text: str) -> Any:
    """Read the text of a setting, for pydantic to check.

    Text settings and choices take their text as it is, numbers and switches what pydantic reads of
    it. Lists are YAML such as `[a, b]`, or one item without brackets; mappings and whole sections
    are YAML such as `{a: 1}`. `null` unsets what may be unset, and None does where it is no text.

    Args:
        model: Of all settings.
        key: Dotted.
        text: As given; a key that the model lacks keeps it.

    Raises:
        ConfigError: a list, mapping or section that is not YAML.
    """
    kinds = list(_kinds(_annotation(model, key)))
    if NoneType in kinds and text in (("null",) if str in kinds else ("null", "None", "~")):
        return None
    for kind in kinds:
        if get_origin(kind) in (tuple, list) and not text.startswith("["):
            return [text] if text else []
        if get_origin(kind) in (tuple, list, dict):
            return read_yaml(text, f"--{key}", values_are_text=_is_of_text(kind))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return read_yaml(text, f"--{key}")
    return text


def _annotation(model: type[BaseModel], key: str) -> Any:
    """Find a setting's type; text where there is none of the name."""
    found: Any = model
    for name in key.split("."):
        if not isinstance(found, type) or not issubclass(found, BaseModel):
            return str
        field = found.model_fields.get(name)
        if field is None:
            return str
        found = field.annotation
    return found


def _kinds(annotation: Any) -> Iterator[Any]:
    """List the alternatives of a type."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for choice in get_args(annotation):
            yield from _kinds(choice)
    else:
        yield annotation


def _is_of_text(kind: Any) -> bool:
    """Whether a list's items, or a mapping's values, are text."""
    items = [item for item in get_args(kind) if item is not Ellipsis]
    return all(
        choice is str or get_origin(choice) is Literal for item in items for choice in _kinds(item)
    )
