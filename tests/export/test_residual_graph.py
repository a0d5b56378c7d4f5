import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import inliner

from adclick_edge.export.residual_graph import DOMAIN, OPSET, candidates_model, residual_model
from adclick_edge.features.bank import BankOptions
from adclick_edge.features.bank_builder import BankBuilder
from adclick_edge.features.position import query_order, window_candidates
from adclick_edge.features.retrieval import retrieve_rows
from adclick_edge.features.search import TILE_BYTES, augment_rows

MODELS = {"whole": residual_model, "candidates": candidates_model}


def session_of(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def whole():
    return session_of(residual_model())


@pytest.fixture(scope="module")
def candidates():
    return session_of(candidates_model())


def frames_of(count, grid, dims=10, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dims, *grid)).astype(np.float32)


def bank_of(frames, maps=None, **options):
    builder = BankBuilder(BankOptions(**{"rows": 90, **options}))
    for number, frame in enumerate(frames):
        builder.add(frame, image_hash=str(number), retrieval_map=None if maps is None else maps[number])
    return builder.build()


def feed_of(bank, frames):
    return {
        "embedding": frames,
        "centre": bank.centre,
        "projection": bank.projection,
        "cell_code": bank.cell_code,
        "search": bank.search,
        "rows": bank.rows,
        "residual_scale": bank.residual_scale.reshape(1, -1, 1, 1),
    }


def blocks_of(order, candidates, cells):
    """``order``, ``place`` and ``candidates`` as the graph wants them."""
    place = np.zeros(cells, np.int64)
    place[order.reshape(-1)] = np.arange(order.size)
    return {"order": order.astype(np.int64), "place": place, "candidates": candidates.astype(np.int64)}


def assert_same(outputs, bank, reference):
    index, distance, residual, relative, relative_distance = outputs
    np.testing.assert_array_equal(index, reference.index)
    np.testing.assert_array_equal(residual, reference.residual)
    np.testing.assert_allclose(distance, reference.distance, rtol=1e-5)
    np.testing.assert_allclose(relative, residual / bank.residual_scale[None, :, None, None], rtol=1e-6)
    normal = bank.residual_scale.astype(np.float64).sum()
    np.testing.assert_allclose(relative_distance, np.sqrt(distance.astype(np.float64) / normal), rtol=1e-5)


# -- the models


@pytest.mark.parametrize("name", MODELS)
def test_models_are_valid_and_hold_one_node_of_ours(name):
    model = MODELS[name]()
    onnx.checker.check_model(model, full_check=True)
    assert [n.op_type for n in model.graph.node if n.domain == DOMAIN] == [
        {"whole": "NearestResidual", "candidates": "NearestResidualCandidates"}[name]
    ]
    (function,) = model.functions
    assert {(o.domain, o.version) for o in function.opset_import} == {("", OPSET)}
    assert all(node.domain == "" for node in function.node)
    assert [o.name for o in model.graph.output] == ["index", "distance", "residual", "relative", "relative_distance"]


@pytest.mark.parametrize("name", MODELS)
def test_inlined_models_hold_standard_operators_only(name):
    flat = inliner.inline_local_functions(MODELS[name]())
    assert {node.domain for node in flat.graph.node} == {""}
    onnx.checker.check_model(flat, full_check=True)
    session_of(flat)


# -- against the definition


@pytest.mark.parametrize(
    ("frames", "dims", "grid", "options"),
    [
        (1, 10, (5, 7), {}),
        (3, 10, (5, 7), {"position_weight": 0.3, "position_dims": 8}),
        (2, 33, (1, 1), {"position_weight": 0.3}),
        (2, 4, (13, 2), {"rows": 1}),
        (1, 64, (16, 24), {"rows": 500, "search_dims": 20}),
        (5, 7, (8, 8), {"variance": 1.0, "rows": 10_000}),
    ],
)
def test_whole_bank_equals_the_definition(whole, frames, dims, grid, options):
    """One session for all shapes: N, D, d, p, h, w and M are free."""
    bank = bank_of(frames_of(4, grid, dims), **options)
    query = frames_of(frames, grid, dims, seed=1)
    assert_same(whole.run(None, feed_of(bank, query)), bank, bank.residual(query))


@pytest.mark.parametrize("position", [{}, {"position_weight": 0.3}])
@pytest.mark.parametrize("grid", [(5, 7), (16, 8), (19, 21)])
@pytest.mark.parametrize("frames", [1, 3])
def test_window_equals_the_definition(candidates, position, grid, frames):
    bank = bank_of(frames_of(3, grid), rows=2 * grid[0] * grid[1], window_radius=2, **position)
    query = frames_of(frames, grid, seed=1)
    order, lists = bank.window
    outputs = candidates.run(None, {**feed_of(bank, query), **blocks_of(order, lists[None], grid[0] * grid[1])})
    assert_same(outputs, bank, bank.residual(query))


