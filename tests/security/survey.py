"""What a door's OpenAPI document promises, asked of the door: requests that schemathesis makes of
the document, valid ones and invalid ones, and answers held against it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    load_all_checks,
    negative_data_rejection,
    not_a_server_error,
    response_headers_conformance,
    status_code_conformance,
)
from schemathesis.core.failures import FailureGroup

__all__ = ["Survey"]

#: What is held against the document by schemathesis. Its check of answers' schemas is not among
#: them: it says of ``prefixItems``, which a tuple is, that the document is wrong, and it does not
#: read lines. ``_fits`` does both.
CHECKS: list[Any] = [
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_headers_conformance,
]  # fmt: skip
#: Fields by whose words alone a request is refused, and what passes: so that others are looked at.
WORDS = {
    "topic": ("orders", "letters"), "group": ("g", "h"), "key": ("k", "k/1"), "path": ("a", "a.b"),
    "service": ("helloworld", "store"), "name": ("helloworld", "x"), "database": ("micro", "other"),
    "table": ("micro", "t"), "id": ("ada", "bob"), "kind": ("service", "route"),
    "start": ("now", "beginning"), "encoding": ("text", "base64"), "queue": ("q",),
    "namespace": ("micro", "other"),
}  # fmt: skip

Asked = Callable[[str, str, Mapping[str, str], bytes], httpx.Response]


@schemathesis.serializer("application/x-ndjson")
def _one_line(_context: Any, value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


@dataclass
class Survey:
    """``ask(method, url, headers, body)`` asks the door that has the document."""

    document: Mapping[str, Any]
    ask: Asked
    examples: int
    codes: dict[str, set[int]] = field(default_factory=dict)
    wrong: dict[tuple[str, ...], str] = field(default_factory=dict)

    def run(self) -> None:
        """Every operation: what is wrong, one of a kind, is in ``wrong`` then."""
        load_all_checks()
        schema = schemathesis.openapi.from_dict(dict(self.document))
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                self._operation(operation, mode)

    def _operation(self, operation: Any, mode: GenerationMode) -> None:
        valid = mode is GenerationMode.POSITIVE
        checks = CHECKS if valid else [*CHECKS, negative_data_rejection]

        @seed(1)
        @settings(
            max_examples=self.examples,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(operation.as_strategy(generation_mode=mode), st.randoms(use_true_random=False))
        def examine(case: Any, random: Any) -> None:
            if valid and random.random() < 0.7:
                case.body = _spoken(case.body, random)
            self._case(case, checks)

        try:
            examine()
        except Unsatisfiable:
            assert not valid, operation.label  # nothing is invalid to who takes anything

    def _case(self, case: Any, checks: list[Any]) -> None:
        given = case.as_transport_kwargs(base_url="http://door")
        kept = ("method", "url", "headers", "params", "data", "json", "cookies", "files")
        made = requests.Request(**{k: v for k, v in given.items() if k in kept}).prepare()
        body = made.body.encode() if isinstance(made.body, str) else made.body or b""
        heads = {
            name: value if isinstance(value, str) else value.decode("latin-1")
            for name, value in made.headers.items()
            if name.lower() not in ("user-agent", "content-length")
        }
        answer = self.ask(made.method or "", made.url or "", heads, body)
        label = case.operation.label
        self.codes.setdefault(label, set()).add(answer.status_code)
        said = f"{made.method} {made.url} {body[:300]!r}: {answer.status_code} {answer.text[:300]}"
        if answer.status_code == 200 and not answer.headers:
            return  # a stream that has not begun
        try:
            case.validate_response(answer, checks=checks)
        except FailureGroup as group:
            for failure in group.exceptions:
                self._add(label, type(failure).__name__, f"{failure}; {said}")
        for why in self._fits(case.operation, answer):
            self._add(label, "schema", f"{why}; {said}")

    def _add(self, label: str, kind: str, why: str) -> None:
        self.wrong.setdefault((label, kind), why)

    def _fits(self, operation: Any, answer: httpx.Response) -> list[str]:
        """How an answer is not what the document says: each of its messages."""
        documented = self.document["paths"][operation.path][operation.method]["responses"]
        content = documented.get(str(answer.status_code), documented["default"])["content"]
        media = answer.headers["content-type"].partition(";")[0]
        if media not in content or "schema" not in content[media]:
            return []
        schema = {**content[media]["schema"], "components": self.document["components"]}
        text = answer.text
        # The last line may be what there was when the client left.
        parts = text.split("\n")[:-1] if media == "application/x-ndjson" else [text]
        error = self.document["components"]["schemas"]["Error"]
        found = []
        for part in parts:
            message = json.loads(part)
            failed = list(Draft202012Validator(schema).iter_errors(message))
            if failed and media == "application/x-ndjson":
                # A stream that has begun ends with an error as its last line.
                failed = [f for f in failed if not Draft202012Validator(error).is_valid(message)]
            found += [failure.message[:300] for failure in failed[:1]]
        return found


def _spoken(body: Any, random: Any) -> Any:
    """A body whose names are such as are not refused for themselves."""
    if isinstance(body, list):
        return [_spoken(item, random) for item in body]
    if not isinstance(body, dict):
        return body
    return {
        name: random.choice(WORDS[name])
        if isinstance(value, str) and name in WORDS
        else _spoken(value, random)
        for name, value in body.items()
    }
