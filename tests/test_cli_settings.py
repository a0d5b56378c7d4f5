"""Thresholds and regions through the command line: what may replace them, and what must not be taken for them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_samples import reseal
from command_line import Adclick

from adclick_edge.bundle import read_bundle
from adclick_edge.data.dataset import open_product
from adclick_edge.features.bank import BankOptions
from adclick_edge.files import sha256_file
from adclick_edge.runtime.calibration import calibrate, store_calibration
from adclick_edge.runtime.inspector import Inspector
from adclick_edge.runtime.regions import Regions
from adclick_edge.runtime.setup import SetUp, set_up_product

LEFT = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]


@pytest.fixture
def adclick(adclick: Adclick) -> Callable[..., tuple[int, str, str]]:
    """``adclick(*arguments)``: exit code, stdout, stderr without line breaks."""

    def run(*arguments: object) -> tuple[int, str, str]:
        ran = adclick(*arguments)
        return ran.code, ran.out, ran.said

    return run


@pytest.fixture
def good(line: Path) -> Path:
    return line / "flange" / "test" / "good"


def regions_file(folder: Path, **regions: Any) -> Path:
    path = folder / "r.json"
    path.write_text(json.dumps(regions))
    return path


def test_other_regions_end_the_thresholds_until_the_next_calibration(
    adclick: Adclick, bundle_copy: Path, good: Path, tmp_path: Path
) -> None:
    assert adclick("regions", bundle_copy, "--set", regions_file(tmp_path, roi=[LEFT]))[0] == 0
    with Inspector.open(bundle_copy, threads=1) as inspector:
        assert inspector.calibration is None
        assert len(inspector.notices) == 1
    code, out, _ = adclick("calibrate", bundle_copy, "--normals", good, "--json")
    assert code == 0
    with Inspector.open(bundle_copy, threads=1) as inspector:
        assert inspector.calibration is not None
        assert inspector.calibration.regions_sha256 == json.loads(out)["regions_sha256"]


def test_regions_beyond_those_of_the_bank_are_refused(
    adclick: Adclick, weights_bundle: Path, line: Path, tmp_path: Path
) -> None:
    half = SetUp("flange", (128, 128), BankOptions(rows=300), regions=Regions(roi=(tuple(map(tuple, LEFT)),)))  # type: ignore[arg-type]
    with read_bundle(weights_bundle) as weights:
        set_up_product(weights, open_product(line, "flange").normals("train")[:3], tmp_path / "half", half)
    code, _, said = adclick("regions", tmp_path / "half", "--set", regions_file(tmp_path))
    assert code == 2
    assert "`adclick bank` again" in said
    narrow = [[0.1, 0.1], [0.4, 0.1], [0.4, 0.9], [0.1, 0.9]]
    assert adclick("regions", tmp_path / "half", "--set", regions_file(tmp_path, roi=[narrow]))[0] == 0
    assert adclick("regions", tmp_path / "half", "--set", regions_file(tmp_path, roi=[LEFT]))[0] == 0


def test_regions_of_a_whole_bank_can_be_narrowed_and_widened(
    adclick: Adclick, bundle_copy: Path, tmp_path: Path
) -> None:
    for regions in ({"roi": [LEFT]}, {}):
        code, _, said = adclick("regions", bundle_copy, "--set", regions_file(tmp_path, **regions))
        assert code == 0, said


@pytest.mark.parametrize("known_as", ["bank", "training"])
def test_known_defects_are_refused(
    known_as: str, adclick: Adclick, bundle_copy: Path, good: Path, tmp_path: Path
) -> None:
    (tmp_path / "defects" / "dent").mkdir(parents=True)
    if known_as == "bank":
        shutil.copy(good.parents[1] / "train" / "good" / "000.png", tmp_path / "defects" / "dent" / "d.png")
    else:
        picture = shutil.copy(good.parent / "dent" / "000.png", tmp_path / "defects" / "dent" / "d.png")
        reseal(bundle_copy, training={"image_hashes": [sha256_file(picture)]})
    code, _, said = adclick("calibrate", bundle_copy, "--normals", good, "--defects", tmp_path / "defects")
    assert code == 1
    assert "1 of 1 calibration frames" in said
    assert {"bank": "in the bank", "training": "trained on"}[known_as] in said
    assert "d.png" in said


def test_normal_training_pictures_are_refused(adclick: Adclick, bundle_copy: Path, good: Path) -> None:
    reseal(bundle_copy, training={"image_hashes": [sha256_file(good / "002.png")]})
    code, _, said = adclick("calibrate", bundle_copy, "--normals", good)
    assert code == 1
    assert "were trained on" in said
    assert "002.png" in said


def test_a_picture_cannot_be_normal_and_defective(
    adclick: Adclick, bundle_copy: Path, good: Path, tmp_path: Path
) -> None:
    shutil.copytree(good.parent / "dent", tmp_path / "defects")
    shutil.copy(good / "001.png", tmp_path / "defects" / "twice.png")
    code, _, said = adclick("calibrate", bundle_copy, "--normals", good, "--defects", tmp_path / "defects")
    assert code == 1
    assert "1 pictures are given as normal and as defective" in said
    assert "twice.png" in said
    assert "001.png" in said


def test_a_folder_with_defects_below_is_not_taken_as_normals(adclick: Adclick, bundle_copy: Path, good: Path) -> None:
    before = (bundle_copy / "calibration.json").read_bytes()
    code, _, said = adclick("calibrate", bundle_copy, "--normals", good.parent)
    assert code == 1
    assert str(good.parent / "crack") in said
    assert (bundle_copy / "calibration.json").read_bytes() == before


def test_defects_may_lie_in_a_folder_a_kind(adclick: Adclick, bundle_copy: Path, good: Path, tmp_path: Path) -> None:
    for kind in ("crack", "dent"):
        shutil.copytree(good.parent / kind, tmp_path / "defects" / kind)
    code, out, said = adclick("calibrate", bundle_copy, "--normals", good, "--defects", tmp_path / "defects", "--json")
    assert code == 0, said
    assert json.loads(out)["defects"] == 4


@pytest.mark.parametrize(("old_score", "warned"), [(1e-6, True), (1e6, False)])
def test_pictures_that_were_ng_so_far_are_pointed_out(
    old_score: float, warned: bool, adclick: Adclick, bundle_copy: Path, good: Path
) -> None:
    with read_bundle(bundle_copy) as bundle:
        store_calibration(bundle, calibrate([old_score] * 2, false_alarms=0.1, source="held_out"))
    code, _, said = adclick("calibrate", bundle_copy, "--normals", good)
    assert code == 0
    assert ("would be ng under the old thresholds" in said) == warned


def damage(bundle: Path, what: str) -> None:
    if what == "another version":
        with read_bundle(bundle) as opened:
            opened.set_calibration({**(opened.calibration or {}), "bundle_version": "0" * 12})
    elif what == "no calibration":
        with read_bundle(bundle) as opened:
            opened.set_calibration({"lower": 1})
    else:
        (bundle / what).write_bytes(b'{"sha256": "')


@pytest.mark.parametrize("what", ["calibration.json", "another version", "no calibration"])
def test_thresholds_nobody_can_read_are_replaced(what: str, adclick: Adclick, bundle_copy: Path, good: Path) -> None:
    damage(bundle_copy, what)
    code, _, said = adclick("calibrate", bundle_copy, "--normals", good)
    assert code == 0, said
    with Inspector.open(bundle_copy, threads=1) as inspector:
        assert inspector.calibration is not None
        assert inspector.calibration.normals == 6


def test_damaged_regions_are_set_first_then_the_thresholds(
    adclick: Adclick, bundle_copy: Path, good: Path, tmp_path: Path
) -> None:
    damage(bundle_copy, "regions.json")
    damage(bundle_copy, "calibration.json")
    code, _, said = adclick("calibrate", bundle_copy, "--normals", good)
    assert code == 1
    assert "adclick regions --set" in said
    assert adclick("regions", bundle_copy)[0] == 1
    code, out, said = adclick("regions", bundle_copy, "--set", regions_file(tmp_path, ignore=[LEFT]))
    assert code == 0, said
    assert json.loads(out)["ignore"] == [LEFT]
    assert adclick("calibrate", bundle_copy, "--normals", good)[0] == 0
