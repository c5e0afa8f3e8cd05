"""Writes docs/configuration.md from the settings' own descriptions: `make docs`."""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hvkf.config import Config

HEAD = """# Settings

Settings come from a YAML file (`--config FILE`) and from overrides on the command line
(`--section.key=value`), which win, also over a file piped in (`--config -`). Unknown keys are
refused with the nearest valid one, and so are keys given twice.

A setting's own type says how its text on the command line is read. Text is taken as it stands,
whatever is in it. Lists are `[a, "b, c"]`, or one item without brackets; mappings and whole
sections are
`{a: 1, b: 2}`. `null` unsets a setting that may be unset, on the command line and in files. `~` and
`~user` at the beginning of a path are home folders.

The sections `experiment`, `model`, `data`, `network`, `hparams`, `checkpointing` and `ddp_kwargs`
have the keys of the reference's `config_defaults.yaml`.

This page is written by `make docs` from the descriptions in `hvkf/settings/`.
"""


def is_section(field: FieldInfo) -> bool:
    """Say whether a field is a group of settings."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def default_of(field: FieldInfo) -> str:
    """Write a default as it would stand in YAML."""
    if field.default is None:
        return ""
    return f"`{json.dumps(field.default)}`"


def section_lines(name: str, model: type[BaseModel]) -> Iterator[str]:
    """Write a section's table, then those of the sections in it."""
    doc = (model.__doc__ or "").strip()
    settings = {key: field for key, field in model.model_fields.items() if not is_section(field)}
    yield f"\n## {name or 'top level'}\n\n{doc}\n"
    if settings:
        yield "| key | default | what it is |\n|---|---|---|"
    for key, field in settings.items():
        yield f"| `{key}` | {default_of(field)} | {field.description} |"
    for key, field in model.model_fields.items():
        if is_section(field):
            yield from section_lines(f"{name}.{key}".strip("."), field.annotation)  # type: ignore[arg-type]


def page() -> str:
    """Write the whole page."""
    return "\n".join([HEAD, *section_lines("", Config)]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page())
