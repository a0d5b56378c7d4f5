import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adclick_edge.data.clicks import Click
from adclick_edge.data.images import read_mask
from adclick_edge.data.labels_folder import (
    Labels,
    LabelSettings,
    OtherShot,
    PictureLabel,
    mask_name,
    read_labels,
    write_labels,
    write_mask,
)
from adclick_edge.errors import DataError

PICTURE = PictureLabel(
    file="test/crack/000.png",
    sha256="a" * 64,
    kind="crack",
    defect=0,
    height=8,
    width=9,
    mask="crack/000_mask.png",
    clicks=(Click(1.0, 2.5, True), Click(0.0, 7.0, False)),
    prompt="crack",
    iou=1 / 3,
    seconds=0.25,
)
LABELS = Labels(
    product="tile",
    settings=LabelSettings(
        bundle_version="0123456789ab", clicks=5, per_kind=10, skip_kinds=("uneven",), words=True, threshold=0.49
    ),
    chosen=1,
    pictures=(PICTURE,),
    siblings=(OtherShot("test/crack/001.png", "b" * 64, "crack"),),
)


def altered(folder: Path, **changes: object) -> None:
    """labels.json with some keys of its first picture changed by someone."""
    path = folder / "tile" / "labels.json"
    body = json.loads(path.read_text())
    body["pictures"][0].update(changes)
    path.write_text(json.dumps(body))


@settings(deadline=None, max_examples=30)
@given(
    clicks=st.lists(st.builds(Click, st.floats(-0.5, 1e4), st.floats(-0.5, 1e4), st.booleans()), max_size=24),
    prompt=st.none() | st.text(max_size=20),
    iou=st.floats(0, 1),
    kind=st.sampled_from(["crack", "Riß am Rand", "割れ"]),
)
def test_labels_come_back_equal(
    clicks: list[Click], prompt: str | None, iou: float, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    picture = msgspec.structs.replace(PICTURE, clicks=tuple(clicks), prompt=prompt, iou=iou, kind=kind)
    labels = msgspec.structs.replace(LABELS, pictures=(picture, msgspec.structs.replace(picture, mask=None)))
    write_labels(folder, labels)
    assert read_labels(folder, "tile") == labels
    assert [p.name for p in (folder / "tile").iterdir()] == ["labels.json"]


@settings(deadline=None, max_examples=30)
@given(mask=arrays(np.bool_, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_masks_come_back_equal(mask: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("masks") / "crack" / "0_mask.png"
    write_mask(path, mask)
    assert np.array_equal(read_mask(path, shape=mask.shape), mask)


def test_labels_that_are_not_there_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no labels of 'tile'.*adclick label"):
        read_labels(tmp_path, "tile")


def test_the_folder_of_one_product_in_place_of_the_one_above_it_is_told(tmp_path: Path) -> None:
    write_labels(tmp_path, LABELS)
    with pytest.raises(DataError, match="the folder above it"):
        read_labels(tmp_path / "tile", "tile")


def test_labels_of_another_product_are_refused(tmp_path: Path) -> None:
    write_labels(tmp_path, LABELS)
    (tmp_path / "tile").rename(tmp_path / "bolt")
    with pytest.raises(DataError, match="'tile', not of 'bolt'"):
        read_labels(tmp_path, "bolt")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe"], ids=repr)
def test_an_unreadable_list_is_refused(tmp_path: Path, content: bytes) -> None:
    write_labels(tmp_path, LABELS)
    (tmp_path / "tile" / "labels.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tile/labels\.json"):
        read_labels(tmp_path, "tile")


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": "../../etc/passwd"},
        {"mask": "/etc/passwd"},
        {"file": "test/../../x.png"},
        {"sha256": "A" * 64},
        {"iou": 1.5},
        {"height": 0},
        {"colour": "red"},
        {"clicks": [{"y": 0, "x": 0, "positive": True}] * 25},
        {"clicks": [{"y": 0, "x": 0}]},
    ],
    ids=lambda c: next(iter(c)),
)
def test_an_altered_record_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    write_labels(tmp_path, LABELS)
    altered(tmp_path, kind="dent")
    assert read_labels(tmp_path, "tile").pictures[0].kind == "dent"
    altered(tmp_path, **changes)
    with pytest.raises(DataError, match=r"tile/labels\.json"):
        read_labels(tmp_path, "tile")


def test_masks_of_pictures_of_one_name_get_two_names() -> None:
    first = mask_name("crack", "000.png", "a" * 64, frozenset())
    second = mask_name("crack", "000.jpg", "b" * 64, frozenset({first}))
    assert first == "crack/000_mask.png"
    assert second == "crack/000_bbbbbbbbbbbb_mask.png"
    assert mask_name("dent", "000.png", "c" * 64, frozenset({first, second})) == "dent/000_mask.png"
