"""Errors of forms in Prefect's pages: all of them, below their fields, in words.

Prefect's pages ask the server to check a form against a schema from which they have dropped bounds
and patterns, and then show the server's refusal of the run: the first error alone, with the name of
a Python attribute or a regular expression. Here the forms themselves check what was filled in.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows import form_errors
from flows.form_errors import FieldError
from flows.forms import Form
from flows.retrying import replayed, whole_request

CHECKS = "/api/ui/schemas/validate"
DEPLOYMENTS, STARTS = "/api/deployments/", "/create_flow_run"
# Begins the detail of Prefect's answer to parameters that its copy of the form does not allow.
REFUSED = "Error creating flow run: Validation failed"
OK, CONFLICT = 200, 409
PARAMETER = "request"
FORMS = {form.__name__: form for form in Form.__subclasses__()}
# Of values that the server fills in itself, such as its variables.
PLACEHOLDER = "__prefect_kind"


class _Answer(NamedTuple):
    start: Message
    body: bytes

    @property
    def status(self) -> int:
        return int(self.start["status"])

    def read(self) -> Mapping[str, Any]:
        return _mapping(_parsed(self.body))


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
        given = _mapping(_parsed(asked.get("body", b"")))
        # First Prefect's answer: it refuses who has no password.
        answer = await self._ask(scope, asked, receive)
        if path == CHECKS and answer.status == OK:
            answer = _checked(answer, given)
        elif starts_run and answer.status == CONFLICT:
            answer = await self._told(answer, given, scope, receive)
        await send(answer.start)
        await send({"type": "http.response.body", "body": answer.body})

    async def _told(
        self, answer: _Answer, given: Mapping[str, Any], scope: Scope, receive: Receive
    ) -> _Answer:
        """Tell what is wrong with a form for which Prefect refused to start a run."""
        if not str(answer.read().get("detail")).startswith(REFUSED):
            return answer
        path = scope["path"].removesuffix(STARTS)
        empty = {"type": "http.request", "body": b"", "more_body": False}
        asks = {**scope, "method": "GET", "path": path, "raw_path": path.encode()}
        found = (await self._ask(asks, empty, receive)).read()
        schema = found.get("parameter_openapi_schema")
        errors = _errors(schema, _mapping(given.get("parameters")))
        return _with(answer, {"detail": form_errors.told(errors)}) if errors else answer

    async def _ask(self, scope: Scope, asked: Message, receive: Receive) -> _Answer:
        """Ask Prefect's server, and read all of its answer."""
        start: Message = {}
        body = b""

        async def take(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
            elif message["type"] == "http.response.body":
                body += message.get("body", b"")

        plain = [pair for pair in scope["headers"] if pair[0] not in (b"accept-encoding",)]
        await self._app({**scope, "headers": plain}, replayed(asked, receive), take)
        return _Answer(start, body)


def _checked(answer: _Answer, given: Mapping[str, Any]) -> _Answer:
    """Answer a check of a form: each error at its field, those of the whole form at its head."""
    errors = _errors(given.get("schema"), _mapping(given.get("values")))
    if not errors:
        return answer
    at_fields: dict[str, list[str]] = {}
    for error in errors:
        at_fields.setdefault(error.field, []).append(f"{error}.")
    below: list[object] = [*at_fields.pop("", [])]
    below += [{"property": field, "errors": told} for field, told in at_fields.items()]
    return _with(answer, {"errors": [{"property": PARAMETER, "errors": below}], "valid": False})


def _errors(schema: object, parameters: Mapping[str, Any]) -> list[FieldError]:
    """List what is wrong with parameters for the form that a schema is of."""
    properties = _mapping(_mapping(schema).get("properties"))
    reference = str(_mapping(properties.get(PARAMETER)).get("$ref"))
    form = FORMS.get(reference.rpartition("/")[2])
    values = parameters.get(PARAMETER)
    if form is None or (isinstance(values, dict) and PLACEHOLDER in values):
        return []
    filled = {
        name: value
        for name, value in _mapping(values).items()
        if not (isinstance(value, dict) and PLACEHOLDER in value)
    }
    return form_errors.errors_of(form, filled)


def _with(answer: _Answer, content: object) -> _Answer:
    """Make the same answer with another content."""
    body = json.dumps(content).encode()
    headers = [pair for pair in answer.start["headers"] if pair[0].lower() != b"content-length"]
    headers.append((b"content-length", str(len(body)).encode()))
    return _Answer({**answer.start, "headers": headers}, body)


def _parsed(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
