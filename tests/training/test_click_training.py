import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy

from adclick_edge.errors import TrainingError
from adclick_edge.features.bank import BankOptions
from adclick_edge.features.extractor import build_extractor
from adclick_edge.features.weights import load_weights, shipped_weights
from adclick_edge.files import sha256_file
from adclick_edge.models.presets import preset_named
from adclick_edge.training import click_store, clicks
from adclick_edge.training.click_pictures import DefectPicture, DiskPictures, WorldPictures
from adclick_edge.training.click_run import ClickConfig, read_click_config
from adclick_edge.training.click_store import prepare_product
from adclick_edge.training.clicks import train_clicks

PRESET = msgspec.structs.replace(preset_named("edge-s"), click_width=8)
SIDE = 64


@dataclass(frozen=True)
class Squares:
    """Grey noise with a bright square; on every second picture a dark one lies over it."""

    seed: int
    count: int = 4

    @property
    def name(self) -> str:
        return f"squares_{self.seed}"

    def identity(self) -> str:
        return f"{self.name} {self.count}"

    def _ground(self, number: int) -> npt.NDArray[np.uint8]:
        return np.random.default_rng([self.seed, number]).integers(100, 140, (SIDE, SIDE, 3), dtype=np.uint8)

    def normals(self) -> list[npt.NDArray[np.uint8]]:
        return [self._ground(number) for number in range(3)]

    def defects(self, normals: object) -> Iterator[DefectPicture]:
        for number in range(self.count):
            frame = self._ground(10 + number)
            bright, dark = np.zeros((2, SIDE, SIDE), bool)
            bright[8:30, 10 + number : 40] = True
            masks = [("stain", bright)]
            frame[bright] = 220
            if number % 2:
                dark[24:50, 20:44] = True
                frame[dark] = 20
                masks.append(("hole", dark))
            yield DefectPicture(frame, tuple(masks), -1)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click_store, "BANK_SIDES_PX", (SIDE, 32))
    monkeypatch.setattr(clicks, "WorldPictures", lambda seed, count: Squares(seed))


def config(**changes: object) -> ClickConfig:
    weights = shipped_weights("edge_backbone")
    given: dict[str, object] = {
        "preset": PRESET,
        "size": (SIDE, SIDE),
        "bank": BankOptions(rows=50, search_dims=8),
        "worlds": 2,
        "validation_worlds": 1,
        "backbone_sha256": sha256_file(weights),
        "backbone_file": str(weights),
        "steps": 4,
        "batch_pixels": 4 * SIDE**2,
        "validate_every": 2,
        "checkpoint_every": 1,
        "warm_up_steps": 1,
    }
    return ClickConfig(**(given | changes))  # type: ignore[arg-type]


def log_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_stopped_run_goes_on_as_if_it_never_stopped(tmp_path: Path) -> None:
    whole = train_clicks(tmp_path / "whole", config(), samples=tmp_path / "samples", device_name="cpu")
    train_clicks(tmp_path / "parts", config(), samples=tmp_path / "samples", device_name="cpu", stop_after=1)
    parts = train_clicks(tmp_path / "parts", config(), samples=tmp_path / "samples", device_name="cpu")
    first, second = (
        [{k: v for k, v in entry.items() if k != "seconds"} for entry in log_of(run)] for run in (whole, parts)
    )
    assert first == second
    assert [entry["step"] for entry in first if "iou_5" in entry] == [1, 3]
    assert list(first[-1]["offsets"]) == ["1", "2", "3", "4", "5"]  # type: ignore[call-overload]
    best = safetensors.numpy.load_file(whole / "best.safetensors")["model.decoder.offsets"]
    np.testing.assert_allclose(best[1:6], list(first[-1]["offsets"].values()), atol=1e-4)  # type: ignore[attr-defined]
    one, other = (safetensors.numpy.load_file(run / "last.safetensors") for run in (whole, parts))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert (whole / "best.safetensors").is_file()
    assert (whole / "curves.png").stat().st_size > 1000
    assert read_click_config(whole) == config()


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    train_clicks(tmp_path / "run", config(), samples=tmp_path / "samples", device_name="cpu", stop_after=1)
    with pytest.raises(TrainingError, match="other settings"):
        train_clicks(tmp_path / "run", config(seed=1), samples=tmp_path / "samples", device_name="cpu")


