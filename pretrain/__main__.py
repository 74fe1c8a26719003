"""Make a bundled backbone: pictures → training → weights file and its record.

    python -m pretrain resnet18 --photos FOLDER --out runs/pretrain/resnet18-first [--minutes 10]
    python -m pretrain resnet18 --photos FOLDER --out runs/pretrain/resnet18 --start FIRST

The second command refines the weights file FIRST that the first one made. Called again, either goes
on where it stopped; at the end it writes `<trunk>.safetensors` and `record.json`, the facts of the
model card. Which are shipped: docs/backbone.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from haloae.errors import WeightsError
from haloae.network.trunks import TRUNKS
from haloae.network.weights import digest, load_weights
from pretrain.export import finished, mixed
from pretrain.pictures import load_pictures, normalised_crops
from pretrain.train import Recipe, train

RECIPES = {
    "resnet18": Recipe(
        "resnet18", 6000, size=64, late_size=96, tuning_steps=700, photo_stride=2, textures=600
    ),
    "vgg19": Recipe(
        "vgg19", 2200, size=48, late_size=64, tuning_steps=0, photo_stride=4, textures=300
    ),
}
HARDER: dict[str, Any] = {
    "steps": 0,
    "longest_gradient": 10.0,
    "naming_weight": 1.0,
    "distance_weight": 2.0,
    "floor": 1.0,
    "dim_share": 0.5,
}
REFINEMENTS = {
    "resnet18": RECIPES["resnet18"]._replace(
        **HARDER, tuning_steps=1000, tuning_rate=0.02, start_share=0.25
    ),
    "vgg19": RECIPES["vgg19"]._replace(**HARDER, tuning_steps=1500, start_share=0.1),
}
"""What `--start` does: a second phase with harder pairs."""


def main() -> None:
    """Train for a while; at the end of the schedule, write the files."""
    parser = argparse.ArgumentParser(prog="python -m pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("trunk", choices=sorted(RECIPES))
    parser.add_argument("--photos", type=Path, required=True, help="folder of .jpg photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--start", type=Path, help="weights file to refine; else random filters")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int)
    for name, kind in Recipe.__annotations__.items():
        if name not in ("trunk", "start"):
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="default: shipped")
    arguments = parser.parse_args()
    start = None
    if arguments.start:
        wanted = TRUNKS[arguments.trunk].build().state_dict()
        try:
            start = load_weights(arguments.start, arguments.trunk, wanted)
        except WeightsError as error:
            parser.error(str(error))
    arguments.start = start.sha256 if start else None
    changes = {n: v for n in Recipe._fields if (v := getattr(arguments, n)) is not None}
    recipe = (REFINEMENTS if start else RECIPES)[arguments.trunk]._replace(**changes)
    if recipe.start_share and not start:
        parser.error("--start-share: needs --start.")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    pictures = load_pictures(
        arguments.photos, recipe.photo_stride, recipe.textures, recipe.seed, out.parent
    )
    device = torch.device(arguments.device)
    student, state = train(
        pictures, recipe, out, device=device, minutes=arguments.minutes,
        start=start.tensors if start else None,
    )  # fmt: skip
    if state["step"] < recipe.all_steps:
        print(f"stopped at step {state['step']} of {recipe.all_steps}: the same command goes on")
        return
    inputs = [batch.to(device) for batch in normalised_crops(pictures, recipe.seed)]
    tensors = finished(student.trunk, recipe.trunk, inputs)
    if start and recipe.start_share:
        between = mixed(recipe.trunk, start.tensors, tensors, recipe.start_share, inputs).to(device)
        tensors = finished(between, recipe.trunk, inputs)
    path = out / f"{recipe.trunk}.safetensors"
    save_file(tensors, path, metadata={"trunk": recipe.trunk})
    record = {
        "recipe": recipe._asdict(),
        "pictures": len(pictures),
        "device": arguments.device,
        "torch": torch.__version__,
        "seconds": round(state["seconds"]),
        "sha256": digest(tensors),
        "bytes": path.stat().st_size,
    }
    (out / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
