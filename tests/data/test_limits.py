"""What one image may cost is set once a process, by name."""

import pytest

from haloae.data.limits import Limits, current_limits, limit_images, read_limits
from haloae.errors import ConfigError


def test_limits_hold_until_they_are_changed() -> None:
    assert current_limits() == Limits()
    assert limit_images(pixels=10) == Limits(pixels=10)
    assert limit_images(seconds=2.5) == current_limits() == Limits(pixels=10, seconds=2.5)


def test_limits_are_read_as_they_are_typed() -> None:
    assert read_limits(["pixels=4e8", "seconds=0.5"]) == Limits(pixels=400_000_000, seconds=0.5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("pixels", "give a limit and its number"),
        ("pixels=many", "give a limit and its number"),
        ("pixels=0", "limit pixels=0 of an image: give pixels, bytes, seconds or memory a"),
        ("bytes=1.5", "limit bytes=1.5 of an image"),
        ("seconds=inf", "limit seconds=inf of an image"),
        ("seconds=nan", "limit seconds=nan of an image"),
        ("pixel=5", "limit pixel=5 of an image"),
    ],
)
def test_what_is_no_limit_is_refused_and_changes_nothing(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_limits([text])
    assert current_limits() == Limits()