def test_a_run_can_start_from_another(tmp_path: Path) -> None:
    first = train_clicks(tmp_path / "first", config(steps=2), samples=tmp_path / "samples", device_name="cpu")
    fresh = config(steps=1, learning_rate=0.0)
    started = config(
        steps=1, learning_rate=0.0, start_from=str(first), start_sha256=sha256_file(first / "best.safetensors")
    )
    train_clicks(tmp_path / "second", started, samples=tmp_path / "samples", device_name="cpu")
    train_clicks(tmp_path / "fresh", fresh, samples=tmp_path / "samples", device_name="cpu")
    name = "model.decoder.logit.weight"
    source, second, other = (
        safetensors.numpy.load_file(folder / file)[name]
        for folder, file in (
            (first, "best.safetensors"),
            (tmp_path / "second", "last.safetensors"),
            (tmp_path / "fresh", "last.safetensors"),
        )
    )
    np.testing.assert_array_equal(second, source)
    assert not np.array_equal(other, source)


@pytest.mark.parametrize("part", ["residual", "words", "previous"])
def test_parts_can_be_left_out(tmp_path: Path, part: str) -> None:
    run = train_clicks(
        tmp_path / "run", config(steps=2, without=(part,)), samples=tmp_path / "samples", device_name="cpu"
    )
    weights = safetensors.numpy.load_file(run / "last.safetensors")
    slots = {
        "residual": "encoder.from_residual.0.weight",
        "words": "decoder.words.weight",
        "previous": "decoder.enter.0.weight",
    }
    names = [n for n in weights if n.startswith("optimiser.") and n.endswith(".exp_avg")]
    from adclick_edge.models.build import build_click_network

    order = [n for n, _ in build_click_network(PRESET, build_extractor(PRESET)).named_parameters()]
    moments = weights[f"optimiser.{order.index(slots[part])}.exp_avg"]
    assert names
    learnt = moments if part != "previous" else moments[:, -1]  # the previous mask is the last map to enter
    assert not learnt.any()
    assert moments.shape[1] == 1 or part != "previous" or moments[:, :-1].any()


def test_preparing_again_takes_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = build_extractor(PRESET)
    load_weights(extractor.backbone, shipped_weights("edge_backbone"))
    options = BankOptions(rows=50, search_dims=8)

    def prepare(seed: int = 0) -> click_store.ClickStore:
        return prepare_product(
            Squares(1), extractor, options, tmp_path, size=(SIDE, SIDE), backbone_sha256="b" * 64, seed=seed
        )

    first = prepare()
    assert first.kinds == [["stain"], ["stain", "hole"]] * 2
    assert first.arrays["frames"].shape == (4, SIDE, SIDE, 3)
    assert first.arrays["map8"].shape[2:] == (8, 8)
    assert first.arrays["relative"].shape == (4, extractor.dims + 1, 8, 8)
    assert set(np.unique(first.arrays["masks"][1])) == {0, 1, 2, 3}
    relative = np.expm1(first.arrays["relative"][:, -1].astype(np.float32))
    assert relative.max() > 1.5  # the squares stand out from the bank of grey noise
    monkeypatch.setattr(Squares, "normals", lambda self: pytest.fail("prepared anew"))
    again = prepare()
    np.testing.assert_array_equal(first.arrays["relative"], again.arrays["relative"])
    with pytest.raises(pytest.fail.Exception):
        prepare(seed=1)


def test_worlds_give_masks_as_people_draw_them() -> None:
    pictures = WorldPictures(10_003, 2)
    made = list(pictures.defects([]))
    again = list(pictures.defects([]))
    assert len(made) == 2
    assert len(made[1].masks) in (1, 2)
    for one, other in zip(made, again, strict=True):
        np.testing.assert_array_equal(one.frame, other.frame)
        for (kind, mask), (same, copy) in zip(one.masks, other.masks, strict=True):
            assert kind == same
            assert mask.any()
            np.testing.assert_array_equal(mask, copy)


def test_products_on_disk_give_labels_pasted_copies_and_overlaps(line: Path) -> None:
    pictures = DiskPictures(line, "flange", synthetic=4, skip_kinds=("dent",))
    normals = pictures.normals()
    made = list(pictures.defects(normals))
    kinds = {kind for picture in made for kind, _ in picture.masks}
    assert "dent" not in kinds
    assert {"anomaly", "scratch"} <= kinds
    assert sum(len(picture.masks) == 2 for picture in made) == 4
    assert all(mask.any() and mask.shape == picture.frame.shape[:2] for picture in made for _, mask in picture.masks)
    assert {picture.normal for picture in made if picture.masks[0][0] == "anomaly"} <= set(range(len(normals)))


def test_identity_of_a_product_is_its_content(line: Path, tmp_path: Path) -> None:
    copy = tmp_path / "line"
    shutil.copytree(line, copy)
    before = DiskPictures(copy, "flange", 4).identity()
    assert before == DiskPictures(line, "flange", 4).identity()
    mask = next((copy / "flange" / "ground_truth").rglob("*_mask.png"))
    pixels = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    cv2.imwrite(str(mask), 255 - pixels)
    assert DiskPictures(copy, "flange", 4).identity() != before
