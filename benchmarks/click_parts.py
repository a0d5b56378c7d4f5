"""What each part of ADClick brings: results of `click_accuracy.py` for networks trained alike, each without one part.

    python benchmarks/click_parts.py "all parts=ALL.json" "no residual=RESIDUAL.json" ... --out RESULT.json

Each network is a run of `adclick train clicks` with the same worlds, steps and seed, one of them per --without. The results
must be over the same products and pictures.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from adclick_edge.errors import UsageError
from adclick_edge.files import write_text

COUNTS = (1, 2, 3, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = {}
    for text in options.results:
        name, _, file = text.rpartition("=")
        found[name] = json.loads(Path(file).read_text())
    pictures = {name: {p: r["images"] for p, r in result["products"].items()} for name, result in found.items()}
    first = next(iter(pictures))
    if other := next((name for name in pictures if pictures[name] != pictures[first]), None):
        raise UsageError(f"{other!r} was scored on {pictures[other]}, {first!r} on {pictures[first]}: not comparable")
    rows = {name: _row(result) for name, result in found.items()}
    document = {"machine": found[first]["machine"], "pictures": pictures[first], "rows": rows}
    write_text(options.out, json.dumps(document, indent=1) + "\n")
    print(f"{'':28} " + "  ".join(f"IoU@{k}" for k in COUNTS) + "   AP@5")
    for name, row in rows.items():
        mean = row["mean"]
        print(f"{name:28} " + "  ".join(f"{mean[f'iou_{k}']:.3f}" for k in COUNTS) + f"  {mean['ap_5']:.3f}")


def _row(result: dict[str, Any]) -> dict[str, Any]:
    products = {}
    for name, scores in result["products"].items():
        ious = {f"iou_{row['clicks']}": round(row["mean_iou"], 4) for row in scores["per_click"]}
        products[name] = {**ious, "ap_5": round(scores["per_click"][-1]["ap"], 4)}
    return {"words_given": result["words"], "mean": result["mean"]["adclick"], "products": products}


if __name__ == "__main__":
    main()
