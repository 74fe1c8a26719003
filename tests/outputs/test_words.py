"""What came out, in a sentence."""

import pytest

from haloae.evaluation.evaluate import PROTOCOL, Metrics
from haloae.outputs.report.words import limits_of, verdict


def metrics_of(
    *,
    good: int = 36,
    defective: int = 65,
    auroc: float | None = 0.98,
    plain: float | None = None,
    extrapolated: bool = False,
    unusable: int = 0,
) -> Metrics:
    """Of a detector that finds all defects but four, with one false alarm."""
    return Metrics(
        image_auroc=auroc,
        image_ap=None,
        image_f1max=None,
        pixel_auroc=None,
        pixel_ap=None,
        pixel_f1max=None,
        pixel_aupro=None,
        pixel_aupro_005=None,
        outline_iou=None,
        outline_iou_best=None,
        false_alarm_rate=1 / good if good else None,
        detection_rate=(defective - 4) / defective if defective else None,
        wanted_false_alarm_rate=0.01,
        threshold=1.5,
        extrapolated=extrapolated,
        images_needed=99,
        held_out=4,
        good=good,
        defective=defective,
        backbone="bundled",
        preset="fast",
        engine="torch",
        protocol=PROTOCOL,
        reasons={"pixel": "2 defective test images have no mask"},
        ms_per_image=10.0,
        skipped=0,
        unusable=unusable,
        pixel_difference_image_auroc=plain,
    )


@pytest.mark.parametrize(
    ("auroc", "plain", "words"),
    [
        (0.98, 0.77, "ranks images with AUROC 0.98, against 0.77 for the plain pixel difference."),
        (0.5, 0.77, "AUROC 0.50, worse than the plain pixel difference with 0.77."),
        (1.0, 1.0, "AUROC 1.00, no better than the plain pixel difference with 1.00."),
        (0.98, None, "ranks images with AUROC 0.98."),
    ],
)
def test_the_verdict(auroc: float, plain: float | None, words: str) -> None:
    said = verdict(metrics_of(auroc=auroc, plain=plain))
    assert said.startswith("Finds 61 of 65 defects with 1 false alarm in 36 good images; ")
    assert said.endswith(words)


def test_the_verdict_on_images_of_one_kind() -> None:
    said = verdict(metrics_of(good=0, auroc=None))
    assert said.startswith("Finds 61 of 65 defects; without good test images nothing is known")
    said = verdict(metrics_of(defective=0, auroc=None))
    assert said.startswith("Raises 1 false alarm in 36 good images; without defective")


def test_limits_are_told() -> None:
    assert limits_of(metrics_of(), [], 0) == [
        "No pixel metrics: 2 defective test images have no mask."
    ]
    told = " ".join(limits_of(metrics_of(good=1, extrapolated=True), [], 2))
    assert "4 left-out good images are too few to see a false-alarm rate of 1 %" in told
    assert "which needs 99." in told
    assert "Only 1 good test image:" in told
    assert "Left out of the data set: 2 files or folders." in told


def test_unusable_images_are_a_limit() -> None:
    (said,) = set(limits_of(metrics_of(unusable=2), [], 0)) - set(limits_of(metrics_of(), [], 0))
    assert said.startswith("Too unlike the training images to be judged")
    assert said.endswith("2 test images.")
