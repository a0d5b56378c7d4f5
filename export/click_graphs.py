"""The network that answers clicks to its two graphs: ``click_encode.onnx`` and ``click_decode.onnx``."""

from collections.abc import Mapping
from typing import Protocol

import onnx
import torch
from torch import Tensor, nn

from adclick_edge.bundle.names import CLICK_GRAPHS
from adclick_edge.data.clicks import MAX_CLICKS
from adclick_edge.export.to_onnx import export_module, tensor_spec
from adclick_edge.features.backbones import fold_batch_norms
from adclick_edge.models.adclick import PROMPT_DIMS

__all__ = ["ClickNetwork", "click_spec", "decode_examples", "export_click_graphs"]


class ClickNetwork(Protocol):
    """What can be exported; `adclick_edge.models.adclick.EdgeClicks` says what the tensors hold."""

    @property
    def encode_inputs(self) -> tuple[str, ...]: ...

    @property
    def encode_outputs(self) -> tuple[str, ...]: ...

    def encode(self, *inputs: Tensor) -> dict[str, Tensor]: ...

    def decode(self, embedding: dict[str, Tensor], clicks: Tensor, previous: Tensor, prompt: Tensor) -> Tensor: ...


class _Encode(nn.Module):
    def __init__(self, network: ClickNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.network.encode(*inputs)
        return tuple(found[name] for name in self.network.encode_outputs)


class _Decode(nn.Module):
    def __init__(self, network: ClickNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        *embedding, clicks, previous, prompt = inputs
        named = dict(zip(self.network.encode_outputs, embedding, strict=True))
        return self.network.decode(named, clicks, previous, prompt)


def decode_examples(size: tuple[int, int]) -> dict[str, Tensor]:
    """Clicks, previous probability and prompt as an operator's first click on a view of ``size`` gives them."""
    clicks = torch.zeros(1, MAX_CLICKS, 3)
    clicks[0, 0] = torch.tensor([size[0] / 2, size[1] / 3, 1.0])
    return {
        "clicks": clicks,
        "previous": torch.zeros(1, 1, size[0] // 4, size[1] // 4),
        "prompt": torch.zeros(1, PROMPT_DIMS),
    }


@torch.no_grad()
def export_click_graphs(network: nn.Module, examples: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Both graphs by file name, for one view at a time of the size of ``examples``.

    ``network`` is a `ClickNetwork`; ``examples`` holds a tensor for each of its ``encode_inputs``, with a batch of 1.
    A network with a true attribute ``free_clicks`` takes any number of rows of clicks: few clicks are then answered
    sooner. Raises ExportError where the network cannot be exported.
    """
    # Deep copies: folding and evaluation mode are the graph's, not the caller's.
    encode, decode = fold_batch_norms(_Encode(network)).eval(), fold_batch_norms(_Decode(network)).eval()  # type: ignore[arg-type]
    inputs: tuple[str, ...] = network.encode_inputs  # type: ignore[assignment]
    outputs: tuple[str, ...] = network.encode_outputs  # type: ignore[assignment]
    frames = examples["frames"]
    taken = tuple(examples[name] for name in inputs)
    answers = decode_examples((frames.shape[1], frames.shape[2]))
    embedding = encode(*taken)
    free: tuple[dict[int, object], ...] | None = None
    if getattr(network, "free_clicks", False):
        given = {1: torch.export.Dim("given", min=1, max=MAX_CLICKS)}
        # The wrapper takes its inputs as *inputs, which counts as one argument.
        free = ((*({} for _ in outputs), given, {}, {}),)  # type: ignore[assignment]
    return {
        CLICK_GRAPHS[0]: export_module(encode, taken, inputs, outputs, None),
        CLICK_GRAPHS[1]: export_module(
            decode, (*embedding, *answers.values()), (*outputs, *answers), ("logits",), free
        ),
    }


def click_spec(graphs: Mapping[str, bytes], parity: Mapping[str, object]) -> dict[str, object]:
    """The manifest's ``click`` for ``graphs``, as JSON."""
    encode, decode = (onnx.load_from_string(graphs[name]).graph for name in CLICK_GRAPHS)
    encode_inputs = [tensor_spec(value) for value in encode.input]
    by_name = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in decode.input}
    rows, columns = by_name["previous"][2:]
    return {
        "size": [4 * rows, 4 * columns],
        "max_clicks": MAX_CLICKS,
        "prompt_dims": by_name["prompt"][1],
        "encode_inputs": encode_inputs,
        "encode_outputs": [tensor_spec(value) for value in encode.output],
        "decode_inputs": [tensor_spec(value) for value in decode.input],
        "parity": dict(parity),
    }
