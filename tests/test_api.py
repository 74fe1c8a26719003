"""What `import haloae` gives, and what it does not cost."""

import inspect
import subprocess
import sys

import pytest

import haloae


def test_the_public_names_are_these() -> None:
    assert haloae.__all__ == [
        "Config",
        "ConfigError",
        "DataError",
        "Detector",
        "ExportError",
        "HaloAE",
        "HaloaeError",
        "ImageError",
        "MaskError",
        "Masked",
        "MissingExtraError",
        "ModelFileError",
        "OutputError",
        "Prediction",
        "TrainingError",
        "WeightsError",
        "__version__",
        "limit_images",
        "load",
        "preset",
        "seal",
    ]
    assert set(haloae.__all__) == set(dir(haloae))


def test_every_name_is_there_and_documented() -> None:
    for name in haloae.__all__:
        value = getattr(haloae, name)
        assert name == "__version__" or inspect.getdoc(value)
    with pytest.raises(AttributeError, match="no attribute 'Detektor'"):
        _ = haloae.Detektor


def test_errors_are_one_tree() -> None:
    names = [name for name in haloae.__all__ if name.endswith("Error")]
    assert all(issubclass(getattr(haloae, name), haloae.HaloaeError) for name in names)
    assert all(name in (sys.modules["haloae.errors"].__doc__ or "") for name in names)


def test_load_is_the_detector_s() -> None:
    assert haloae.load == haloae.Detector.load


def test_importing_costs_nothing_and_a_detector_no_torch() -> None:
    code = (
        "import sys, haloae; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules); "
        "haloae.Detector, haloae.load; assert not {'torch', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
