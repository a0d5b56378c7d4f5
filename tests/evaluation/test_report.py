import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from adclick_edge.errors import UsageError
from adclick_edge.evaluation.curves import curves
from adclick_edge.evaluation.inspection import InspectionMetrics, InspectionResult
from adclick_edge.evaluation.report import write_report
from adclick_edge.evaluation.worst import WorstCollector

VOID = {"meta", "img", "br", "source", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects text and attributes, and fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def run(defects: int, normals: int, name: str = "frame") -> tuple[InspectionMetrics, WorstCollector]:
    rng = np.random.default_rng(0)
    metrics, worst = InspectionMetrics(), WorstCollector(per_list=2)
    for index in range(defects + normals):
        anomaly_map = rng.normal(-3, 1, (40, 50)).astype(np.float32)
        mask = np.zeros((40, 50), dtype=np.bool_)
        if index < defects:
            mask[10:20, 20:30] = True
            anomaly_map[mask] += 3
        frame = rng.integers(0, 256, (80, 100, 3)).astype(np.uint8)
        metrics.add(anomaly_map, mask, float(anomaly_map.max()))
        worst.add(f"{name} {index}", frame, anomaly_map, mask, float(anomaly_map.max()))
    return metrics, worst


def written(folder: Path, metrics: InspectionMetrics, worst: WorstCollector, **extra: object) -> tuple[dict, Page, str]:
    path = write_report(
        folder,
        title="<b>cookie</b> & $title",
        result=metrics.compute(),
        curves=curves(metrics),
        worst=worst.images(),
        extra=extra,
    )
    text = path.read_text()
    return json.loads((folder / "report.json").read_text()), Page(text), text


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InspectionResult, dict, Page, str]:
    metrics, worst = run(4, 5, name="<script>alert(1)</script>")
    extra = {"back end": "onnx <cpu>", "took_s": np.float32(1.5), "data": Path("a/b"), "stages_ms": {"residual": 8}}
    folder = tmp_path_factory.mktemp("full") / "new" / "report"
    return folder, metrics.compute(), *written(folder, metrics, worst, **extra)


def test_report_of_a_run(full: tuple[Path, InspectionResult, dict, Page, str]) -> None:
    folder, result, document, page, text = full
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "report.json"]

    assert document["title"] == "<b>cookie</b> & $title"
    assert document["result"]["pixel_ap"] == result.pixel_ap
    assert document["result"]["undefined"] == {}
    assert document["extra"] == {"back end": "onnx <cpu>", "took_s": 1.5, "data": "a/b", "stages_ms": {"residual": 8}}
    assert [image["kind"] for image in document["worst"]] == ["missed"] * 2 + ["false_alarm"] * 2 + ["overlap"] * 2
    assert len(document["curves"]["pro"]["x"]) == len(document["curves"]["pro"]["y"])

    shown = " ".join(page.texts)
    for value in (result.image_auroc, result.pixel_ap, result.pro, result.f1_max):
        assert f"{value:.4f}" in shown
    assert "<script>alert(1)</script> 0" in shown  # as text
    assert "<b>cookie</b> & $title" in shown
    assert "onnx <cpu>" in shown
    assert not any(tag in ("script", "b", "link", "iframe") for tag, _ in page.tags)
    assert "http:" not in text
    assert "https:" not in text


def test_page_needs_no_other_file_and_its_images_open(full: tuple[Path, InspectionResult, dict, Page, str]) -> None:
    *_, page, text = full
    sources = [a[key] for tag, a in page.tags for key in ("src", "srcset") if tag in ("img", "source") and key in a]
    assert len(sources) == 6 * 2 + 6 * 2  # six plots in light and dark, six gallery images with their overlays
    for source in sources:
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", source).groups()
        image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)
        assert image is not None
        assert image.shape[2] == (4 if kind == "png" else 3)
        assert image.std() > 0
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"url\(|@import", text)


@pytest.mark.parametrize(("defects", "normals"), [(0, 3), (3, 0), (0, 0)])
def test_undefined_figures_say_why(tmp_path: Path, defects: int, normals: int) -> None:
    metrics, worst = run(defects, normals)
    document, page, _ = written(tmp_path, metrics, worst)
    assert document["result"]["image_auroc"] is None
    reason = document["result"]["undefined"]["image_auroc"]
    assert reason.startswith("no ")
    assert any(reason in data for data in page.texts)
    assert not any(word in data for data in page.texts for word in ("NaN", "None", "nan"))


def test_second_report_takes_the_place_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("kept")
    for normals in (1, 3):
        document, _, _ = written(tmp_path, *run(0, normals))
        assert document["result"]["normal_images"] == normals
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "report.html", "report.json"]


def test_unwritable_extra_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="extra holds a function"):
        written(tmp_path / "report", *run(1, 1), hook=run)
    assert not (tmp_path / "report").exists()


def test_evaluation_imports_neither_torch_nor_matplotlib_nor_test_libraries() -> None:
    code = (
        "import sys, adclick_edge.evaluation.report, adclick_edge.evaluation.worst\n"
        "heavy = {'torch', 'matplotlib', 'scipy', 'sklearn', 'torchmetrics', 'pandas'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, adclick_edge.evaluation.report as r, adclick_edge.evaluation.curves as c\n"
        "import adclick_edge.evaluation.inspection as i, numpy as np\n"
        "m = i.InspectionMetrics(); m.add(np.zeros((2, 2), 'f4'), None, 0.0)\n"
        "folder, drawn = pathlib.Path(sys.argv[1]), c.curves(m)\n"
        "r.write_report(folder, title='t', result=m.compute(), curves=drawn, worst=[], extra={})\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
