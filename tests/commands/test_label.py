import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from command_line import Adclick
from label_samples import SETTINGS, DiskModel, TruthModel, true_labels

from adclick_edge.commands import label as label_module
from adclick_edge.commands.label import label_product
from adclick_edge.data.dataset import Product, open_product
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.data.labels_folder import read_labels
from adclick_edge.errors import DataError, UsageError
from adclick_edge.files import sha256_file
from adclick_edge.training.labels import choose_labelled


@pytest.fixture
def product(line: Path, tmp_path: Path) -> Product:
    """A copy of the line's product with three kinds of defect, to change."""
    others = shutil.ignore_patterns("missing", "scratch", "swapped")
    shutil.copytree(line / "flange", tmp_path / "data" / "flange", ignore=others)
    return open_product(tmp_path / "data", "flange")


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> DiskModel:
    """What the verb opens in place of a bundle's click graphs."""
    model = DiskModel()
    monkeypatch.setattr(label_module, "_open_session", lambda bundle, threads, mirrored: model)
    return model


def test_click_labels_and_pixel_labels_are_of_the_same_pictures(product: Product, tmp_path: Path) -> None:
    labels = true_labels(product, tmp_path / "out")
    choice = choose_labelled(product, per_kind=SETTINGS.per_kind, skip_kinds=(), validation_share=0.5)
    assert {p.sha256 for p in labels.pictures} == {sha256_file(s.path) for s in (*choice.train, *choice.validation)}
    assert [s.sha256 for s in labels.siblings] == [sha256_file(s.path) for s in choice.siblings]
    assert {p.kind for p in labels.pictures} == set(product.kinds())


def test_masks_and_records_are_those_of_the_clicks(product: Product, tmp_path: Path) -> None:
    out = tmp_path / "out"
    labels = label_product(DiskModel(), product, out, SETTINGS)
    assert read_labels(out, "flange") == labels
    assert labels.chosen == len(labels.pictures) > 1
    for picture in labels.pictures:
        source = product.root / picture.file
        assert picture.sha256 == sha256_file(source)
        frame = read_image(source)
        assert (picture.height, picture.width) == frame.shape[:2]
        model = DiskModel()
        model.set_image(frame)
        assert 1 <= len(picture.clicks) <= SETTINGS.clicks
        for click in picture.clicks:
            probability = model.click(click.y, click.x, click.positive)
        assert picture.mask is not None
        assert picture.mask.startswith(f"{picture.kind}/")
        path = out / "flange" / picture.mask
        assert path.name == f"{source.stem}_mask.png"
        stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert stored is not None
        assert set(np.unique(stored)) == {0, 255}
        assert np.array_equal(stored > 0, probability > SETTINGS.threshold)
        truth_path = next(s.mask_path for s in product.defects() if s.path == source)
        assert truth_path is not None
        truth = read_mask(truth_path, shape=frame.shape[:2])
        both, either = ((stored > 0) & truth).sum(), ((stored > 0) | truth).sum()
        assert picture.iou == pytest.approx(both / either)
    names = {p.relative_to(out / "flange").as_posix() for p in (out / "flange").rglob("*") if p.is_file()}
    assert names == {"labels.json", *(p.mask for p in labels.pictures)}


def test_a_perfect_mask_ends_the_clicks(product: Product, tmp_path: Path) -> None:
    labels = true_labels(product, tmp_path / "out")
    assert {len(p.clicks) for p in labels.pictures} == {1}
    assert {p.iou for p in labels.pictures} == {1.0}


def test_known_kinds_are_named_to_the_model(product: Product, tmp_path: Path) -> None:
    model = DiskModel()
    labels = label_product(model, product, tmp_path / "out", SETTINGS, known_kinds={"crack"})
    assert {p.kind: p.prompt for p in labels.pictures} == {
        kind: "crack" if kind == "crack" else None for kind in product.kinds()
    }
    assert sorted({p or "" for p in model.prompts}) == ["", "crack"]


