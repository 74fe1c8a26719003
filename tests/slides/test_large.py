"""A slide of 1.6 gigapixels, from end to end, with a network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.slide_cost import write_pyramid

import tiny_trunk  # noqa: F401 - registers the trunk
from haloae.config import Config
from haloae.detection.viewing import in_parts
from haloae.detector import fit_detector
from haloae.slides.sample import sample_tiles
from slides.made import tissue, write_slide

SIDE = 40_000
SCORE = """
import json, resource, sys
from pathlib import Path
import tiny_trunk
from haloae.detector import Detector
from haloae.slides.folder import slide_to_folder
model, slide, out = map(Path, sys.argv[1:])
outcome, _ = slide_to_folder(Detector.load(model, device="cpu"), slide, out)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak, "scored": outcome.scored, "background": outcome.background}))
"""


@pytest.mark.slow
def test_a_slide_of_gigapixels_is_scored_in_a_gigabyte_and_a_half(
    tiny: Config, tmp_path: Path
) -> None:
    config = tiny.replace(network={"autoencoder": False}, detection={"head": "gaussian"})
    good = [
        write_slide(tmp_path / f"{seed}.tif", tissue(seed, 1100, 1100), 1100, 1100)
        for seed in range(3)
    ]
    sampled = sample_tiles(good, in_parts(config))
    fitted = fit_detector(
        sampled.tiles, config, name="slides", device="cpu", slides_of=sampled.groups
    )
    fitted.detector.save(tmp_path / "m.safetensors")
    write_pyramid(tmp_path / "large.tif", SIDE, SIDE // 3)
    command = [sys.executable, "-c", SCORE, tmp_path / "m.safetensors", tmp_path / "large.tif"]
    done = subprocess.run(
        [*map(str, command), str(tmp_path / "out")],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["peak"] < 1.5e9
    assert said["scored"] > 100
    # A ninth is tissue; scored is what touches it, of tiles of an eightieth of the side.
    assert said["scored"] < 0.2 * (said["scored"] + said["background"])
    assert (tmp_path / "out/heatmap.ome.tiff").exists()
