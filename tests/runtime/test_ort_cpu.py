import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from adclick_edge.data.dataset import open_product
from adclick_edge.data.images import read_image
from adclick_edge.errors import EngineError
from adclick_edge.features.bank import Bank, BankOptions
from adclick_edge.features.bank_builder import BankBuilder
from adclick_edge.features.retrieval import retrieve_rows
from adclick_edge.features.search import nearest_rows
from adclick_edge.runtime.engine import STAGES
from adclick_edge.runtime.ort_cpu import OrtCpuEngine

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def engine(weights_bundle: Path) -> OrtCpuEngine:
    return OrtCpuEngine(weights_bundle, threads=1)


@pytest.fixture(scope="module")
def frames(line: Path) -> np.ndarray:
    product = open_product(line, "flange")
    return np.stack([read_image(s.path) for s in (*product.defects()[:4], *product.normals("test")[:3])])


@pytest.fixture(scope="module")
def make_bank(engine: OrtCpuEngine, line: Path) -> Callable[..., Bank]:
    normals = [read_image(s.path) for s in open_product(line, "flange").normals("train")]

    def make(first: int = 0, last: int = 8, **options: float) -> Bank:
        builder = BankBuilder(BankOptions(**{"rows": 400, "search_dims": 24, **options}))  # type: ignore[arg-type]
        for number in range(first, last):
            features = engine.features(normals[number][None])
            builder.add(features["embedding"][0], image_hash=str(number), retrieval_map=features["map4"][0])
        return builder.build()

    return make


@pytest.fixture(scope="module")
def bank(make_bank: Callable[..., Bank]) -> Bank:
    return make_bank()


def spread(maps: np.ndarray) -> float:
    return float(np.ptp(maps))


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to rounding; a cell between two rows that are equally near may take either."""
    assert found.shape == expected.shape
    difference = np.abs(found - expected) / spread(expected)
    assert np.quantile(difference, 0.995) < 1e-4
    assert difference.max() < 0.05


def segmented(engine: OrtCpuEngine, bank: Bank, residual: np.ndarray) -> np.ndarray:
    """Maps of residuals float32 [N, D, h, w], by the definition of the distance and the engine's segment graph."""
    distance = np.sqrt(residual.sum(axis=1, keepdims=True) / bank.residual_scale.sum())
    return engine._run("segment", {"relative_distance": distance.astype(np.float32)})[0]


def test_a_batch_is_its_frames_one_by_one(engine: OrtCpuEngine, bank: Bank, frames: np.ndarray) -> None:
    handle = engine.load_bank(bank)
    whole = engine.run(frames, handle)
    assert whole.maps.shape == (len(frames), 32, 32)
    assert whole.maps.dtype == np.float32
    assert_alike(whole.maps, np.concatenate([engine.run(f[None], handle).maps for f in frames]))
    assert set(whole.stage_ms) == set(STAGES)
    assert all(ms > 0 for ms in whole.stage_ms.values())


def test_the_same_frames_give_the_same_maps(engine: OrtCpuEngine, bank: Bank, frames: np.ndarray) -> None:
    handle = engine.load_bank(bank)
    np.testing.assert_array_equal(engine.run(frames, handle).maps, engine.run(frames, handle).maps)


def test_another_bank_needs_no_other_engine(
    engine: OrtCpuEngine, bank: Bank, make_bank: Callable[..., Bank], frames: np.ndarray
) -> None:
    first, other = engine.load_bank(bank), engine.load_bank(make_bank(8, 12))
    before = engine.run(frames, first).maps
    swapped = engine.run(frames, other).maps
    assert np.abs(before - swapped).max() > 0.01 * spread(before)
    np.testing.assert_array_equal(engine.run(frames, first).maps, before)
    assert first.bank is bank


@pytest.mark.parametrize(
    "options",
    [{}, {"position_weight": 0.15}, {"window_radius": 1, "position_weight": 0.15}, {"window_radius": 4}],
    ids=str,
)
def test_matches_the_reference_search(
    options: dict[str, float], engine: OrtCpuEngine, make_bank: Callable[..., Bank], frames: np.ndarray
) -> None:
    bank = make_bank(**options)
    expected = bank.residual(engine.features(frames)["embedding"])
    found = engine.matched_rows(frames, engine.load_bank(bank))
    assert found.shape == expected.index.shape
    assert np.mean(found == expected.index) > 0.995
    assert_alike(engine.run(frames, engine.load_bank(bank)).maps, segmented(engine, bank, expected.residual))