def test_labelling_goes_on_where_it_stopped(product: Product, tmp_path: Path) -> None:
    class Stopping(DiskModel):
        def set_image(self, frame: np.ndarray) -> None:
            if self.images == 2:
                raise KeyboardInterrupt
            super().set_image(frame)

    whole = label_product(DiskModel(), product, tmp_path / "whole", SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        label_product(Stopping(), product, tmp_path / "out", SETTINGS)
    begun = read_labels(tmp_path / "out", "flange")
    assert (len(begun.pictures), begun.chosen) == (2, whole.chosen)
    model = DiskModel()
    labels = label_product(model, product, tmp_path / "out", SETTINGS)
    assert model.images == whole.chosen - 2

    def without_times(labels):
        return [msgspec.structs.replace(p, seconds=0.0) for p in labels.pictures]

    assert without_times(labels) == without_times(whole)
    again = DiskModel()
    assert label_product(again, product, tmp_path / "out", SETTINGS) == labels
    assert again.images == 0


def test_a_mask_that_was_lost_is_made_again(product: Product, tmp_path: Path) -> None:
    labels = label_product(DiskModel(), product, tmp_path, SETTINGS)
    lost = tmp_path / "flange" / str(labels.pictures[1].mask)
    lost.unlink()
    model = DiskModel()
    again = label_product(model, product, tmp_path, SETTINGS)
    assert lost.is_file()
    assert model.images == 1
    assert [p.mask for p in again.pictures] == [p.mask for p in labels.pictures]


@pytest.mark.parametrize("change", [{"clicks": 4}, {"bundle_version": "ba9876543210"}, {"words": False}], ids=str)
def test_labels_made_otherwise_are_not_mixed(product: Product, tmp_path: Path, change: dict[str, object]) -> None:
    label_product(DiskModel(), product, tmp_path, SETTINGS)
    before = (tmp_path / "flange" / "labels.json").read_bytes()
    with pytest.raises(UsageError, match=next(iter(change))):
        label_product(DiskModel(), product, tmp_path, msgspec.structs.replace(SETTINGS, **change))
    assert (tmp_path / "flange" / "labels.json").read_bytes() == before


def test_defects_that_changed_since_labelling_began_are_told(product: Product, tmp_path: Path) -> None:
    out = tmp_path / "out"
    labels = label_product(DiskModel(), product, out, SETTINGS)
    picture = product.root / labels.pictures[0].file
    cv2.imwrite(str(picture), read_image(picture)[::-1])
    with pytest.raises(DataError, match="not those"):
        label_product(DiskModel(), open_product(product.root), out, SETTINGS)


def test_empty_masks_are_told_and_not_written(
    product: Product, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Blind(DiskModel):
        def click(self, y: float, x: float, positive: bool) -> np.ndarray:
            return np.zeros_like(self.probability)

    out = tmp_path / "out"
    labels = label_product(Blind(), product, out, SETTINGS)
    assert {(p.mask, p.iou, len(p.clicks)) for p in labels.pictures} == {(None, 0.0, SETTINGS.clicks)}
    assert not list(out.rglob("*.png"))
    said = capsys.readouterr().err
    assert said.count("not labelled: ") == len(labels.pictures)
    model = DiskModel()
    label_product(model, product, out, SETTINGS)
    assert model.images == 0, "an empty mask is a result, not a gap"


def test_pictures_the_bundle_was_trained_on_are_counted(
    product: Product, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = sha256_file(choose_labelled(product, per_kind=2, skip_kinds=(), validation_share=0).train[0].path)
    labels = label_product(TruthModel(product), product, tmp_path, SETTINGS, trained_on={known, "f" * 64})
    assert labels.seen_in_training == 1
    assert "trained on 1 of the" in " ".join(capsys.readouterr().err.split())


def test_neither_the_data_nor_other_folders_are_written_to(product: Product, tmp_path: Path) -> None:
    def files() -> list[Path]:
        return sorted(tmp_path.rglob("*"))

    (tmp_path / "mine" / "flange").mkdir(parents=True)
    (tmp_path / "mine" / "flange" / "notes.txt").touch()
    before = files()
    for out in (product.root.parent, product.root / "ground_truth"):
        with pytest.raises(UsageError, match="within the data"):
            label_product(DiskModel(), product, out, SETTINGS)
    with pytest.raises(UsageError, match="something else"):
        label_product(DiskModel(), product, tmp_path / "mine", SETTINGS)
    assert files() == before


def test_without_any_ground_truth_there_is_nothing_to_click_by(product: Product, tmp_path: Path) -> None:
    shutil.rmtree(product.root / "ground_truth")
    with pytest.raises(DataError, match="ground truth"):
        label_product(DiskModel(), open_product(product.root), tmp_path / "out", SETTINGS)


def test_the_verb(adclick: Adclick, disks: DiskModel, product_bundle: Path, line: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("label", product_bundle, "--data", line, "--out", out, "--clicks", 2, "--per-kind", 1)
    done = adclick(*arguments, "--skip-kind", "crack")
    assert done.code == 0, done.err
    labels = read_labels(out, "flange")  # the bundle's own product
    assert "crack" not in {p.kind for p in labels.pictures}
    assert f"{len(labels.pictures)} masks" in done.out
    assert f"--labels {out}" in done.out
    assert labels.settings.clicks == 2
    assert labels.settings.skip_kinds == ("crack",)
    assert len(labels.settings.bundle_version) == 12
    other = adclick(*arguments)
    assert other.code == 2
    assert "skip_kinds" in other.said


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--clicks", "0"], 2, "clicks"),
        (["--clicks", "25"], 2, "clicks"),
        (["--per-kind", "0"], 2, "per-kind"),
        (["--product", "bolt"], 1, "bolt"),
        (["--skip-kind", "craack"], 2, "craack"),
    ],
    ids=lambda x: str(x),
)
def test_bad_options(
    options: list[str],
    code: int,
    said: str,
    adclick: Adclick,
    disks: DiskModel,
    product_bundle: Path,
    line: Path,
    tmp_path: Path,
) -> None:
    found = adclick("label", product_bundle, "--data", line, "--out", tmp_path / "out", *options)
    assert found.code == code, found.err
    assert said in found.said
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_click_graphs_is_told(
    adclick: Adclick, product_bundle: Path, line: Path, tmp_path: Path
) -> None:
    found = adclick("label", product_bundle, "--data", line, "--out", tmp_path / "out")
    assert found.code == 1
    assert "no graphs for clicks" in found.said


def test_a_box_without_torch_labels(click_product: Path, product: Product, tmp_path: Path) -> None:
    code = """
        import sys
        sys.modules.update(dict.fromkeys(["torch", "onnx", "onnxscript"]))
        from adclick_edge.cli import main
        main()
    """
    options = ["--data", product.root.parent, "--out", tmp_path / "out", "--clicks", 2, "--per-kind", 1, "--threads", 1]
    command = [sys.executable, "-c", textwrap.dedent(code), "label", click_product, *options]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    labels = read_labels(tmp_path / "out", "flange")
    assert len(labels.pictures) == 3
    assert all(p.seconds > 0 for p in labels.pictures)
