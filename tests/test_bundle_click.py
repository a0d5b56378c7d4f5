"""What the manifest says of the graphs that answer clicks."""

from pathlib import Path

import msgspec
import pytest
from bundle_samples import FIELDS, FILES, make

from adclick_edge.bundle import ClickSpec, golden_files, read_bundle, write_bundle
from adclick_edge.bundle.manifest import encode_manifest
from adclick_edge.commands.bank import SHIPPED_WEIGHTS
from adclick_edge.errors import BundleError

F32 = {"dtype": "float32", "shape": [1, 1]}
CLICK = {
    "size": [512, 512],
    "max_clicks": 24,
    "prompt_dims": 384,
    "encode_inputs": [{"name": "frames", "dtype": "uint8", "shape": [1, 512, 512, 3]}],
    "encode_outputs": [{"name": "keys", **F32}],
    "decode_inputs": [{"name": name, **F32} for name in ("keys", "clicks", "previous", "prompt")],
}
GRAPHS = {"click_encode.onnx": b"encode", "click_decode.onnx": b"decode"}


@pytest.mark.parametrize("name", ["nut", "nut.zip"])
def test_click_graphs_are_read_back(name: str, tmp_path: Path) -> None:
    files = {**FILES, **GRAPHS, "golden/click.safetensors": b"golden"}
    with read_bundle(write_bundle(tmp_path / name, {**FIELDS, "click": CLICK}, files)) as bundle:
        assert bundle.manifest.click == msgspec.convert(CLICK, ClickSpec)
        assert bundle.read("click_decode.onnx") == b"decode"
        assert len(bundle.golden()) == 2  # the golden case of clicks is none of the golden frames
    only = {
        k: v for k, v in files.items() if k not in golden_files([]) and not k.endswith(".png") and "expected" not in k
    }
    with read_bundle(write_bundle(tmp_path / f"only-{name}", {**FIELDS, "click": CLICK}, only)) as bundle:
        assert bundle.golden() == []


@pytest.mark.parametrize(
    ("click", "files"),
    [(None, GRAPHS), (CLICK, {}), (CLICK, {"click_encode.onnx": b""}), (None, {"click_decode.onnx": b""})],
)
def test_graphs_and_their_description_go_together(click: object, files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="go together"):
        write_bundle(tmp_path / "nut", {**FIELDS, "click": click}, {**FILES, **files})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": [512, 500]}, "multiples of 16"),
        ({"max_clicks": 0}, "max_clicks"),
        ({"decode_inputs": CLICK["decode_inputs"][1:]}, "decode_inputs"),
        ({"extra": 1}, "extra"),
    ],
)
def test_wrong_descriptions_are_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=said):
        write_bundle(tmp_path / "nut", {**FIELDS, "click": {**CLICK, **change}}, {**FILES, **GRAPHS})


def test_bundles_from_before_there_were_clicks_still_open(tmp_path: Path) -> None:
    with read_bundle(SHIPPED_WEIGHTS) as bundle:
        assert bundle.manifest.click is None
    path = make(tmp_path / "nut")
    with read_bundle(path) as bundle:
        manifest = bundle.manifest
    import hashlib
    import json

    raw = json.loads(encode_manifest(manifest))
    del raw["click"], raw["manifest_sha256"]
    raw["manifest_sha256"] = hashlib.sha256(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(raw))
    with read_bundle(path) as bundle:
        assert bundle.manifest.version == manifest.version
