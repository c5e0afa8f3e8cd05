"""What every group of settings is: frozen, and strict about the keys it knows."""

import os
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, field_validator, model_validator

Precision = Literal["fp32", "bf16", "fp16"]
PackedFormat = Literal["fp8", "int8", "nf4"]


def in_home(path: str) -> str:
    """Write out a leading `~` or `~user`.

    Raises:
        ValueError: there is no such home folder.
    """
    if not path.startswith("~"):
        return path
    full = os.path.expanduser(path)
    if full.startswith("~"):
        user = path.partition("/")[0]
        raise ValueError(f"there is no home folder {user}: write the whole path, or ./{user}")
    return full


# A path of this machine, an s3:// address, or a name such as run:RUN_ID.
PathText = Annotated[str, AfterValidator(in_home)]


def not_blank(path: str) -> str:
    """Return a path as it is.

    Raises:
        ValueError: it is blank. The system takes that for the current folder, which
            `--workspace=$UNSET` must not mean.
    """
    if not path.strip():
        raise ValueError("a path is needed; the current folder is .")
    return path


# A path without which nothing is done.
NeededPath = Annotated[PathText, AfterValidator(not_blank)]


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    # Keys of the reference's files that do nothing there: harmless while they are unset.
    unset_only: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, values: Any) -> Any:
        """Drop keys that are null, unless null is a value of the setting's own."""
        if not isinstance(values, dict):
            return values
        return {
            key: cls._as_declared(key, value)
            for key, value in values.items()
            if value is not None or not (key in cls.unset_only or cls._takes_no_null(key))
        }

    @classmethod
    def _as_declared(cls, key: Any, value: Any) -> Any:
        """Turn a list into the tuple that is declared: JSON has none, and records are strict."""
        field = cls.model_fields.get(key)
        is_tuple = field is not None and get_origin(field.annotation) is tuple
        return tuple(value) if is_tuple and isinstance(value, list) else value

    @classmethod
    def _takes_no_null(cls, key: Any) -> bool:
        field = cls.model_fields.get(key)
        return field is not None and type(None) not in get_args(field.annotation)

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        texts = value if isinstance(value, tuple) else (value,)
        if isinstance(value, dict):
            texts = (*value.keys(), *value.values())
        for text in texts:
            if not isinstance(text, str):
                continue
            if "\0" in text:
                raise ValueError("a NUL character is in it; no path and no program takes that")
            if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ValueError("it is not UTF-8; no record can hold it")
        return value