def test_retrieval_equals_the_search_of_the_images_retrieved(candidates):
    grid, images = (6, 9), 5
    rng = np.random.default_rng(3)
    maps = rng.normal(size=(images, 20, 12, 18)).astype(np.float32)
    bank = bank_of(frames_of(images, grid), maps, rows=10_000, retrieve_images=2)
    cells = grid[0] * grid[1]
    query, query_map = frames_of(1, grid, seed=1), rng.normal(size=(20, 12, 18)).astype(np.float32)
    rows = retrieve_rows(bank, query_map, 2)
    blocks = blocks_of(np.arange(cells)[None], rows[None, None], cells)
    index, distance, residual, *_ = candidates.run(None, {**feed_of(bank, query), **blocks})
    features = query[0].reshape(10, -1).T.astype(np.float64)
    coordinates = (features - bank.centre) @ bank.projection
    ranks = ((coordinates[:, None] - bank.coordinates[None].astype(np.float64)) ** 2).sum(axis=2)
    ranks[:, ~np.isin(np.arange(len(bank.rows)), rows)] = np.inf
    np.testing.assert_array_equal(index.ravel(), ranks.argmin(axis=1))
    exact = (bank.rows[index.ravel()] - features) ** 2
    np.testing.assert_allclose(residual[0].reshape(10, -1).T, exact, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(distance.ravel(), exact.sum(axis=1), rtol=1e-5)


def test_each_frame_may_have_its_own_candidates(candidates):
    grid, frames = (10, 9), 3
    bank = bank_of(frames_of(frames, grid), rows=10_000)
    query = frames_of(frames, grid, seed=1)
    order = query_order(*grid, 8)
    others = [np.flatnonzero(bank.row_image != n) for n in range(frames)]
    lists = np.stack([np.tile(rows, (len(order), 1)) for rows in others])  # frames x blocks x candidates
    outputs = candidates.run(None, {**feed_of(bank, query), **blocks_of(order, lists, 90)})
    assert_same(outputs, bank, bank.residual(query, exclude_images=np.arange(frames)))


# -- ties


def tied_bank(rows, dims=4, seed=0):
    """Whole numbers, on which float32 is exact, in a bank with many equal rows; searched as they are."""
    features = np.random.default_rng(seed).integers(-2, 3, (rows, dims)).astype(np.float32)
    return {
        "centre": np.zeros(dims, np.float32),
        "projection": np.eye(dims, dtype=np.float32),
        "cell_code": None,
        "search": augment_rows(features),
        "rows": features,
        "residual_scale": np.ones((1, dims, 1, 1), np.float32),
    }


def lowest_nearest(cells, rows):
    """Lowest of the nearest rows, exactly, over the distinct rows (a bank of thousands holds few)."""
    distinct, first = np.unique(rows, axis=0, return_index=True)
    distance = ((cells[:, None] - distinct[None]) ** 2).sum(axis=2)
    return np.where(distance == distance.min(axis=1, keepdims=True), first, len(rows)).min(axis=1)


@pytest.mark.parametrize(("grid", "rows"), [((5, 7), 100), ((40, 25), 9000), ((33, 31), 40_000)])
def test_ties_go_to_the_lowest_row_in_every_tile(whole, grid, rows):
    cells = grid[0] * grid[1]
    feed = {**tied_bank(rows), "cell_code": np.zeros((cells, 0), np.float32)}
    query = np.random.default_rng(1).integers(-3, 4, (1, 4, *grid)).astype(np.float32)
    index = whole.run(["index"], {**feed, "embedding": query})[0]
    np.testing.assert_array_equal(index.ravel(), lowest_nearest(query[0].reshape(4, -1).T, feed["rows"]))
    # Otherwise this would test one tile only.
    assert rows == 100 or cells * rows * 4 > 2 * TILE_BYTES


def test_ties_go_to_the_first_listed_candidate(candidates):
    feed = {**tied_bank(60), "cell_code": np.zeros((35, 0), np.float32)}
    query = np.random.default_rng(1).integers(-3, 4, (2, 4, 5, 7)).astype(np.float32)
    listed = np.random.default_rng(2).permutation(60)[:40]
    blocks = blocks_of(np.arange(35)[None], listed[None, None], 35)
    index = candidates.run(["index"], {**feed, **blocks, "embedding": query})[0]
    cells = query.reshape(2, 4, -1).transpose(0, 2, 1).reshape(-1, 4)
    np.testing.assert_array_equal(index.ravel(), listed[lowest_nearest(cells, feed["rows"][listed])])


# -- tiles


@pytest.fixture(scope="module")
def tiles_of():
    """The queries as the graph cuts them: runs the graph with the input of its loop as a further output."""
    flat = inliner.inline_local_functions(residual_model())
    (scan,) = [node for node in flat.graph.node if node.op_type == "Scan"]
    flat.graph.output.append(onnx.helper.make_tensor_value_info(scan.input[-1], onnx.TensorProto.FLOAT, None))
    session = session_of(flat)
    return lambda feed: session.run([scan.input[-1], "index"], feed)


@pytest.mark.parametrize(
    ("frames", "grid", "rows"),
    [(1, (5, 7), 50), (2, (20, 25), 9000), (1, (32, 32), 4096), (1, (32, 32), 4097), (1, (1, 3), TILE_BYTES // 4 + 5)],
)
def test_no_tile_exceeds_its_bytes(tiles_of, frames, grid, rows):
    cells = grid[0] * grid[1]
    rng = np.random.default_rng(0)
    features = rng.normal(size=(rows, 1)).astype(np.float32)
    query = rng.normal(size=(frames, 1, *grid)).astype(np.float32)
    tiles, index = tiles_of(
        {
            "embedding": query,
            "centre": np.zeros(1, np.float32),
            "projection": np.ones((1, 1), np.float32),
            "cell_code": np.zeros((cells, 0), np.float32),
            "search": augment_rows(features),
            "rows": features,
            "residual_scale": np.ones((1, 1, 1, 1), np.float32),
        }
    )
    count, tile, width = tiles.shape
    queries = frames * cells
    assert width == 2
    assert tile * rows * 4 <= TILE_BYTES or tile == 1
    assert (count - 1) * tile < queries <= count * tile  # padded to whole tiles, and no tile is all padding
    assert count == 1 or (tile + 1) * rows * 4 > TILE_BYTES  # no smaller than need be
    np.testing.assert_array_equal(tiles.reshape(-1, 2)[:queries, 0], query.ravel())
    some = np.linspace(0, queries - 1, 20).astype(int)
    found = np.abs(features[index.ravel()[some], 0].astype(np.float64) - query.ravel()[some])
    best = [np.abs(features[:, 0].astype(np.float64) - q).min() for q in query.ravel()[some]]
    np.testing.assert_allclose(found, best, atol=1e-3)


def test_several_tiles_equal_the_definition(whole):
    bank = bank_of(frames_of(12, (24, 24)), rows=6000, coreset_dims=2)
    query = frames_of(3, (24, 24), seed=1)
    assert query.shape[0] * 576 * len(bank.rows) * 4 > 2 * TILE_BYTES
    assert_same(whole.run(None, feed_of(bank, query)), bank, bank.residual(query))


# -- precision


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e4])
@pytest.mark.parametrize("graph", ["whole", "candidates"])
def test_distances_are_exact_under_a_common_offset(graph, offset, request):
    """What is guaranteed, whatever all features have in common.

    Residual and distance are those of the row matched to 1e-5, since they come from the difference itself. The row
    matched is the nearest one up to the rounding of the search, 1e-6 of the squared length of the *centred* features.
    """
    grid = (9, 12)
    frames = frames_of(4, grid) + np.float32(offset)
    bank = bank_of(frames[:3], rows=200, variance=1.0)
    query = frames[3:]
    feed = feed_of(bank, query)
    if graph == "candidates":
        lists = window_candidates(bank.row_cell, *grid, 8, 20)  # so wide that every row is a candidate
        feed |= blocks_of(query_order(*grid, 8), lists[None], 108)
    index, distance, residual, *_ = request.getfixturevalue(graph).run(None, feed)
    cells, rows = query[0].reshape(10, -1).T.astype(np.float64), bank.rows.astype(np.float64)
    exact = (rows[index.ravel()] - cells) ** 2
    np.testing.assert_allclose(residual[0].reshape(10, -1).T, exact, rtol=1e-5)
    np.testing.assert_allclose(distance.ravel(), exact.sum(axis=1), rtol=1e-5)
    best = ((cells[:, None] - rows[None]) ** 2).sum(axis=2).min(axis=1)
    lengths = ((cells - bank.centre) ** 2).sum(axis=1) + ((rows - bank.centre) ** 2).sum(axis=1).max()
    assert (exact.sum(axis=1) - best <= 1e-6 * lengths).all()
