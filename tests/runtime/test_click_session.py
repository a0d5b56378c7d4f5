import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from click_samples import DIMS, PROMPT_DIMS, SIZE

from adclick_edge.bundle import Tiling, read_bundle, write_bundle
from adclick_edge.bundle.names import CLICK_GOLDEN
from adclick_edge.data.clicks import Click
from adclick_edge.data.dataset import open_product
from adclick_edge.data.images import read_image
from adclick_edge.errors import BundleError, EngineError, UsageError
from adclick_edge.features.bank import BankOptions
from adclick_edge.runtime.click_session import ClickSession
from adclick_edge.runtime.click_view import whole_view
from adclick_edge.runtime.inspector import Inspector
from adclick_edge.runtime.ort_cpu import OrtCpuEngine
from adclick_edge.runtime.setup import KEPT_MANIFEST_FIELDS, SetUp, set_up_product

RNG = np.random.default_rng(0)
FRAME = RNG.integers(0, 256, (300, 400, 3), np.uint8)
CLICKS = [(150.0, 200.0, True), (152.0, 205.0, True), (149.0, 190.0, False), (20.0, 390.0, True), (10.0, 10.0, False)]


@pytest.fixture(scope="module")
def opened(click_bundle: Path) -> Iterator[ClickSession]:
    with ClickSession.open(click_bundle, threads=1, zoom=True) as session:
        yield session


@pytest.fixture
def session(opened: ClickSession) -> ClickSession:
    opened.prompt(None)
    opened.set_image(FRAME)
    opened.prompt(None)
    return opened


def give(session: ClickSession, clicks: list[tuple[float, float, bool]]) -> list[np.ndarray]:
    return [session.click(*click) for click in clicks]


def test_a_click_marks_what_is_there(session: ClickSession) -> None:
    assert not session.probability.any()
    assert session.view == whole_view((300, 400))
    found = session.click(150, 200, positive=True)
    assert found.shape == (300, 400)
    assert found.dtype == np.float32
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert found is session.probability
    assert session.clicks == (Click(150.0, 200.0, True),)
    assert session.mask()[150, 200]
    assert session.mask().mean() < 0.2
    assert session.mask(0.99).sum() < session.mask(0.1).sum()
    np.testing.assert_array_equal(session.mask(), found > 0.5)
    assert session.stage_ms["click_decode"] > 0
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1


