"""What is wrong with a form that was filled in, by the labels that people see on it."""

from typing import NamedTuple, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from flows.forms import Form
from hvkf.errors import ConfigError
from hvkf.shown import cut, shown

FormT = TypeVar("FormT", bound=Form)

OF_NAMES = "must be letters, digits, dots, dashes and underscores, the first a letter or a digit"
# Pydantic's words for these are a programmer's, or a regular expression.
WORDS = {
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_pattern_mismatch": OF_NAMES,
    "string_too_long": "may have {max_length} letters at most",
    "literal_error": "must be {expected}",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "string_type": "must be a text",
}


class FieldError(NamedTuple):
    """What is wrong with one field, which is empty where it is the whole form."""

    field: str
    label: str
    words: str

    def __str__(self) -> str:
        return f"{self.label!r} {self.words}" if self.label else self.words


def errors_of(form: type[Form], values: object) -> list[FieldError]:
    """List all that is wrong with what a form was filled in with; empty: nothing."""
    try:
        form.model_validate(values)
    except ValidationError as error:
        return [_explain(form, detail) for detail in error.errors()]
    return []


def read_form(form: type[FormT], values: object) -> FormT:
    """Read what a form was filled in with.

    Raises:
        ConfigError: all that is wrong with it.
    """
    try:
        return form.model_validate(values)
    except ValidationError:
        raise ConfigError(told(errors_of(form, values))) from None


def told(errors: list[FieldError]) -> str:
    """Write errors of a form as one sentence."""
    return f"The form: {'; '.join(map(str, errors))}."


def _explain(form: type[Form], detail: ErrorDetails) -> FieldError:
    name = str(detail["loc"][0]) if detail["loc"] else ""
    if name not in form.model_fields:
        labels = ", ".join(repr(field.title) for field in form.model_fields.values())
        has_no = f"has no field {shown(name)}; its fields are {labels}"
        return FieldError("", "", has_no if name else "must be fields with values")
    label = form.model_fields[name].title or name
    if detail["type"] == "value_error":
        return FieldError(name, label, detail["msg"].removeprefix("Value error, "))
    bounds = {key: _written(value) for key, value in detail.get("ctx", {}).items()}
    if detail["type"] in WORDS:
        words = WORDS[detail["type"]].format(**bounds)
    else:
        words = f"does not fit: {cut(detail['msg'])}"
    return FieldError(name, label, f"{words}, not {shown(detail['input'])}")


def _written(bound: object) -> str:
    return f"{bound:,}".removesuffix(".0") if isinstance(bound, (int, float)) else str(bound)
