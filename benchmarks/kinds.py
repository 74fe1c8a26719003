"""The kinds of results files: where each comes from, how it is made, what is said of it.

Titles, commands and notes stand here; figures come from the runs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import (
    bad_images,
    copying,
    counted,
    curve,
    drift,
    drift_delays,
    folder,
    fuzzing,
    gpu,
    guard,
    halves,
    paired,
    paper,
    retraining,
    serving,
    slide_cost,
    slide_rates,
    speed_pages,
    views,
)
from benchmarks.gathering import (
    all_splits,
    benchmark,
    campaign,
    demo,
    late,
    of_code,
    of_one,
    of_runs,
    of_several,
    service_campaign,
    tried_again,
    wanted,
)
from benchmarks.tables import Found


class Kind(NamedTuple):
    """A results file that can be written."""

    title: str
    make: Callable[[Sequence[Path]], Found]
    """From the folders of runs."""
    runs: str = ""
    """The command that makes these; empty: there are none, it is counted."""
    note: str = ""


SPEED = (
    "python -m benchmarks.speed --out runs/speed --threads 2 --repeats 5 --only "
    "published,default-float32,default-onnx,default-openvino,fast-float32,fast-onnx,fast-openvino"
)
GUARD = "python -m benchmarks.guard ROOT --out runs/guard"
RESNET18 = (
    "haloae benchmark ROOT --presets default --set network.trunk=resnet18 --backbone bundled "
    "--heads gaussian --out runs/resnet18"
)
GPU = "PYTHONPATH=src python -m benchmarks.gpu --out runs/gpu/results.json"
FOLDER = "python -m benchmarks.folder MODEL CATEGORY --out runs/folder --threads 2"
KINDS = {
    "benchmark": Kind(
        "Ten sets of real photographs",
        benchmark,
        "haloae benchmark ROOT --presets default --seeds 0,1,2 --out runs/default; "
        "haloae benchmark ROOT --presets default --heads gaussian,nearest,nearest_halo "
        "--out runs/heads; haloae benchmark ROOT --presets fast --out runs/fast",
        "`default` with three seeds, the others with one. Defects detected and false alarms are of "
        "each run's own scores, with the threshold as the package now fits it to the scores of "
        "good images in the run's model file.",
    ),
    "benchmark-resnet18": Kind(
        "`default` and its best rival on the bundled ResNet-18",
        benchmark,
        RESNET18,
        "One seed.",
    ),
    "paired-resnet18": Kind(
        "Image AUROC of `default` against its best rival on the bundled ResNet-18, the same images",
        of_runs(paired.table),
        RESNET18,
        "Intervals as in paired.json; one seed.",
    ),
    "paired": Kind(
        "Image AUROC of `default` against each rival on the same images",
        of_runs(paired.table),
        "haloae benchmark ROOT --presets default --seeds 0,1,2 --out runs/default; "
        "haloae benchmark ROOT --presets default --heads gaussian,nearest,nearest_halo "
        "--out runs/heads",
        "Intervals: test images were drawn anew 2,000 times, good and defective ones apart, the "
        "same for both; what other training images would change is not in them. Papers count as "
        "one set.",
    ),
    "halves": Kind(
        "Arms of heads.json chosen on one half of the sets, and what they do on the other",
        of_code(halves.table),
        note="Image AUROC, score the mean of the highest 3 %, points above the Gaussian a place of "
        "the same screening. Arms with a figure for all these sets; papers, whose figure there is "
        "of all four, are left out.",
    ),
    "paper": Kind(
        "The published network, trained by its losses",
        of_runs(paper.table),
        "python -m benchmarks.paper ROOT --out runs/paper --sets cookie,tire --device cuda "
        "--image-size 128 --steps 800; the same with --image-size 256 --steps 300",
        "bfloat16, batches of 4, one seed, on one H200, several runs side by side.",
    ),
    "wanted": Kind(
        "Defective test images found by `default`, and good ones stopped, by the wanted rate",
        wanted,
        "haloae benchmark ROOT --presets default --out runs/default",
        "In brackets the number of good test images that are stopped. Seed 0.",
    ),
    "demo": Kind(
        "What `haloae demo` measures",
        demo,
        "haloae demo",
        "The images were drawn with such figures in view.",
    ),
    "speed-presets": Kind(
        "Speed of `default` and `fast`, beside the published forward pass in the same run",
        of_one(speed_pages.detectors),
        SPEED,
        "A memory of 100 images. Medians, quartiles in brackets.",
    ),
    "start-up": Kind("Start-up, whole processes", of_one(speed_pages.start_up), SPEED),
    "speed-peers": Kind(
        "Other detectors, untrained, the forward pass in PyTorch, float32, 256², one at a time",
        of_one(speed_pages.detectors),
        "python -m benchmarks.speed --out runs/speed-peers --threads 2 --repeats 5 --batches 1 "
        "--only 'published,default-float32,fast-float32,default-onnx,fast-onnx,padim,stfpm,"
        "efficient-ad,patchcore-*,reverse-distillation'",
    ),
    "resolution": Kind(
        "`fast`'s network at other image sizes, PyTorch, float32, one at a time",
        of_one(speed_pages.resolution),
        "python -m benchmarks.speed --out runs/speed --threads 2",
    ),
    "least-time": Kind(
        "The least time a pass can take on this machine, ms",
        of_one(speed_pages.least_time),
        "python -m benchmarks.speed --out runs/speed --threads 2",
        "Operations counted over what a product of matrices of 2,048² reaches.",
    ),
    "folder": Kind(
        "Images a second of `predict` on a folder, against the network alone",
        of_several(folder.rates),
        FOLDER,
        "Batches of 8; predict with --maps none --overlays none.",
    ),
    "memory": Kind("Most memory of the whole process, MB", of_several(folder.memory), FOLDER),
    "serving": Kind(
        "A request to `haloae serve` beside `Detector.predict` on the same JPEG bytes",
        of_several(serving.table),
        "python -m benchmarks.serving MODEL IMAGE --out runs/serving",
        "Loopback, each client asks as soon as it is answered, on two cores that had other work: "
        "of the latencies the most is waiting for them. Processor time of the whole service; "
        "memory at the beginning and at the end.",
    ),
    "retraining": Kind(
        "Inspections while `haloae serve` retrains a model, and while it does not",
        of_several(retraining.table),
        "python -m benchmarks.retraining MODEL GOOD --out runs/retraining",
        "Loopback, one client, which asks as soon as it is answered, on two cores that had other "
        "work; alone: a minute before and a minute after.",
    ),
    "service-faults": Kind(
        "What befell `haloae serve` under load, and what came of it",
        service_campaign,
        "python -m pytest -m slow tests/server/test_kills.py --faults-out runs/service-faults",
        "Three clients and a camera's folder; sinks: folder, webhook, and MQTT with a real broker. "
        "Lost: answered or put away, and not in the store. Not delivered: in the store, and not at "
        "one of the sinks. Twice: came more than once, with the same id.",
    ),
    "fuzzing": Kind(
        "Requests made from docs/openapi.json, and how `haloae serve` answers",
        of_several(fuzzing.table),
        "python -m benchmarks.fuzzing MODEL --out runs/fuzzing",
        "By schemathesis, valid ones and nearly valid ones; half of the images and tensors among "
        "them are whole, the others damaged. Checked of each answer: its status is below 500, and "
        "status, type and content are as described. An image was given a minute (queue.seconds), "
        "as the machine had other work.",
    ),
    "bad-images": Kind(
        "Small files that cost much to decode",
        of_several(bad_images.table),
        "python -m benchmarks.bad_images --source OLD/src --out runs/before; "
        "python -m benchmarks.bad_images --out runs/after",
        "Before: commit 25d8e9b. Processor time, and memory of the largest process, which now is "
        "the one that decodes; start-up included, limits as they are unless set.",
    ),
    "faults": Kind(
        "The campaign of faults, before and now",
        campaign,
        "python -m pytest -m faults --faults-out runs/faults",
        "Before: commit 480f0bc, see faults-before. Seconds by the clock, on a machine that had "
        "other work; memory of the whole process, which holds torch.",
    ),
    "mutants": Kind(
        "Small faults put into the code, and how many of them the tests find",
        tried_again,
        "python -m benchmarks.mutants --out runs/mutants --sample 250; "
        "python -m benchmarks.mutants --out runs/again --again runs/mutants",
        "mutmut's changes, drawn at random. Before: with the tests of then. Now: the same mutants, "
        "with the tests that were written for those that were not found. In brackets the 95 % "
        "interval by Wilson.",
    ),
    "thresholds": Kind(
        "False alarms got where 1, 5 and 10 % were wanted, `fast`, %",
        all_splits,
        "python -m benchmarks.thresholds ROOT --out runs/thresholds",
        "Mean over random splits of all good images, in brackets its 95 % interval by Student's t. "
        "Splits share images: those that a set lacks no split shows. All images squashed.",
    ),
    "guard": Kind(
        "Pictures spoilt as a camera may do it, and what `fast` says of them",
        of_one(guard.spoilt_table),
        GUARD,
        "Verdicts: unusable · anomalous · normal. Score: the median, in thresholds.",
    ),
    "guard-alarms": Kind(
        "What the guard calls unusable of test images as they are",
        of_one(guard.alarm_table),
        GUARD,
    ),
    "guard-few": Kind(
        "Good images that a guard fitted to few of them refuses", of_one(guard.few_table), GUARD
    ),
    "guard-cost": Kind(
        "The guard beside the graph, ONNX Runtime, one thread",
        of_one(guard.cost_table),
        GUARD,
        "Medians, by turns, on a machine that had other work: the share is what counts.",
    ),
    "drift-alarms": Kind(
        "Alarms of drift over good images, simulated",
        of_several(drift.rate_table),
        "python -m benchmarks.drift alarms --count COUNT --out runs/drift-alarms-COUNT",
        "Everything: ten lines of 100,000 or 20,000 images each, all that is watched. One rule: a "
        "hundred lines of 100,000. After an alarm, the watch begins anew. Last column: the median "
        "of 10 streams, by the same bets on one measure alone.",
    ),
    "drift-delays": Kind(
        "Images until a change is seen",
        of_one(drift_delays.delay_table),
        "python -m benchmarks.drift delays --root ROOT --sets tire,kolektor,magnetic_tile "
        "--out runs/drift-delays",
        "Simulated: the standard deviation of the good images' measures, such as the brightness; "
        "20 streams each. Photographs: good images of the set that the guard was not fitted to, "
        "drawn with replacement, 10 streams each.",
    ),
    "attention-memory": Kind(
        "Kinds of attention over the memory, all else equal",
        late("attention_kinds"),
        "python -m benchmarks.attention_kinds ROOT --out runs/attention",
        "Image AUROC; AUPRO over the sets that have masks; papers count as one set. Means of place "
        "and window do not look at the cell: both are a Gaussian a place. All images squashed.",
    ),
    "ingredients": Kind(
        "The paper's ingredients in the design of `default`: each out of it, or put into it",
        late("ingredients"),
        "python -m benchmarks.ingredients ROOT --out runs/ingredients "
        "--sets cookie,pill,tire,magnetic_tile",
        "Image AUROC; AUPRO over the sets that have masks; one seed; all images squashed.",
    ),
    "views": Kind(
        "What is seen of images: squashed, fitted, as chosen by the training images",
        of_runs(views.table),
        "python -m benchmarks.views ROOT --sets kolektor,tire,magnetic_tile,cookie "
        "--out runs/views",
    ),
    "copy-index": Kind(
        "How much of a patch that is pasted into the features comes back in what is rebuilt",
        of_one(copying.table),
        "haloae demo; haloae benchmark haloae-demo/data --presets default,fast,autoencoder "
        "--out runs/demo; python -m benchmarks.copying haloae-demo/data runs/demo "
        "--out runs/copying",
        "0 predicts, 1 copies. Sides of patches are in cells. good: of another good image, at the "
        "same place; foreign: of an image of the other set.",
    ),
    "curve": Kind(
        "Image AUROC of `autoencoder` by the number of training steps",
        of_runs(curve.table),
        "python -m benchmarks.curve ROOT --sets cookie,paper_pa_bdp01_tl --out runs/curve",
        "Seconds are those of the whole fit.",
    ),
    "gpu-throughput": Kind(
        "On one NVIDIA H200",
        of_one(gpu.throughput_table),
        GPU,
        "Pixels in and maps out in the computer's memory, untrained, 4 good images known; MB: most "
        "that tensors took, at the largest batch.",
    ),
    "gpu-fit": Kind(
        "Fitting to 64 images of 512² on one NVIDIA H200, reading to calibration",
        of_one(gpu.training_table),
        GPU,
        "`paper`: 40 of its 188,250 steps.",
    ),
    "slides": Kind(
        "What slides of many sizes cost",
        slide_cost.results,
        "haloae train good/ --out run; python -m benchmarks.slide_cost run/model.safetensors "
        "--out runs/slides",
        "Each run is a process of its own, of one thread, on a pyramid in deflate. Network "
        "`default`: a corner of the slide is tissue, the rest glass; none: all is tissue, and a "
        "cell's value its darkness. Peak: of the process, 540 MB of it what importing this build "
        "of torch takes, where there is a network, which was fitted to nine parts of slides: of "
        "more its memory is no larger. The network's share: of the processor's time, "
        "what it takes in the scoring thread.",
    ),
    "slide-rates": Kind(
        "False alarms of whole slides, wanted and got",
        of_code(slide_rates.table),
        note="Simulated: 200 detectors a row, five new slides of 1,000 regions each; a region's "
        "peak is the highest of 256 cells. Slides differ by: standard deviation of the logarithm "
        "of what all regions of a slide share.",
    ),
    "cost": Kind(
        "Cost of a pass, block by block, of one image in float32",
        of_code(counted.cost),
        note="As `haloae info MODEL --cost` counts it. MMAC: million multiply-adds; MB: million "
        "bytes of activations; intensity: multiply-adds a byte, in use, weights among the bytes. "
        "Detector heads are as large as of 200 good images.",
    ),
    "growth": Kind(
        "Cost of a pass at other image sizes",
        of_code(counted.growth),
        note="GMAC: 10⁹ multiply-adds; MB: million bytes of activations; intensity in use.",
    ),
    "rates": Kind(
        "What a false-alarm rate takes, and what it costs to have less",
        of_code(counted.rates),
        note="By the rules of detection/calibration.py. The last columns: where the threshold "
        "stands above the median of the left-out log-scores, in root mean squares s of the "
        "distance from it of those above.",
    ),
}
"""By the name of the file."""
