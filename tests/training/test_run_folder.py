from pathlib import Path

import msgspec
import pytest
from seg_samples import config_for

from adclick_edge.errors import TrainingError
from adclick_edge.training.episodes import EpisodeMix
from adclick_edge.training.run_folder import append_log, read_config, read_log, truncate_log, write_config


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    return tmp_path / "w.safetensors"


def test_a_config_comes_back_equal(tmp_path: Path, weights: Path) -> None:
    config = config_for(tmp_path, weights, mix=EpisodeMix(flip=True), skip_kinds=("a", "b"), learning_rate=1 / 3)
    write_config(tmp_path, config)
    assert read_config(tmp_path) == config


def test_any_change_of_settings_shows(tmp_path: Path, weights: Path) -> None:
    config = config_for(tmp_path, weights)
    write_config(tmp_path, config)
    for changes in ({"seed": 6}, {"steps": 9}, {"mix": EpisodeMix(gain=0.07)}, {"backbone_sha256": "0"}):
        assert read_config(tmp_path) != msgspec.structs.replace(config, **changes)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not a training run.*run\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"kind": "seg"}', b"\xff\xfe", b'{"kind": "\xff"}'], ids=repr)
def test_an_unreadable_config_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(TrainingError, match=r"run\.json"):
        read_config(tmp_path)


def test_unknown_settings_are_refused(tmp_path: Path, weights: Path) -> None:
    write_config(tmp_path, config_for(tmp_path, weights))
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace('"seed"', '"sead"'))
    with pytest.raises(TrainingError, match="sead"):
        read_config(tmp_path)


def test_log_lines_come_back_in_order(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
    entries = [{"step": i, "loss": 1 / (i + 1)} for i in range(3)]
    for entry in entries:
        append_log(tmp_path, entry)
    assert read_log(tmp_path) == entries


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    append_log(tmp_path, {"step": 0, "loss": 0.5})
    append_log(tmp_path, {"step": 1, "loss": 0.4})
    whole = (tmp_path / "log.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first + 1, len(whole) - 1):
        (tmp_path / "log.jsonl").write_bytes(whole[:size])
        assert read_log(tmp_path) == [{"step": 0, "loss": 0.5}], size


def test_steps_to_be_taken_again_are_dropped(tmp_path: Path) -> None:
    for step in range(5):
        append_log(tmp_path, {"step": step, "loss": 0.1})
        if step % 2:
            append_log(tmp_path, {"step": step, "pixel_ap": 0.1})
    truncate_log(tmp_path, 3)
    assert [e["step"] for e in read_log(tmp_path)] == [0, 1, 1, 2]
    append_log(tmp_path, {"step": 3, "loss": 0.2})
    assert [e["step"] for e in read_log(tmp_path)] == [0, 1, 1, 2, 3]
    truncate_log(tmp_path, 0)
    assert read_log(tmp_path) == []
