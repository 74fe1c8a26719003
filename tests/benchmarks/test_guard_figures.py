"""Pictures are spoilt in their own size, and counted as they are judged."""

import numpy as np
import pytest
from benchmarks.guard import WAYS, alarm_table, few_table, spoilt_table

from conftest import texture


@pytest.mark.parametrize("name", WAYS)
def test_a_spoilt_picture_has_size_and_depth_of_the_picture(name: str) -> None:
    before = texture(0, 40, 56)
    after = WAYS[name](before.copy())
    assert (after.shape, after.dtype) == (before.shape, before.dtype)
    assert np.array_equal(after, before) == (name == "as it is")


def test_a_shift_shows_what_was_there_a_quarter_beside_it() -> None:
    picture = texture(0, 40, 56)
    np.testing.assert_array_equal(
        WAYS["shifted by a quarter"](picture)[:, : 56 - 14], picture[:, 14:]
    )


def test_tables_count_what_was_told() -> None:
    told = {"set": "a", "picture": "black", "score": 0.5, "reason": "darker"}
    (row,) = spoilt_table({"spoilt": [{**told, "verdicts": {"unusable": 3, "normal": 1}}]}).rows
    assert row == ["a", "black", "3 · 0 · 1", 0.5, "darker"]
    few = {"8": [60, 1], "16": [60, 0], "32": [0, 0], "64": [0, 0]}
    alarms = [
        {
            "set": name,
            "fitted to": 31,
            "aligned": "no",
            "good": [4, 0],
            "defects": [5, 1],
            "few": few,
        }
        for name in ("a", "b")
    ]
    assert alarm_table({"alarms": alarms}).rows[-1] == ["**all**", None, None, 8, 0, 10, 2]
    assert few_table({"alarms": alarms}).rows[0] == [8, 2, 120, 2]
    assert few_table({"alarms": alarms}).rows[-1] == [64, 0, 0, 0]
