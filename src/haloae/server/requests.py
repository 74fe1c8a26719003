"""`/v1`: one image in, what is said of it out, as a box beside a PLC asks with curl."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from haloae.outputs.encode import encode_map
from haloae.outputs.pictures import draw_overlay
from haloae.server.inspector import Finished, Given, Inspector
from haloae.server.problems import RefusedError

router = APIRouter()


async def inspected(
    request: Request, images: Sequence[Given], *, recipe: str, source: str
) -> list[Finished]:
    """What comes of images; nobody waits for them longer than the settings say.

    Raises:
        HaloaeError: the first of what went wrong.
    """
    inspector: Inspector = request.app.state.service.inspector
    futures = [
        asyncio.wrap_future(future)
        for future in inspector.submit(images, recipe=recipe, source=source)
    ]
    try:
        async with asyncio.timeout(inspector.settings.seconds):
            return await asyncio.gather(*futures)
    except TimeoutError as error:
        raise RefusedError(504, "there was no time left to inspect the image.", 1) from error
    finally:
        for future in futures:
            future.cancel()


@router.post("/v1/predict")
async def predict(
    request: Request,
    recipe: Annotated[str | None, Query()] = None,
    map: Annotated[Literal["png"] | None, Query()] = None,
    overlay: Annotated[Literal["png"] | None, Query()] = None,
) -> dict[str, Any]:
    """Inspect the image that the body is."""
    data = await request.body()
    recipe = recipe or only_recipe(request)
    [(inspection, seen)] = await inspected(request, [data], recipe=recipe, source="request")
    record = inspection.as_record()
    if map:
        record["map"] = await run_in_threadpool(encode_map, seen.prediction, "png")
    if overlay:
        record["overlay"] = await run_in_threadpool(
            draw_overlay, seen.image, seen.prediction, seen.calibration, format=overlay
        )
    for key in ("map", "overlay"):
        if key in record:
            record[key] = base64.b64encode(record[key]).decode()
    return record


def only_recipe(request: Request) -> str:
    """The recipe of a service that has one.

    Raises:
        RefusedError: 400, there are several, or none.
    """
    names = request.app.state.service.recipes.names()
    if len(names) != 1:
        raise RefusedError(400, f"there are {len(names)} recipes: name one, as in ?recipe=NAME.")
    return str(names[0])
