import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adclick_edge.bundle import Tiling, read_bundle
from adclick_edge.data.dataset import open_product
from adclick_edge.data.images import read_image
from adclick_edge.data.sample import Sample
from adclick_edge.errors import DataError, UsageError
from adclick_edge.features.bank import BankOptions
from adclick_edge.files import sha256_file, write_bytes
from adclick_edge.runtime.inspector import Inspector
from adclick_edge.runtime.regions import Regions
from adclick_edge.runtime.setup import SetUp, set_up_product

OPTIONS = BankOptions(rows=400, search_dims=24)
LEFT_HALF = Regions(roi=(((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)),))


@pytest.fixture(scope="module")
def normals(line: Path) -> tuple[Sample, ...]:
    return open_product(line, "flange").normals("train")


@pytest.fixture
def set_up(weights_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(samples: object, size: tuple[int, int] = (128, 128), out: str = "out", **more: object) -> Path:
        setup = SetUp("flange", size, **{"options": OPTIONS, **more})  # type: ignore[arg-type]
        with read_bundle(weights_bundle) as weights:
            return set_up_product(weights, samples, tmp_path / out, setup)  # type: ignore[arg-type]

    return run


def png(path: Path, image: np.ndarray) -> Sample:
    import cv2

    write_bytes(path, cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())
    return Sample(path, "train", "good")


def test_a_product_has_bank_golden_frames_and_first_thresholds(
    set_up: Callable[..., Path], normals: tuple[Sample, ...], weights_bundle: Path
) -> None:
    with Inspector.open(set_up(normals[:6]), threads=1) as inspector, read_bundle(weights_bundle) as weights:
        manifest = inspector.bundle.manifest
        assert inspector.bank.image_hashes == tuple(sha256_file(s.path) for s in normals[:6])
        assert len(inspector.bank.rows) <= 400
        assert [g.name for g in inspector.bundle.golden()] == ["000", "001", "002"]
        calibration = inspector.calibration
        assert manifest.parent == weights.manifest.version
        assert manifest.parity == weights.manifest.parity
        assert manifest.weights_license == weights.manifest.weights_license
        for name in ("features.onnx", "residual.onnx", "segment.onnx"):
            assert manifest.files[name] == weights.manifest.files[name]
    assert calibration is not None
    assert calibration.source == "leave_one_out"
    assert calibration.normals == 6
    assert any("held-out" in note for note in calibration.notes)


def test_the_preset_is_the_one_set_up_with(set_up: Callable[..., Path], normals: tuple[Sample, ...]) -> None:
    for given, written in ((None, "edge-s"), ("edge-m", "edge-m")):
        with read_bundle(set_up(normals[:1], preset=given)) as bundle:
            assert bundle.manifest.preset == written


def test_first_thresholds_are_leave_one_out_scores(set_up: Callable[..., Path], normals: tuple[Sample, ...]) -> None:
    with Inspector.open(set_up(normals[:5]), threads=1) as inspector:
        scores = [
            float(inspector.maps([read_image(s.path)], exclude_images=[i])[0][0].max())
            for i, s in enumerate(normals[:5])
        ]
        own = [float(inspector.maps([read_image(s.path)])[0][0].max()) for s in normals[:5]]
        assert inspector.calibration is not None
        assert inspector.calibration.t_ng == pytest.approx(max(scores), rel=1e-4)
    assert max(own) < max(scores)


def test_the_same_pictures_give_the_same_bundle(set_up: Callable[..., Path], normals: tuple[Sample, ...]) -> None:
    versions = []
    for out in ("a", "b"):
        with read_bundle(set_up(normals[:4], out=out)) as bundle:
            versions.append(bundle.manifest.version)
    assert versions[0] == versions[1]


def test_unreadable_pictures_are_reported_and_left_out(
    set_up: Callable[..., Path], normals: tuple[Sample, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(normals[0].path.read_bytes()[:200])
    missing = tmp_path / "missing.png"
    mixed = [normals[0], Sample(bad, "train", "good"), normals[1], Sample(missing, "train", "good")]
    with Inspector.open(set_up(mixed), threads=1) as inspector:
        assert inspector.bank.image_hashes == tuple(sha256_file(s.path) for s in normals[:2])
    said = capsys.readouterr().err
    for path in (bad, missing):
        assert f"skipped: {path}: " in said  # on one line, however narrow the terminal
    with pytest.raises(DataError, match="none of the normal pictures can be read"):
        set_up([mixed[1], mixed[3]], out="none")
    assert not (tmp_path / "none").exists()


def test_one_picture_makes_a_bundle_without_thresholds(
    set_up: Callable[..., Path], normals: tuple[Sample, ...]
) -> None:
    with Inspector.open(set_up(normals[:1]), threads=1) as inspector:
        assert inspector.calibration is None
        assert len(inspector.bundle.golden()) == 1


def test_copies_of_one_picture_do_not_stop_the_set_up(
    set_up: Callable[..., Path], normals: tuple[Sample, ...], tmp_path: Path
) -> None:
    copies = []
    for number in range(3):
        shutil.copy(normals[0].path, tmp_path / f"{number}.png")
        copies.append(Sample(tmp_path / f"{number}.png", "train", "good"))
    with Inspector.open(set_up(copies), threads=1) as inspector:
        assert len(inspector.bank.image_hashes) == 3


@pytest.mark.parametrize(
    "options",
    [{"window_radius": 2, "position_weight": 0.15}, {"retrieve_images": 2}, {"position_weight": 0.03}],
    ids=str,
)
def test_banks_of_each_kind_of_search_can_be_set_up(
    options: dict[str, float], set_up: Callable[..., Path], normals: tuple[Sample, ...], line: Path
) -> None:
    chosen = BankOptions(rows=400, search_dims=24, **options)  # type: ignore[arg-type]
    defect = read_image(open_product(line, "flange").defects()[0].path)
    with Inspector.open(set_up(normals[:5], options=chosen), threads=1) as inspector:
        (found,) = inspector.inspect([defect], ["x"])
        assert inspector.bank.options == chosen
    assert np.isfinite(found.map).all()


def test_the_network_may_see_another_size(set_up: Callable[..., Path], normals: tuple[Sample, ...]) -> None:
    with Inspector.open(set_up(normals[:3], size=(64, 96)), threads=1) as inspector:
        assert inspector.bank.grid == (8, 12)
        assert inspector.maps([read_image(normals[0].path)])[0][0].shape == (16, 24)


def test_a_bank_of_a_region_holds_its_cells_only(set_up: Callable[..., Path], normals: tuple[Sample, ...]) -> None:
    with Inspector.open(set_up(normals[:4], regions=LEFT_HALF), threads=1) as inspector:
        assert inspector.bank.row_cell[:, 1].max() < 8
        assert inspector.regions == LEFT_HALF
        frame = read_image(normals[5].path)
        (found,) = inspector.inspect([frame], ["a"])
        # Cells that the bank knows nothing about look abnormal, and count for nothing: here or in the thresholds.
        assert found.map[:, 18:].max() > found.map[:, :16].max() == found.verdict.score
        scores = [
            inspector.maps([read_image(s.path)], exclude_images=[i])[0][0][:, :16].max()
            for i, s in enumerate(normals[:4])
        ]
        assert inspector.calibration is not None
        assert inspector.calibration.t_ng == pytest.approx(float(max(scores)), rel=1e-4)


def test_a_region_without_a_cell_is_refused(
    set_up: Callable[..., Path], normals: tuple[Sample, ...], tmp_path: Path
) -> None:
    nothing = Regions(roi=(((0.0, 0.0), (0.001, 0.0), (0.001, 0.001)),))
    with pytest.raises((UsageError, DataError), match="region"):
        set_up(normals[:2], regions=nothing)
    assert not (tmp_path / "out").exists()


# A frame of 300 x 420 pixels of a texture without a seam or a place of its own, in tiles of 128.


def texture(seed: int, height: int = 300, width: int = 420) -> np.ndarray:
    import cv2

    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(height, width, 3)).astype(np.float32)
    fine, coarse = cv2.GaussianBlur(noise, (0, 0), 1.2), cv2.GaussianBlur(noise, (0, 0), 4.0)
    field = fine / fine.std() + 0.7 * coarse / coarse.std()
    return np.clip(128 + 25 * field, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def tiled(weights_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiled")
    samples = [png(folder / f"{i}.png", texture(i)) for i in range(3)]
    setup = SetUp("cloth", (128, 128), BankOptions(rows=1500, search_dims=24), tiling=Tiling(scale=1.0, overlap=32))
    with read_bundle(weights_bundle) as weights:
        return set_up_product(weights, samples, folder / "bundle", setup)


def test_the_map_of_a_tiled_frame_covers_it(tiled: Path) -> None:
    with Inspector.open(tiled, threads=1) as inspector:
        for shape in ((300, 420), (128, 128), (301, 131), (60, 500)):
            (found,) = inspector.maps([texture(9, *shape)])[0]
            assert found.shape == (round(shape[0] / 4), round(shape[1] / 4))  # scaled to whole cells first
            assert np.isfinite(found).all()


def test_tiles_leave_no_seam_in_a_normal_frame(tiled: Path) -> None:
    """Cells where a tile begins or ends are no higher than elsewhere, over several frames."""
    with Inspector.open(tiled, threads=1) as inspector:
        maps = np.stack([inspector.maps([texture(seed)])[0][0] for seed in range(20, 26)])
    columns = np.zeros(105, bool)
    for start in (96, 192, 292):  # tiles begin at 0, 96, 192 and 292 and end 128 later
        for edge in (start, start + 128):
            columns[max(0, edge // 4 - 1) : edge // 4 + 1] = True
    columns[-3:] = columns[:3] = False  # the frame's own border
    inner = maps[:, 3:-3]
    at_seams, elsewhere = inner[:, :, columns].mean(), inner[:, :, ~columns].mean()
    deviation = inner.mean(axis=1).std()
    assert abs(at_seams - elsewhere) < deviation
    steps = np.abs(np.diff(inner, axis=2))
    assert steps[:, :, columns[1:]].mean() < 1.15 * steps[:, :, ~columns[1:]].mean()


@pytest.mark.parametrize("place", [(20, 30), (150, 100), (280, 400), (128, 224)])
def test_a_defect_in_a_tiled_frame_is_found_where_it_is(place: tuple[int, int], tiled: Path) -> None:
    frame = texture(11)
    y, x = place
    frame[y - 8 : y + 8, x - 8 : x + 8] = (255, 0, 255)
    with Inspector.open(tiled, threads=1) as inspector:
        (found,) = inspector.inspect([frame], ["x"])
    assert found.verdict.verdict == "ng"
    row, column = np.unravel_index(found.map.argmax(), found.map.shape)
    assert abs(row * 4 + 2 - y) <= 24
    assert abs(column * 4 + 2 - x) <= 24
    blob = found.verdict.regions[0]
    assert blob.left <= x <= blob.left + blob.width
    assert blob.top <= y <= blob.top + blob.height


def test_all_tiles_of_a_picture_are_one_image_of_the_bank(tiled: Path) -> None:
    with Inspector.open(tiled, threads=1) as inspector:
        assert len(inspector.bank.image_hashes) == 3
        assert set(inspector.bank.row_image.tolist()) == {0, 1, 2}
        assert inspector.calibration is not None
        assert inspector.calibration.source == "leave_one_out"
        # Neighbouring tiles share their overlap: leaving a picture out must leave out all of its tiles.
        frame = texture(0)
        own = inspector.maps([frame])[0][0].mean()
        left_out = inspector.maps([frame], exclude_images=[0])[0][0].mean()
        other = inspector.maps([texture(30)])[0][0].mean()
    assert own < left_out
    assert left_out == pytest.approx(other, rel=0.15)
