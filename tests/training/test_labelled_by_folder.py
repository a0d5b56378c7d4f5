"""Training on a label folder: the same pictures as with the ground truth, with other masks."""

import json
import shutil
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from command_line import Adclick
from label_samples import DiskModel, true_labels
from safetensors.torch import load_file
from seg_samples import config_for

from adclick_edge.commands.label import label_product
from adclick_edge.data.dataset import Product, open_product
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.data.labels_folder import Labels, LabelSettings, read_labels, write_labels, write_mask
from adclick_edge.errors import DataError, ImageError, UsageError
from adclick_edge.files import sha256_file
from adclick_edge.training.labels import choose_labelled, labelled_by_folder
from adclick_edge.training.run_folder import RunConfig, read_config, read_log, write_config
from adclick_edge.training.seg import train_seg
from adclick_edge.training.seg_data import choose_split

SHARE = 0.34
PER_KIND = 3


@pytest.fixture(scope="module")
def labelled_tile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data/tile`` and its ground truth as ``labels/tile``. Do not change it.

    Two kinds of defect: ``spot``, 6 defects in 2 shots each, and ``line``, 3 defects in one.
    """
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("labelled")
    root = folder / "data" / "tile"

    def write(where: str, name: str, image: np.ndarray) -> None:
        (root / where).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / where / name), image)

    for number in range(3):
        write("train/good", f"{number}.png", rng.integers(0, 255, (64, 64, 3), np.uint8))
    for kind, defects in (("spot", 6), ("line", 3)):
        for defect in range(defects):
            image, mask = rng.integers(0, 255, (64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
            mask[8 + defect : 24, 12:30] = 255
            for shot in range(2 if kind == "spot" else 1):
                write(f"test/{kind}", f"{defect}{shot}.png", cv2.convertScaleAbs(image, alpha=1 - 0.1 * shot))
                write(f"ground_truth/{kind}", f"{defect}{shot}_mask.png", mask)
    true_labels(open_product(root), folder / "labels", per_kind=PER_KIND)
    return folder


@pytest.fixture
def product(labelled_tile: Path, tmp_path: Path) -> Product:
    shutil.copytree(labelled_tile / "data", tmp_path / "data")
    return open_product(tmp_path / "data", "tile")


@pytest.fixture
def out(labelled_tile: Path, tmp_path: Path) -> Path:
    shutil.copytree(labelled_tile / "labels", tmp_path / "labels")
    return tmp_path / "labels"


def hashes(samples) -> list[str]:
    return [sha256_file(sample.path) for sample in samples]


def by_folder(out: Path, product: Product, skip_kinds: tuple[str, ...] = ()):
    return labelled_by_folder(out, product, skip_kinds=skip_kinds, validation_share=SHARE)


def first_labelled(product: Product, labels: Labels) -> Path:
    return product.root / labels.pictures[0].file


@pytest.mark.parametrize("skip_kinds", [(), ("spot",)])
def test_the_share_of_each_part_is_that_of_the_ground_truth(
    product: Product, out: Path, skip_kinds: tuple[str, ...]
) -> None:
    chosen = choose_labelled(product, per_kind=PER_KIND, skip_kinds=skip_kinds, validation_share=SHARE)
    found = by_folder(out, product, skip_kinds)
    for part in ("train", "validation", "siblings"):
        assert hashes(getattr(found, part)) == hashes(getattr(chosen, part))
    assert chosen.train
    if not skip_kinds:
        assert chosen.validation
    for ours, true in zip((*found.train, *found.validation), (*chosen.train, *chosen.validation), strict=True):
        assert ours.mask_path is not None
        assert true.mask_path is not None
        assert ours.mask_path.is_relative_to(out / "tile" / ours.kind)
        assert np.array_equal(read_mask(ours.mask_path, (64, 64)), read_mask(true.mask_path, (64, 64)))


def test_other_shots_of_a_labelled_defect_are_left_out(product: Product, out: Path) -> None:
    labels = read_labels(out, "tile")
    shown = {p.file[:-5] for p in labels.pictures if p.kind == "spot"}
    assert {s.file[:-5] for s in labels.siblings} == shown
    assert len(shown) == 3
    found = by_folder(out, product)
    assert hashes(found.siblings) == [s.sha256 for s in labels.siblings]


def test_pictures_are_found_by_content_wherever_they_lie(product: Product, out: Path) -> None:
    labels = read_labels(out, "tile")
    before = by_folder(out, product)
    train = hashes(before.train)
    moved = first_labelled(product, labels)
    moved.rename(moved.with_name("renamed.png"))
    shutil.rmtree(product.root / "ground_truth")  # no longer needed
    after = by_folder(out, open_product(product.root))
    assert hashes(after.train) == train
    assert "renamed" in {s.path.stem for s in (*after.train, *after.validation)}


def test_a_picture_that_is_gone_is_named(product: Product, out: Path) -> None:
    gone = first_labelled(product, read_labels(out, "tile"))
    gone.unlink()
    with pytest.raises(DataError, match=f"gone: .*{gone.parent.name}/{gone.name}"):
        by_folder(out, open_product(product.root))


def test_a_picture_that_changed_is_named(product: Product, out: Path) -> None:
    changed = first_labelled(product, read_labels(out, "tile"))
    cv2.imwrite(str(changed), read_image(changed)[::-1])
    with pytest.raises(DataError, match=f"changed since: .*{changed.parent.name}/{changed.name}"):
        by_folder(out, product)


def test_of_many_missing_pictures_some_are_named_and_the_rest_counted(product: Product, out: Path) -> None:
    labels = read_labels(out, "tile")
    for picture in labels.pictures:
        (product.root / picture.file).unlink()
    with pytest.raises(DataError, match=f"and {len(labels.pictures) - 3} more"):
        by_folder(out, open_product(product.root))


def test_a_mask_that_is_gone_or_of_another_size_is_named(product: Product, out: Path) -> None:
    mask = out / "tile" / str(read_labels(out, "tile").pictures[0].mask)
    write_mask(mask, np.ones((64, 63), bool))
    with pytest.raises(ImageError, match=f"{mask.name}.*63 x 64"):
        by_folder(out, product)
    mask.unlink()
    with pytest.raises(ImageError, match=mask.name):
        by_folder(out, product)


def test_unfinished_labels_are_refused(product: Product, out: Path) -> None:
    labels = read_labels(out, "tile")
    write_labels(out, msgspec.structs.replace(labels, pictures=labels.pictures[:-1]))
    with pytest.raises(DataError, match=f"{labels.chosen - 1} of {labels.chosen} pictures are done"):
        by_folder(out, product)


def test_a_defect_whose_mask_came_out_empty_is_left_out_of_everything(product: Product, out: Path) -> None:
    labels = read_labels(out, "tile")
    before = by_folder(out, product)
    empty = next(p for p in labels.pictures if p.sha256 == hashes(before.train)[0])
    pictures = [p if p != empty else msgspec.structs.replace(p, mask=None) for p in labels.pictures]
    write_labels(out, msgspec.structs.replace(labels, pictures=tuple(pictures)))
    after = by_folder(out, product)
    assert hashes(after.train) == hashes(before.train)[1:]
    assert hashes(after.validation) == hashes(before.validation)
    assert hashes(after.siblings) == [*hashes(before.siblings), empty.sha256]


def test_only_one_source_of_masks(product: Product, out: Path) -> None:
    with pytest.raises(UsageError, match="one of them"):
        choose_split(product, real_defects_per_kind=2, skip_kinds=(), validation_share=SHARE, seed=0, labels=out)


# Whole runs.


@pytest.fixture(scope="module")
def flange_labels(line: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ground truth of the line's flange as a label folder."""
    out = tmp_path_factory.mktemp("flange") / "labels"
    true_labels(open_product(line, "flange"), out, per_kind=1)
    return out


