"""What the verbs make of inputs that are nearly right: never a silent loss, never a verdict lost."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Adclick, Ran

from adclick_edge.bundle import read_bundle
from adclick_edge.commands import bank as bank_command
from adclick_edge.runtime.inspector import Inspector, Settings
from adclick_edge.runtime.regions import load_regions

TRIANGLE = [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]


@pytest.fixture
def bank(adclick: Adclick, weights_bundle: Path, line: Path, tmp_path: Path) -> Adclick:
    def run(*options: object) -> Ran:
        given = {
            "--data": line,
            "--product": "flange",
            "--weights": weights_bundle,
            "--out": tmp_path / "b",
            "--rows": 50,
        }
        base = [part for key, value in given.items() if key not in options for part in (key, value)]
        return adclick("bank", *base, *options)

    return run


@pytest.fixture
def bank_must_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the bank was begun")

    monkeypatch.setattr(bank_command, "set_up_product", never)


# bank over a bundle that is there


def test_a_new_bank_keeps_the_regions_and_tells_of_the_thresholds(
    adclick: Adclick, bank: Adclick, bundle_copy: Path, line: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"roi": [TRIANGLE]}))
    assert adclick("regions", bundle_copy, "--set", tmp_path / "r.json").code == 0
    assert adclick("calibrate", bundle_copy, "--normals", line / "flange" / "test" / "good").code == 0
    found = bank("--out", bundle_copy)
    assert found.code == 0, found.err
    assert "regions of the bundle" in found.said
    assert "adclick calibrate" in found.said
    assert "leave-one-out" in found.said
    with read_bundle(bundle_copy) as bundle:
        assert [[list(p) for p in polygon] for polygon in load_regions(bundle).roi] == [TRIANGLE]
        assert bundle.calibration is not None
        assert bundle.calibration["source"] == "leave_one_out"
    (tmp_path / "r.json").write_text(json.dumps({"ignore": [TRIANGLE]}))
    found = bank("--out", bundle_copy, "--regions", tmp_path / "r.json")
    assert found.code == 0
    assert "kept" not in found.said
    assert "leave-one-out" not in found.said
    with read_bundle(bundle_copy) as bundle:
        assert load_regions(bundle).roi == ()


def test_regions_of_another_product_are_not_taken_over(
    adclick: Adclick, bank: Adclick, bundle_copy: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"roi": [TRIANGLE]}))
    assert adclick("regions", bundle_copy, "--set", tmp_path / "r.json").code == 0
    found = bank("--out", bundle_copy, "--product", "fabric")
    assert found.code == 0
    assert "'flange' and is replaced by 'fabric'" in found.said
    with read_bundle(bundle_copy) as bundle:
        assert load_regions(bundle).roi == ()


# Options of bank


@pytest.mark.usefixtures("bank_must_not_start")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backbone", "resnet18"], "--backbone resnet18"),
        (["--preset", "paper"], "has the backbone wide_resnet50_2"),
        (["--tile-scale", 1, "--tile-overlap", 126], "--tile-overlap 126"),
        (["--tile-scale", 1, "--window", 0], "tiles have no fixed place"),
    ],
    ids=lambda x: str(x),
)
def test_options_that_do_not_fit_are_refused_first(options: list[object], said: str, bank: Adclick) -> None:
    found = bank(*options)
    assert found.code == 2, found.err
    assert said in found.said


@pytest.mark.usefixtures("bank_must_not_start")
def test_a_position_weight_of_the_preset_does_not_go_with_tiles(bank: Adclick, monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    from adclick_edge.models.presets import PRESETS

    positioned = msgspec.structs.replace(PRESETS["edge-m"].bank, position_weight=0.1)
    monkeypatch.setitem(PRESETS, "edge-m", msgspec.structs.replace(PRESETS["edge-m"], bank=positioned))
    found = bank("--preset", "edge-m", "--tile-scale", 1)
    assert found.code == 2
    assert "--position-weight 0" in found.said


def test_the_manifest_names_the_preset_used(bank: Adclick, tmp_path: Path) -> None:
    assert bank("--preset", "edge-m", "--size", 128).code == 0
    with read_bundle(tmp_path / "b") as bundle:
        assert bundle.manifest.preset == "edge-m"
    assert bank("--out", tmp_path / "c").code == 0
    with read_bundle(tmp_path / "c") as bundle:
        assert bundle.manifest.preset == "edge-s"


@pytest.mark.usefixtures("bank_must_not_start")
@pytest.mark.parametrize("where", ["file", "file.zip", "folder", "folder.zip", "file/sub", "inside"])
def test_a_place_that_cannot_be_written_is_refused_first(
    where: str, bank: Adclick, product_bundle: Path, tmp_path: Path
) -> None:
    for name in ("file", "file.zip"):
        (tmp_path / name).write_text("mine")
    for name in ("folder", "folder.zip"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "diary.txt").write_text("mine")
    out = product_bundle / "golden" / "b" if where == "inside" else tmp_path / where
    found = bank("--out", out)
    assert found.code == 1, found.err
    assert str(out) in found.said


def test_a_flat_folder_holds_good_parts(
    bank: Adclick, adclick: Adclick, line: Path, weights_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(line / "flange" / "train" / "good", tmp_path / "bolt")
    (tmp_path / "bolt" / "old").mkdir()
    found = adclick("bank", "--data", tmp_path / "bolt", "--weights", weights_bundle, "--out", tmp_path / "b")
    assert found.code == 0, found.err
    assert "bolt, version" in found.out
    assert "14 normal pictures" in found.out
    assert "taken for good parts" in found.said
    assert bank("--data", tmp_path / "bolt", "--product", "nut", "--split-normals", 0.5).code == 0
    with Inspector.open(tmp_path / "b", threads=1) as inspector:
        assert inspector.bundle.manifest.product == "nut"
        assert 0 < len(inspector.bank.image_hashes) < 14


# inspect


def verdicts_of(found: Ran) -> dict[str, Any]:
    body = json.loads(found.out)
    assert isinstance(body, dict)
    return body


def test_files_that_are_no_pictures_are_named(
    adclick: Adclick, product_bundle: Path, line: Path, tmp_path: Path
) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    shutil.copy(line / "flange" / "test" / "good" / "000.png", tmp_path / "in" / "a.png")
    for name in ("a.webp", ".hidden", "sub/b.gif"):
        (tmp_path / "in" / name).write_bytes(b"x")
    found = adclick("inspect", product_bundle, tmp_path / "in", "--json")
    assert found.code == 0
    body = verdicts_of(found)
    assert (body["received"], body["ignored"], body["ignored_count"]) == (1, ["a.webp", "sub/b.gif"], 2)
    assert "2 ignored" in found.said
    assert "a.webp, sub/b.gif" in found.said
    for number in range(30):
        (tmp_path / "in" / f"{number}.webp").write_bytes(b"x")
    body = verdicts_of(adclick("inspect", product_bundle, tmp_path / "in", "--json"))
    assert (len(body["ignored"]), body["ignored_count"]) == (20, 32)


def test_nothing_inspected_is_said_in_one_line(adclick: Adclick, product_bundle: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    found = adclick("inspect", product_bundle, tmp_path)
    assert found.code == 1
    assert "error: none of the 2 pictures could be inspected" in found.err


def test_a_map_that_is_no_number_costs_no_other_verdict(
    adclick: Adclick, product_bundle: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = Inspector.maps, [0]

    def spoiled(self: Inspector, frames: Any, **more: Any) -> Any:
        maps, spent = plain(self, frames, **more)
        calls[0] += 1
        if calls[0] == 5:  # after the three golden frames: the second picture
            maps = [np.full_like(maps[0], np.nan)]
        return maps, spent

    monkeypatch.setattr(Inspector, "maps", spoiled)
    found = adclick(
        "inspect", product_bundle, line / "flange" / "test" / "good", "--json", "--overlay", tmp_path / "drawn"
    )
    assert found.code == 0, found.err
    assert verdicts_of(found)["not_inspected"] == 1
    assert len(list((tmp_path / "drawn").iterdir())) == 5


def test_an_overlay_that_cannot_be_written_costs_no_verdict(
    adclick: Adclick, product_bundle: Path, line: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    found = adclick(
        "inspect", product_bundle, line / "flange" / "test" / "crack", "--json", "--overlay", tmp_path / "file" / "sub"
    )
    assert found.code == 0, found.err
    assert verdicts_of(found)["received"] == 2
    assert found.said.count("no overlay of") == 2


def test_what_the_inspector_notices_is_said(
    adclick: Adclick, product_bundle: Path, line: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Inspector.read_settings

    def noticing(self: Inspector) -> Settings:
        return replace(plain(self), notices=("look here",))

    monkeypatch.setattr(Inspector, "read_settings", noticing)
    found = adclick("inspect", product_bundle, line / "flange" / "test" / "crack", "--json")
    assert "look here" in found.err
    assert verdicts_of(found)["received"] == 2


# eval


def test_eval_of_another_product_is_warned_of_and_named(adclick: Adclick, product_bundle: Path, line: Path) -> None:
    found = adclick("eval", product_bundle, "--data", line, "--product", "fabric")
    assert found.code == 0, found.err
    assert "warning: the bundle was made for 'flange', the pictures are of 'fabric'" in found.said
    assert re.match(r"fabric, version \w+ of flange: \d+ pictures, 0 left out", found.out)
    found = adclick("eval", product_bundle, "--data", line)
    assert "warning" not in found.said
    assert re.match(r"flange, version \w+: 18 pictures, 0 left out", found.out)
