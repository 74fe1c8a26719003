"""What the service says of itself: metrics, its description, and who is logged in."""

from html import escape
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field

from haloae.server.problems import RefusedError
from haloae.server.requests import REFUSALS, RESPONSES, service_of
from haloae.server.safety import COOKIE, SESSION_SECONDS, role_of

router = APIRouter(tags=["haloae"], responses=RESPONSES)


class TokenGiven(BaseModel):
    """What a session is opened with."""

    token: str = Field(max_length=1024)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Everything that is counted, for Prometheus."""
    text = service_of(request).metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/session")
async def session(request: Request) -> dict[str, str | None]:
    """The role of who asks: ``operator``, ``engineer``, or null, which may only open a session."""
    return {"role": role_of(request)}


@router.post("/v1/session")
async def open_session(request: Request, given: TokenGiven) -> JSONResponse:
    """Open a session for a browser, which keeps it in a cookie that no script can read."""
    opened = service_of(request).doorkeeper.open_session(given.token)
    if opened is None:
        raise RefusedError(401, "the token is not known.")
    secret, role = opened
    answer = JSONResponse({"role": role})
    answer.set_cookie(
        COOKIE,
        secret,
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure="https" in (request.url.scheme, request.headers.get("x-forwarded-proto")),
    )
    return answer


@router.delete("/v1/session")
async def close_session(request: Request) -> JSONResponse:
    """End the browser's session."""
    service_of(request).doorkeeper.close_session(request.cookies.get(COOKIE, ""))
    answer = JSONResponse({"role": None})
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


@router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The service's description for people, without any script."""
    return HTMLResponse(_page(request.app.openapi()))


def _page(spec: dict[str, Any]) -> str:
    parts = [
        f"<h1>{escape(spec['info']['title'])} {escape(spec['info']['version'])}</h1>"
        "<p>For programs: <a href='/openapi.json'>openapi.json</a>.</p>"
    ]
    for path, operations in spec["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
            parameters = operation.get("parameters", [])
            rows = "".join(
                f"<li><code>{escape(one['name'])}</code> in the {escape(one['in'])}: "
                f"{escape(one.get('description', ''))}</li>"
                for one in parameters
            )
            kinds = operation.get("requestBody", {}).get("content", {})
            rows += "".join(f"<li>body: <code>{escape(kind)}</code></li>" for kind in kinds)
            parts.append(f"<ul>{rows}</ul>")
    refusals = "".join(
        f"<tr><td>{status}<td>{escape(meaning)}" for status, meaning in REFUSALS.items()
    )
    parts.append(f"<h2>Refusals</h2><table>{refusals}</table>")
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>haloae</title>"
        "<meta name='viewport' content='width=device-width'>" + "".join(parts)
    )
