"""From a training run of ADClick to a bundle that answers clicks."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from adclick_edge.bundle import Bundle, read_bundle
from adclick_edge.bundle.names import PROMPTS
from adclick_edge.data.dataset import open_product
from adclick_edge.data.images import read_image
from adclick_edge.errors import DataError, ExportError, TrainingError
from adclick_edge.export.click_bundle import PARITY_FRAMES, write_click_bundle
from adclick_edge.export.click_graphs import ClickNetwork
from adclick_edge.export.click_parity import ClickParityReport
from adclick_edge.export.run_bundle import export_backbone
from adclick_edge.features.extractor import build_extractor
from adclick_edge.files import sha256_file
from adclick_edge.models.build import build_click_network
from adclick_edge.training.checkpoint import load_model
from adclick_edge.training.click_run import ClickConfig, Part, read_click_config
from adclick_edge.words import PromptTable, shipped_prompts

__all__ = ["export_click_run"]

U8 = npt.NDArray[np.uint8]


def export_click_run(
    run: Path, out: Path, *, base: Path | None = None, prompts_json: bytes | None = None, weights_license: str
) -> ClickParityReport:
    """Export the run of `adclick train clicks` in ``run`` to the bundle ``out``.

    Args:
        base: A bundle of the same backbone, of weights or of a product, that gets the click graphs; None makes a bundle of
            weights with the distance segmenter.
        prompts_json: The bundle's ``prompts.json``; by default the vectors the network was trained with.

    Raises ParityError when the graphs do not compute what was trained, ExportError for an incomplete run, for pictures or
    runs it started from that are gone, for a base of another backbone and for prompts of another text encoder.
    """
    config = read_click_config(run)
    if prompts_json is not None:
        _check_prompts(PromptTable.decode(prompts_json, PROMPTS))
    backbone_file = run / f"backbone{Path(config.backbone_file).suffix}"
    for file in (run / "best.safetensors", backbone_file):
        if not file.is_file():
            raise ExportError(f"{file} is missing: the run is incomplete; let `adclick train clicks` finish")
    network: nn.Module = build_click_network(config.preset, build_extractor(config.preset))
    state = load_model(run / "best.safetensors", network)
    network.eval()
    if config.without:
        network = _Without(network, config.without)  # type: ignore[arg-type]
    products = _products(config)
    hashes, pictures = _pictures(products)
    training = {
        "products": sorted({name for _, name in products}),
        "worlds": config.worlds,
        "seed": config.seed,
        "steps": config.steps,
        "best_step": state["step"],
        "validation_iou": state["best"],
        "without": list(config.without),
        "image_hashes": hashes,
    }
    with ExitStack() as stack:
        if base is None:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".adclick-export.")))
            export_backbone(config.preset, backbone_file, scratch / "weights", weights_license=weights_license)
            weights = stack.enter_context(read_bundle(scratch / "weights"))
        else:
            weights = stack.enter_context(read_bundle(base))
            _check_backbone(weights, config)
        return write_click_bundle(
            weights,
            network,
            prompts_json or shipped_prompts().encode(),
            out,
            size=config.size,
            training=training,
            pictures=pictures or None,
        )


class _Without(nn.Module):
    """A network trained without some of its inputs, which it must never see."""

    def __init__(self, network: ClickNetwork, parts: Sequence[Part]) -> None:
        super().__init__()
        self.network = network
        self.parts = frozenset(parts)
        self.encode_inputs, self.encode_outputs = network.encode_inputs, network.encode_outputs
        self.free_clicks: bool = getattr(network, "free_clicks", False)

    def encode(self, *inputs: Tensor) -> dict[str, Tensor]:
        unseen = ("relative", "relative_distance") if "residual" in self.parts else ()
        # Times zero rather than left out: a graph keeps an input that is used.
        named = zip(self.encode_inputs, inputs, strict=True)
        return self.network.encode(*[value * 0 if name in unseen else value for name, value in named])

    def decode(self, embedding: dict[str, Tensor], clicks: Tensor, previous: Tensor, prompt: Tensor) -> Tensor:
        return self.network.decode(
            embedding,
            clicks,
            previous * 0 if "previous" in self.parts else previous,
            prompt * 0 if "words" in self.parts else prompt,
        )


def _check_backbone(base: Bundle, config: ClickConfig) -> None:
    found = base.manifest.training.get("backbone_sha256")
    if found != config.backbone_sha256:
        raise ExportError(
            f"{base.location} was made with another backbone ({str(found)[:12]}) than the run of clicks "
            f"({config.backbone_sha256[:12]}): their features differ; train both with one backbone"
        )


def _check_prompts(table: PromptTable) -> None:
    trained = shipped_prompts()
    if table.encoder_sha256 != trained.encoder_sha256:
        raise ExportError(
            f"{PROMPTS} was made with the text encoder {table.encoder_name} ({table.encoder_sha256[:12]}), the network was "
            f"trained with {trained.encoder_name} ({trained.encoder_sha256[:12]}): words would mean nothing to it; make the "
            "table with that one"
        )


def _products(config: ClickConfig) -> list[tuple[str, str]]:
    """Data folder and name of what the run has learnt from, and what the runs before it, whose weights it started from."""
    found = dict.fromkeys(config.products)
    passed = set[str]()
    while (start := config.start_from) is not None and start not in passed:
        passed.add(start)
        try:
            config = read_click_config(Path(start))
        except TrainingError as error:
            raise ExportError(
                f"the run that this one started from cannot be read ({error}), so nobody could tell which pictures the "
                "network has seen; put it back, or export on the machine that has it"
            ) from error
        found |= dict.fromkeys(config.products)
    return list(found)


def _pictures(products: Sequence[tuple[str, str]]) -> tuple[list[str], list[U8]]:
    """SHA-256 of all pictures of the products that were learnt from, and some normal ones for the parity gate."""
    hashes: set[str] = set()
    normals: list[Path] = []
    for data, name in products:
        try:
            product = open_product(Path(data), name)
        except DataError as error:
            raise ExportError(
                f"the pictures that the run was trained on are gone ({error}); put them back, or export on the machine "
                "that has them"
            ) from error
        hashes |= {sha256_file(sample.path) for sample in product.samples}
        normals += [sample.path for sample in product.normals()[:1]]
    return sorted(hashes), [read_image(path) for path in normals[:PARITY_FRAMES]]
