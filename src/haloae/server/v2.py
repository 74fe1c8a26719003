"""`/v2`: the Open Inference Protocol, as clients of KServe and Triton speak it."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from haloae._version import __version__
from haloae.server.problems import RefusedError
from haloae.server.recipes import Listed
from haloae.server.requests import RESPONSES, inspected, service_of
from haloae.server.safety import engineers_only
from haloae.server.tensors import HEADER_LENGTH, INPUT, OUTPUTS, InferRequest, answer, parse

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol V2"], responses=RESPONSES)
RecipeName = Annotated[str, Path(description="of the recipe")]
for_engineers = [Depends(engineers_only)]


def _whole_schema() -> dict[str, Any]:
    """Of a request's JSON, without references, which lead nowhere from within a description."""
    schema = InferRequest.model_json_schema()
    parts = schema.pop("$defs")

    def resolved(value: Any) -> Any:  # noqa: ANN401 - any JSON
        if isinstance(value, dict):
            if "$ref" in value:
                return resolved(parts[value["$ref"].rpartition("/")[2]])
            return {key: resolved(each) for key, each in value.items()}
        return [resolved(each) for each in value] if isinstance(value, list) else value

    return {key: resolved(value) for key, value in schema.items()}


INFER_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _whole_schema()},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {
            "name": HEADER_LENGTH,
            "in": "header",
            "required": False,
            "description": "bytes of the JSON, where tensors follow it",
            "schema": {"type": "integer", "minimum": 0},
        }
    ],
}


@router.get("")
async def server() -> dict[str, Any]:
    """What serves."""
    extensions = ["binary_tensor_data", "model_repository"]
    return {"name": "haloae", "version": __version__, "extensions": extensions}


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """Whether the process answers."""
    return {"live": True}


@router.get("/health/ready")
async def ready(request: Request) -> dict[str, bool]:
    """Whether images are taken in."""
    if not service_of(request).inspector.is_taking:
        raise RefusedError(503, "the service is being stopped.", 5)
    return {"ready": True}


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Whether images are taken in, and what is wrong with any part."""
    service = service_of(request)
    problems = [
        problem._asdict() | {"since": problem.since.isoformat()}
        for problem in service.problems.now()
    ]
    return {"live": True, "ready": service.inspector.is_taking, "problems": problems}


@router.get("/models/{name}")
async def model(request: Request, name: RecipeName) -> dict[str, Any]:
    """What a recipe takes and gives."""
    found = service_of(request).recipes.find(name)
    return {
        "name": name,
        "versions": [],
        "platform": f"haloae {found.file.rpartition('.')[2]}",
        "inputs": [
            {"name": INPUT, "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
            {"name": INPUT, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": output, "datatype": datatype, "shape": shape}
            for output, (datatype, shape) in OUTPUTS.items()
        ],
    }


@router.get("/models/{name}/ready")
async def model_ready(request: Request, name: RecipeName) -> dict[str, Any]:
    """Whether a recipe is in use and can be loaded, as far as is known."""
    found = service_of(request).recipes.find(name)
    if (reason := _not_ready(found)) is not None:
        raise RefusedError(409 if found.is_parked else 503, reason)
    return {"name": name, "ready": True}


@router.post(
    "/models/{name}/infer",
    openapi_extra=INFER_BODY,
    response_class=Response,
    responses={200: {"content": {"application/json": {}, "application/octet-stream": {}}}},
)
async def infer(request: Request, name: RecipeName) -> Response:
    """Inspect images given as a tensor of pixels or of files."""
    service = service_of(request)
    service.recipes.find(name)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RefusedError(415, "compressed requests are not taken: send it as it is.")
    length, most = request.headers.get(HEADER_LENGTH), service.settings.queue.places
    wanted = await run_in_threadpool(parse, await request.body(), length, most)
    found = await inspected(request, wanted.images, recipe=name, source="request")
    body, length_of_json = await run_in_threadpool(answer, name, wanted, found)
    if length_of_json is None:
        return Response(body, media_type="application/json")
    headers = {HEADER_LENGTH: str(length_of_json)}
    return Response(body, media_type="application/octet-stream", headers=headers)


@router.post("/repository/index")
async def index(request: Request) -> list[dict[str, str]]:
    """All recipes, and which are ready."""
    return [
        {
            "name": one.name,
            "state": "UNAVAILABLE" if _not_ready(one) else "READY",
            "reason": _not_ready(one) or one.problem or "",
        }
        for one in service_of(request).recipes.listed()
    ]


@router.post("/repository/models/{name}/load", dependencies=for_engineers)
async def load(request: Request, name: RecipeName) -> dict[str, Any]:
    """Load a recipe now, and take it into use again."""
    await run_in_threadpool(service_of(request).recipes.load, name)
    return {"name": name, "state": "READY"}


@router.post("/repository/models/{name}/unload", dependencies=for_engineers)
async def unload(request: Request, name: RecipeName) -> dict[str, Any]:
    """Take a recipe out of use and of memory until it is loaded again."""
    await run_in_threadpool(service_of(request).recipes.unload, name)
    return {"name": name, "state": "UNAVAILABLE"}


def _not_ready(recipe: Listed) -> str | None:
    """Why a recipe cannot be used; None: it can, though its newest file may not be loadable."""
    if recipe.is_parked:
        return "it was unloaded."
    return None if recipe.is_loaded else recipe.problem
