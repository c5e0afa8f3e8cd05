"""Reading the configuration: YAML first, then `--section.key=value` overrides, then the checks."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hvkf.config import Config
from hvkf.errors import ConfigError

COMMAND_LINE = "the command line"


def load_config(file: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Build the configuration from a YAML file and overrides such as `--cache.head_frame=3`.

    Raises:
        ConfigError: an unreadable file, an unknown key (with the nearest valid one), a bad value.
    """
    settings = read_settings(file) if file is not None else {}
    overridden = [_apply(settings, override) for override in overrides]
    return check_config(settings, COMMAND_LINE if file is None else str(file), overridden)


def check_config(settings: dict[str, Any], origin: str, overridden: Sequence[str] = ()) -> Config:
    """Check settings.

    Args:
        settings: By section.
        origin: Where they came from, for the error.
        overridden: Dotted keys of those that came from the command line instead.

    Raises:
        ConfigError: all unknown keys and bad values.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as fault:
        by_origin: dict[str, list[str]] = {}
        for detail in fault.errors():
            where = _origin_of(".".join(map(str, detail["loc"])), origin, overridden)
            by_origin.setdefault(where, []).append(_explain(detail))
        said = [f"{where}: {'; '.join(lines)}" for where, lines in by_origin.items()]
        raise ConfigError("; ".join(said)) from None


def _origin_of(name: str, origin: str, overridden: Sequence[str]) -> str:
    """Say where a setting came from; what is wrong with a whole section may be of both."""
    if any(f"{name}.".startswith(f"{key}.") for key in overridden):
        return COMMAND_LINE
    if origin != COMMAND_LINE and any(key.startswith(f"{name}.") for key in overridden):
        return f"{origin} with {COMMAND_LINE}"
    return origin


def read_settings(file: Path) -> dict[str, Any]:
    """Read the YAML file's mapping."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"There is no configuration file {str(file)!r}: give --config the path of a YAML file."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(fault).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{file} must hold a mapping of sections, not a {type(content).__name__}."
        )
    return content


def _apply(settings: dict[str, Any], override: str) -> str:
    """Set what an override says, and return its dotted key."""
    name, equals, text = override.removeprefix("--").partition("=")
    if not override.startswith("--") or not equals or not name:
        raise ConfigError(
            f"{override!r} is not an override; write --section.key=value, "
            "such as --hparams.learning_rate=1e-4."
        )
    *parents, key = name.split(".")
    place = settings
    for parent in parents:
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise ConfigError(f"{override!r}: {parent} is a value, not a section.")
    place[key] = yaml.safe_load(text) if text else ""
    return name


def _explain(detail: ErrorDetails) -> str:
    location = [str(part) for part in detail["loc"]]
    name = ".".join(location)
    if detail["type"] != "extra_forbidden":
        value = detail["input"]
        shown = "" if isinstance(value, dict) else f" is {value!r}, but"
        message = detail["msg"].removeprefix("Value error, ")
        return f"{name}{shown} {message[0].lower()}{message[1:]}"
    valid = known_keys()
    siblings = [key for key in valid if key.split(".")[:-1] == location[:-1]]
    nearest = difflib.get_close_matches(name, siblings or valid, 1, 0.5)
    # A key put into the wrong section is found by its last word.
    nearest += [key for key in valid if key.split(".")[-1] == location[-1]]
    hint = f"did you mean {nearest[0]}?" if nearest else f"valid are {', '.join(siblings[:12])}"
    return f"there is no setting {name}: {hint}"


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
