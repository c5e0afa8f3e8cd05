"""Errors of forms: all of them, by the labels that people see, wherever a form is given."""

import base64
import copy
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from flows.asgi import read_mapping
from flows.form_errors import read_form
from flows.forms import RenderForm, TrainForm
from flows.server import SERVER_PASSWORD, free_port, new_password, serving
from hvkf.errors import ConfigError

TWO_WRONG = {"max_train_steps": -5, "run_id": "a b/c", "learning_rate": 0.5}
OF_STEPS = "'Training steps' must be at least 0, not -5"
OF_RUN = (
    "'Run' must be letters, digits, dots, dashes and underscores, the first a letter or a digit, "
    "not 'a b/c'"
)
OF_BOTH_TABLES = "'Pasted rows' are given beside a 'Table of pairs': empty one of the two"
VARIABLE = {"__prefect_kind": "workspace_variable", "variable_name": "steps"}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (TWO_WRONG, f"The form: {OF_RUN}; {OF_STEPS}."),
        (
            {"max_train_steps": 10**9, "learning_rate": 7},
            "The form: 'Training steps' must be at most 10,000,000, not 1000000000; "
            "'Learning rate' must be at most 1, not 7.",
        ),
        (
            {"max_train_steps": "{many}", "learning_rate": None, "lora_weights": 3},
            "The form: 'Training steps' must be a whole number, not '{many}'; 'Learning rate' must "
            "be a number, not None; 'Begin from' must be a text, not 3.",
        ),
        ({"max_train_steps": 1.5}, "The form: 'Training steps' must be a whole number, not 1.5."),
        (
            {"image": "x"},
            "The form: has no field 'image'; its fields are 'Deployed settings', 'Data set', "
            "'Run', 'Training steps', 'Learning rate', 'Begin from'.",
        ),
        (3, "The form: must be fields with values."),
    ],
    ids=["names-and-bounds", "upper-bounds", "kinds", "fraction", "unknown", "no-form"],
)
def test_all_that_is_wrong_is_told_by_labels_without_regular_expressions(
    values: object, sentence: str
) -> None:
    with pytest.raises(ConfigError) as error:
        read_form(TrainForm, values)
    assert str(error.value) == sentence


def test_a_choice_and_a_long_text_are_told_in_words() -> None:
    given = {"priority": "first", "manifest": "x" * 1001}
    with pytest.raises(ConfigError) as error:
        read_form(RenderForm, given)
    assert "'Table of pairs' may have 1,000 letters at most" in str(error.value)
    assert "must be 'as deployed', 'low', 'normal' or 'urgent', not 'first'" in str(error.value)


class Server:
    """Prefect's server as ours runs it, with one deployment of each form."""

    def __init__(self, address: str, password: str) -> None:
        self.address, self.password = address, password
        self.deployments = {form.__name__: self._deploy(form) for form in (TrainForm, RenderForm)}

    def ask(self, path: str, body: object) -> tuple[int, Any]:
        token = base64.b64encode(self.password.encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {token}"}
        if path.startswith("ui/"):
            headers["Accept-Encoding"] = "gzip"  # as browsers do
        request = urllib.request.Request(
            f"{self.address}/{path}", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            return refusal.code, json.load(refusal)

    def _deploy(self, form: type[TrainForm] | type[RenderForm]) -> dict[str, Any]:
        _, flow = self.ask("flows/", {"name": form.__name__})
        given = {"name": "one", "flow_id": flow["id"], "parameter_openapi_schema": schema_of(form)}
        _, deployment = self.ask("deployments/", {**given, "enforce_parameter_schema": True})
        found: dict[str, Any] = deployment
        return found

    def check(self, form: type[TrainForm] | type[RenderForm], values: object) -> Any:
        """Ask as Prefect's pages do when a form is submitted: without bounds and patterns."""
        schema = schema_of(form)
        for field in schema["definitions"][form.__name__]["properties"].values():
            for bound in ("minimum", "maximum", "pattern", "maxLength"):
                field.pop(bound, None)
        status, found = self.ask(
            "ui/schemas/validate", {"schema": schema, "values": {"request": values}}
        )
        assert status == 200
        return found

    def start(self, form: type[TrainForm] | type[RenderForm], values: object) -> tuple[int, Any]:
        deployment = self.deployments[form.__name__]["id"]
        return self.ask(
            f"deployments/{deployment}/create_flow_run", {"parameters": {"request": values}}
        )


def schema_of(form: type[TrainForm] | type[RenderForm]) -> dict[str, Any]:
    reference = {"$ref": f"#/definitions/{form.__name__}", "title": "request", "position": 0}
    return {
        "type": "object",
        "title": "Parameters",
        "properties": {"request": reference},
        "required": ["request"],
        "definitions": {form.__name__: form.model_json_schema()},
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_HOME", str(home))
        password = new_password()
        with serving(home, free_port(), {SERVER_PASSWORD: password}) as address:
            yield Server(address, password)


def test_the_page_shows_each_error_at_its_field(server: Server) -> None:
    assert server.check(TrainForm, TWO_WRONG) == {
        "errors": [
            {
                "property": "request",
                "errors": [
                    {"property": "run_id", "errors": [f"{OF_RUN}."]},
                    {"property": "max_train_steps", "errors": [f"{OF_STEPS}."]},
                ],
            }
        ],
        "valid": False,
    }
    (of_request,) = server.check(RenderForm, {"manifest": "a.csv", "rows": "id\n1"})["errors"]
    assert of_request["errors"] == [{"property": "rows", "errors": [f"{OF_BOTH_TABLES}."]}]


def test_a_form_that_is_right_goes_through_and_variables_are_the_servers(server: Server) -> None:
    assert server.check(TrainForm, {"max_train_steps": 5}) == {"errors": [], "valid": True}
    said = json.dumps(server.check(TrainForm, {"max_train_steps": VARIABLE}))
    assert "Training steps" not in said
    assert "steps" in said, "Prefect's own word: there is no such variable"
    other = {"schema": {"type": "object"}, "values": {"request": TWO_WRONG}}
    assert server.ask("ui/schemas/validate", other)[1]["valid"], "a flow that is not ours"


def test_a_refused_start_is_told_by_labels_and_others_are_prefects(server: Server) -> None:
    assert server.start(TrainForm, TWO_WRONG) == (
        409,
        {"detail": f"The form: {OF_RUN}; {OF_STEPS}."},
    )
    status, run = server.start(TrainForm, {"max_train_steps": 5})
    assert (status, run["parameters"]) == (201, {"request": {"max_train_steps": 5}})
    nowhere = f"deployments/{uuid4()}/create_flow_run"
    assert server.ask(nowhere, {}) == (404, {"detail": "Deployment not found"})


def test_who_has_no_password_is_told_nothing_of_forms(server: Server) -> None:
    stranger = copy.copy(server)
    stranger.password = new_password()
    with pytest.raises(AssertionError):
        stranger.check(TrainForm, TWO_WRONG)
    assert stranger.start(TrainForm, TWO_WRONG) == (401, {"exception_message": "Unauthorized"})


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 20_000, b"", b"[]", b"\xff"])
def test_a_body_that_is_no_object_is_an_empty_one(body: bytes) -> None:
    """A deep one was a RecursionError, before the password was asked for."""
    assert read_mapping(body) == {}
