"""Errors of forms in Prefect's pages: all of them, below their fields, in words.

Prefect's pages ask the server to check a form against a schema from which they have dropped bounds
and patterns, and then show the server's refusal of the run: the first error alone, with the name of
a Python attribute or a regular expression. Here the forms themselves check what was filled in.
"""

from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from flows import form_errors
from flows.asgi import Answer, ask, look_up, mapping, read_mapping, whole_request
from flows.form_errors import FieldError
from flows.forms import Form

CHECKS = "/api/ui/schemas/validate"
DEPLOYMENTS, STARTS = "/api/deployments/", "/create_flow_run"
# Begins the detail of Prefect's answer to parameters that its copy of the form does not allow.
REFUSED = "Error creating flow run: Validation failed"
OK, CONFLICT = 200, 409
PARAMETER = "request"
FORMS = {form.__name__: form for form in Form.__subclasses__()}
# Of values that the server fills in itself, such as its variables.
PLACEHOLDER = "__prefect_kind"


class FormErrors:
    """An ASGI application that tells what is wrong with forms, in place of Prefect's server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; those that check no form go through."""
        path = scope.get("path", "")
        starts_run = path.startswith(DEPLOYMENTS) and path.endswith(STARTS)
        if scope["type"] != "http" or not (path == CHECKS or starts_run):
            await self._app(scope, receive, send)
            return
        asked = await whole_request(receive)
        given = read_mapping(asked.get("body", b""))
        # First Prefect's answer: it refuses who has no password.
        answer = await ask(self._app, scope, asked, receive)
        if path == CHECKS and answer.status == OK:
            answer = _checked(answer, given)
        elif starts_run and answer.status == CONFLICT:
            answer = await self._told(answer, given, scope, receive)
        await answer.send_on(send)

    async def _told(
        self, answer: Answer, given: Mapping[str, Any], scope: Scope, receive: Receive
    ) -> Answer:
        """Tell what is wrong with a form for which Prefect refused to start a run."""
        if not str(answer.read().get("detail")).startswith(REFUSED):
            return answer
        deployment = await look_up(self._app, scope, scope["path"].removesuffix(STARTS), receive)
        schema = deployment.get("parameter_openapi_schema")
        errors = _errors(schema, mapping(given.get("parameters")))
        return answer.with_content({"detail": form_errors.told(errors)}) if errors else answer


def _checked(answer: Answer, given: Mapping[str, Any]) -> Answer:
    """Answer a check of a form: each error at its field, those of the whole form at its head."""
    errors = _errors(given.get("schema"), mapping(given.get("values")))
    if not errors:
        return answer
    at_fields: dict[str, list[str]] = {}
    for error in errors:
        at_fields.setdefault(error.field, []).append(f"{error}.")
    below: list[object] = [*at_fields.pop("", [])]
    below += [{"property": field, "errors": told} for field, told in at_fields.items()]
    return answer.with_content(
        {"errors": [{"property": PARAMETER, "errors": below}], "valid": False}
    )


def _errors(schema: object, parameters: Mapping[str, Any]) -> list[FieldError]:
    """List what is wrong with parameters for the form that a schema is of."""
    properties = mapping(mapping(schema).get("properties"))
    reference = str(mapping(properties.get(PARAMETER)).get("$ref"))
    form = FORMS.get(reference.rpartition("/")[2])
    values = mapping(parameters.get(PARAMETER))
    if form is None or PLACEHOLDER in values:
        return []
    filled = {name: value for name, value in values.items() if PLACEHOLDER not in mapping(value)}
    return form_errors.errors_of(form, filled)