def losses(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in read_log(run)]


def test_labels_that_are_the_ground_truth_give_the_very_same_run(
    line: Path, backbone_file: Path, flange_labels: Path, tmp_path: Path
) -> None:
    few = {"steps": 4, "batch": 4}
    outlined = config_for(line, backbone_file, real_defects_per_kind=1, **few)
    clicked = config_for(line, backbone_file, labels=str(flange_labels), **few)
    for name, config in (("outlined", outlined), ("clicked", clicked)):
        train_seg(tmp_path / name, config, device_name="cpu")
    assert losses(tmp_path / "clicked") == losses(tmp_path / "outlined")
    assert (tmp_path / "clicked/splits.json").read_bytes() == (tmp_path / "outlined/splits.json").read_bytes()
    assert json.loads((tmp_path / "clicked/splits.json").read_text())["flange"]["train_defects"]
    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = load_file(tmp_path / "clicked" / name), load_file(tmp_path / "outlined" / name)
        assert all(ours[k].equal(theirs[k]) for k in theirs)


def test_other_masks_give_another_run_on_the_same_pictures(
    line: Path, backbone_file: Path, flange_labels: Path, tmp_path: Path
) -> None:
    settings = msgspec.structs.replace(read_labels(flange_labels, "flange").settings, clicks=1)
    label_product(DiskModel(20), open_product(line, "flange"), tmp_path / "disks", settings)
    for name, labels in (("true", flange_labels), ("disks", tmp_path / "disks")):
        config = config_for(line, backbone_file, labels=str(labels), steps=4, batch=4)
        train_seg(tmp_path / f"{name}.run", config, device_name="cpu")
    assert losses(tmp_path / "true.run") != losses(tmp_path / "disks.run")
    assert (tmp_path / "true.run/splits.json").read_bytes() == (tmp_path / "disks.run/splits.json").read_bytes()


