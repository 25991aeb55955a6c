"""The OpenAPI document: valid, complete, and true."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from micro_ray.api.openapi import document
from micro_ray.api.paths import Paths
from micro_ray.network.network import Network
from micro_ray.registry import Endpoint
from micro_ray.router import Delta, Entry
from micro_ray.router.table import Table
from tests.unit.api.door import Door, open_door

pytestmark = pytest.mark.asyncio(loop_scope="package")

MAX_DEEP = 300


def documented(*endpoints: Endpoint, service: str = "thing", version: str = "1") -> dict[str, Any]:
    """The document of one service, which must be valid."""
    table = Table()
    entry = Entry(namespace="micro", service=service, version=version, endpoints=endpoints)
    table.apply(Delta(epoch="e", revision=1, full=True, entries=(entry,)))
    form = json.loads(document(table, "micro"))
    OpenAPIV31SpecValidator(form).validate()
    return dict(form)


def bound(name: str, path: str, method: str = "", **more: Any) -> Endpoint:
    metadata = {"path": path} | ({"method": method} if method else {})
    return Endpoint(name=name, metadata=metadata, **more)


async def test_it_is_valid(door: Door) -> None:
    """With the platform's own services and those of these tests, of every kind."""
    form = (await door.http.get("/openapi.json")).json()
    OpenAPIV31SpecValidator(form).validate()
    assert form["openapi"] == "3.1.0"
    tags = {tag for path in form["paths"].values() for op in path.values() for tag in op["tags"]}
    assert {"store", "registry", "echo", "streams", "users"} <= tags


async def test_every_path_leads_to_the_endpoint_it_names(door: Door, network: Network) -> None:
    form = (await door.http.get("/openapi.json")).json()
    paths = Paths(network.table, "micro")
    seen = set()
    for path, operations in form["paths"].items():
        for method, operation in operations.items():
            at = re.sub(r"\{[^}]*\}", "1", path)
            target = paths.resolve(method.upper(), at)
            assert re.sub(r"-\d+$", "", operation["operationId"]) == (
                f"{target.service}.{target.endpoint}"
            )
            seen.add((target.service, target.endpoint))
    listed = {
        (entry.service, endpoint.name)
        for entry in network.table.entries("micro")
        for endpoint in entry.endpoints
    }
    assert seen == listed


async def test_parameters(door: Door) -> None:
    paths = (await door.http.get("/openapi.json")).json()["paths"]
    read = {p["name"]: p for p in paths["/users/{id}"]["get"]["parameters"]}
    assert (read["id"]["in"], read["id"]["required"]) == ("path", True)
    assert read["id"]["schema"]["type"] == "integer"
    assert (read["verbose"]["in"], read["verbose"]["required"]) == ("query", False)
    write = paths["/users/{id}"]["put"]
    assert [p["name"] for p in write["parameters"]] == ["id"]
    assert "requestBody" in write
    assert "patch" in paths["/users/{id}"]
    upload = paths["/users/{id}/files/{name}"]["put"]
    assert [p["name"] for p in upload["parameters"]] == ["id", "name"]
    assert "application/octet-stream" in upload["requestBody"]["content"]
    nested = paths["/at/{place.city}/{place.zip}"]["get"]["parameters"]
    assert {p["name"] for p in nested if p["in"] == "path"} == {"place.city", "place.zip"}


async def test_media_types(door: Door) -> None:
    paths = (await door.http.get("/openapi.json")).json()["paths"]

    def media(name: str) -> tuple[set[str], set[str]]:
        post = paths[f"/streams/streams/{name}"]["post"]
        return set(post["requestBody"]["content"]), set(post["responses"]["200"]["content"])

    lines, json_, octets = "application/x-ndjson", "application/json", "application/octet-stream"
    assert media("count") == ({json_}, {lines, "text/event-stream"})
    assert media("sum") == ({lines}, {json_})
    assert media("double") == ({lines}, {lines, "text/event-stream"})
    assert media("take") == ({octets}, {json_})
    assert media("pieces") == ({json_}, {octets})
    echo = paths["/echo/echo/raw"]["post"]
    assert set(echo["responses"]["200"]["content"]) == {octets}


