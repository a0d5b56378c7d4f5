"""Every layout read from a tiny tree made for it, what is missing in it told by name, and the real products."""

import csv
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from adclick_edge.data.dataset import Product, Sample, check_product, list_products, open_product, with_split
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.errors import DataError, UsageError

SHARED = Path(__file__).parents[3] / "shared" / "data"

SIZE = (12, 10)


def image(path: Path, seed: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()) if seed is None else seed)
    assert cv2.imwrite(str(path), rng.integers(0, 256, (*SIZE, 3), np.uint8))
    return path


def mask(path: Path, *, marked: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(SIZE, np.uint8)
    values[3:6, 2:7] = 255 * marked
    assert cv2.imwrite(str(path), values)
    return path


def make_mvtec(root: Path) -> Path:
    for name in ("2", "10", "1"):
        image(root / f"nut/train/good/{name}.png")
    image(root / "nut/test/good/3.png")
    for kind in ("scratch", "bent"):
        image(root / f"nut/test/{kind}/0.png")
        mask(root / f"nut/ground_truth/{kind}/0_mask.png")
    return root


def make_ksdd2(root: Path) -> Path:
    for split in ("train", "test"):
        for name, marked in (("1", False), ("2", True), ("3", False)):
            image(root / f"ksdd2/{split}/{name}.png")
            mask(root / f"ksdd2/{split}/{name}_GT.png", marked=marked)
    return root


def make_btad(root: Path) -> Path:
    image(root / "01/train/ok/0.bmp")
    image(root / "01/test/ok/1.bmp")
    image(root / "01/test/ko/2.bmp")
    image(root / "01/test/ko/3.bmp")
    mask(root / "01/ground_truth/ko/2.png")
    mask(root / "01/ground_truth/ko/3.bmp")
    return root


def make_visa(root: Path, *, with_csv: bool = True) -> Path:
    rows = []
    for i, split in enumerate(("train", "train", "test")):
        path = image(root / f"pcb/Data/Images/Normal/{i:04}.JPG")
        rows.append(["pcb", split, "normal", path.relative_to(root), ""])
    path = image(root / "pcb/Data/Images/Anomaly/000.JPG")
    drawn = mask(root / "pcb/Data/Masks/Anomaly/000.png")
    rows.append(["pcb", "test", "anomaly", path.relative_to(root), drawn.relative_to(root)])
    rows.append(["fryum", "train", "normal", "fryum/Data/Images/Normal/0.JPG", ""])
    if with_csv:
        (root / "split_csv").mkdir()
        with open(root / "split_csv/1cls.csv", "w", newline="") as f:
            csv.writer(f).writerows([["object", "split", "label", "image", "mask"], *rows])
    return root


def make_plain(root: Path) -> Path:
    for i in range(6):
        image(root / f"lid/normal/{i}.png", seed=i)
    image(root / "lid/defect/a.png")
    image(root / "lid/defect/b.png")
    image(root / "lid/defect/dent/a.jpg")
    mask(root / "lid/masks/a.png")
    mask(root / "lid/masks/dent/a_mask.png")
    return root


MAKERS: dict[str, Callable[[Path], Path]] = {
    "mvtec": make_mvtec,
    "ksdd2": make_ksdd2,
    "btad": make_btad,
    "visa": make_visa,
    "plain": make_plain,
}
NAMES = {"mvtec": "nut", "ksdd2": "ksdd2", "btad": "01", "visa": "pcb", "plain": "lid"}


def inside(product: Product, samples: tuple[Sample, ...]) -> list[str]:
    return [str(s.path.relative_to(product.root)) for s in samples]


@pytest.mark.parametrize("layout", MAKERS)
def test_each_layout_is_recognised_from_the_root_and_from_the_product(tmp_path: Path, layout: str) -> None:
    root = MAKERS[layout](tmp_path)
    name = NAMES[layout]
    assert list_products(root) == (name,)
    product = open_product(root)
    assert (product.name, product.root, product.layout) == (name, root / name, layout)
    assert open_product(root, name) == open_product(root / name) == open_product(root / name, name) == product
    assert open_product(root, layout=layout) == product


@pytest.mark.parametrize("layout", MAKERS)
def test_every_mask_fits_its_image_and_no_file_is_a_problem(tmp_path: Path, layout: str) -> None:
    product = open_product(MAKERS[layout](tmp_path))
    assert check_product(product) == []
    for sample in product.samples:
        assert read_image(sample.path).shape == (*SIZE, 3)
        assert sample.mask_path is None or sample.is_defect
        if sample.mask_path:
            assert read_mask(sample.mask_path, SIZE).any()


@pytest.mark.parametrize("layout", MAKERS)
def test_normals_and_defects_are_all_samples(tmp_path: Path, layout: str) -> None:
    product = open_product(MAKERS[layout](tmp_path))
    assert set(product.normals()) | set(product.defects()) == set(product.samples)
    assert len(product.normals()) + len(product.defects()) == len(product.samples)
    assert {s.kind for s in product.normals()} == {"good"}


def test_mvtec(tmp_path: Path) -> None:
    product = open_product(make_mvtec(tmp_path))
    assert inside(product, product.normals("train")) == ["train/good/1.png", "train/good/2.png", "train/good/10.png"]
    assert inside(product, product.normals("test")) == ["test/good/3.png"]
    assert product.kinds() == ("bent", "scratch")
    assert inside(product, product.defects("test", kinds=["scratch"])) == ["test/scratch/0.png"]
    assert product.defects("train") == ()
    assert [s.mask_path for s in product.defects(kinds={"bent"})] == [product.root / "ground_truth/bent/0_mask.png"]


def test_ksdd2_takes_black_ground_truth_for_normal(tmp_path: Path) -> None:
    product = open_product(make_ksdd2(tmp_path))
    assert inside(product, product.normals("train")) == ["train/1.png", "train/3.png"]
    assert inside(product, product.defects()) == ["train/2.png", "test/2.png"]
    assert product.defects("train")[0].mask_path == product.root / "train/2_GT.png"
    assert product.kinds() == ("defect",)


def test_btad_matches_masks_of_either_suffix(tmp_path: Path) -> None:
    product = open_product(make_btad(tmp_path))
    assert [s.mask_path.name for s in product.defects() if s.mask_path] == ["2.png", "3.bmp"]
    assert inside(product, product.normals("train")) == ["train/ok/0.bmp"]
    assert inside(product, product.normals("test")) == ["test/ok/1.bmp"]


def test_visa_takes_its_split_from_the_csv(tmp_path: Path) -> None:
    product = open_product(make_visa(tmp_path))
    assert [s.path.name for s in product.normals("train")] == ["0000.JPG", "0001.JPG"]
    assert [s.path.name for s in product.normals("test")] == ["0002.JPG"]
    assert [s.split for s in product.defects()] == ["test"]


def test_visa_without_the_csv_has_no_split(tmp_path: Path) -> None:
    product = open_product(make_visa(tmp_path, with_csv=False))
    assert not product.has_split
    assert len(product.normals()) == 3
    with pytest.raises(DataError, match="--split-normals FRACTION"):
        product.normals("train")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pcb,", "nut,", "no row for the object 'pcb'"),
        ("0001.JPG", "0009.JPG", r"lists .*0009\.JPG, which is not there"),
        ("pcb,test,normal", "pcb,valid,normal", "line 4: the split is 'valid'"),
        ("object,split", "thing,split", "lacks the columns"),
        ("object,split", "\xff", "cannot be read as CSV"),
    ],
)
def test_visa_csv_that_does_not_fit(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = make_visa(tmp_path) / "split_csv/1cls.csv"
    file.write_bytes(file.read_text().replace(old, new).encode("latin-1"))
    with pytest.raises(DataError, match=message):
        open_product(tmp_path, "pcb")


def test_plain_folders(tmp_path: Path) -> None:
    product = open_product(make_plain(tmp_path))
    assert product.kinds() == ("defect", "dent")
    assert inside(product, product.unmasked()) == ["defect/b.png"]
    by_path = {s.path.relative_to(product.root): s.mask_path for s in product.defects()}
    assert by_path[Path("defect/a.png")] == product.root / "masks/a.png"
    assert by_path[Path("defect/dent/a.jpg")] == product.root / "masks/dent/a_mask.png"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_product_without_a_split_says_so(tmp_path: Path, split: str) -> None:
    product = open_product(make_plain(tmp_path))
    assert len(product.normals()) == 6
    with pytest.raises(DataError, match=r"lid: .*not split into train and test; .*--split-normals FRACTION"):
        product.normals(split)  # type: ignore[arg-type]


def test_mvtec_without_train_has_no_split(tmp_path: Path) -> None:
    image(tmp_path / "test/good/0.png")
    product = open_product(tmp_path)
    assert (product.layout, product.has_split) == ("mvtec", False)


def test_with_split_splits_normals_only(tmp_path: Path) -> None:
    whole = open_product(make_plain(tmp_path))
    product = with_split(whole, 0.5, seed=3)
    assert product.has_split
    assert len(product.normals("train")) == len(product.normals("test")) == 3
    assert {s.split for s in product.defects()} == {"test"}
    assert [s.path for s in product.samples] == [s.path for s in whole.samples]
    assert with_split(whole, 0.5, seed=3) == product


def test_with_split_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    product = open_product(make_plain(tmp_path))
    with pytest.raises(UsageError, match="already split"):
        with_split(with_split(product, 0.5), 0.5)
    for fraction in (0, 1, -1, 1.5, float("nan")):
        with pytest.raises(UsageError, match="between 0 and 1"):
            with_split(product, fraction)
    for i in range(6):
        image(tmp_path / f"lid/normal/{i}.png", seed=0)
    with pytest.raises(DataError, match=r"no normal image falls to .*; add images that are not copies"):
        with_split(product, 0.5)


@pytest.mark.parametrize(
    ("layout", "gone", "message"),
    [
        ("mvtec", "nut/ground_truth/bent/0_mask.png", r"bent/0\.png: has no mask; expected .*ground_truth/bent/0_mask"),
        ("ksdd2", "ksdd2/test/2_GT.png", r"2\.png: has no ground truth; expected .*2_GT\.png"),
        ("btad", "01/ground_truth/ko/2.png", r"2\.bmp: has no mask; expected .*ground_truth/ko/2\.png"),
        ("visa", "pcb/Data/Masks/Anomaly/000.png", r"000\.JPG: has no mask; expected .*Masks/Anomaly/000\.png"),
    ],
)
def test_a_missing_mask_is_named(tmp_path: Path, layout: str, gone: str, message: str) -> None:
    (MAKERS[layout](tmp_path) / gone).unlink()
    with pytest.raises(DataError, match=message):
        open_product(tmp_path)


def test_a_product_without_any_masks_is_labelled_per_image(tmp_path: Path) -> None:
    image(tmp_path / "train/good/0.png")
    image(tmp_path / "test/crack/0.png")
    product = open_product(tmp_path)
    assert product.unmasked() == product.defects()
    assert len(product.unmasked()) == 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("lid/masks/a.bmp", "has two masks"),
        ("lid/masks/a_mask.png", "has two masks"),
        ("lid/masks/typo.png", r"typo\.png: there is no image of this name"),
        ("lid/masks/hole/a.png", "holds the masks of no kind"),
        ("lid/defect/good/a.png", "'good' is the kind of normal pictures"),
    ],
)
def test_plain_folders_that_contradict_themselves(tmp_path: Path, extra: str, message: str) -> None:
    mask(make_plain(tmp_path) / extra)
    with pytest.raises(DataError, match=message):
        open_product(tmp_path)


