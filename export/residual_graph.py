"""``NearestResidual`` as ONNX: one node of a domain of ours, with a function body of standard operators.

A back end that has the fused kernel replaces the node; any other runs the body. The bank comes in as inputs, so it can
be replaced without export. Two operators share everything but the search:

* ``NearestResidual(embedding, centre, projection, cell_code, search, rows)`` searches the whole bank, in tiles of
  queries such that no product exceeds ``TILE_BYTES``;
* ``NearestResidualCandidates(..., order, place, candidates)`` searches, for each block of queries, a list of rows: hard
  position windows (one list per block) and image retrieval (one block, one list per frame).

| name | type | shape |
|---|---|---|
| embedding | float32 | [N, D, h, w] |
| centre, projection | float32 | [D], [D, d] |
| cell_code | float32 | [h*w, p], p may be 0 |
| search | float32 | [M, d + p + 1] (`adclick_edge.features.search.augment_rows`) |
| rows | float32 | [M, D] |
| order | int64 | [B, q], the cells of each block |
| place | int64 | [h*w], where each cell stands in the flattened order |
| candidates | int64 | [C, B, m], C = 1 or N |
| index (out) | int64 | [N, h, w] |
| distance (out) | float32 | [N, 1, h, w], squared, in the full feature space |
| residual (out) | float32 | [N, D, h, w], squared per channel (method section 1.6) |

Ties go to the lowest row (for candidates: to the first listed).
"""

import onnx
from onnx import parser

from adclick_edge.features.search import TILE_BYTES

__all__ = ["DOMAIN", "OPSET", "candidates_model", "nearest_residual_functions", "residual_model"]

DOMAIN = "adclick.edge"
OPSET = 18
BLOCK_ROWS = 64
_OPSETS = f'opset_import: ["" : {OPSET}, "{DOMAIN}" : 1]'

_QUERIES = """
    keep = Constant <value_ints = [0, 0, -1]> ()
    flat = Reshape (embedding, keep)
    cells = Transpose <perm = [0, 2, 1]> (flat)
    centred = Sub (cells, centre)
    components = MatMul (centred, projection)
    frames_cells = Shape <start = 0, end = 2> (cells)
    code_dims = Shape <start = 1, end = 2> (cell_code)
    code_shape = Concat <axis = 0> (frames_cells, code_dims)
    code = Expand (cell_code, code_shape)
    one = Constant <value_ints = [1]> ()
    unit = Constant <value_floats = [1.0]> ()
    ones_shape = Concat <axis = 0> (frames_cells, one)
    ones = Expand (unit, ones_shape)
    queries = Concat <axis = 2> (components, code, ones)
"""

# The distance is summed before channels come first: ONNX Runtime sums over an inner axis on all cores, over an outer on one.
_SUBTRACT = """
    nearest = Gather <axis = 0> (rows, found)
    difference = Sub (nearest, cells)
    squared = Mul (difference, difference)
    channels_first = Transpose <perm = [0, 2, 1]> (squared)
    embedding_shape = Shape (embedding)
    residual = Reshape (channels_first, embedding_shape)
    frames = Shape <start = 0, end = 1> (embedding)
    grid = Shape <start = 2, end = 4> (embedding)
    channel_axis = Constant <value_ints = [2]> ()
    cell_distance = ReduceSum <keepdims = 0> (squared, channel_axis)
    distance_shape = Concat <axis = 0> (frames, one, grid)
    distance = Reshape (cell_distance, distance_shape)
    index_shape = Concat <axis = 0> (frames, grid)
    index = Reshape (found, index_shape)
"""

# ONNX Runtime's ArgMin is several times slower than its ReduceMin: the least of each block of rows is found first, then its
# place in the first block that holds the least of all, so that ties still go to the lowest row. Blocks are filled up with
# rows that are farther than any; one more block than needed rather than none to fill, as not every back end takes empty
# tensors.
# Queries are padded to whole tiles; the tile size follows from the number of rows at run time.
_TILED_SEARCH = f"""
    width = Shape <start = 2, end = 3> (queries)
    minus_one = Constant <value_ints = [-1]> ()
    list_shape = Concat <axis = 0> (minus_one, width)
    all_queries = Reshape (queries, list_shape)
    count = Shape <start = 0, end = 1> (all_queries)
    row_count = Shape <start = 0, end = 1> (search)
    budget = Constant <value_ints = [{TILE_BYTES // 4}]> ()
    affordable = Div (budget, row_count)
    at_least_one = Max (affordable, one)
    tile = Min (at_least_one, count)
    tile_less_one = Sub (tile, one)
    raised = Add (count, tile_less_one)
    tiles = Div (raised, tile)
    padded_count = Mul (tiles, tile)
    missing = Sub (padded_count, count)
    zero = Constant <value_ints = [0]> ()
    pads = Concat <axis = 0> (zero, zero, missing, zero)
    padded = Pad (all_queries, pads)
    tiled_shape = Concat <axis = 0> (tiles, tile, width)
    tiled = Reshape (padded, tiled_shape)
    block_rows = Constant <value_ints = [{BLOCK_ROWS}]> ()
    whole_blocks = Div (row_count, block_rows)
    blocks = Add (whole_blocks, one)
    blocked_count = Mul (blocks, block_rows)
    filler_count = Sub (blocked_count, row_count)
    far = Constant <value = float[1, 1] {{1e30}}> ()
    width_less_one = Sub (width, one)
    filler_pads = Concat <axis = 0> (zero, width_less_one, zero, zero)
    filler = Pad (far, filler_pads)
    filler_shape = Concat <axis = 0> (filler_count, width)
    filler_rows = Expand (filler, filler_shape)
    whole_search = Concat <axis = 0> (search, filler_rows)
    search_columns = Transpose <perm = [1, 0]> (whole_search)
    tiled_found = Scan <num_scan_inputs = 1, body = one_tile (float[tq, sw] tile_queries) => (int64[tq] tile_found) {{
        rank = MatMul (tile_queries, search_columns)
        blocked_shape = Constant <value_ints = [0, -1, {BLOCK_ROWS}]> ()
        blocked = Reshape (rank, blocked_shape)
        last_axis = Constant <value_ints = [2]> ()
        least = ReduceMin <keepdims = 0> (blocked, last_axis)
        block = ArgMin <axis = 1, keepdims = 1> (least)
        in_block = GatherND <batch_dims = 1> (blocked, block)
        place_in_block = ArgMin <axis = 1, keepdims = 1> (in_block)
        rows_per_block = Constant <value_ints = [{BLOCK_ROWS}]> ()
        block_start = Mul (block, rows_per_block)
        found_column = Add (block_start, place_in_block)
        column_axis = Constant <value_ints = [1]> ()
        tile_found = Squeeze (found_column, column_axis)
    }}> (tiled)
    padded_found = Reshape (tiled_found, minus_one)
    list_found = Slice (padded_found, zero, count)
    found = Reshape (list_found, frames_cells)
"""

