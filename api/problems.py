"""Errors as RFC 9457 problem documents, each with a stable `code`; and the limit on the size of a body."""

import math
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth.limits import MAX_PATH, MAX_QUERY
from api.metrics import count_refusal
from qmtl_sdk.contracts.errors import QmtlError

_log = structlog.get_logger()
MEDIA_TYPE = "application/problem+json"
"""Media type of problem documents (RFC 9457)."""
_FAULTS = 20
"""Faults of a body that a problem lists."""
_SHOWN = 300
"""Characters of a place, and of what is wrong there, to show: a key may be as long as the body."""
_CODES_BY_STATUS = {404: "E_NOT_FOUND", 405: "E_METHOD"}


class Problem(BaseModel):
    """What went wrong (`detail`), under a stable `code`, and what to do (`remedy`)."""

    type: str = Field(examples=["urn:qmtl:E_WORLD_UNKNOWN"])
    title: str
    status: int
    code: str
    detail: str
    remedy: str = ""
    details: dict[str, object] = {}


def problem(error: QmtlError) -> JSONResponse:
    """Return an error as a response, and count it."""
    count_refusal(error)
    body = Problem(
        type=f"urn:qmtl:{error.code}",
        title=error.code,
        status=error.status,
        code=error.code,
        detail=error.message,
        remedy=error.remedy,
        details=error.details,
    )
    headers = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if "retry_after" in error.details:
        headers["Retry-After"] = str(max(1, math.ceil(error.details["retry_after"])))
    return JSONResponse(body.model_dump(mode="json"), error.status, headers, media_type=MEDIA_TYPE)


def failed(path: str, error: Exception) -> JSONResponse:
    """Log an error of the Gateway itself, and return what its caller is told of it."""
    _log.error("a request failed", path=path, exc_info=error)
    return problem(QmtlError("E_INTERNAL", "the Gateway failed", "its log has the error; please report it"))


def install(app: FastAPI) -> None:
    """Handle every error of a request: QMTL's own, invalid bodies, HTTP errors, and bugs."""

    @app.exception_handler(QmtlError)
    async def known(_: Request, error: QmtlError) -> JSONResponse:
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = [
            {
                "where": ".".join(str(part) for part in item["loc"] if part != "body")[:_SHOWN],
                "what": str(item["msg"]).removeprefix("Value error, ")[:_SHOWN],
            }
            for item in error.errors()[:_FAULTS]
        ]
        if any(item["type"] == "json_invalid" for item in error.errors()):
            return problem(
                QmtlError(
                    "E_BODY_JSON",
                    f"the body is not JSON: {error.errors()[0].get('ctx', {}).get('error', '')}",
                    "send valid JSON",
                )
            )
        first = faults[0]
        return problem(
            QmtlError(
                "E_BODY_INVALID",
                f"{first['where'] or 'the body'}: {first['what']}",
                "see /openapi.json for the schema",
                faults=faults,
            )
        )

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        code = _CODES_BY_STATUS.get(error.status_code, "E_BODY_INVALID")
        return problem(QmtlError(code, str(error.detail), "see /docs for the routes"))

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        return failed(request.url.path, error)


def document(app: FastAPI) -> None:
    """Describe in the OpenAPI document how every route refuses: with a problem document, at any status."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
            refusal = {
                "description": "what went wrong",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            }
            for operations in schema["paths"].values():
                for operation in operations.values():
                    for parameter in operation.get("parameters", ()):
                        _limit(parameter)
                    operation["responses"].pop("422", None)  # FastAPI's own form, which is never sent
                    operation["responses"]["default"] = refusal
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's documented way


def _limit(parameter: dict[str, Any]) -> None:
    """Add the limit of every parameter, which `api.auth.access` checks, where it has none of its own.

    (Any: a parameter of OpenAPI.)
    """
    schema = parameter["schema"]
    limit = MAX_PATH if parameter["in"] == "path" else MAX_QUERY
    for part in (schema, schema.get("items", {}), *schema.get("anyOf", ())):
        if part.get("type") == "string" and "$ref" not in part:
            part.setdefault("maxLength", limit)


class BodyLimit:
    """Middleware that refuses a body above its limit.

    It checks the Content-Length header first, and counts bytes while a body without one is read.
    """

    def __init__(self, app: ASGIApp, limit: int, artifact_limit: int) -> None:
        self._app = app
        self._limit = limit
        self._artifact_limit = artifact_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer E_BODY_TOO_LARGE."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit = self._artifact_limit if scope["path"].startswith("/artifacts/") else self._limit
        declared = next(
            (int(value) for name, value in scope["headers"] if name == b"content-length" and value.isdigit()),
            0,
        )
        read = 0

        async def receive_counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise _too_large(limit)
            return message

        async def send_unless_over(message: Message) -> None:
            if read <= limit:  # the application answers a truncated body with an error of its own
                await send(message)

        if declared <= limit:
            await self._app(scope, receive_counted, send_unless_over)
        if max(declared, read) > limit:
            await problem(_too_large(limit))(scope, receive, send)


def _too_large(limit: int) -> QmtlError:
    return QmtlError(
        "E_BODY_TOO_LARGE",
        f"the body is larger than {limit} bytes",
        "send less; gateway.max_body_bytes sets the limit",
        limit=limit,
    )
