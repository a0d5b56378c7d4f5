import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from adclick_edge.data import sample_line
from adclick_edge.data.sample_line import (
    PRODUCTS,
    contact_sheet,
    is_rendered,
    render,
    render_frame,
    render_line,
    render_noise_free,
)
from adclick_edge.data.sample_line.frame import MASK_LEVELS
from adclick_edge.errors import DataError, UsageError

SIZE = 96
DEFECTS = [(product, kind) for product, kinds in PRODUCTS.items() for kind in kinds]
LOGICAL = ("missing", "swapped")
SMALL = {"train_normals": 2, "test_normals": 1, "defects_per_kind": 1, "size": 64, "seed": 3}


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    root = tmp_path_factory.mktemp("line")
    render_line(root, **SMALL)
    return root


def test_registry_is_broad_enough():
    kinds = {kind for _, kind in DEFECTS}
    assert len(PRODUCTS) >= 3
    assert len(kinds) >= 6
    assert set(LOGICAL) <= kinds
    assert all(len(set(each)) == len(each) >= 4 and "good" not in each for each in PRODUCTS.values())


@pytest.mark.parametrize("product", PRODUCTS)
def test_good_frame_is_a_picture_without_a_mask(product):
    image, mask = render_frame(product, seed=0, index=0, size=SIZE)
    assert image.shape == (SIZE, SIZE, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert mask.shape == (SIZE, SIZE)
    assert mask.dtype == np.bool_
    assert not mask.any()
    assert 20 < image.mean() < 200
    assert image.std() > 10
    assert (image == 255).mean() < 0.02


@pytest.mark.parametrize(("product", "kind"), DEFECTS)
def test_mask_is_where_the_defect_changes_the_noise_free_picture(product, kind):
    clean = render_noise_free(product, seed=1, index=2, kind=kind, size=SIZE)
    change = np.abs(clean.picture - clean.reference).max(axis=0)
    assert clean.mask.any()
    assert clean.mask.mean() < 0.25
    assert change[~clean.mask].max() <= MASK_LEVELS
    # Outside a missing part's place, every masked pixel is there because it changed.
    assert (change[clean.mask & ~clean.footprint] > MASK_LEVELS).all()
    assert clean.footprint.any() == (kind in LOGICAL)
    np.testing.assert_array_equal(render_frame(product, seed=1, index=2, kind=kind, size=SIZE)[1], clean.mask)


@pytest.mark.parametrize(("product", "kind"), DEFECTS)
@pytest.mark.parametrize("index", range(3))
def test_every_defect_can_be_seen(product, kind, index):
    clean = render_noise_free(product, seed=5, index=index, kind=kind, size=64)
    change = np.abs(clean.picture - clean.reference).max(axis=0)
    assert (change > MASK_LEVELS).sum() >= 2


def test_noise_is_the_only_difference_between_a_frame_and_its_noise_free_picture():
    image, _ = render_frame("board", seed=2, index=0, size=128)
    clean = render_noise_free("board", seed=2, index=0, size=128)
    noise = image.astype(np.float32) - clean.picture.transpose(1, 2, 0)
    assert abs(float(noise.mean())) < 0.5
    assert 0.5 < float(noise.std()) < 5


@pytest.mark.parametrize("product", PRODUCTS)
def test_frame_depends_on_its_arguments_alone(product):
    kind = PRODUCTS[product][0]
    again = [render_frame(product, seed=4, index=7, kind=kind, size=64) for _ in range(2)]
    for a, b in zip(*again, strict=True):
        assert a.tobytes() == b.tobytes()
    first = render_frame(product, seed=4, index=7, size=64)[0]
    others = {
        "seed": render_frame(product, seed=5, index=7, size=64)[0],
        "index": render_frame(product, seed=4, index=8, size=64)[0],
        "split": render_frame(product, seed=4, index=7, split="train", size=64)[0],
        "kind": again[0][0],
    }
    for name, other in others.items():
        assert (first != other).mean() > 0.3, name


@pytest.mark.parametrize("product", PRODUCTS)
def test_good_frames_vary_in_light_and_place(product):
    frames = np.stack([render_noise_free(product, seed=0, index=i, size=64).picture for i in range(5)])
    brightness = frames.mean(axis=(1, 2, 3))
    assert brightness.std() > 0.5
    assert frames.std(axis=0).mean() > 2


def test_products_differ():
    looks = [render_frame(product, seed=0, index=0, size=64)[0].astype(float) for product in PRODUCTS]
    for i, a in enumerate(looks):
        for b in looks[i + 1 :]:
            assert np.abs(a - b).mean() > 20


def test_size_scales_the_same_board():
    small, large = (render_noise_free("board", seed=0, index=0, size=size).reference for size in (128, 256))
    shrunk = cv2.resize(large.transpose(1, 2, 0), (128, 128), interpolation=cv2.INTER_AREA)
    a, b = (cv2.GaussianBlur(np.ascontiguousarray(x), (0, 0), 2).ravel() for x in (small.transpose(1, 2, 0), shrunk))
    assert np.corrcoef(a, b)[0, 1] > 0.97


@pytest.mark.parametrize("size", [64, 65, 101])
def test_odd_sizes(size):
    for product in PRODUCTS:
        image, mask = render_frame(product, seed=0, index=0, kind=PRODUCTS[product][-1], size=size)
        assert image.shape == (size, size, 3)
        assert mask.shape == (size, size)


def test_layout_on_disk_is_complete(line):
    expected = {"line.json"}
    for product, kinds in PRODUCTS.items():
        expected |= {f"{product}/train/good/00{i}.png" for i in range(2)} | {f"{product}/test/good/000.png"}
        expected |= {f"{product}/test/{kind}/000.png" for kind in kinds}
        expected |= {f"{product}/ground_truth/{kind}/000_mask.png" for kind in kinds}
    assert set(digest(line)) == expected


def test_files_hold_what_render_frame_gives(line):
    for product, kinds in PRODUCTS.items():
        kind = kinds[-1]
        image, mask = render_frame(product, seed=3, index=0, kind=kind, size=64)
        stored = cv2.imread(str(line / product / "test" / kind / "000.png"), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(stored[..., ::-1], image)
        stored_mask = cv2.imread(str(line / product / "ground_truth" / kind / "000_mask.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(stored_mask, mask.astype(np.uint8) * 255)


def test_subset_and_other_counts_give_the_same_pictures(line, tmp_path):
    render_line(
        tmp_path / "a", products=["flange"], train_normals=1, test_normals=2, defects_per_kind=1, size=64, seed=3
    )
    whole, part = digest(line / "flange"), digest(tmp_path / "a" / "flange")
    assert len(set(whole) & set(part)) == 14
    for name in set(whole) & set(part):
        assert whole[name] == part[name], name
    assert not (tmp_path / "a" / "board").exists()


def test_is_rendered(line, tmp_path):
    assert is_rendered(line, **SMALL)
    assert is_rendered(line, products=["board"], **SMALL)
    assert not is_rendered(line, **{**SMALL, "seed": 4})
    assert not is_rendered(line, **{**SMALL, "size": 96})
    assert not is_rendered(tmp_path / "none", **SMALL)
    assert not is_rendered(tmp_path, **SMALL)


def test_adding_a_product_keeps_the_others(tmp_path):
    few = {"train_normals": 1, "test_normals": 0, "defects_per_kind": 0, "size": 64}
    render_line(tmp_path, products=["fabric"], **few)
    before = digest(tmp_path / "fabric")
    render_line(tmp_path, products=["flange", "flange"], **few)
    assert digest(tmp_path / "fabric") == before
    assert is_rendered(tmp_path, products=["fabric", "flange"], **few)
    assert set(json.loads((tmp_path / "line.json").read_text())["sample_line"]) == {"fabric", "flange"}


def test_failure_leaves_the_old_product_and_no_claim(tmp_path, monkeypatch):
    few = {"products": ["fabric"], "train_normals": 2, "test_normals": 1, "defects_per_kind": 0, "size": 64}
    render_line(tmp_path, **few)
    before = digest(tmp_path / "fabric")

    def fail_late(product, *, split, **rest):
        if split == "test":
            raise OSError("disk full")
        return render_frame(product, split=split, **rest)

    monkeypatch.setattr(render, "render_frame", fail_late)
    with pytest.raises(OSError, match="disk full"):
        render_line(tmp_path, seed=1, **few)
    assert digest(tmp_path / "fabric") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fabric", "line.json"]
    assert not is_rendered(tmp_path, **few)
    monkeypatch.undo()
    render_line(tmp_path, seed=1, **few)
    assert is_rendered(tmp_path, seed=1, **few)
    assert digest(tmp_path / "fabric") != before


def test_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="not a sample line"):
        render_line(tmp_path, **SMALL)
    with pytest.raises(DataError, match="not a sample line"):
        is_rendered(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("text", ["{}", "[1]", "not json", '{"sample_line": {"board": {"size": 3}}}'])
def test_foreign_marker_is_refused(tmp_path, text):
    (tmp_path / "line.json").write_text(text)
    with pytest.raises(DataError, match=r"line\.json"):
        render_line(tmp_path, **SMALL)


def test_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        render_line(tmp_path / "file", **SMALL)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"products": ["teapot"]}, "no product 'teapot'"),
        ({"products": []}, "no product named"),
        ({"size": 63}, "63"),
        ({"size": 2049}, "2049"),
        ({"train_normals": -1}, "train_normals is -1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_parameters_write_nothing(tmp_path, change, match):
    with pytest.raises(UsageError, match=match):
        render_line(tmp_path / "out", **{**SMALL, **change})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"product": "teapot"}, "no product 'teapot'"),
        ({"kind": "dent"}, "no kind 'dent'"),
        ({"split": "val"}, "split 'val'"),
        ({"size": 32}, "32"),
        ({"index": -1}, "index -1"),
    ],
)
def test_wrong_frame_arguments(change, match):
    with pytest.raises(UsageError, match=match):
        render_frame(**{"product": "fabric", "seed": 0, "index": 0, "size": 64, **change})


