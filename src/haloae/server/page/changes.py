"""Routes of the page by which engineers change thresholds, good images and models."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field

from haloae.server.page.views import Id, Named, known, page_of, person_of
from haloae.server.problems import RefusedError
from haloae.server.requests import service_of
from haloae.server.retraining import is_defective
from haloae.server.safety import engineers_only

router = APIRouter(prefix="/page", include_in_schema=False, dependencies=[Depends(engineers_only)])


def _listed(request: Request, recipe: Annotated[str, Query()]) -> str:
    """The name of a recipe that there is, as the service itself has it.

    Raises:
        RefusedError: 404, there is none.
    """
    return service_of(request).recipes.find(recipe).name


Recipe = Annotated[str, Depends(_listed)]


class NewThreshold(Named):
    """Of scores."""

    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Seen(Named):
    """Of alarms that something has changed."""

    accept: bool
    """True: as it is now, it is usual; False: it is as it was."""


class FormerModel(Named):
    """To go back to."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@router.get("/threshold")
def threshold(request: Request, recipe: Recipe) -> dict[str, Any]:
    """What a threshold is chosen by: scores of the good images, stored ones, reviewed ones."""
    service = service_of(request)
    loaded = service.recipes.get(recipe)
    calibration, history = loaded.detector.calibration, service.records.store.history
    reviewed: dict[bool, list[float]] = {True: [], False: []}
    for stored in history.reviewed(recipe=recipe):
        is_bad = is_defective(stored)
        if is_bad is not None and stored.inspection.model == loaded.sha256:
            reviewed[is_bad].append(stored.inspection.score)
    return {
        "recipe": recipe,
        "threshold": calibration.threshold.value,
        "set_by": calibration.set_by,
        "fitted": calibration.fitted_threshold,
        "good": list(calibration.scores),
        "stored": np.sort(history.scores(recipe, loaded.sha256)).tolist(),
        "reviewed_good": reviewed[False],
        "reviewed_defective": reviewed[True],
    }


@router.post("/threshold")
def set_threshold(request: Request, recipe: Recipe, given: NewThreshold) -> dict[str, Any]:
    """Set it, in a file beside the model."""
    service_of(request).models.set_threshold(recipe, given.threshold, person_of(request, given))
    return threshold(request, recipe)


@router.post("/threshold/as-fitted")
def unset_threshold(request: Request, recipe: Recipe, given: Named) -> dict[str, Any]:
    """Go back to that of the model file."""
    service_of(request).models.unset_threshold(recipe, person_of(request, given))
    return threshold(request, recipe)


@router.post("/alarms")
def take_back_alarms(request: Request, recipe: Recipe, given: Seen) -> dict[str, Any]:
    """Take back what is said to have changed, and watch anew."""
    service = service_of(request)
    who, role = person_of(request, given)
    words = [alarm.words for alarm in service.drift.alarms() if alarm.recipe == recipe]
    after = "usual from now on" if given.accept else "put right"
    service.records.store.audit(
        "alarms", recipe, before="; ".join(words), after=after, who=who, role=role
    )
    service.drift.restart(recipe, accept=given.accept)
    return {"recipe": recipe}


@router.post("/inspections/{inspection}/good")
def add_to_good(request: Request, inspection: Id, given: Named) -> dict[str, Any]:
    """Add an image to the good ones that the next retraining fits to."""
    service, stored = service_of(request), known(request, inspection)
    kept = service.records.images.read(stored.inspection)
    if kept is None:
        raise RefusedError(404, "the image was not kept, or is no more.")
    recipe = service.recipes.find(stored.inspection.recipe).name
    who, role = person_of(request, given)
    service.records.store.audit(
        "good image", recipe, before=None, after=stored.inspection.image, who=who, role=role
    )
    service.retraining.good.add(recipe, stored.inspection, kept)
    return {"good": len(service.retraining.good.paths(recipe))}


@router.get("/models")
def models(request: Request, recipe: Recipe) -> dict[str, Any]:
    """A recipe's model in use, the new one, former ones, and the last changes."""
    return page_of(request).models(recipe)


@router.post("/retrain")
def retrain(request: Request, recipe: Recipe, given: Named) -> dict[str, Any]:
    """Begin to fit a new model, and compare it with the one in use."""
    service_of(request).retraining.start(recipe, person_of(request, given))
    return page_of(request).models(recipe)


@router.post("/promote")
def promote(request: Request, recipe: Recipe, given: Named) -> dict[str, Any]:
    """Use the new model."""
    service_of(request).models.promote(recipe, person_of(request, given))
    return page_of(request).models(recipe)


@router.post("/discard")
def discard(request: Request, recipe: Recipe, given: Named) -> dict[str, Any]:
    """Remove the new model."""
    service_of(request).models.discard(recipe, person_of(request, given))
    return page_of(request).models(recipe)


@router.post("/roll-back")
def roll_back(request: Request, recipe: Recipe, given: FormerModel) -> dict[str, Any]:
    """Use a former model."""
    service_of(request).models.roll_back(recipe, given.sha256, person_of(request, given))
    return page_of(request).models(recipe)
