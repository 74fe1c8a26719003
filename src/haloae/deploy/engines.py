"""ONNX Runtime and OpenVINO: a file in, what runs it out. Nothing they raise leaves this module."""

import importlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from haloae.config import Precision
from haloae.data.images import shown_path
from haloae.deploy.checks import Bytes, check_constants, check_seal, mapped, weights_of
from haloae.errors import ConfigError, MissingExtraError, ModelFileError

METADATA_KEY = "haloae"
INPUT = "image"
OUTPUTS = ("score", "p_value", "anomaly_map")
PRECISION_HINT = "INFERENCE_PRECISION_HINT"
ONNX_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
ONE_LINE = 120
"""Characters of a runtime's own message that are shown."""
Run = Callable[[NDArray[Any]], Sequence[NDArray[Any]]]
Shapes = dict[str, list[Any]]
"""Sides of a value by its name; what is no integer is any number."""


class Session(NamedTuple):
    """A graph that is ready to run."""

    text: str | None
    """Its metadata; None where it has none of ours."""
    inputs: Shapes
    outputs: Shapes
    types: set[str]
    """Of the inputs."""
    run: Run
    """(B, 3, S, S) → the outputs, in the order of `OUTPUTS`; in any number of threads at once.

    Raises:
        ModelFileError: it cannot be run.
    """
    name: str
    """Of the runtime, with its version."""


def open_onnx(path: Path, threads: int | None, streams: int = 1) -> Session:
    """A session of ONNX Runtime.

    Args:
        path: of the .onnx.
        threads: CPU threads; None leaves it to the runtime.
        streams: runs that go on side by side, and share the threads.

    Raises:
        ModelFileError: damaged, or not a model.
        MissingExtraError: onnxruntime is not installed.
    """
    graph = mapped(path)
    onnxruntime = _imported("onnxruntime", "onnx", path, graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised as well
    if threads:
        options.intra_op_num_threads = max(1, threads // streams)
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path) if _is_utf8(path) else graph[:],
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=False,  # there is no other, and it would be printed
        )
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        inputs, outputs = (
            {value.name: list(value.shape) for value in side}
            for side in (session.get_inputs(), session.get_outputs())
        )
        types = {ONNX_TYPES.get(value.type, value.type) for value in session.get_inputs()}
    except Exception as error:  # its errors share no other base
        raise _unreadable(path, "ONNX", error) from error

    def run(images: NDArray[Any]) -> Sequence[NDArray[Any]]:
        found: Sequence[NDArray[Any]] = session.run(list(OUTPUTS), {INPUT: images})
        return found

    return Session(
        text,
        inputs,
        outputs,
        types,
        _guarded(path, run),
        f"onnxruntime {onnxruntime.__version__}",
    )


def open_openvino(
    path: Path, precision: Precision, threads: int | None, streams: int = 1
) -> Session:
    """A compiled model of OpenVINO.

    Args:
        path: of the .xml.
        precision: of what the file has in float32.
        threads: CPU threads; None leaves it to the runtime.
        streams: runs that go on side by side, and share the threads.

    Raises:
        ModelFileError: damaged, or not a model, or one file of the two is missing.
        ConfigError: the processor has no bfloat16.
        MissingExtraError: openvino is not installed.
    """
    weights = weights_of(path)
    if weights is None or not weights.is_file():
        raise ModelFileError(
            f"{shown_path(path)}: {path.stem}.bin is not beside it: copy both files of the export."
        )
    graph = mapped(path)
    openvino = _imported("openvino", "openvino", path, graph)
    check_constants(path, graph, weights.stat().st_size)
    # Always said: on some processors the default is bfloat16.
    hint = "bf16" if precision == "bfloat16" else "f32"
    options: dict[str, Any] = {PRECISION_HINT: hint}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    if streams > 1:
        options["NUM_STREAMS"] = streams
    core = openvino.Core()
    try:
        model = core.read_model(os.fspath(path), os.fspath(weights))
        text = None
        if model.has_rt_info([METADATA_KEY]):
            text = model.get_rt_info([METADATA_KEY]).astype(str)
        inputs, outputs = (
            {port.get_any_name(): _sides(port.get_partial_shape()) for port in side}
            for side in (model.inputs, model.outputs)
        )
        types = {port.get_element_type().to_dtype().name for port in model.inputs}
        compiled = core.compile_model(model, "CPU", options)
        is_bfloat16 = compiled.get_property(PRECISION_HINT) == openvino.Type.bf16
    except Exception as error:  # its errors share no other base
        raise _unreadable(path, "OpenVINO", error) from error
    if precision == "bfloat16" and not is_bfloat16:
        raise ConfigError("this processor has no bfloat16 for OpenVINO: leave --precision out.")
    run = _guarded(path, _pooled(compiled))
    name = f"openvino {openvino.__version__.partition('-')[0]}"
    return Session(text, inputs, outputs, types, run, name)


def _pooled(compiled: Any) -> Run:  # noqa: ANN401 - OpenVINO's
    """Runs a compiled model, with a request of its own for each thread that calls at one time.

    A request holds inputs and outputs, so two threads must never share one.
    """
    idle: deque[Any] = deque()

    def run(images: NDArray[Any]) -> Sequence[NDArray[Any]]:
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        results = request.infer(images, share_inputs=True)
        found = [results[name].copy() for name in OUTPUTS]
        idle.append(request)
        return found

    return run


def _guarded(path: Path, run: Run) -> Run:
    """Runs what may raise anything at all."""

    def guarded(images: NDArray[Any]) -> Sequence[NDArray[Any]]:
        try:
            return run(images)
        except MemoryError:
            raise
        except Exception as error:
            raise ModelFileError(
                f"{shown_path(path)}: cannot be run ({_reason(error)}): copy or export it again."
            ) from error

    return guarded


def _imported(package: str, extra: str, path: Path, graph: Bytes) -> Any:  # noqa: ANN401 - a module
    """A runtime's package, imported while the seal is checked, which takes less long."""
    with ThreadPoolExecutor(1) as pool:
        checking = pool.submit(check_seal, path, graph)
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(package, extra, error) from error
        checking.result()
    return module


def _is_utf8(path: Path) -> bool:
    """True: ONNX Runtime takes the name."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _sides(shape: Any) -> list[int | None]:  # noqa: ANN401 - OpenVINO's PartialShape
    return [side.get_length() if side.is_static else None for side in shape]


def _unreadable(path: Path, kind: str, error: Exception) -> ModelFileError:
    return ModelFileError(
        f"{shown_path(path)}: not a model that {kind} can read ({_reason(error)}): copy or export "
        f"it again."
    )


def _reason(error: Exception) -> str:
    """The last line of what a runtime says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:ONE_LINE].rstrip(".: ")
