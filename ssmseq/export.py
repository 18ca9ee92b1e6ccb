"""Export of fitted estimators as one graph, ONNX or `torch.export`, that needs nothing of this library to run.

A domain says what the graph of its estimators is (`ServingGraph`); here it is traced, written and checked.
"""

import copy
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmseq.persistence import _write
from ssmseq_kernels.exporting import portable_operators

FORMATS = {".onnx": ("onnx", "onnxscript"), ".pt2": ()}  # and the packages that writing takes
METADATA = "metadata.json"  # the extra file of a .pt2
OPSET = 18
OLDEST_TORCH = (2, 13)  # older ones were not tried
LARGEST_ONNX = 2**31  # bytes of a protocol buffer
TRACED, CHECKED = (2, 5), (3, 7)  # batches and lengths of the examples: no two alike, and not 1, which would be fixed
DYNAMIC = ("batch", "length")


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is that goes into a graph, or comes out of it."""

    shape: tuple[int | str, ...]  # sizes; "batch" and "length" stand for any
    dtype: str
    meaning: str  # with the unit


@dataclass(frozen=True)
class ServingGraph:
    """A fitted estimator from what a user has to what `predict` gives."""

    module: nn.Module  # called with the inputs by their names, returns the one output
    inputs: dict[str, TensorSpec]
    output: tuple[str, TensorSpec]
    example: Callable[[int, int], dict[str, Tensor]]  # inputs of such a batch and length
    metadata: dict[str, Any]


def export(estimator, path, *, check: bool = True, tolerance: float = 1e-4) -> dict[str, Any]:
    """Write a fitted estimator as one graph; see `SequenceEstimator.export`.

    Returns
    -------
    dict
        The metadata in the file, and "difference": the largest difference that the check found, as a share of the
        largest output; None without a check.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path} must end in .onnx (ONNX) or .pt2 (torch.export), not in {path.suffix!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: make it, or export to another")
    _check_packages(path.suffix, check)
    graph = estimator._serving_graph()
    metadata = _describe(estimator, graph)
    program = _trace(graph, type(estimator).__name__)
    content = _onnx_bytes(program, graph, metadata) if path.suffix == ".onnx" else _pt2_bytes(program, metadata)
    difference = _difference(graph, path.suffix, content) if check else None
    if difference is not None and not difference <= tolerance:
        raise ValueError(
            f"{path} was not written: its outputs differ from those of the {type(estimator).__name__} by "
            f"{difference:.2g} of the largest, more than tolerance={tolerance:g}; raise it if that is good enough"
        )
    _write(path, content)
    return metadata | {"difference": difference}


def for_serving(network: nn.Module) -> nn.Module:
    """Return a copy of a network on the CPU, in float32 and not in training.

    Half precision is slow or missing where graphs are run, and onnxruntime lacks some functions in double.
    """
    return copy.deepcopy(network).cpu().float().eval().requires_grad_(False)


def _check_packages(suffix: str, check: bool) -> None:
    found = tuple(int(x) for x in torch.__version__.split(".")[:2])
    if found < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(f"export needs torch {oldest}, this is {torch.__version__}: pip install 'torch>={oldest}'")
    wanted = dict.fromkeys(FORMATS[suffix], f"writing {suffix}")
    if check and suffix == ".onnx":
        wanted["onnxruntime"] = "checking .onnx (check=False leaves that out)"
    for name, purpose in wanted.items():
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f'{purpose} needs {name}: pip install "ssmseq[export]"') from error


def _describe(estimator, graph: ServingGraph) -> dict[str, Any]:
    """Return all that a user of the file has to know, as values that JSON can hold."""
    from ssmseq import __version__

    name, output = graph.output
    found = {
        "estimator": type(estimator).__name__,
        "ssmseq": __version__,
        "torch": torch.__version__,
        "inputs": {k: asdict(v) for k, v in graph.inputs.items()},
        "outputs": {name: asdict(output)},
        **graph.metadata,
    }
    return json.loads(json.dumps(found, default=_plain))


