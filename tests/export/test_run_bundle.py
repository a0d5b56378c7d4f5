import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from adclick_edge.bundle import read_bundle
from adclick_edge.data.dataset import open_product
from adclick_edge.errors import ExportError, TrainingError, WeightsError
from adclick_edge.export import run_bundle as module
from adclick_edge.export.run_bundle import export_backbone, export_run
from adclick_edge.files import sha256_file
from adclick_edge.models.adclick_seg import EdgeSegmenter
from adclick_edge.models.presets import PRESETS
from adclick_edge.runtime.inspector import Inspector
from adclick_edge.training.run_folder import read_config, write_config


@pytest.fixture
def copied(seg_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(seg_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def ready_graphs(run_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of this very run, exported before: tests of what comes after need not wait for them."""
    graphs = {p.name: p.read_bytes() for p in run_bundle.glob("*.onnx")}
    monkeypatch.setattr(module, "export_graphs", lambda *_: graphs)


def test_a_run_becomes_a_product_bundle_that_inspects(run_bundle: Path, seg_run: Path, line: Path) -> None:
    with Inspector.open(run_bundle, threads=1) as inspector:  # golden frames are checked here
        manifest = inspector.bundle.manifest
        golden = inspector.bundle.golden()
        splits = json.loads((seg_run / "splits.json").read_text())["flange"]
        assert list(inspector.bank.image_hashes) == splits["train_normals"]
        assert inspector.calibration is not None
        assert inspector.calibration.source == "held_out"
        assert inspector.calibration.normals == len(splits["validation_normals"])
        assert f"training saw {len(splits['validation_normals'])} of these" in inspector.calibration.notes[-1]
        sample = open_product(line, "flange").defects()[0]
        from adclick_edge.data.images import read_image

        (found,) = inspector.inspect([read_image(sample.path)], ["x"])
        assert found.map.shape == (16, 16)
        assert np.isfinite(found.map).all()
    assert len(golden) == 3
    assert manifest.kind == "product"
    assert manifest.product == "flange"
    assert manifest.segmenter == "adclick_seg"
    assert manifest.input_size == (64, 64)
    assert [t.name for t in manifest.segment_inputs] == list(EdgeSegmenter.inputs)
    assert manifest.weights_license == "none"


def test_the_manifest_holds_parity_and_origin(run_bundle: Path, seg_run: Path) -> None:
    with read_bundle(run_bundle) as bundle:
        manifest = bundle.manifest
    parity = manifest.parity
    assert parity["frames"] >= 1
    assert parity["changed_verdicts"] == 0
    assert 0 <= parity["quantile_map_difference"] <= 1e-3
    training = manifest.training
    config = read_config(seg_run)
    assert training["steps"] == config.steps
    assert training["seed"] == config.seed
    assert training["backbone_sha256"] == config.backbone_sha256
    splits = json.loads((seg_run / "splits.json").read_text())["flange"]
    assert set(training["image_hashes"]) == {h for part in splits.values() for h in part}
    log = [json.loads(text) for text in (seg_run / "log.jsonl").read_text().splitlines()]
    assert manifest.metrics["validation_pixel_ap"] == max(e["pixel_ap"] for e in log if "pixel_ap" in e)


def test_a_backbone_becomes_a_weights_bundle(weights_bundle: Path, backbone_file: Path) -> None:
    with read_bundle(weights_bundle) as bundle:
        manifest = bundle.manifest
    assert manifest.kind == "weights"
    assert manifest.product is None
    assert manifest.segmenter == "distance"
    assert manifest.training["backbone_sha256"] == sha256_file(backbone_file)
    assert manifest.parity["changed_verdicts"] == 0
    assert [t.name for t in manifest.segment_inputs] == ["relative_distance"]
    assert {t.name: t.shape[1] for t in manifest.features_outputs}["embedding"] == manifest.embedding_dims


def test_a_missing_picture_is_counted(copied: Path, line: Path, tmp_path: Path, ready_graphs: None) -> None:
    data = tmp_path / "line"
    shutil.copytree(line / "flange", data / "flange")
    write_config(copied, msgspec.structs.replace(read_config(copied), data=str(data)))
    trained_on = json.loads((copied / "splits.json").read_text())["flange"]["train_normals"]
    for path in (data / "flange" / "train" / "good").iterdir():
        if sha256_file(path) in trained_on[:2]:
            path.unlink()
    with pytest.raises(ExportError, match=rf"2 of the {len(trained_on)} normal pictures of 'flange'"):
        export_run(copied, tmp_path / "out", weights_license="none")
    shutil.rmtree(data)
    with pytest.raises(ExportError, match="are gone"):
        export_run(copied, tmp_path / "out", weights_license="none")
    assert not (tmp_path / "out").exists()


def test_pictures_are_found_again_under_other_names(
    copied: Path, line: Path, tmp_path: Path, run_bundle: Path, ready_graphs: None
) -> None:
    data = tmp_path / "line"
    shutil.copytree(line / "flange", data / "flange")
    folder = data / "flange" / "train" / "good"
    for path in sorted(folder.iterdir()):
        path.rename(folder / f"{99 - int(path.stem):03d}_moved.png")
    write_config(copied, msgspec.structs.replace(read_config(copied), data=str(data)))
    export_run(copied, tmp_path / "out", weights_license="none")
    with read_bundle(tmp_path / "out") as again, read_bundle(run_bundle) as first:
        assert again.manifest.version == first.manifest.version
        assert again.calibration is not None
        assert first.calibration is not None
        assert again.calibration["upper"] == first.calibration["upper"]


def test_zip_bundle(copied: Path, tmp_path: Path, ready_graphs: None) -> None:
    export_run(copied, tmp_path / "out.zip", weights_license="none")
    with Inspector.open(tmp_path / "out.zip", threads=1) as inspector:
        assert inspector.bundle.manifest.product == "flange"


def test_unknown_product_and_no_run_are_named(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not trained on 'bolt'; it has flange"):
        export_run(copied, tmp_path / "out", product="bolt", weights_license="none")
    with pytest.raises(TrainingError, match="not a training run"):
        export_run(tmp_path / "elsewhere", tmp_path / "out", weights_license="none")


@pytest.mark.parametrize(
    "name", ["best.safetensors", "splits.json", "banks/flange.safetensors", "backbone.safetensors"]
)
def test_an_incomplete_run_is_refused(name: str, copied: Path, tmp_path: Path) -> None:
    (copied / name).unlink()
    with pytest.raises(ExportError, match=name.replace(".", r"\.")):
        export_run(copied, tmp_path / "out", weights_license="none")


def test_splits_that_are_not_of_the_run_are_refused(copied: Path, tmp_path: Path) -> None:
    for content in ("{}", "[1]", "{"):
        (copied / "splits.json").write_text(content)
        with pytest.raises(ExportError, match=r"splits\.json"):
            export_run(copied, tmp_path / "out", weights_license="none")


def test_a_run_of_several_products_becomes_weights(copied: Path, tmp_path: Path, ready_graphs: None) -> None:
    config = read_config(copied)
    write_config(copied, msgspec.structs.replace(config, products=("flange", "fabric")))
    splits = json.loads((copied / "splits.json").read_text())
    splits["fabric"] = {"train_normals": ["a" * 64], "validation_normals": []}
    (copied / "splits.json").write_text(json.dumps(splits))
    export_run(copied, tmp_path / "weights", weights_license="none")
    with read_bundle(tmp_path / "weights") as bundle:
        assert bundle.manifest.kind == "weights"
        assert bundle.manifest.training["products"] == ["flange", "fabric"]
        assert "a" * 64 in bundle.manifest.training["image_hashes"]
    export_run(copied, tmp_path / "one", product="flange", weights_license="none")
    with read_bundle(tmp_path / "one") as bundle:
        assert bundle.manifest.product == "flange"


def test_missing_backbone_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.npz"):
        export_backbone(PRESETS["edge-s"], tmp_path / "nothing.npz", tmp_path / "out", weights_license="none")