def test_runs_made_before_there_were_labels_are_read(line: Path, backbone_file: Path, tmp_path: Path) -> None:
    config = config_for(line, backbone_file)
    write_config(tmp_path, config)
    body = json.loads((tmp_path / "run.json").read_text())
    assert body.pop("labels") is None
    (tmp_path / "run.json").write_text(json.dumps(body))
    assert read_config(tmp_path) == config


def test_a_run_with_labels_comes_back_equal(line: Path, backbone_file: Path, tmp_path: Path) -> None:
    config: RunConfig = config_for(line, backbone_file, labels="some/labels")
    write_config(tmp_path, config)
    assert read_config(tmp_path).labels == "some/labels"
    assert read_config(tmp_path) == config


def test_the_verb_trains_on_labels(
    adclick: Adclick, line: Path, backbone_file: Path, flange_labels: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("train", "seg", "--data", line, "--product", "flange", "--out", run, "--labels", flange_labels)
    done = adclick(*arguments, "--backbone-weights", backbone_file, "--steps", 1, "--batch", 1, "--device", "cpu")
    assert done.code == 0, done.err
    assert read_config(run).labels == str(flange_labels)
    splits = json.loads((run / "splits.json").read_text())["flange"]
    labels = read_labels(flange_labels, "flange")
    assert sorted(splits["train_defects"] + splits["validation_defects"]) == sorted(p.sha256 for p in labels.pictures)


def test_the_verb_refuses_two_sources_and_labels_that_are_not_there(
    adclick: Adclick, line: Path, backbone_file: Path, flange_labels: Path, tmp_path: Path
) -> None:
    start = ("train", "seg", "--data", line, "--out", tmp_path / "run", "--backbone-weights", backbone_file)
    both = adclick(*start, "--labels", flange_labels, "--real-defects", 1)
    assert both.code == 2
    assert "give one of them" in both.said
    assert not (tmp_path / "run").exists()
    missing = adclick(*start, "--product", "fabric", "--labels", flange_labels)
    assert missing.code == 1
    assert "no labels of 'fabric'" in missing.said


def test_settings_of_labels_are_checked() -> None:
    with pytest.raises(msgspec.ValidationError, match="threshold"):
        msgspec.convert(
            {"bundle_version": "a", "clicks": 5, "per_kind": 10, "words": True, "threshold": 1.5}, LabelSettings
        )