async def test_errors_are_described(door: Door) -> None:
    form = (await door.http.get("/openapi.json")).json()
    answer = form["paths"]["/echo/echo/call"]["post"]["responses"]["default"]
    reference = answer["content"]["application/json"]["schema"]["$ref"]
    assert reference == "#/components/schemas/Error"
    error = form["components"]["schemas"]["Error"]
    real = (await door.http.get("/no/thing")).json()
    assert set(error["required"]) <= set(real) <= set(error["properties"])


async def test_it_is_made_once_per_change_of_the_table(network: Network) -> None:
    async with open_door(network) as door:
        first = (await door.http.get("/openapi.json")).content
        (kept,) = door.api._openapi.values()
        await door.http.get("/openapi.json")
        assert next(iter(door.api._openapi.values())) is kept
        assert first == kept


async def test_it_follows_the_table() -> None:
    table = Table()
    entry = Entry(namespace="micro", service="a", version="1", endpoints=(Endpoint(name="A.B"),))
    async with open_door(Network(table, None)) as door:  # type: ignore[arg-type]
        table.apply(Delta(epoch="e", revision=1, full=True))
        assert (await door.http.get("/openapi.json")).json()["paths"] == {}
        table.apply(Delta(epoch="e", revision=2, entries=(entry,)))
        assert list((await door.http.get("/openapi.json")).json()["paths"]) == ["/a/a/b"]


async def test_descriptions_and_required_fields() -> None:
    request = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer", "default": 1}},
        "required": ["a"],
    }
    metadata = {"path": "/x", "method": "GET", "description": "Says it"}
    form = documented(Endpoint(name="A.B", request=request, metadata=metadata))
    operation = form["paths"]["/x"]["get"]
    assert operation["summary"] == "Says it"
    assert {p["name"]: p["required"] for p in operation["parameters"]} == {"a": True, "b": False}


async def test_definitions_of_two_endpoints_do_not_mix() -> None:
    def of(kind: str) -> dict[str, Any]:
        return {"$ref": "#/$defs/Item", "$defs": {"Item": {"type": kind}}}

    form = documented(
        Endpoint(name="A.One", request=of("string"), response=of("boolean")),
        Endpoint(name="A.Two", request=of("integer")),
    )
    schemas = form["components"]["schemas"]
    assert sorted(s["type"] for n, s in schemas.items() if n.endswith("Item")) == [
        "boolean", "integer", "string",
    ]  # fmt: skip


