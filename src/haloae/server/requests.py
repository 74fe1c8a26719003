"""`/v1`: one image in, what is said of it out, as a box beside a PLC asks with curl."""

import asyncio
import base64
from collections.abc import Sequence
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from haloae.detection.prediction import Verdict
from haloae.outputs.encode import encode_map
from haloae.outputs.pictures import draw_overlay
from haloae.server.inspection import Given
from haloae.server.inspector import Finished, Seen
from haloae.server.problems import RefusedError
from haloae.server.telemetry import trace

if TYPE_CHECKING:
    from haloae.server.app import Service


_DRAWING = BoundedSemaphore(2)
"""A map of a large image takes twenty times the bytes of its file."""


class Refusal(BaseModel):
    """Of every request that is not carried out."""

    error: str
    """A sentence."""


REFUSALS = {
    400: "it is not what is expected here",
    401: "it has no token that is known",
    403: "its token is an operator's, or a page of another origin asks",
    404: "there is no recipe of this name, or no such path",
    405: "the path has no such method",
    408: "it did not arrive whole in time",
    409: "the recipe was unloaded: it must be loaded first",
    413: "it has too many bytes",
    415: "it is compressed",
    421: "it is addressed to another host",
    422: "the image cannot be decoded or is over a limit, or a parameter is wrong",
    429: "the queue is full: come again after the seconds of the header Retry-After",
    503: "the model cannot be loaded or run, or the service is being stopped",
    504: "there was no time left to inspect the image",
}
"""What the statuses of requests that are not carried out mean."""
RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {"model": Refusal, "description": "It is not carried out, and why."}
}
router = APIRouter(prefix="/v1", tags=["haloae"], responses=RESPONSES)


class FoundBox(BaseModel):
    """Around a region of the map above its threshold, in pixels of the image."""

    left: int
    top: int
    right: int
    bottom: int
    peak: float


class Answer(BaseModel):
    """What is said of an image."""

    id: str
    time: str
    source: str
    recipe: str
    model: str = Field(description="sha256 of the model file")
    image: str = Field(description="sha256 of the image")
    score: float
    p_value: float
    threshold: float
    verdict: Verdict
    reason: str | None = Field(description="why the image is unusable")
    boxes: list[FoundBox]
    map: str | None = Field(None, description="PNG of 16 bits in base64, where asked for")
    overlay: str | None = Field(None, description="PNG in base64, where asked for")


IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of an image file.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def service_of(request: Request) -> "Service":
    """What the application consists of."""
    service: Service = request.app.state.service
    return service


async def inspected(
    request: Request, images: Sequence[Given], *, recipe: str, source: str
) -> list[Finished]:
    """What comes of images; nobody waits for them longer than the settings say.

    Raises:
        HaloaeError: the first of what went wrong.
    """
    inspector = service_of(request).inspector
    futures = [
        asyncio.wrap_future(future)
        for future in inspector.submit(images, recipe=recipe, source=source)
    ]
    try:
        async with asyncio.timeout(inspector.settings.seconds):
            found = await asyncio.gather(*futures)
    except TimeoutError as error:
        raise RefusedError(504, "there was no time left to inspect the image.", 1) from error
    finally:
        for future in futures:
            future.cancel()
    for one in found:
        trace(one, request.headers)
    return found


@router.post(
    "/predict",
    openapi_extra=IMAGE_BODY,
    response_class=JSONResponse,
    responses={200: {"model": Answer}},
)
async def predict(
    request: Request,
    recipe: Annotated[
        str | None, Query(description="its name; may be left out where there is one recipe")
    ] = None,
    map: Annotated[Literal["png"] | None, Query(description="the anomaly map, too")] = None,
    overlay: Annotated[Literal["png"] | None, Query(description="a picture, too")] = None,
) -> JSONResponse:
    """Inspect the image that the body is."""
    data = await request.body()
    recipe = recipe or _only_recipe(request)
    # Browsers say where a request comes from, and no other client does.
    source = "page" if "sec-fetch-site" in request.headers else "request"
    [(inspection, seen)] = await inspected(request, [data], recipe=recipe, source=source)
    record = inspection.as_record()
    if map or overlay:
        record |= await run_in_threadpool(_pictures, seen, map, overlay)
    return JSONResponse(record)


def _pictures(
    seen: Seen, map: Literal["png"] | None, overlay: Literal["png"] | None
) -> dict[str, str]:
    """Those that are asked for, in base64."""
    found = {}
    with _DRAWING:
        if map:
            found["map"] = encode_map(seen.prediction, map)
        if overlay:
            found["overlay"] = draw_overlay(
                seen.image, seen.prediction, seen.calibration, format=overlay
            )
    return {name: base64.b64encode(data).decode() for name, data in found.items()}


@router.get("/recipes")
async def recipes(request: Request) -> list[dict[str, Any]]:
    """All recipes, what of them is loaded, and why one cannot be."""
    return [one._asdict() for one in service_of(request).recipes.listed()]


def _only_recipe(request: Request) -> str:
    """The recipe of a service that has one.

    Raises:
        RefusedError: 400, there are several, or none.
    """
    names = service_of(request).recipes.names()
    if len(names) != 1:
        raise RefusedError(400, f"there are {len(names)} recipes: name one, as in ?recipe=NAME.")
    return names[0]
