"""PyTorch networks to the three graphs of a bundle."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

from adclick_edge.errors import ExportError
from adclick_edge.export.residual_graph import OPSET, candidates_model, residual_model
from adclick_edge.features.backbones import fold_batch_norms
from adclick_edge.features.extractor import Extractor

__all__ = ["export_features", "export_graphs", "export_module", "export_segmenter", "tensor_spec"]

_DTYPES = {1: "float32", 2: "uint8", 7: "int64"}


class _Features(nn.Module):
    """The extractor with its outputs as a tuple, in the order of ``outputs``."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        found = self.extractor(frames)
        return tuple(found[name] for name in self.extractor.outputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own chatter says nothing a user could act on; its errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def export_module(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    dynamic_shapes: tuple[dict[int, object], ...] | None,
) -> bytes:
    """The graph of ``module`` in evaluation mode; ``dynamic_shapes`` None: sizes are those of the ``arguments``.

    Raises ExportError.
    """
    module.eval()
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=dynamic_shapes,
                verbose=False,
            )
        assert program is not None
    except Exception as error:  # the exporter raises whatever its passes raise
        raise ExportError(f"the network cannot be exported: {type(error).__name__}: {error}") from error
    model = program.model_proto
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def tensor_spec(value: onnx.ValueInfoProto) -> dict[str, object]:
    """A graph's input or output as the manifest has it; free sizes are -1."""
    tensor = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
    return {"name": value.name, "dtype": _DTYPES[tensor.elem_type], "shape": shape}


def export_features(extractor: Extractor, input_size: tuple[int, int]) -> bytes:
    """``features.onnx``: frames uint8 [N, H, W, 3], H and W free multiples of 16 -> the extractor's outputs."""
    frames = torch.zeros(2, *input_size, 3, dtype=torch.uint8)
    batch = torch.export.Dim("n", min=1, max=1024)
    rows, columns = torch.export.Dim("rows", min=2, max=512), torch.export.Dim("columns", min=2, max=512)
    free: dict[int, object] = {0: batch, 1: 16 * rows, 2: 16 * columns}
    return export_module(fold_batch_norms(_Features(extractor)), (frames,), ("frames",), extractor.outputs, (free,))


def export_segmenter(segmenter: nn.Module, examples: dict[str, Tensor], *, fixed_size: bool = False) -> bytes:
    """``segment.onnx``: the inputs the segmenter names -> ``map`` float32 [N, h4, w4].

    ``examples`` holds an example of each, with a batch of 2. The batch is free; so are heights and widths unless
    ``fixed_size`` (windowed attention is laid out for one size).
    """
    names: tuple[str, ...] = segmenter.inputs  # type: ignore[assignment]
    cells = {
        "relative": 2,
        "relative_distance": 2,
        "map4": 4,
        "map8": 2,
        "map16": 1,
    }  # per side, for each cell of the stride-16 map
    batch = torch.export.Dim("n", min=1, max=1024)
    rows, columns = torch.export.Dim("rows", min=2, max=512), torch.export.Dim("columns", min=2, max=512)
    free: list[dict[int, object]] = []
    for name in names:
        if fixed_size:
            free.append({0: batch})
        else:
            free.append({0: batch, 2: cells[name] * rows, 3: cells[name] * columns})
    return export_module(
        fold_batch_norms(segmenter), tuple(examples[name] for name in names), names, ("map",), tuple(free)
    )


def export_graphs(extractor: Extractor, segmenter: nn.Module, input_size: tuple[int, int]) -> dict[str, bytes]:
    """All graphs of a bundle, by file name."""
    features = export_features(extractor, input_size)
    with torch.no_grad():
        examples = dict(extractor(torch.zeros(2, *input_size, 3, dtype=torch.uint8)))
    examples["residual"] = examples["relative"] = torch.zeros_like(examples["embedding"])
    examples["relative_distance"] = examples["relative"][:, :1]
    return {
        "features.onnx": features,
        "residual.onnx": residual_model().SerializeToString(),
        "residual_candidates.onnx": candidates_model().SerializeToString(),
        "segment.onnx": export_segmenter(segmenter, examples, fixed_size="image" in segmenter.inputs),  # type: ignore[operator]
    }
