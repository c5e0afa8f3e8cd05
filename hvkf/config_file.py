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


def load_config(file: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Build the configuration from a YAML file and overrides such as `--cache.head_frame=3`.

    Raises:
        ConfigError: an unreadable file, an unknown key (with the nearest valid one), a bad value.
    """
    settings = read_settings(file) if file is not None else {}
    for override in overrides:
        _apply(settings, override)
    return check_config(settings, str(file) if file is not None else "the command line")


def check_config(settings: dict[str, Any], origin: str) -> Config:
    """Check settings; `origin` says in the error where they came from."""
    try:
        return Config.model_validate(settings)
    except ValidationError as fault:
        lines = [_explain(detail) for detail in fault.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from None


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


def _apply(settings: dict[str, Any], override: str) -> None:
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
