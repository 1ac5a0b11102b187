"""The OpenAPI document: valid, and of the same routes and errors as the server."""

import re
import tomllib

import pytest
import requests
from openapi_spec_validator import OpenAPIV31SpecValidator

from server import create_app, errors
from server.completion_answer import status_of
from server.routes.openai import ELSEWHERE
from server.routes.openapi import VERSION, document
from server.routes.openapi.refusals import COMPLETING, IN_STREAM
from server.settings import Settings

from .conftest import ROOT

DOCUMENT = document()
AUTOMATIC = {"HEAD", "OPTIONS"}  # of Flask, for each route


def operations():
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield method.upper(), path, operation


def codes_of(operation):
    """Status and code of each refusal in our own shape."""
    for status, response in operation["responses"].items():
        schema = response.get("content", {}).get("application/json", {}).get("schema", {})
        for code in schema.get("properties", {}).get("code", {}).get("enum", ()):
            yield int(status), code


@pytest.fixture(scope="module")
def app():
    settings = Settings(
        _env_file=None,
        access="open",
        store_url="memory://",
        web_concurrency=1,
        transcript="off",
        gateway_api_key="a-key",
    )
    return create_app(settings)


def test_the_document_is_valid():
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_every_route_and_method_is_in_the_document_and_no_other(app):
    routes = {
        (method, re.sub("<(?:[^:>]+:)?([^>]+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        if rule.rule != ELSEWHERE
        for method in rule.methods - AUTOMATIC
    }
    assert routes == {(method, path) for method, path, _ in operations()}


def test_every_error_is_in_the_document_with_its_status():
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RelayError)}
    # Without those that only gather others.
    known = {(kind.status, kind.code) for kind in kinds if "code" in vars(kind) or kind is errors.InternalError}
    told = {pair for *_, operation in operations() for pair in codes_of(operation) if pair != (416, "bad_request")}
    in_streams = {(kind.status, kind.code) for kind in (*IN_STREAM, *COMPLETING, errors.ModelNotFound)}
    elsewhere = {(405, "method_not_allowed")}
    assert told | in_streams | elsewhere == known


def test_what_openais_clients_are_refused_is_in_their_shape_and_with_the_same_statuses():
    responses = DOCUMENT["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {int(status) for status in responses} == {200, 414, 421, 431} | {status_of(kind) for kind in COMPLETING}
    refused = [response for status, response in responses.items() if status != "200"]
    for response in refused:
        error = response["content"]["application/json"]["schema"]["properties"]["error"]
        assert set(error["properties"]) == {"message", "type", "param", "code"}


def test_operations_have_names_of_their_own():
    names = [operation["operationId"] for *_, operation in operations()]
    assert len(set(names)) == len(names)


def test_the_version_is_the_projects():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


def test_the_server_serves_it_to_everyone(relay):
    answer = requests.get(f"{relay.url}/openapi.json", timeout=10)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == DOCUMENT
