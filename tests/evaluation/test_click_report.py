from pathlib import Path

import cv2
import numpy as np
import pytest
from click_samples import write_clicks
from command_line import Adclick

from adclick_edge.commands.eval_clicks import chosen_defects
from adclick_edge.data.clicks import Click
from adclick_edge.data.dataset import open_product
from adclick_edge.data.sample import Sample
from adclick_edge.errors import DataError, UsageError
from adclick_edge.evaluation.click_metrics import ClickResult, ClickScores
from adclick_edge.evaluation.click_protocol import ClickedImage
from adclick_edge.evaluation.click_report import PLOT, SHEET, ClickSheet, write_click_report
from adclick_edge.files import sha256_file

SCORES = {"clicks", "ap", "pro", "auroc", "mean_iou"}


def clicked(name: str, overlap: float, shade: int) -> ClickedImage:
    truth = np.zeros((90, 120), np.bool_)
    truth[30:60, 40:80] = True
    return ClickedImage(
        Sample(Path(name), "test", "dent"),
        np.full((90, 120, 3), shade, np.uint8),
        truth,
        truth.astype(np.float32),
        (Click(45, 60, True), Click(10, 10, False)),
        (0.1, overlap, 0.99),
    )


def result(name: str, *overlaps: float) -> ClickResult:
    per_click = tuple(
        ClickScores(clicks=k, ap=0.5, pro=None, auroc=0.5, mean_iou=overlap) for k, overlap in enumerate(overlaps, 1)
    )
    return ClickResult(
        name=name,
        images=9,
        per_click=per_click,
        noc80=None,
        noc85=None,
        noc90=None,
        noc_clicks=None,
        seconds_per_click=0.01,
        seconds_per_image=0.1,
        reduced_images=0,
    )


