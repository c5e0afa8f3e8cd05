"""Reading the configuration: YAML first, then `--section.key=value` overrides, then the checks."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hvkf.config import Config
from hvkf.errors import ConfigError
from hvkf.setting_values import read_value
from hvkf.shown import cut, shown, shown_name
from hvkf.yaml_text import read_yaml_file, read_yaml_input

COMMAND_LINE = "the command line"
STANDARD_INPUT = "standard input"
MAX_SHOWN_ERRORS = 4
MAX_ERRORS_LENGTH = 400
MAX_KEY_LENGTH = 80


def load_config(
    file: Path | None, overrides: Sequence[str] = (), *, from_input: bool = False
) -> Config:
    """Build the configuration from YAML and overrides such as `--cache.head_frame=3`, which win.

    Args:
        file: The YAML file; None: the defaults, or standard input.
        overrides: As on the command line.
        from_input: Read the YAML from standard input.

    Raises:
        ConfigError: an unreadable file, an unknown key (with the nearest valid one), a bad value.
    """
    settings: dict[str, Any] = {}
    origin = COMMAND_LINE
    if from_input:
        origin = STANDARD_INPUT
        settings = _mapping(read_yaml_input(origin), origin)
    elif file is not None:
        origin = shown_name(file)
        settings = read_settings(file)
    overridden = [_apply(settings, override) for override in overrides]
    return check_config(settings, origin, overridden)


def check_config(settings: dict[str, Any], origin: str, overridden: Sequence[str] = ()) -> Config:
    """Check settings.

    Args:
        settings: By section.
        origin: Where they came from, for the error.
        overridden: Dotted keys of those that came from the command line instead.

    Raises:
        ConfigError: the first unknown keys and bad values, and how many more there are.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_explain_all(error.errors(), origin, overridden)) from None


def _explain_all(details: Sequence[ErrorDetails], origin: str, overridden: Sequence[str]) -> str:
    by_origin: dict[str, list[str]] = {}
    length = num_told = 0
    for detail in details[:MAX_SHOWN_ERRORS]:
        sentence = _explain(detail)
        length += len(sentence)
        if num_told and length > MAX_ERRORS_LENGTH:
            break
        num_told += 1
        where = _origin_of(".".join(map(str, detail["loc"])), origin, overridden)
        by_origin.setdefault(where, []).append(sentence)
    told = "; ".join(f"{where}: {'; '.join(lines)}" for where, lines in by_origin.items())
    more = len(details) - num_told
    return f"{told}; and {more} more" if more else told


def _origin_of(name: str, origin: str, overridden: Sequence[str]) -> str:
    """Say where a setting came from; what is wrong with a whole section may be of both."""
    if any(f"{name}.".startswith(f"{key}.") for key in overridden):
        return COMMAND_LINE
    if origin != COMMAND_LINE and any(key.startswith(f"{name}.") for key in overridden):
        return f"{origin} with {COMMAND_LINE}"
    return origin


def read_settings(file: Path) -> dict[str, Any]:
    """Read the YAML file's mapping."""
    return _mapping(read_yaml_file(file), shown_name(file))


def _mapping(content: Any, origin: str) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{origin} must hold a mapping of sections, not a {type(content).__name__}."
        )
    return content


def _apply(settings: dict[str, Any], override: str) -> str:
    """Set what an override says, and return its dotted key."""
    name, equals, text = override.removeprefix("--").partition("=")
    if not override.startswith("--") or not equals or not name:
        raise ConfigError(
            f"{shown(override)} is not an override; write --section.key=value, "
            "such as --hparams.learning_rate=1e-4."
        )
    *parents, key = name.split(".")
    place = settings
    for parent in parents:
        section = place.get(parent)
        if section is not None and not isinstance(section, dict):
            raise ConfigError(f"{shown(override)}: {shown(parent)} is a value, not a section.")
        # A copy: aliases of YAML make two sections one mapping.
        place[parent] = dict(section or {})
        place = place[parent]
    place[key] = read_value(Config, name, text)
    return name


def _explain(detail: ErrorDetails) -> str:
    location = [str(part) for part in detail["loc"]]
    name = ".".join(location)
    if detail["type"] != "extra_forbidden":
        value = detail["input"]
        # Environment variables may hold what nobody should read in a log.
        is_hidden = isinstance(value, dict) or "env" in location
        value_text = "" if is_hidden else f" is {shown(value)}, but"
        message = cut(detail["msg"].removeprefix("Value error, "))
        return f"{shown_name(name)}{value_text} {message[0].lower()}{message[1:]}"
    valid = known_keys()
    siblings = [key for key in valid if key.split(".")[:-1] == location[:-1]]
    wanted = name[-MAX_KEY_LENGTH:]
    nearest = difflib.get_close_matches(wanted, siblings or valid, 1, 0.5)
    # A key put into the wrong section is found by its last word.
    nearest += [key for key in valid if key.split(".")[-1] == location[-1]]
    options = siblings or [key for key in valid if "." not in key]
    hint = f"did you mean {nearest[0]}?" if nearest else f"valid are {', '.join(options[:12])}"
    return f"there is no setting {shown_name(name)}: {hint}"


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """List every dotted key of the configuration."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def deployed_only_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """List the dotted keys that come from the deployed configuration only, never from a form."""
    keys = []
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("deployed_only"):
            keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += deployed_only_keys(field.annotation, f"{prefix}{name}.")
    return keys
