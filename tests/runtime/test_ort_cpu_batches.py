"""A batch gives what its frames give one by one, however the engine cuts it up."""

import numpy as np
import pytest

from adclick_edge.bundle import read_bundle
from adclick_edge.errors import EngineError
from adclick_edge.features.bank import Bank
from adclick_edge.runtime.ort_cpu import FRAMES_PER_RUN, OrtCpuEngine

MOST_FRAMES = 2 * FRAMES_PER_RUN + 1


@pytest.fixture(scope="module")
def engine_and_bank(product_bundle):
    with read_bundle(product_bundle) as bundle:
        engine = OrtCpuEngine(bundle.path("features.onnx").parent, threads=1)
        yield engine, engine.load_bank(Bank.from_bytes(bundle.read("bank.safetensors")))


@pytest.fixture(scope="module")
def frames(engine_and_bank):
    _, handle = engine_and_bank
    height, width = (8 * cells for cells in handle.bank.grid)
    return np.random.default_rng(0).integers(0, 256, (MOST_FRAMES, height, width, 3), np.uint8)


@pytest.mark.parametrize("count", range(1, MOST_FRAMES + 1))
def test_features_of_a_batch_are_those_of_its_frames(engine_and_bank, frames, count):
    engine, _ = engine_and_bank
    together = engine.features(frames[:count])
    alone = [engine.features(frame[None]) for frame in frames[:count]]
    assert set(together) == set(alone[0])
    for name, batch in together.items():
        assert batch.dtype == np.float32
        expected = np.concatenate([features[name] for features in alone])
        np.testing.assert_allclose(batch, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=name)


def test_maps_of_a_batch_are_those_of_its_frames(engine_and_bank, frames):
    engine, handle = engine_and_bank
    result = engine.run(frames, handle)
    alone = np.concatenate([engine.run(frame[None], handle).maps for frame in frames])
    assert result.maps.shape == alone.shape
    np.testing.assert_allclose(result.maps, alone, rtol=1e-4, atol=1e-4 * np.ptp(alone))
    assert len(np.unique(result.maps.max(axis=(1, 2)))) == MOST_FRAMES  # different frames: an exchange would be seen


def test_the_features_graph_is_given_few_frames_at_once(engine_and_bank, frames, monkeypatch):
    engine, _ = engine_and_bank
    given = []
    run = engine._run
    monkeypatch.setattr(engine, "_run", lambda name, feed: given.append(len(feed["frames"])) or run(name, feed))
    engine.features(frames)
    assert sum(given) == MOST_FRAMES
    assert max(given) == FRAMES_PER_RUN


def test_no_frames_are_refused(engine_and_bank, frames):
    engine, _ = engine_and_bank
    with pytest.raises(EngineError, match="at least one"):
        engine.features(frames[:0])
