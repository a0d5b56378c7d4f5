import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from command_line import Adclick

from adclick_edge.bundle import read_bundle
from adclick_edge.data.dataset import open_product
from adclick_edge.errors import ExportError
from adclick_edge.export import click_run
from adclick_edge.export.click_run import export_click_run
from adclick_edge.features.extractor import build_extractor
from adclick_edge.files import sha256_file
from adclick_edge.models.build import build_click_network
from adclick_edge.models.presets import PRESETS
from adclick_edge.runtime.click_session import ClickSession
from adclick_edge.training.checkpoint import save_checkpoint
from adclick_edge.training.click_run import ClickConfig, write_click_config
from adclick_edge.words import PromptTable, shipped_prompts

FRAME = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)


def make_run(run: Path, line: Path, backbone_file: Path, **changes: Any) -> Path:
    preset = msgspec.structs.replace(PRESETS["edge-s"], input_size=(64, 64))
    config = ClickConfig(
        preset=preset,
        size=(64, 64),
        worlds=0,
        products=((str(line), "fabric"),),
        backbone_sha256=sha256_file(backbone_file),
        backbone_file=str(backbone_file),
    )
    config = msgspec.structs.replace(config, **changes)
    write_click_config(run, config)
    shutil.copy(backbone_file, run / f"backbone{backbone_file.suffix}")
    torch.manual_seed(3)
    network = build_click_network(preset, build_extractor(preset))
    for film in network.decoder.film:  # words count
        torch.nn.init.normal_(film.shift.weight)
    torch.nn.init.normal_(network.decoder.logit.weight)
    optimiser = torch.optim.AdamW(network.parameters())
    save_checkpoint(run / "best.safetensors", network, optimiser, {"step": 30, "best": 0.7})
    return run


def test_a_run_becomes_a_bundle(line: Path, backbone_file: Path, tmp_path: Path, adclick: Adclick) -> None:
    run = make_run(tmp_path / "run", line, backbone_file)
    said = adclick("export", run, "--out", tmp_path / "out", "--json").json
    assert said["parity"]["max_probability_difference"] < 1e-3
    with ClickSession.open(tmp_path / "out", threads=1) as session:
        training = session.bundle.manifest.training
        assert training["click"]["products"] == ["fabric"]
        assert (training["click"]["best_step"], training["click"]["validation_iou"]) == (30, 0.7)
        samples = open_product(line, "fabric").samples
        assert training["click"]["image_hashes"] == sorted({sha256_file(sample.path) for sample in samples})
        session.set_image(FRAME)
        plain = session.click(20, 20, positive=True)
        session.prompt(shipped_prompts().known_kinds()[0])
        assert np.abs(session.probability - plain).max() > 1e-3


def test_parts_left_out_stay_out(line: Path, backbone_file: Path, weights_bundle: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", line, backbone_file, without=("words", "residual", "previous"))
    export_click_run(run, tmp_path / "out", base=weights_bundle, weights_license="none")
    with ClickSession.open(tmp_path / "out", threads=1, zoom=False) as session:
        session.set_image(FRAME)
        plain = session.click(20, 20, positive=True)
        session.prompt(shipped_prompts().known_kinds()[0])
        np.testing.assert_array_equal(session.probability, plain)
        again = session.click(20, 20, positive=True)
        np.testing.assert_allclose(again, plain, atol=1e-6)  # the answer before is not seen either


def test_a_bundle_may_be_given_to_build_on(
    line: Path, backbone_file: Path, product_bundle: Path, tmp_path: Path, adclick: Adclick
) -> None:
    run = make_run(tmp_path / "run", line, backbone_file)
    said = adclick("export", run, "--out", tmp_path / "out", "--base", product_bundle)
    assert said.code == 0, said.err
    assert "parity over" in said.out
    with read_bundle(tmp_path / "out") as bundle, read_bundle(product_bundle) as base:
        assert bundle.manifest.product == "flange"
        assert bundle.read("bank.safetensors") == base.read("bank.safetensors")


def test_another_backbone_is_refused(line: Path, backbone_file: Path, weights_bundle: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", line, backbone_file, backbone_sha256="0" * 64)
    with pytest.raises(ExportError, match="another backbone"):
        export_click_run(run, tmp_path / "out", base=weights_bundle, weights_license="none")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["best.safetensors", "backbone.safetensors"])
def test_incomplete_runs_are_refused(name: str, line: Path, backbone_file: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", line, backbone_file)
    (run / name).unlink()
    with pytest.raises(ExportError, match=f"{name} is missing"):
        export_click_run(run, tmp_path / "out", weights_license="none")


def test_pictures_that_are_gone_are_named(line: Path, backbone_file: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", line, backbone_file, products=((str(tmp_path), "gone"),))
    with pytest.raises(ExportError, match="pictures that the run was trained on are gone"):
        export_click_run(run, tmp_path / "out", weights_license="none")


def test_what_an_earlier_run_saw_counts_as_seen(
    line: Path, backbone_file: Path, weights_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated: list[dict[str, Any]] = []
    monkeypatch.setattr(click_run, "write_click_bundle", lambda *_, training, **__: stated.append(training))
    first = make_run(tmp_path / "first", line, backbone_file, products=((str(line), "flange"),))
    second = make_run(tmp_path / "second", line, backbone_file, products=(), start_from=str(first))
    third = make_run(tmp_path / "third", line, backbone_file, start_from=str(second))
    export_click_run(third, tmp_path / "out", base=weights_bundle, weights_license="none")
    assert stated[0]["products"] == ["fabric", "flange"]
    seen = {sha256_file(s.path) for name in ("fabric", "flange") for s in open_product(line, name).samples}
    assert stated[0]["image_hashes"] == sorted(seen)
    shutil.rmtree(first)
    with pytest.raises(ExportError, match="started from cannot be read"):
        export_click_run(third, tmp_path / "out", base=weights_bundle, weights_license="none")


def test_prompts_of_another_text_encoder_are_refused(line: Path, backbone_file: Path, tmp_path: Path) -> None:
    class Other:
        name, sha256, dims = "other", "0" * 64, 384

        def encode(self, sentences: list[str]) -> np.ndarray:
            return np.full((len(sentences), 384), 384**-0.5, np.float32)

    run = make_run(tmp_path / "run", line, backbone_file)
    prompts = PromptTable.build(Other(), ["scratch"]).encode()
    with pytest.raises(ExportError, match="made with the text encoder other"):
        export_click_run(run, tmp_path / "out", prompts_json=prompts, weights_license="none")


def test_options_that_do_not_fit_the_run(
    seg_run: Path, line: Path, backbone_file: Path, tmp_path: Path, adclick: Adclick
) -> None:
    run = make_run(tmp_path / "run", line, backbone_file)
    said = adclick("export", run, "--out", tmp_path / "out", "--product", "flange")
    assert (said.code, "has no product of its own" in said.said) == (2, True)
    said = adclick("export", seg_run, "--out", tmp_path / "out", "--base", tmp_path)
    assert (said.code, "--base is for runs" in said.said) == (2, True)