async def test_fields_behind_a_reference_are_parameters() -> None:
    request = {
        "$ref": "#/$defs/Query",
        "$defs": {
            "Query": {"type": "object", "properties": {"id": {"$ref": "#/$defs/Id"}}},
            "Id": {"type": "integer"},
        },
    }
    form = documented(bound("A.B", "/x/{id}", "GET", request=request))
    (parameter,) = form["paths"]["/x/{id}"]["get"]["parameters"]
    reference = parameter["schema"]["$ref"].rpartition("/")[2]
    assert form["components"]["schemas"][reference] == {"type": "integer"}


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/files/{name=**}", "/files/{name}"),
        ("/a/*/b/**", "/a/{segment}/b/{rest}"),
        ("/f/{name=x/*}.json", "/f/{name}.json"),
        ("/one,/two/{id}", "/one"),
        ("bad,/two/{id}", "/two/{id}"),
        ("bad", "/thing/a/b"),
    ],
)
async def test_templates_become_paths(path: str, shown: str) -> None:
    form = documented(bound("A.B", path))
    assert shown in form["paths"]
    (operation,) = form["paths"][shown].values()
    names = re.findall(r"\{([^}]*)\}", shown)
    assert [p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"] == names


async def test_all_templates_and_methods_are_shown() -> None:
    form = documented(bound("A.B", "/one,/two/{id}", "get, PUT, FOO"))
    assert set(form["paths"]) == {"/one", "/two/{id}"}
    assert set(form["paths"]["/one"]) == {"get", "put"}
    operations = [op for path in form["paths"].values() for op in path.values()]
    assert len({op["operationId"] for op in operations}) == 4


async def test_paths_that_differ_by_name_only_are_one() -> None:
    form = documented(
        bound("A.B", "/x/{id}", "GET"),
        bound("A.C", "/x/{name}", "PUT"),
        bound("A.D", "/x/*", "GET"),
    )
    assert list(form["paths"]) == ["/x/{id}"]
    assert set(form["paths"]["/x/{id}"]) == {"get", "put"}
    assert form["paths"]["/x/{id}"]["get"]["operationId"] == "thing.A.B"


async def test_versions_of_a_service_are_shown_once() -> None:
    one, two = Endpoint(name="A.B"), Endpoint(name="A.C")
    entries = (
        Entry(namespace="micro", service="a", version="1", endpoints=(one,)),
        Entry(namespace="micro", service="a", version="2", endpoints=(one, two)),
        Entry(namespace="other", service="b", version="1", endpoints=(one,)),
    )
    table = Table()
    table.apply(Delta(epoch="e", revision=1, full=True, entries=entries))
    form = json.loads(document(table, "micro"))
    OpenAPIV31SpecValidator(form).validate()
    assert set(form["paths"]) == {"/a/a/b", "/a/a/c"}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/Gone"},
        {"$ref": "#/properties/x"},
        {"$ref": "http://elsewhere.example/schema"},
        {"$defs": [], "properties": []},
        {"$defs": {"Page[int]": {"type": "integer"}}, "$ref": "#/$defs/Page[int]"},
        {"$defs": {"N": {"type": "array", "items": {"$ref": "#/$defs/N"}}}, "$ref": "#/$defs/N"},
        {"$defs": {"A": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"},
        {"properties": {"id": True}},
        {"required": 5},
        deep(MAX_DEEP),
    ],
    ids=range(10),
)
async def test_no_schema_takes_the_document_down(schema: dict[str, Any]) -> None:
    """Whatever one service publishes, the others are documented."""
    table = Table()
    odd = bound("A.B", "/x/{id}", "GET,POST", request=schema, response=schema)
    fine = Endpoint(name="C.D")
    entry = Entry(namespace="micro", service="a", version="1", endpoints=(odd, fine))
    table.apply(Delta(epoch="e", revision=1, full=True, entries=(entry,)))
    form = json.loads(document(table, "micro"))
    assert set(form["paths"]) == {"/x/{id}", "/a/c/d"}
    names = set(form["components"]["schemas"])
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", name) for name in names)
    used = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(form)))
    assert used <= names


async def test_what_the_path_says_the_body_need_not() -> None:
    fields = {
        "type": "object",
        "properties": {"id": {"type": "integer"}, "name": {"type": "string"}},
        "required": ["id", "name"],
    }
    request = {"$ref": "#/$defs/User", "$defs": {"User": fields}}
    form = documented(bound("Users.Put", "/users/{id}", "PUT", request=request))
    body = form["paths"]["/users/{id}"]["put"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert schema["properties"] == {"name": {"type": "string"}}
    assert schema["required"] == ["name"]


async def test_a_body_must_be_there_when_it_has_fields_that_must() -> None:
    some = {"type": "object", "properties": {"name": {"type": "string"}}}
    for request, must in (({**some, "required": ["name"]}, True), (some, False)):
        form = documented(Endpoint(name="Thing.Do", request=request))
        body = form["paths"]["/thing/thing/do"]["post"]["requestBody"]
        assert body.get("required", False) is must


async def test_a_flag_needs_no_value() -> None:
    flag = {"type": "object", "properties": {"deep": {"type": "boolean"}}}
    form = documented(bound("Things.List", "/things", "GET", request=flag))
    (parameter,) = form["paths"]["/things"]["get"]["parameters"]
    assert parameter["allowEmptyValue"] is True
