"""Routes of the page that look, and those by which people say what they see."""

import json
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, StringConstraints

from haloae.server.images import ID
from haloae.server.models import Person
from haloae.server.page.page import REVIEWED_AT_ONCE, Kind, Page
from haloae.server.problems import RefusedError
from haloae.server.requests import service_of
from haloae.server.rows import Stored
from haloae.server.safety import role_of

router = APIRouter(include_in_schema=False)

Id = Annotated[str, Field(pattern=f"^{ID.pattern}$")]
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]
FOR_A_DAY = {"cache-control": "private, max-age=86400, immutable"}
MOST_EXPORTED = 2**30
"""Bytes of images in an export; of more, the newest."""
IN_MEMORY = 2**24
CHUNK = 2**16


class Named(BaseModel):
    """Of everything that a person does."""

    who: Line | None = None
    """Their name, as they give it; None: their role says enough."""


class Word(Named):
    """On a verdict."""

    word: Literal["confirm", "overrule"]
    tags: Annotated[list[Line], Field(max_length=20)] = []


def page_of(request: Request) -> Page:
    """The service's page."""
    page: Page = request.app.state.page
    return page


def person_of(request: Request, named: Named) -> Person:
    """Who asks for a change."""
    role = role_of(request) or "operator"
    return Person(named.who or role, role)


def known(request: Request, inspection: str) -> Stored:
    """The inspection of an id.

    Raises:
        RefusedError: 404, there is none, or no more.
    """
    stored = service_of(request).records.find(inspection)
    if stored is None:
        raise RefusedError(404, "there is no such inspection, or no more.")
    return stored


@router.get("/")
async def front(request: Request) -> HTMLResponse:
    """The page."""
    return HTMLResponse(page_of(request).html)


@router.get("/static/{name}")
async def static(request: Request, name: str) -> Response:
    """One of the few files that it consists of."""
    if (found := page_of(request).static.get(name)) is None:
        raise RefusedError(404, "there is no such file.")
    data, kind = found
    return Response(data, media_type=kind, headers={"cache-control": "no-cache"})


@router.get("/page/state")
def state(request: Request, recipe: str | None = None) -> dict[str, Any]:
    """All that is shown at a glance."""
    return page_of(request).state(recipe, role_of(request) or "operator")


@router.get("/page/boxes")
def boxes(request: Request) -> dict[str, Any]:
    """What all boxes have stored of this shift."""
    return page_of(request).boxes()


@router.get("/page/inspections/{inspection}/{kind}.jpg")
def picture(request: Request, inspection: Id, kind: Kind) -> Response:
    """A picture of an inspected image."""
    data = page_of(request).picture(known(request, inspection).inspection, kind)
    return Response(data, media_type="image/jpeg", headers=FOR_A_DAY)


@router.get("/page/review")
def review(request: Request, recipe: str) -> list[dict[str, Any]]:
    """What waits for a person's word, the newest first."""
    history = service_of(request).records.store.history
    return [one.as_record() for one in history.to_review(REVIEWED_AT_ONCE, recipe=recipe)]


@router.post("/page/inspections/{inspection}/review")
def say(request: Request, inspection: Id, given: Word) -> JSONResponse:
    """Keep a person's word on a verdict."""
    records, stored = service_of(request).records, known(request, inspection)
    who, role = person_of(request, given)
    records.images.hold(stored.inspection)
    records.store.review(inspection, word=given.word, tags=given.tags, who=who, role=role)
    return JSONResponse(known(request, inspection).as_record())


@router.get("/page/disagreements.zip")
def disagreements(
    request: Request, recipe: Annotated[str | None, Query()] = None
) -> StreamingResponse:
    """Images whose verdicts were overruled, with what was said of them."""
    records = service_of(request).records
    file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - closed when it is sent
    size = 0
    lines = []
    with zipfile.ZipFile(file, "w") as archive:
        for stored in reversed(list(records.store.history.disagreements(recipe=recipe))):
            kept = records.images.read(stored.inspection)
            name = None
            if kept is not None and size + len(kept.data) <= MOST_EXPORTED:
                name = f"{stored.inspection.id}.{kept.suffix}"
                archive.writestr(name, kept.data)
                size += len(kept.data)
            lines.append(json.dumps(stored.as_record() | {"file": name}) + "\n")
        archive.writestr("disagreements.jsonl", "".join(lines))
    file.seek(0)

    def chunks() -> Iterator[bytes]:
        with file:
            while chunk := file.read(CHUNK):
                yield chunk

    headers = {"content-disposition": 'attachment; filename="disagreements.zip"'}
    return StreamingResponse(chunks(), media_type="application/zip", headers=headers)