# Block by block, so that the products of one block exist at a time.
_CANDIDATE_SEARCH = """
    blocks = Gather <axis = 1> (queries, order)
    frame_count = Shape <start = 0, end = 1> (queries)
    by_block = Scan <num_scan_inputs = 2, scan_input_axes = [1, 1], scan_output_axes = [1], body = one_block
        (float[bn, bq, bs] block_queries, int64[bc, bm] block_candidates) => (int64[bn, bq] block_found) {
        block_rows = Gather <axis = 0> (search, block_candidates)
        block_columns = Transpose <perm = [0, 2, 1]> (block_rows)
        rank = MatMul (block_queries, block_columns)
        local = ArgMin <axis = 2, keepdims = 0> (rank)
        list_length = Shape <start = 1, end = 2> (block_candidates)
        list_shape = Concat <axis = 0> (frame_count, list_length)
        lists = Expand (block_candidates, list_shape)
        block_found = GatherElements <axis = 1> (lists, local)
    }> (blocks, candidates)
    in_order = Reshape (by_block, keep_frames)
    found = Gather <axis = 1> (in_order, place)
"""


def nearest_residual_functions() -> list[onnx.FunctionProto]:
    """The two operators as model-local functions."""
    whole = parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>'
        "NearestResidual (embedding, centre, projection, cell_code, search, rows) => (index, distance, residual) {"
        f"{_QUERIES}{_TILED_SEARCH}{_SUBTRACT}}}"
    )
    candidates = parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>'
        "NearestResidualCandidates (embedding, centre, projection, cell_code, search, rows, order, place, candidates)"
        " => (index, distance, residual) {"
        "    keep_frames = Constant <value_ints = [0, -1]> ()"
        f"{_QUERIES}{_CANDIDATE_SEARCH}{_SUBTRACT}}}"
    )
    return [whole, candidates]


_INPUTS = (
    "float[N, D, h, w] embedding, float[D] centre, float[D, d] projection, float[cells, p] cell_code, "
    "float[M, s] search, float[M, D] rows"
)
_SCALE = "float[1, D, 1, 1] residual_scale"
_OUTPUTS = (
    "int64[N, h, w] index, float[N, 1, h, w] distance, float[N, D, h, w] residual, float[N, D, h, w] relative, "
    "float[N, 1, h, w] relative_distance"
)
_RELATIVE = """
    relative = Div (residual, residual_scale)
    scale_axis = Constant <value_ints = [1]> ()
    distance_scale = ReduceSum <keepdims = 1> (residual_scale, scale_axis)
    squared_ratio = Div (distance, distance_scale)
    relative_distance = Sqrt (squared_ratio)
"""


def _model(text: str, function: onnx.FunctionProto) -> onnx.ModelProto:
    model = parser.parse_model(text)
    model.functions.append(function)
    onnx.checker.check_model(model)
    return model


def residual_model() -> onnx.ModelProto:
    """``residual.onnx``: one ``NearestResidual`` node, and what it leaves relative to normal parts.

    Two outputs more: ``relative`` [N, D, h, w], the residual over the bank's ``residual_scale`` [1, D, 1, 1], and
    ``relative_distance`` [N, 1, h, w], the root of distance over the sum of that scale: about 1 on normal cells.
    """
    return _model(
        f"<ir_version: 9, {_OPSETS}> residual ({_INPUTS}, {_SCALE}) => ({_OUTPUTS}) {{"
        f"index, distance, residual = {DOMAIN}.NearestResidual "
        f"(embedding, centre, projection, cell_code, search, rows) {_RELATIVE} }}",
        nearest_residual_functions()[0],
    )


def candidates_model() -> onnx.ModelProto:
    """``residual_candidates.onnx``: the same around ``NearestResidualCandidates``."""
    return _model(
        f"<ir_version: 9, {_OPSETS}> residual_candidates "
        f"({_INPUTS}, {_SCALE}, int64[B, q] order, int64[cells] place, int64[C, B, m] candidates) => ({_OUTPUTS}) {{"
        f"index, distance, residual = {DOMAIN}.NearestResidualCandidates "
        f"(embedding, centre, projection, cell_code, search, rows, order, place, candidates) {_RELATIVE} }}",
        nearest_residual_functions()[1],
    )