@pytest.mark.parametrize("taken_back", range(1, len(CLICKS) + 1))
def test_undo_is_never_having_clicked(session: ClickSession, taken_back: int) -> None:
    answers = [session.probability, *give(session, CLICKS)]
    views = [session.view]
    for place in range(len(CLICKS) - 1, len(CLICKS) - 1 - taken_back, -1):
        np.testing.assert_array_equal(session.undo(), answers[place])
    assert session.clicks == tuple(Click(*c) for c in CLICKS[: len(CLICKS) - taken_back])
    # What follows is what would have followed: given again, the clicks get the very same answers.
    again = give(session, CLICKS[len(CLICKS) - taken_back :])
    for found, expected in zip(again, answers[len(CLICKS) - taken_back + 1 :], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [session.view] == views


def test_an_image_starts_anew(session: ClickSession) -> None:
    first = give(session, CLICKS[:3])[-1]
    session.set_image(FRAME[::-1].copy())
    assert session.clicks == ()
    assert not session.probability.any()
    assert np.abs(give(session, CLICKS[:3])[-1] - first).max() > 1e-4  # another frame, another answer
    session.set_image(FRAME)
    np.testing.assert_array_equal(give(session, CLICKS[:3])[-1], first)


def test_the_callers_buffer_may_be_reused(session: ClickSession) -> None:
    buffer = FRAME.copy()
    session.set_image(buffer)
    expected = give(session, CLICKS[:3])[-1]
    session.set_image(buffer)
    buffer[:] = 0
    np.testing.assert_array_equal(give(session, CLICKS[:3])[-1], expected)


def test_small_regions_are_looked_at_closely(session: ClickSession, click_bundle: Path) -> None:
    whole = session.click(150, 200, positive=True)
    before = session.view
    close = session.click(152, 205, positive=True)
    view = session.view
    assert before == whole_view((300, 400))
    assert view.height < 150
    inside = np.zeros((300, 400), bool)
    inside[view.top : view.top + view.height, view.left : view.left + view.width] = True
    np.testing.assert_array_equal(close[~inside], whole[~inside])
    assert np.abs(close - whole)[inside].max() > 0.1
    # A blob has the network's size, so a closer view marks a smaller part of the frame, at the same place.
    assert session.mask()[152, 205]
    assert session.mask().sum() < 0.7 * (whole > 0.5).sum()
    assert "click_encode" in session.stage_ms
    session.click(151, 204, positive=True)
    assert session.view == view
    assert "click_encode" not in session.stage_ms  # embedded already
    session.click(20, 390, positive=True)
    assert session.view == whole_view((300, 400))
    with ClickSession.open(click_bundle, threads=1, zoom=False) as plain:
        plain.set_image(FRAME)
        give(plain, CLICKS)
        assert plain.view == whole_view((300, 400))


def test_zoom_waits(click_bundle: Path) -> None:
    with ClickSession.open(click_bundle, threads=1, zoom=True, zoom_after=3, check_golden=False) as session:
        session.set_image(FRAME)
        views = []
        for y in range(150, 155):
            session.click(y, 200, positive=True)
            views.append(session.view == whole_view((300, 400)))
        assert views == [True, True, True, False, False]


def test_the_answer_before_is_taken_into_account(session: ClickSession) -> None:
    session.set_image(FRAME[:64, :64])
    once = session.click(30, 30, positive=True)
    twice = session.click(30, 30, positive=True)
    assert session.view == whole_view((64, 64))
    assert twice[30, 30] >= once[30, 30]
    assert twice.sum() > once.sum()


@pytest.mark.parametrize(("y", "x"), [(-0.6, 5), (299.6, 5), (5, -1), (5, 400), (float("nan"), 5), (5, float("inf"))])
def test_clicks_outside_the_frame_are_refused(session: ClickSession, y: float, x: float) -> None:
    before = session.click(150, 200, positive=True)
    with pytest.raises(UsageError, match="outside the frame of 300 x 400"):
        session.click(y, x, positive=True)
    assert session.clicks == (Click(150.0, 200.0, True),)
    assert session.probability is before


def test_edges_are_inside(session: ClickSession) -> None:
    for y, x in ((-0.5, -0.5), (299.5, 399.5), (0, 399)):
        session.click(y, x, positive=True)
    assert session.mask()[0, 399]


def test_clicks_are_limited(session: ClickSession) -> None:
    for _ in range(session.max_clicks):
        session.click(150, 200, positive=True)
    with pytest.raises(UsageError, match="24 clicks are all"):
        session.click(150, 200, positive=True)
    session.undo()
    session.click(10, 10, positive=False)
    assert len(session.clicks) == session.max_clicks == 24


def test_nothing_goes_before_an_image(click_bundle: Path) -> None:
    with ClickSession.open(click_bundle, threads=1, check_golden=False) as session:
        for use in (
            lambda: session.click(1, 1, positive=True),
            session.undo,
            session.mask,
            lambda: session.probability,
            lambda: session.view,
        ):
            with pytest.raises(UsageError, match="set_image first"):
                use()
        session.prompt(np.ones(PROMPT_DIMS, np.float32))  # words may come first
        session.set_image(FRAME)
        with pytest.raises(UsageError, match="no click to undo"):
            session.undo()


@pytest.mark.parametrize(
    "frame",
    [FRAME.astype(np.float32), FRAME[..., 0], np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)],
    ids=["float", "grey", "empty", "four channels"],
)
def test_other_frames_are_refused(session: ClickSession, frame: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"pass uint8 \[H, W, 3\]"):
        session.set_image(frame)


def test_words_change_the_answer_and_can_be_taken_back(session: ClickSession) -> None:
    plain = give(session, CLICKS)[-1]
    vector = np.linspace(-1, 1, PROMPT_DIMS, dtype=np.float32)
    session.prompt(vector)
    worded = session.probability
    assert worded.sum() > plain.sum()
    session.undo()
    assert len(session.clicks) == len(CLICKS) - 1
    session.set_image(FRAME)
    # Said first or afterwards: the same.
    np.testing.assert_array_equal(give(session, CLICKS)[-1], worded)
    session.prompt(3 * vector)  # only its direction counts
    np.testing.assert_allclose(session.probability, worded, atol=1e-6)
    session.prompt(None)
    np.testing.assert_array_equal(session.probability, plain)