def test_a_window_leaves_out_far_rows(engine: OrtCpuEngine, make_bank: Callable[..., Bank], frames: np.ndarray) -> None:
    whole, windowed = make_bank(), make_bank(window_radius=0)
    own_block = np.stack(np.mgrid[:16, :16], axis=-1) // 8

    def in_own_block(bank: Bank) -> np.ndarray:
        blocks = bank.row_cell[engine.matched_rows(frames, engine.load_bank(bank))] // 8
        return (blocks == own_block).all(axis=-1)

    assert in_own_block(windowed).all()
    assert not in_own_block(whole).all()


@pytest.mark.parametrize("images", [1, 3])
def test_retrieval_searches_the_nearest_images_only(
    images: int, engine: OrtCpuEngine, make_bank: Callable[..., Bank], frames: np.ndarray
) -> None:
    bank = make_bank(retrieve_images=images)
    found = engine.matched_rows(frames, engine.load_bank(bank))
    features = engine.features(frames)
    for frame, matched in enumerate(found):
        rows = np.unique(retrieve_rows(bank, features["map4"][frame], images))
        assert len(np.unique(bank.row_image[rows])) == images
        queries = bank.queries(features["embedding"][frame])
        expected = rows[nearest_rows(queries, bank.search[rows])].reshape(16, 16)
        assert np.mean(matched == expected) > 0.995


def test_retrieving_every_image_is_searching_the_whole_bank(
    engine: OrtCpuEngine, bank: Bank, make_bank: Callable[..., Bank], frames: np.ndarray
) -> None:
    retrieved = engine.run(frames, engine.load_bank(make_bank(retrieve_images=8))).maps
    assert_alike(retrieved, engine.run(frames, engine.load_bank(bank)).maps)


def rows_but_own(bank: Bank, retrieval_map: np.ndarray, own: int) -> np.ndarray:
    """The row each cell may match and that is not of image ``own``: bool [cells, M], by the bank's own rule."""
    allowed = np.ones((16 * 16, len(bank.rows)), bool)
    if bank.window is not None:
        allowed[:] = False
        for cells, rows in zip(*bank.window, strict=True):
            allowed[np.ix_(cells, rows)] = True
    elif bank.options.retrieve_images:
        allowed[:] = False
        allowed[:, retrieve_rows(bank, retrieval_map, bank.options.retrieve_images, own)] = True
    allowed[:, bank.row_image == own] = False
    return allowed


@pytest.mark.parametrize("options", [{}, {"window_radius": 4}, {"retrieve_images": 2}], ids=str)
def test_leave_one_out_searches_as_ever_but_without_the_frames_own_rows(
    options: dict[str, float], engine: OrtCpuEngine, make_bank: Callable[..., Bank], line: Path
) -> None:
    bank = make_bank(**options)
    handle = engine.load_bank(bank)
    frames = np.stack([read_image(s.path) for s in open_product(line, "flange").normals("train")[:3]])
    left_out = engine.run(frames, handle, exclude_images=[0, 1, 2]).maps
    features = engine.features(frames)
    for own, embedding in enumerate(features["embedding"]):
        allowed = rows_but_own(bank, features["map4"][own], own)
        assert allowed.any(axis=1).all()
        rank = bank.queries(embedding) @ bank.search.T
        rank[~allowed] = np.inf
        index = rank.argmin(axis=1)
        residual = (bank.rows[index].T.reshape(embedding.shape) - embedding) ** 2
        assert_alike(left_out[own : own + 1], segmented(engine, bank, residual[None]))
    assert left_out.mean() > engine.run(frames, handle).maps.mean()


def test_frames_that_leave_nothing_out_may_be_among_those_that_do(
    engine: OrtCpuEngine, bank: Bank, frames: np.ndarray
) -> None:
    handle = engine.load_bank(bank)
    plain, without = engine.run(frames[:2], handle).maps, engine.run(frames[:2], handle, exclude_images=[3, 3]).maps
    mixed = engine.run(frames[:2], handle, exclude_images=[-1, 3]).maps
    assert_alike(mixed[:1], plain[:1])
    assert_alike(mixed[1:], without[1:])
    assert_alike(engine.run(frames[:2], handle, exclude_images=[-1, -1]).maps, plain)


