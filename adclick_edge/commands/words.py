"""``adclick words export`` and ``adclick words vectors``"""

import json
from dataclasses import asdict
from pathlib import Path

from adclick_edge.commands.torch_needed import needs_torch
from adclick_edge.data.dataset import list_products, open_product
from adclick_edge.data.sample_line import PRODUCTS
from adclick_edge.words import PromptTable, known_vocabulary, open_encoder

__all__ = ["run_export", "run_vectors"]


def run_export(model: Path, out: Path, json_output: bool) -> None:
    with needs_torch("words export"):
        from adclick_edge.words.onnx_export import export_encoder

        report = export_encoder(model, out)
    if json_output:
        print(json.dumps({"folder": str(out), **asdict(report)}))
        return
    print(f"{out}: {report.name}, {report.dims} numbers a sentence, {report.model_bytes / 1e6:.0f} MB")
    print(f"parity over {report.sentences_compared} sentences: within {report.max_difference:.2g}")


def run_vectors(model: Path, out: Path, data: Path | None, json_output: bool) -> None:
    """Vectors of the general kinds, of the sample line's products, and of the products in ``data``."""
    products = {name: set(kinds) for name, kinds in PRODUCTS.items()}
    if data is not None:
        for name in list_products(data):
            products.setdefault(name, set()).update(open_product(data, name).kinds())
    with needs_torch("words vectors"):
        encoder = open_encoder(model)
    found = PromptTable.build(
        encoder,
        sorted({*known_vocabulary(), *(kind for kinds in products.values() for kind in kinds)}),
        {name: sorted(kinds) for name, kinds in products.items()},
    )
    found.write(out)
    if json_output:
        facts = {"file": str(out), "encoder": encoder.name, "sha256": encoder.sha256, "dims": encoder.dims}
        print(json.dumps({**facts, "kinds": found.known_kinds(), "products": found.known_products()}))
        return
    print(f"{out}: {len(found.known_kinds())} kinds, products {', '.join(found.known_products())}")
    print(f"encoder {encoder.name}, weights {encoder.sha256}")