def _plain(value):
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _trace(graph: ServingGraph, name: str) -> torch.export.ExportedProgram:
    sizes = {axis: torch.export.Dim(axis) for spec in graph.inputs.values() for axis in spec.shape if axis in DYNAMIC}
    axes = {k: {i: sizes[a] for i, a in enumerate(spec.shape) if a in sizes} for k, spec in graph.inputs.items()}
    options: Any = {"strict": False, "prefer_deferred_runtime_asserts_over_guards": True}
    with _quietly(), torch.no_grad(), portable_operators(), _open_sizes():
        program = torch.export.export(graph.module, (), graph.example(*TRACED), dynamic_shapes=axes, **options)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            if str(node.target).startswith("ssmseq."):
                raise TypeError(f"{name} uses the operator {node.target}, which has no form in torch's own operators")
    return program


@contextmanager
def _open_sizes() -> Iterator[None]:
    """Rewrite two calls of our networks that torch.export would refuse, or tie to the sizes of the example."""
    attention, chunk = F.scaled_dot_product_attention, Tensor.chunk

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **kwargs):
        # A condition on the number of tokens, which is open: one token sees itself whether the mask is there or not.
        causal = is_causal if isinstance(is_causal, bool) else True
        return attention(query, key, value, attn_mask, dropout_p, causal, **kwargs)

    def cut(x, n, dim=0):
        halves = (n, dim) == (2, 0) and isinstance(x.shape[0], torch.SymInt)  # both strands, one after the other
        return x.unflatten(0, (2, -1)).unbind() if halves else chunk(x, n, dim)

    with mock.patch.object(F, "scaled_dot_product_attention", attend), mock.patch.object(Tensor, "chunk", cut):
        yield


def _pt2_bytes(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with _quietly():
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata, ensure_ascii=False)})
    return buffer.getvalue()


def _onnx_bytes(program: torch.export.ExportedProgram, graph: ServingGraph, metadata: dict[str, Any]) -> bytes:
    size = sum(x.nbytes for x in (*program.state_dict.values(), *program.constants.values()) if isinstance(x, Tensor))
    if size >= LARGEST_ONNX:
        raise ValueError(f"the weights take {size / 1e9:.1f} GB, and an .onnx file holds 2.1 GB: export to .pt2")
    with _quietly():
        found = torch.onnx.export(
            program,
            input_names=list(graph.inputs),
            output_names=[graph.output[0]],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert found is not None
    _drop_unused_constants(found.model)
    found.model.metadata_props.update(
        {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in metadata.items()}
    )
    return found.model_proto.SerializeToString()


def _drop_unused_constants(model) -> None:
    """Take constants out of the bodies of scans that the exporter left there, of which onnxruntime would warn."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


def _difference(graph: ServingGraph, suffix: str, content: bytes) -> float:
    """Run the file on an example of other sizes than it was traced with, and compare with the estimator's network."""
    inputs = graph.example(*CHECKED)
    with torch.inference_mode():
        expected = graph.module(**inputs).double().numpy()
    found = _run_onnx(content, inputs) if suffix == ".onnx" else _run_pt2(content, inputs)
    if found.shape != expected.shape or not np.array_equal(np.isnan(found), np.isnan(expected)):
        return float("inf")
    largest = np.nanmax(np.abs(expected), initial=0.0)
    return float(np.nanmax(np.abs(found - expected), initial=0.0) / (largest or 1.0))


def _run_onnx(content: bytes, inputs: dict[str, Tensor]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {name: x.numpy() for name, x in inputs.items()})[0])


def _run_pt2(content: bytes, inputs: dict[str, Tensor]) -> np.ndarray:
    with _quietly(), torch.inference_mode():
        return torch.export.load(io.BytesIO(content)).module()(**inputs).numpy()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back what torch's exporters say about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch._export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
