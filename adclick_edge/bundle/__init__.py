"""What training hands to the line: graphs, bank, golden frames and thresholds, in one checked folder or zip.

::

    manifest.json                                  what this is, and the size and sha256 of every other file
    features.onnx  residual.onnx  segment.onnx     the three graphs
    bank.safetensors                               only in a bundle of kind "product"
    click_encode.onnx  click_decode.onnx           optional, both or none: the graphs that answer clicks
    prompts.json                                   optional: sentence vectors of products and defect kinds
    golden/NAME.png  golden/expected.safetensors   frames and the outputs they must give
    golden/click.safetensors                       optional: clicks and the answer they must give
    calibration.json  regions.json                 changed by people at any minute; each carries its own checksum
"""

from adclick_edge.bundle.golden import GoldenFrame, golden_files
from adclick_edge.bundle.manifest import SCHEMA_VERSION, ClickSpec, FileEntry, Manifest, TensorSpec, Tiling, version_of
from adclick_edge.bundle.reader import Bundle, read_bundle
from adclick_edge.bundle.writer import write_bundle

__all__ = [
    "SCHEMA_VERSION",
    "Bundle",
    "ClickSpec",
    "FileEntry",
    "GoldenFrame",
    "Manifest",
    "TensorSpec",
    "Tiling",
    "golden_files",
    "read_bundle",
    "version_of",
    "write_bundle",
]