@pytest.mark.parametrize(
    "vector", [np.zeros(PROMPT_DIMS), np.ones(5), np.full(PROMPT_DIMS, np.nan)], ids=["0", "5", "nan"]
)
def test_vectors_that_are_none_are_refused(session: ClickSession, vector: np.ndarray) -> None:
    before = give(session, CLICKS[:2])[-1]
    with pytest.raises(UsageError, match=r"this network takes \[384\]"):
        session.prompt(vector.astype(np.float32))
    assert session.probability is before


def test_without_prompts_words_are_refused(session: ClickSession) -> None:
    with pytest.raises(UsageError, match=r"has no prompts\.json"):
        session.prompt("scratch")


def test_kinds_are_found_in_the_bundles_prompts(click_bundle: Path, tmp_path: Path) -> None:
    from adclick_edge.words import shipped_prompts

    table = shipped_prompts()
    kind = table.known_kinds()[0]
    with read_bundle(click_bundle) as bundle:
        fields, files = parts_of(bundle)
        write_bundle(tmp_path / "worded", fields, {**files, "prompts.json": table.encode()})
    with ClickSession.open(tmp_path / "worded", threads=1, check_golden=False) as session:
        session.set_image(FRAME)
        plain = give(session, CLICKS[:2])[-1]
        session.prompt(kind)
        worded = session.probability
        assert np.abs(worded - plain).max() > 1e-4
        session.prompt(table.vector(None, kind))
        np.testing.assert_allclose(session.probability, worded, atol=1e-6)
        with pytest.raises(UsageError, match="free text"):
            session.prompt("an unheard-of thing on the left")
        np.testing.assert_allclose(session.probability, worded, atol=1e-6)


def parts_of(bundle) -> tuple[dict, dict]:
    import msgspec

    computed = ("schema_version", "version", "files", "adclick_edge_version", "manifest_sha256")
    fields = {key: value for key, value in msgspec.to_builtins(bundle.manifest).items() if key not in computed}
    return fields, {name: bundle.read(name) for name in bundle.manifest.files}


def test_a_bank_shows_where_to_look(click_product: Path, click_bundle: Path, line: Path) -> None:
    """The stand-in network adds the residual to its answer."""
    frame = read_image(open_product(line, "flange").defects()[0].path)
    with (
        ClickSession.open(click_product, threads=1) as with_bank,
        ClickSession.open(click_bundle, threads=1, check_golden=False) as without,
    ):
        answers = []
        for session in (with_bank, without):
            session.set_image(frame)
            answers.append(session.click(10, 10, positive=True))
        assert np.abs(answers[0] - answers[1]).max() > 1e-5
        np.testing.assert_allclose(answers[0], answers[1], atol=0.01)
        assert with_bank.clicks == without.clicks
        with Inspector.open(click_product, threads=1, check_golden=False) as inspector:
            beside = ClickSession.beside(inspector)
            beside.set_image(frame)
            np.testing.assert_array_equal(beside.click(10, 10, positive=True), answers[0])
            beside.close()
            beside.set_image(frame)  # the inspector's bundle is still open
            assert inspector.bundle.read("features.onnx")


def test_residuals_of_a_frame_in_tiles(click_bundle: Path, line: Path, tmp_path: Path) -> None:
    """A tile as large as the frame gives the residuals of the frame itself."""
    product = open_product(line, "flange")
    options = BankOptions(rows=300, search_dims=16)
    frame = read_image(product.defects()[0].path)
    found = {}
    with read_bundle(click_bundle) as weights:
        tiles = Tiling(1.0, 32)
        for name, side, tiling in (("one", 128, None), ("tiles", 128, tiles), ("more", 64, tiles)):
            setup = SetUp("flange", (side, side), options, tiling)
            path = set_up_product(weights, product.normals("train")[:3], tmp_path / name, setup)
            with ClickSession.open(path, threads=1) as session:
                session.set_image(frame)
                encoder = session._encoder
                assert encoder._relative.shape == (DIMS, 16, 16)
                found[name] = encoder._distance[0]
    np.testing.assert_allclose(found["tiles"], found["one"], rtol=1e-4)
    assert np.corrcoef(found["more"].ravel(), found["one"].ravel())[0, 1] > 0.8


