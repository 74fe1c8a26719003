"""The service as one ASGI application: what it consists of, and its routes put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from haloae._version import __version__
from haloae.errors import ConfigError, HaloaeError, ImageError
from haloae.server import requests, status, v2
from haloae.server.attached import Attached
from haloae.server.drift import Drift
from haloae.server.inspector import Inspector
from haloae.server.metrics import Metrics
from haloae.server.models import Models
from haloae.server.page import changes, views
from haloae.server.page.page import Page
from haloae.server.problems import Problems, RefusedError
from haloae.server.recipes import Recipes
from haloae.server.records import Records
from haloae.server.requests import REFUSALS
from haloae.server.retraining import GoodImages, Retraining
from haloae.server.safety import Doorkeeper, Gate, Tokens, refused_response
from haloae.server.settings import Settings
from haloae.server.watch import Watch


@dataclass(frozen=True, eq=False)
class Service:
    """What the routes work with: `app.state.service`."""

    settings: Settings
    problems: Problems
    recipes: Recipes
    inspector: Inspector
    doorkeeper: Doorkeeper
    metrics: Metrics
    attached: Attached
    records: Records
    drift: Drift
    models: Models
    retraining: Retraining


def create_app(
    models: Path,
    *,
    data: Path | None = None,
    settings: Settings | None = None,
    tokens: Tokens | None = None,
) -> FastAPI:
    """The service of a model file or a folder of them.

    Whoever wants to hear of inspections puts a `Listener` into
    ``app.state.service.inspector.listeners`` before it is started.

    Args:
        models: the file or folder.
        data: a folder for all that is kept; None: one that is gone afterwards.
        settings: all of them; None: as they are by default.
        tokens: that requests must have; None: none, which is for loopback alone.

    Raises:
        DataError: there is no such file or folder.
        ConfigError: a source, a sink or the page's translation cannot be used.
        OutputError: the folder cannot be had.
        MissingExtraError: what a source or a sink needs is not installed.
    """
    settings = settings or Settings()
    service = _service(models, data, settings, tokens)
    refusals = "; ".join(f"{status}: {meaning}" for status, meaning in REFUSALS.items())
    app = FastAPI(
        title="haloae",
        version=__version__,
        description=f"Inspects images. What is not carried out has a status: {refusals}.",
        lifespan=lambda _: _running(service),
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.state.page = Page(service)
    app.add_middleware(Gate, doorkeeper=service.doorkeeper, settings=settings)
    app.add_middleware(Watch, metrics=service.metrics)
    for router in (requests.router, v2.router, status.router, views.router, changes.router):
        app.include_router(router)
    for kind in (HaloaeError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer_to)
    return app


def _service(models: Path, data: Path | None, settings: Settings, tokens: Tokens | None) -> Service:
    problems = Problems()
    recipes = Recipes(
        models,
        threads=settings.queue.threads,
        memory=settings.models.memory,
        look=settings.models.look,
        problems=problems,
    )
    inspector = Inspector(recipes, settings.queue, problems)
    metrics = Metrics()
    attached = Attached(settings.source, settings.sink, inspector, problems, data)
    records = Records(data, settings.keep, problems)
    changing = Models(recipes, records)
    good = GoodImages(records, settings.retraining.good)
    service = Service(
        settings,
        problems,
        recipes,
        inspector,
        Doorkeeper(tokens),
        metrics,
        attached,
        records,
        Drift(lambda name: recipes.get(name).detector),
        changing,
        Retraining(changing, recipes, records, good),
    )
    metrics.watch(service)
    return service


@asynccontextmanager
async def _running(service: Service) -> AsyncIterator[None]:
    inspector, seconds = service.inspector, service.settings.http.stop
    await run_in_threadpool(service.records.open)
    # The store first, as nothing that comes later may keep an inspection from it.
    inspector.listeners = service.records.listeners() | inspector.listeners
    inspector.listeners["drift"] = lambda one, seen: service.drift.add(
        one, seen.prediction.measures
    )
    inspector.listeners["metrics"] = service.metrics.listen  # the last, as it tells of the others
    service.recipes.start()
    inspector.start()
    service.attached.start(service.records)
    yield
    await run_in_threadpool(service.attached.stop_sources, seconds)
    await run_in_threadpool(inspector.stop, seconds)
    await run_in_threadpool(service.attached.stop_sinks, seconds)
    await run_in_threadpool(service.recipes.stop)
    await run_in_threadpool(service.retraining.stop)
    await run_in_threadpool(service.records.close, seconds)


def answer_to(request: Request, error: Exception) -> JSONResponse:
    """What is answered where something is wrong: ``{"error": "a sentence"}``."""
    return refused_response(_refusal(error))


def _refusal(error: Exception) -> RefusedError:
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, ImageError):
        return RefusedError(422, str(error))
    if isinstance(error, ConfigError):
        return RefusedError(400, str(error))
    if isinstance(error, HTTPException):
        return RefusedError(error.status_code, f"{error.detail}.")
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return RefusedError(422, f"{where}: {first['msg']}.")
    return RefusedError(503, str(error))