def test_plot_and_sheet_are_drawn(tmp_path: Path) -> None:
    few, many = ClickSheet(), ClickSheet()
    for number in range(20):
        image = clicked(f"{number}.png", number / 20, 20 + 10 * number)
        many.add(image)
        if number < 4:
            few.add(image)
    paths = write_click_report(tmp_path / "out", [result("adclick", 0.3, 0.5, 0.7), result("grabcut", 0.2, 0.3)], many)
    assert paths == (tmp_path / "out" / PLOT, tmp_path / "out" / SHEET)
    plot, sheet = (cv2.imread(str(path)) for path in paths)
    assert plot is not None
    assert sheet is not None
    # The shades of the frames shown say whose rows they are: the 3 worst, the 3 in the middle, the 3 best.
    left = sheet[:, : sheet.shape[1] // 4].reshape(-1, 3)
    flat = left[(left == left[:, :1]).all(axis=1)][:, 0]
    shades = {shade for shade in range(20, 220, 10) if np.count_nonzero(flat == shade) > 5000}
    assert shades == {20, 30, 40, 100, 110, 120, 190, 200, 210}
    for colour in ((160, 229, 0), (92, 92, 255)):  # a positive click, a negative click, in BGR
        assert (sheet == colour).all(axis=2).any()
    small = cv2.imdecode(np.frombuffer(few.png(), np.uint8), cv2.IMREAD_COLOR)
    assert small is not None
    assert small.shape[0] < 0.6 * sheet.shape[0]


def test_a_sheet_is_bounded_and_never_empty() -> None:
    with pytest.raises(UsageError, match="no picture"):
        ClickSheet().png()
    sheet = ClickSheet(most=1)
    sheet.add(clicked("kept.png", 0.5, 50))
    one = sheet.png()
    sheet.add(clicked("dropped.png", 0.1, 99))
    assert sheet.png() == one


def test_defects_are_chosen(line: Path) -> None:
    product = open_product(line, "flange")
    defects = product.defects()
    everything, counts = chosen_defects(product)
    assert everything == list(defects)
    assert set(counts.values()) == {0}
    kind = product.kinds()[0]
    others, _ = chosen_defects(product, skip_kinds=[kind])
    assert {s.kind for s in others} == set(product.kinds()[1:])
    some, counts = chosen_defects(product, limit=3)
    assert some == [defects[0], defects[round((len(defects) - 1) / 2)], defects[-1]]
    assert counts["left_out_by_limit"] == len(defects) - 3
    known = [sha256_file(defects[1].path)]
    fresh, counts = chosen_defects(product, known_hashes=known)
    assert counts["left_out_trained_on"] == 1
    assert defects[1] not in fresh
    with pytest.raises(UsageError, match="'nothing' to skip"):
        chosen_defects(product, skip_kinds=["nothing"])
    with pytest.raises(DataError, match="no defect is left"):
        chosen_defects(product, skip_kinds=product.kinds())


def test_of_repeated_shots_the_first_is_taken(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root = tmp_path / "tile"
    for folder in ("train/good", "test/dent", "ground_truth/dent"):
        (root / folder).mkdir(parents=True)
    cv2.imwrite(str(root / "train/good/0.png"), np.full((160, 160, 3), 100, np.uint8))
    mask = np.zeros((160, 160), np.uint8)
    mask[60:90, 60:90] = 255
    parts = [cv2.GaussianBlur(rng.integers(0, 256, (160, 160, 3), np.uint8), (0, 0), 2) for _ in range(2)]
    parts = [cv2.normalize(part, None, 0, 250, cv2.NORM_MINMAX) for part in parts]
    for name, picture in zip("abc", (parts[0], parts[1], (0.8 * parts[0]).astype(np.uint8)), strict=True):
        cv2.imwrite(str(root / f"test/dent/{name}.png"), picture)
        cv2.imwrite(str(root / f"ground_truth/dent/{name}_mask.png"), mask)
    chosen, counts = chosen_defects(open_product(root), one_shot_per_defect=True)
    assert [sample.path.name for sample in chosen] == ["a.png", "b.png"]
    assert counts["left_out_other_shots"] == 1


def test_one_json_object(adclick: Adclick, line: Path, click_product: Path, tmp_path: Path) -> None:
    call = ("eval-clicks", click_product, "--data", line, "--limit", 2, "--clicks", 3, "--no-noc", "--threads", 1)
    ran = adclick(*call, "--json", "--report", tmp_path / "report")
    body = ran.json
    assert body["product"] == "flange"
    assert body["left_out_by_limit"] > 0
    floors = [body["grabcut"], body["feature_clicks"], body["feature_clicks_grabcut"]]
    for scored in (body, *floors):
        assert [set(scores) for scores in scored["per_click"]] == [SCORES] * 3
        assert [scores["clicks"] for scores in scored["per_click"]] == [1, 2, 3]
        assert all(0 <= scores["mean_iou"] <= 1 for scores in scored["per_click"])
        assert scored["seconds_per_click"] > 0
        assert {"noc80", "noc85", "noc90"} <= set(scored)
        assert scored["images"] == 2
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted([PLOT, SHEET])


def test_a_table_and_pictures(
    adclick: Adclick, line: Path, click_product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    call = ("eval-clicks", click_product, "--data", line, "--limit", 1, "--clicks", 2, "--threads", 1)
    ran = adclick(*call, "--no-baselines", "--no-words")
    assert ran.code == 0, ran.err
    assert "1 defects" in ran.out
    assert "no words" in ran.out
    assert "NoC@90" in ran.out
    assert "grabcut" not in ran.out
    assert (tmp_path / "flange_clicks" / SHEET).is_file()


def test_words_are_those_the_bundle_knows(adclick: Adclick, line: Path, product_bundle: Path, tmp_path: Path) -> None:
    from adclick_edge.words.table import shipped_prompts

    table = shipped_prompts()
    bundle = write_clicks(product_bundle, tmp_path / "words.bundle", prompts=table.encode())
    call = (
        "eval-clicks",
        bundle,
        "--data",
        line,
        "--clicks",
        1,
        "--no-noc",
        "--no-baselines",
        "--json",
        "--threads",
        1,
    )
    kinds = set(open_product(line, "flange").kinds())
    known = sorted(kinds & set(table.known_kinds()))
    assert known
    said, silent = adclick(*call, "--words").json, adclick(*call).json
    assert said["words"] == known
    assert silent["words"] == []
    assert said["per_click"] != silent["per_click"]


def test_a_bundle_without_click_graphs_is_refused(adclick: Adclick, line: Path, product_bundle: Path) -> None:
    ran = adclick("eval-clicks", product_bundle, "--data", line)
    assert ran.code == 1
    assert "no graphs for clicks" in ran.said