def test_a_product_keeps_the_graphs_of_its_weights(click_bundle: Path, line: Path, tmp_path: Path) -> None:
    normals = open_product(line, "flange").normals("train")[:3]
    with read_bundle(click_bundle) as weights:
        fields, files = parts_of(weights)
        worded = write_bundle(tmp_path / "worded", fields, {**files, "prompts.json": b"{}"})
    with read_bundle(worded) as weights:
        out = set_up_product(weights, normals, tmp_path / "out", SetUp("flange", (128, 128), BankOptions(rows=200)))
        with read_bundle(out) as product:
            for name in ("click_encode.onnx", "click_decode.onnx", "prompts.json", CLICK_GOLDEN):
                assert product.read(name) == weights.read(name)
            assert product.manifest.click == weights.manifest.click
            assert product.manifest.click is not None
            assert product.manifest.click.size == SIZE
            assert len(product.golden()) > 0
    assert "click" in KEPT_MANIFEST_FIELDS


def test_bundles_without_click_graphs_are_refused(weights_bundle: Path) -> None:
    with pytest.raises(BundleError, match="has no graphs for clicks"):
        ClickSession.open(weights_bundle)
    engine = OrtCpuEngine(weights_bundle, threads=1)
    with pytest.raises(EngineError, match=r"click_decode\.onnx.*cannot load"):
        engine.click_decode({})


def test_missing_inputs_are_named(click_bundle: Path) -> None:
    engine = OrtCpuEngine(click_bundle, threads=1)
    with pytest.raises(EngineError, match=r"click_encode\.onnx takes 'map4'"):
        engine.click_encode({"frames": np.zeros((1, *SIZE, 3), np.uint8)})


def test_the_golden_case_is_checked(click_bundle: Path, tmp_path: Path) -> None:
    with read_bundle(click_bundle) as bundle:
        fields, files = parts_of(bundle)
    case = safetensors.numpy.load(files[CLICK_GOLDEN])
    case["probability"] = case["probability"] + np.float32(0.02)
    write_bundle(tmp_path / "off", fields, {**files, CLICK_GOLDEN: safetensors.numpy.save(case)})
    with pytest.raises(BundleError, match=r"golden click case differs by 0\.02"):
        ClickSession.open(tmp_path / "off", threads=1)
    ClickSession.open(tmp_path / "off", threads=1, check_golden=False).close()
    write_bundle(tmp_path / "cut", fields, {**files, CLICK_GOLDEN: files[CLICK_GOLDEN][:50]})
    with pytest.raises(BundleError, match="cannot be used"):
        ClickSession.open(tmp_path / "cut", threads=1)


def test_settings_that_cannot_be_read_do_not_matter(
    click_product: Path, tmp_path: Path, make_once: Callable[..., Path]
) -> None:
    shutil.copytree(click_product, tmp_path / "copy")
    (tmp_path / "copy" / "calibration.json").write_text("{")
    with ClickSession.open(tmp_path / "copy", threads=1, check_golden=False) as session:
        session.set_image(FRAME)


def test_mirrored_answers_turn_with_the_frame(click_bundle: Path) -> None:
    """The mean over all mirrorings does not know which of them it was shown."""
    height, width = FRAME.shape[:2]
    with ClickSession.open(click_bundle, threads=1, mirrored=True, check_golden=False) as session:
        session.set_image(FRAME)
        straight = give(session, CLICKS[:3])[-1]
        session.set_image(np.ascontiguousarray(FRAME[::-1, ::-1]))
        turned = give(session, [(height - 1 - y, width - 1 - x, positive) for y, x, positive in CLICKS[:3]])[-1]
        np.testing.assert_allclose(turned[::-1, ::-1], straight, atol=1e-4)
        session.undo()
        session.undo()
        again = session.click(height - 1 - CLICKS[1][0], width - 1 - CLICKS[1][1], CLICKS[1][2])
        assert again.shape == straight.shape
    with ClickSession.open(click_bundle, threads=1, check_golden=False) as plain:
        plain.set_image(FRAME)
        assert not np.array_equal(give(plain, CLICKS[:3])[-1], straight)