def test_nothing_left_to_match_is_an_engine_error(
    engine: OrtCpuEngine, make_bank: Callable[..., Bank], frames: np.ndarray
) -> None:
    handle = engine.load_bank(make_bank(0, 1))
    with pytest.raises(EngineError, match="nothing is left to match"):
        engine.run(frames[:1], handle, exclude_images=[0])


@pytest.mark.parametrize("shape", [(64, 64), (128, 160), (256, 256)])
def test_frames_of_another_grid_are_refused(shape: tuple[int, int], engine: OrtCpuEngine, bank: Bank) -> None:
    frames = np.zeros((1, *shape, 3), np.uint8)
    with pytest.raises(EngineError, match=rf"{shape[0] // 8} x {shape[1] // 8} cells, the bank holds .* 16 x 16"):
        engine.run(frames, engine.load_bank(bank))


@pytest.mark.parametrize(
    "frames", [np.zeros((1, 128, 128, 3), np.float32), np.zeros((128, 128, 3), np.uint8)], ids=["float", "no batch"]
)
def test_frames_of_another_kind_are_refused(frames: np.ndarray, engine: OrtCpuEngine, bank: Bank) -> None:
    with pytest.raises(EngineError, match="features graph failed"):
        engine.run(frames, engine.load_bank(bank))


@pytest.mark.parametrize("name", ["features", "residual", "segment"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "missing"])
def test_a_damaged_graph_is_named(name: str, damage: str, weights_bundle: Path, tmp_path: Path) -> None:
    for path in weights_bundle.glob("*.onnx"):
        shutil.copy(path, tmp_path)
    path = tmp_path / f"{name}.onnx"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "noise": bytes(RNG.bytes(500))}[damage])
    with pytest.raises(EngineError, match=rf"{name}\.onnx.*export the bundle anew"):
        OrtCpuEngine(tmp_path, threads=1)


@pytest.mark.parametrize("name", ["residual", "residual_candidates"])
def test_a_graph_of_another_release_is_named(
    name: str, weights_bundle: Path, make_bank: Callable[..., Bank], frames: np.ndarray, tmp_path: Path
) -> None:
    for path in weights_bundle.glob("*.onnx"):
        shutil.copy(path, tmp_path)
    model = onnx.load(tmp_path / f"{name}.onnx")
    del model.graph.output[-1]
    onnx.save(model, tmp_path / f"{name}.onnx")

    def inspect() -> None:
        engine = OrtCpuEngine(tmp_path, threads=1)
        engine.run(frames[:1], engine.load_bank(make_bank(window_radius=2)))

    with pytest.raises(EngineError, match=rf"{name}\.onnx: gives .* another release"):
        inspect()


def test_graphs_of_two_exports_are_refused(weights_bundle: Path, tmp_path: Path) -> None:
    for path in weights_bundle.glob("*.onnx"):
        shutil.copy(path, tmp_path)
    model = onnx.load(tmp_path / "segment.onnx")
    for node in model.graph.node:
        node.input[:] = ["map32" if name == "relative_distance" else name for name in node.input]
    model.graph.input[0].name = "map32"
    onnx.save(model, tmp_path / "segment.onnx")
    with pytest.raises(EngineError, match="takes 'map32'"):
        OrtCpuEngine(tmp_path, threads=1)


def test_a_missing_candidates_graph_is_named_when_it_is_needed(
    weights_bundle: Path, make_bank: Callable[..., Bank], frames: np.ndarray, tmp_path: Path
) -> None:
    for name in ("features", "residual", "segment"):
        shutil.copy(weights_bundle / f"{name}.onnx", tmp_path)
    engine = OrtCpuEngine(tmp_path, threads=1)
    engine.run(frames[:1], engine.load_bank(make_bank()))
    with pytest.raises(EngineError, match=r"residual_candidates\.onnx"):
        engine.run(frames[:1], engine.load_bank(make_bank(window_radius=2)))


def test_a_bank_of_another_back_end_is_refused(engine: OrtCpuEngine, bank: Bank, frames: np.ndarray) -> None:
    class Foreign:
        bank = None

    with pytest.raises(EngineError, match="loaded by another back end"):
        engine.run(frames[:1], Foreign())  # type: ignore[arg-type]


def test_without_onnxruntime_the_remedy_is_named(weights_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"adclick-edge\[cpu\]"):
        OrtCpuEngine(weights_bundle)