def test_two_layouts_at_once_are_not_guessed(tmp_path: Path) -> None:
    make_mvtec(tmp_path)
    image(tmp_path / "nut/normal/0.png")
    with pytest.raises(DataError, match="looks like mvtec and plain at once"):
        open_product(tmp_path)
    assert open_product(tmp_path, layout="mvtec").layout == "mvtec"
    assert open_product(tmp_path, layout="plain").layout == "plain"


def test_unknown_names_list_what_there_is(tmp_path: Path) -> None:
    make_mvtec(tmp_path)
    make_btad(tmp_path)
    assert list_products(tmp_path) == ("01", "nut")
    with pytest.raises(DataError, match="holds 2 products; name one of 01, nut"):
        open_product(tmp_path)
    with pytest.raises(DataError, match="has no product 'bolt'; it has 01, nut"):
        open_product(tmp_path, "bolt")
    with pytest.raises(DataError, match=r"has no product '\.\./nut'"):
        open_product(tmp_path, "../nut")
    with pytest.raises(UsageError, match="no layout is called 'coco'; choose auto, mvtec, ksdd2, btad, visa, plain"):
        open_product(tmp_path, layout="coco")
    with pytest.raises(DataError, match="no defects of the kind 'dent'; it has bent, scratch"):
        open_product(tmp_path, "nut").defects(kinds=["dent"])