def test_progress_bar_goes_to_stderr(tmp_path, capsys):
    few = {"products": ["fabric"], "train_normals": 1, "test_normals": 0, "defects_per_kind": 0, "size": 64}
    render_line(tmp_path / "quiet", **few)
    assert capsys.readouterr() == ("", "")
    render_line(tmp_path / "loud", progress=True, **few)
    out, err = capsys.readouterr()
    assert out == ""
    assert "fabric" in err


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_contact_sheet(line, tmp_path, ending):
    path = tmp_path / f"sheet{ending}"
    contact_sheet(line, path)
    sheet = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert sheet.shape[0] > 3 * 200
    assert sheet.shape[1] > 8 * 200 - 200
    assert sheet.std() > 30
    if ending == ".png":
        outline = (np.abs(sheet.astype(int) - (150, 40, 255)) < 48).all(axis=2)
        assert outline.sum() > 500


def test_contact_sheet_refuses_what_it_cannot_draw(line, tmp_path):
    with pytest.raises(UsageError, match="ending"):
        contact_sheet(line, tmp_path / "sheet.gif")
    with pytest.raises(DataError, match="no rendered product"):
        contact_sheet(tmp_path / "none", tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())


def test_all_names_exist():
    assert all(hasattr(sample_line, name) for name in sample_line.__all__)
