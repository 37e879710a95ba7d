"""The data plane described once: routes, what they take, and every status that they answer (OpenAPI 3.1). Pure.

Left out of every operation, as they belong to none: HEAD, which is GET without the body; 405 with ``Allow`` for any
other method, OPTIONS included; 404 for a path that is no route. Statuses of ``_ANYWHERE`` are told by the connection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from agent import __version__
from agent.serving.schemas import COUNT, SCHEMAS, TEXT, ref

JsonObject = dict[str, Any]
JSON, BINARY, PROMETHEUS = "application/json", "application/octet-stream", "text/plain; version=0.0.4; charset=utf-8"
EVENTS = "text/event-stream; charset=utf-8"

_STATUSES = {
    400: "the client has to change the request; the text says what",
    401: "a token is needed, or the one that came is not known",
    403: "the token is good for less than this, or models are not changed from here",
    404: "no such model, version or release",
    408: "headers or body did not come in time, or too slowly",
    413: "the body, or its JSON part, is over its limit",
    414: "the request's target is over the limit of the headers",
    415: "Content-Encoding is not gzip, deflate or identity",
    431: "the headers are over their limit",
    500: "the model raised, or answered what cannot be sent in the form that was asked for",
    501: "Transfer-Encoding is not chunked",
    503: "not now: not ready, too many wait, the request's timeout passed, or too many connections; try again later",
    507: "the device has not enough memory for the model",
}
_ANYWHERE = (400, 408, 414, 431, 501, 503)
_OF_BODIES = (400, 408, 413, 415)
_HEADERS: dict[int, JsonObject] = {
    401: {"WWW-Authenticate": {"required": True, "schema": TEXT}},
    503: {"Retry-After": {"required": True, "description": "seconds", "schema": COUNT}},
}
ENCODINGS = ("gzip", "x-gzip", "deflate", "identity")
_LENGTH = "Inference-Header-Content-Length"
_BYTES: JsonObject = {"schema": {"type": "string", "format": "binary"}}


@dataclass(frozen=True)
class Route:
    """One operation.

    Attributes:
        path: with the names of its parameters in braces.
        method: as HTTP writes it.
        text: what it does.
        answer: name of the schema of a 200; None where it is no JSON.
        asked: name of the schema of the body, None without one.
        needs_body: whether the body may not be empty.
        refusals: statuses besides those of ``_ANYWHERE``.
        is_infer: whether tensors go in and out, also in binary form.
        streams: whether an answer can come in pieces, as server-sent events.
        refused: name of the schema of a refusal.
        asker: who may: ``anyone``, ``user`` or ``administrator``.
    """

    path: str
    method: str
    text: str
    answer: str | None
    asked: str | None = None
    needs_body: bool = False
    refusals: tuple[int, ...] = ()
    is_infer: bool = False
    streams: bool = False
    refused: str = "Error"
    asker: str = "user"


def _of_model(below: str, method: str, text: str, answer: str, **more: Any) -> tuple[Route, Route]:
    refusals = (404, *more.pop("refusals", ()))
    paths = (f"/v2/models/{{model}}{below}", f"/v2/models/{{model}}/versions/{{version}}{below}")
    first, second = (Route(path, method, text, answer, refusals=refusals, **more) for path in paths)
    return first, second


def _of_repository(path: str, text: str, answer: str, asked: str, *refusals: int) -> Route:
    path = f"/v2/repository/{path}"
    return Route(path, "POST", text, answer, asked, refusals=(*_OF_BODIES, *refusals), asker="administrator")


def _of_openai(path: str, text: str, answer: str, asked: str) -> Route:
    refusals = (404, *_OF_BODIES, 500)
    return Route(
        path, "POST", text, answer, asked, needs_body=True, refusals=refusals, streams=True, refused="OpenAIError"
    )


ROUTES = (
    Route("/v2", "GET", "Server metadata.", "Server"),
    Route("/v2/", "GET", "Server metadata.", "Server"),
    Route("/v2/health/live", "GET", "Whether the process answers.", "Live", asker="anyone"),
    Route("/v2/health/ready", "GET", "Whether requests should be sent here.", "Ready", asker="anyone"),
    Route("/v2/models", "GET", "Names of the models that answer.", "Models"),
    Route("/v2/models/stats", "GET", "Counters of all models.", "Statistics"),
    *_of_model("", "GET", "Model metadata.", "Model"),
    *_of_model("/ready", "GET", "Whether the model answers.", "ModelReady"),
    *_of_model("/config", "GET", "The model's configuration.", "Config"),
    *_of_model("/stats", "GET", "The model's counters.", "Statistics"),
    *_of_model(
        "/infer", "POST", "Inference.", "InferResponse",
        asked="InferRequest", needs_body=True, refusals=(*_OF_BODIES, 500), is_infer=True,
    ),
    *_of_model(
        "/generate", "POST", "A text that goes on with another; causal language models only.", "Text",
        asked="TextRequest", needs_body=True, refusals=(*_OF_BODIES, 500),
    ),
    *_of_model(
        "/generate_stream", "POST", "The same in pieces.", "Text",
        asked="TextRequest", needs_body=True, refusals=(*_OF_BODIES, 500), streams=True,
    ),
    Route("/v1/models", "GET", "The language models, as OpenAI's clients read them.", "OpenAIAnswer"),
    Route(
        "/v1/models/{model}", "GET", "One of them.", "OpenAIAnswer", refusals=(404,), refused="OpenAIError"
    ),
    _of_openai("/v1/completions", "OpenAI's completions.", "OpenAIAnswer", "CompletionRequest"),
    _of_openai("/v1/chat/completions", "OpenAI's chat completions.", "OpenAIAnswer", "ChatRequest"),
    Route("/metrics", "GET", "Counters for Prometheus.", None),
    Route("/openapi.json", "GET", "This document.", "Document"),
)  # fmt: skip
_TO_READ = (
    _of_repository("index", "Every release that is loaded, loading, or failed to load.", "Index", "IndexRequest"),
    _of_repository("models/{model}/load", "Whether the model is loaded; 403 if not.", "Loaded", "LoadRequest"),
    _of_repository("models/{model}/unload", "Always 403.", "Unloaded", "UnloadRequest"),
)
_READING = tuple(replace(route, refusals=(*route.refusals, 403), asker="user") for route in _TO_READ)
REPOSITORY = (
    _of_repository("index", "Every release that is loaded, loading, or failed to load.", "Index", "IndexRequest"),
    _of_repository("models/{model}/load", "Load an artifact of the store.", "Loaded", "LoadRequest", 404, 500, 507),
    _of_repository("models/{model}/unload", "Let a release, or a whole model, go.", "Unloaded", "UnloadRequest", 404),
)


def document(*, has_tokens: bool = False, has_repository: bool = False) -> JsonObject:
    """Return the document.

    Args:
        has_tokens: whether inference needs a token.
        has_repository: whether administrators change the repository here; else it can be read.
    """
    paths: JsonObject = {}
    for route in (*ROUTES, *(REPOSITORY if has_repository else _READING)):
        needs_token = route.asker == "administrator" or (route.asker == "user" and has_tokens)
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, needs_token=needs_token)
    components: JsonObject = {"schemas": {**SCHEMAS, "Document": {"type": "object", "required": ["openapi", "paths"]}}}
    if has_tokens or has_repository:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nibbled inference",
            "version": __version__,
            "description": "Open Inference Protocol v2 over HTTP. HEAD is GET without its body; any other method is "
            "answered with 405 and Allow, a path that is not listed with 404. The type of a body is never looked at.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    }


def _operation(route: Route, *, needs_token: bool) -> JsonObject:
    refusals = {*_ANYWHERE, *route.refusals}
    if needs_token:
        refusals |= {401, 403} if route.asker == "administrator" else {401}
    responses = {"200": _answer(route)}
    for status in sorted(refusals):
        responses[str(status)] = _refusal(status, route.refused)
    below = route.path.replace("{", "").replace("}", "").strip("/").replace("/", "-").replace(".", "-")
    slash = "-slash" if route.path.endswith("/") else ""
    operation: JsonObject = {
        "operationId": f"{route.method.lower()}-{below}{slash}",
        "summary": route.text,
        "parameters": [_path_parameter(name) for name in ("model", "version") if f"{{{name}}}" in route.path],
        "responses": responses,
    }
    if route.asked is not None:
        operation["requestBody"] = _body(route)
    if route.is_infer:
        operation["parameters"] += [
            _header(_LENGTH, {**COUNT, "description": "bytes of the JSON part; 0: the body is the only input"}),
            _header("Content-Encoding", {**TEXT, "pattern": f"^({_any_case(*ENCODINGS)})?$", "examples": [*ENCODINGS]}),
        ]
    if needs_token:
        operation["security"] = [{"bearer": []}]
    return operation


def _any_case(*words: str) -> str:
    """Return a pattern for ``words`` in any case (RFC 9110, 8.4.1), since JSON Schema has no flag for it."""
    spelt = ("".join(f"[{each}{each.upper()}]" if each.isalpha() else each for each in word) for word in words)
    return "|".join(spelt)


def _answer(route: Route) -> JsonObject:
    if route.answer is None:
        return {"description": route.text, "content": {PROMETHEUS: {"schema": TEXT}}}
    content: JsonObject = {JSON: {"schema": ref(route.answer)}}
    if route.streams:
        content[EVENTS] = {"schema": TEXT}
    if not route.is_infer:
        return {"description": route.text, "content": content}
    headers = {_LENGTH: {"description": "with binary outputs only", "schema": COUNT}}
    return {"description": route.text, "headers": headers, "content": {**content, BINARY: _BYTES}}


def _refusal(status: int, schema: str) -> JsonObject:
    # The connection, and whoever asks for tokens, know nothing of OpenAI's form.
    either: JsonObject = ref("Error") if schema == "Error" else {"anyOf": [ref("Error"), ref(schema)]}
    refusal: JsonObject = {"description": _STATUSES[status], "content": {JSON: {"schema": either}}}
    return {**refusal, "headers": _HEADERS[status]} if status in _HEADERS else refusal


def _body(route: Route) -> JsonObject:
    content: JsonObject = {JSON: {"schema": ref(str(route.asked))}}
    return {"required": route.needs_body, "content": {**content, BINARY: _BYTES} if route.is_infer else content}


def _path_parameter(name: str) -> JsonObject:
    return {"name": name, "in": "path", "required": True, "schema": {**TEXT, "minLength": 1}}


def _header(name: str, schema: JsonObject) -> JsonObject:
    return {"name": name, "in": "header", "required": False, "schema": schema}
