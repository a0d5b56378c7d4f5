"""Labelled defects are chosen so that no other shot of them is left to be tested on."""

import cv2
import numpy as np
import pytest

from adclick_edge.data.dataset import open_product
from adclick_edge.data.sample_line import render_frame
from adclick_edge.training.labels import choose_labelled

SHOTS = 3


@pytest.fixture
def product(tmp_path):
    """Kind ``crack``: 6 defects in 3 shots each; kind ``dent``: 1 defect, 1 shot; one good part."""
    root = tmp_path / "flange"

    def write(kind, name, image, mask):
        for folder in (f"test/{kind}", f"ground_truth/{kind}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"test/{kind}/{name}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        cv2.imwrite(str(root / f"ground_truth/{kind}/{name}_mask.png"), mask.astype(np.uint8) * 255)

    for part in range(6):
        image, mask = render_frame("flange", seed=0, index=part, kind="crack", size=256)
        for shot in range(SHOTS):
            write("crack", f"{part}{shot}", cv2.convertScaleAbs(image, alpha=1 - 0.1 * shot), mask)
    write("dent", "00", *render_frame("flange", seed=0, index=0, kind="dent", size=256))
    (root / "train/good").mkdir(parents=True)
    cv2.imwrite(str(root / "train/good/0.png"), render_frame("flange", seed=0, index=0, size=256)[0])
    return open_product(root)


def parts_of(samples):
    return {sample.path.stem[0] for sample in samples if sample.kind == "crack"}


def test_training_validation_and_testing_never_share_a_defect(product):
    choice = choose_labelled(product, per_kind=4, skip_kinds=[], validation_share=0.34)
    cracks = [s for s in (*choice.train, *choice.validation) if s.kind == "crack"]
    assert len(cracks) == 4
    train, validation = parts_of(choice.train), parts_of(choice.validation)
    assert train
    assert validation
    assert not train & validation
    taken = train | validation
    assert len(taken) == 3  # at most half of the six, and as many of them as there may be
    used = {s.path for s in (*choice.train, *choice.validation, *choice.siblings)}
    left_to_test = [s for s in product.defects(kinds=["crack"]) if s.path not in used]
    assert not parts_of(left_to_test) & taken
    assert len(left_to_test) == 3 * SHOTS


def test_a_kind_of_a_single_defect_is_still_learnt_from(product):
    choice = choose_labelled(product, per_kind=4, skip_kinds=["crack"], validation_share=0.15)
    assert [s.kind for s in choice.train] == ["dent"]
    assert choice.validation == ()
    assert choice.siblings == ()


def test_the_choice_follows_content_not_names(product):
    first = choose_labelled(product, per_kind=4, skip_kinds=[], validation_share=0.34)
    again = choose_labelled(product, per_kind=4, skip_kinds=[], validation_share=0.34)
    assert first == again


@pytest.mark.parametrize(("defects", "train", "validation", "left"), [(30, 8, 2, 20), (140, 8, 2, 130), (4, 2, 0, 2)])
def test_of_many_defects_only_those_labelled_are_taken_from_testing(
    tmp_path, monkeypatch, defects, train, validation, left
):
    root = tmp_path / "tile"
    rng = np.random.default_rng(0)
    for folder in ("train/good", "test/spot", "ground_truth/spot"):
        (root / folder).mkdir(parents=True)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:8, 4:8] = 255
    cv2.imwrite(str(root / "train/good/0.png"), np.zeros((16, 16, 3), np.uint8))
    for number in range(defects):
        cv2.imwrite(str(root / f"test/spot/{number}.png"), rng.integers(0, 255, (16, 16, 3), np.uint8))
        cv2.imwrite(str(root / f"ground_truth/spot/{number}_mask.png"), mask)
    monkeypatch.setattr("adclick_edge.training.labels.same_defect_groups", lambda pictures: list(range(len(pictures))))
    choice = choose_labelled(open_product(root), per_kind=10, skip_kinds=[], validation_share=0.15)
    assert (len(choice.train), len(choice.validation), len(choice.siblings)) == (train, validation, 0)
    assert defects - train - validation == left
