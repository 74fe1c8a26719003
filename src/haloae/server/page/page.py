"""What the page shows: how the service is, the shift, the last images and their pictures."""

import json
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from importlib.resources import files
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from haloae.data.images import image_from_bytes
from haloae.data.limits import current_limits
from haloae.errors import DataError
from haloae.outputs.pictures import MAX_SIDE, THUMBNAIL, draw_marked
from haloae.server.images import Kept
from haloae.server.inspection import Inspection
from haloae.server.page.texts import read_texts
from haloae.server.problems import RefusedError
from haloae.server.recipes import Listed
from haloae.server.retraining import missing
from haloae.server.rows import Stored
from haloae.server.safety import Role

if TYPE_CHECKING:
    from haloae.server.app import Service

Kind = Literal["heat", "plain", "small"]
"""Of pictures: with heat and outline, without, or with both as a thumbnail."""
LAST = 12
"""Inspections that are listed."""
GAPS = 20
"""Times in which inspections were lost that are listed; of more, the newest."""
REVIEWED_AT_ONCE = 100
"""Inspections that wait for a word and are listed; of more, the newest."""
RECENTLY = timedelta(seconds=10)
"""After an inspection, the service is said to be running for so long."""
MOST_PICTURES = 100
"""That are kept in memory, the last that were asked for."""
TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class Page:
    """Of one service.

    Args:
        service: whose page it is.

    Raises:
        ConfigError: the translation does not fit.
    """

    def __init__(self, service: "Service") -> None:
        self._service = service
        self.texts = read_texts(service.settings.page.texts)
        environment = Environment(
            loader=PackageLoader("haloae.server.page", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.html = environment.get_template("page.html").render(
            t=self.texts, texts=json.dumps(self.texts).replace("<", "\\u003c")
        )
        self.static = {
            each.name: (each.read_bytes(), f"{TYPES[each.name.rpartition('.')[2]]}; charset=utf-8")
            for each in (files("haloae.server.page") / "static").iterdir()
        }
        """Content and type by name: what is not in here cannot be asked for."""
        self._lock = Lock()
        self._pictures: OrderedDict[tuple[str, Kind], bytes] = OrderedDict()

    def state(self, recipe: str | None, role: Role) -> dict[str, Any]:
        """All that is shown at a glance.

        Args:
            recipe: that is chosen; None, or one that is no more: the first.
            role: of who looks.
        """
        service = self._service
        records, recipes = service.records, service.recipes.listed()
        chosen = next(
            (one for one in recipes if one.name == recipe), recipes[0] if recipes else None
        )
        name = chosen.name if chosen else ""
        last = records.last(LAST, name)
        # Which are told of when they are used, and may change while nobody does.
        service.problems.tell("store", records.store.state().words)
        if records.mirror is not None:
            service.problems.tell("database", records.mirror.state().problem)
        start = self._shift_start()
        state, reason = self._state(chosen, last)
        retraining = service.retraining.state()
        values: dict[str, Any] = {
            "role": role,
            "has_tokens": service.doorkeeper.tokens is not None,
            "state": state,
            "reason": reason,
            "problems": [f"{one.part}: {one.message}" for one in service.problems.now()],
            "alarms": [
                {"recipe": alarm.recipe, "words": alarm.words, "time": alarm.time.isoformat()}
                for alarm in service.drift.alarms()
            ],
            "recipe": name,
            "recipes": [one.name for one in recipes],
            "since": start.isoformat(),
            "last": [stored.as_record() for stored in last],
            "counts": None,
            "to_review": None,
            "waiting": self._waiting(),
            "gaps": [_plain(gap._asdict()) for gap in records.gaps(GAPS)],
            "has_boxes": records.mirror is not None,
            "retraining": retraining and retraining.as_record(),
        }
        with suppress(DataError):  # which the store says as a problem, too
            counts = records.store.history.counts(start.astimezone(UTC), recipe=name)
            values["counts"] = counts._asdict() | {"rate": counts.rate}
            values["to_review"] = len(
                records.store.history.to_review(REVIEWED_AT_ONCE, recipe=name)
            )
        return values

    def _waiting(self) -> dict[str, Any] | None:
        """Inspections that are not stored yet, since when and why; None: there are none."""
        state = self._service.records.store.state()
        if state.problem is None or state.since is None or not state.waiting:
            return None
        return {
            "first": state.since.isoformat(),
            "last": None,
            "images": state.waiting,
            "reason": state.problem,
        }

    def boxes(self) -> dict[str, Any]:
        """What all boxes have stored of this shift, as it was last read.

        Raises:
            RefusedError: 404, there is no database of several boxes.
        """
        mirror = self._service.records.mirror
        if mirror is None:
            raise RefusedError(404, "there is no database of several boxes: set keep.database.")
        found = mirror.all_boxes(self._shift_start().astimezone(UTC))
        boxes = found.boxes if found else ()
        return {
            "box": mirror.box,
            "read": found and found.read.isoformat(),
            "since": found and found.since.isoformat(),
            "boxes": [
                {"box": one.box, "last": one.last.isoformat(), "lost": one.lost}
                | one.counts._asdict()
                | {"rate": one.counts.rate}
                for one in boxes
            ],
        }

    def _shift_start(self) -> datetime:
        return shift_start(datetime.now().astimezone(), self._service.settings.page.shifts)

    def _state(self, recipe: Listed | None, last: list[Stored]) -> tuple[str, str | None]:
        """``ready``, ``running`` or ``error``, with the reason."""
        if recipe is None:
            return "error", self.texts["no_recipe"]
        if recipe.is_parked:
            return "error", self.texts["recipe_unloaded"]
        if recipe.problem is not None and not recipe.is_loaded:
            return "error", recipe.problem
        inspector = self._service.inspector
        if not inspector.is_taking:
            return "error", self.texts["stopping"]
        is_recent = bool(last) and datetime.now(UTC) - last[0].inspection.time < RECENTLY
        return ("running" if is_recent or inspector.queued else "ready"), None

    def picture(self, inspection: Inspection, kind: Kind) -> bytes:
        """A JPEG of an inspected image. One is drawn at a time, so that inspections go on.

        Raises:
            RefusedError: 404, the image was not kept, or is no more.
            ImageError: it cannot be decoded any more.
        """
        key = inspection.id, kind
        with self._lock:
            made = self._pictures.pop(key, None)
            if made is None:
                kept = self._service.records.images.read(inspection)
                if kept is None:
                    raise RefusedError(404, "the image was not kept, or is no more.")
                made = _drawn(inspection, kept, kind)
            self._pictures[key] = made
            while len(self._pictures) > MOST_PICTURES:
                self._pictures.popitem(last=False)
        return made

    def models(self, recipe: str) -> dict[str, Any]:
        """All that is shown of a recipe's models."""
        service = self._service
        loaded = service.recipes.get(recipe)
        provenance, calibration = loaded.detector.provenance, loaded.detector.calibration
        state = service.retraining.state()
        good: int | None = None
        with suppress(DataError):
            good = len(service.retraining.good.paths(recipe))
        return {
            "recipe": recipe,
            "file": service.recipes.find(recipe).file,
            "sha256": loaded.sha256,
            "preset": loaded.detector.config.preset,
            "engine": loaded.detector.engine,
            "fitted_on": provenance.fitted_on,
            "threshold": calibration.threshold.value,
            "set_by": calibration.set_by,
            "good": good,
            "missing": missing(),
            "retraining": state and state.as_record(),
            "new": service.models.new(recipe),
            "former": [former._asdict() for former in service.models.former(recipe)],
            "changes": [
                change._asdict() | {"time": change.time.isoformat()}
                for change in service.records.store.history.changes(30)
            ],
            "first_broken": service.records.store.history.first_broken(),
        }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON holds them."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def _drawn(inspection: Inspection, kept: Kept, kind: Kind) -> bytes:
    image = image_from_bytes(kept.data, "the image", current_limits())
    prediction = kept.prediction(inspection, (image.height, image.width))
    if kind == "plain":
        prediction = replace(prediction, grid_map=np.zeros_like(prediction.grid_map))
    return draw_marked(image, prediction, most=THUMBNAIL if kind == "small" else MAX_SIDE)


def shift_start(now: datetime, shifts: tuple[time, ...]) -> datetime:
    """When the shift began.

    >>> now = datetime(2026, 3, 1, 5, 30, tzinfo=UTC)
    >>> shift_start(now, (time(6), time(22))).isoformat()
    '2026-02-28T22:00:00+00:00'

    Args:
        now: with its time zone, in which shifts begin.
        shifts: when they begin, at least one.
    """
    days = (now.date(), now.date() - timedelta(days=1))
    starts = [datetime.combine(day, each, now.tzinfo) for day in days for each in shifts]
    return max(start for start in starts if start <= now)