def test_folders_without_products_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no product in a known layout.*mvtec: train/good"):
        open_product(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        open_product(tmp_path / "gone")
    (tmp_path / "lid/normal").mkdir(parents=True)
    with pytest.raises(DataError, match="no image in them"):
        open_product(tmp_path)
    assert list_products(tmp_path / "lid/normal") == ()


def test_check_names_every_unusable_file_and_goes_on(tmp_path: Path) -> None:
    product = open_product(make_mvtec(tmp_path))
    broken = product.root / "train/good/1.png"
    broken.write_bytes(broken.read_bytes()[:-20])
    cv2.imwrite(str(product.root / "ground_truth/bent/0_mask.png"), np.zeros((5, 5), np.uint8))
    mask(product.root / "ground_truth/scratch/0_mask.png", marked=False)
    (product.root / "test/good/3.png").unlink()
    problems = {str(p.path.relative_to(product.root)): p.message for p in check_product(product)}
    assert list(problems) == [
        "train/good/1.png",
        "ground_truth/bent/0_mask.png",
        "test/good/3.png",
        "ground_truth/scratch/0_mask.png",
    ]
    for message, expected in zip(problems.values(), ["truncated", "5 x 5", "no such", "no pixel"], strict=True):
        assert expected in message


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder shared/data beside the repository is not there")
@pytest.mark.parametrize(
    ("name", "train", "good", "defects", "kinds"),
    [
        ("bottle", 4, 5, 8, 3),
        ("capsule", 4, 4, 8, 4),
        ("cookie", 22, 9, 32, 1),
        ("magnetic_tile", 666, 286, 388, 5),
        ("metal_nut", 4, 4, 8, 4),
    ],
)
def test_real_products(name: str, train: int, good: int, defects: int, kinds: int) -> None:
    product = open_product(SHARED, name)
    counts = len(product.normals("train")), len(product.normals("test")), len(product.defects()), len(product.kinds())
    assert counts == (train, good, defects, kinds)
    assert product.unmasked() == ()
    few = Product(product.name, product.root, product.layout, product.samples[:: max(len(product.samples) // 12, 1)])
    assert check_product(few) == []
