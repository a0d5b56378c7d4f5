import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file
from seg_samples import config_for

from adclick_edge.data.dataset import open_product
from adclick_edge.data.images import read_image
from adclick_edge.errors import DataError, TrainingError, UsageError
from adclick_edge.features.bank import Bank
from adclick_edge.files import sha256_file
from adclick_edge.training import curves as curves_module
from adclick_edge.training import seg_data
from adclick_edge.training.checkpoint import load_model
from adclick_edge.training.episodes import EpisodeMix
from adclick_edge.training.run_folder import RunConfig, read_log, write_config
from adclick_edge.training.seg import train_seg

TRAIN = """
import sys
from pathlib import Path
from adclick_edge.training.run_folder import RunConfig
from adclick_edge.training.seg import train_seg
import msgspec
train_seg(Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=RunConfig), device_name="cpu")
"""


def start(run: Path, config: RunConfig, **environment: str) -> subprocess.Popen[str]:
    import msgspec

    command = [sys.executable, "-c", TRAIN, str(run), msgspec.json.encode(config).decode()]
    return subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)


def without_times(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in read_log(run)]


def same_tensors(a: Path, b: Path) -> bool:
    one, other = load_file(a), load_file(b)
    return list(one) == list(other) and all(one[k].equal(other[k]) for k in one)


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(run) if "loss" in entry]


def test_a_run_leaves_what_it_promises(seg_run: Path) -> None:
    log = read_log(seg_run)
    assert [e["step"] for e in log if "loss" in e] == list(range(8))
    assert all(np.isfinite(value) for value in losses(seg_run))
    validations = [e for e in log if "pixel_ap" in e]
    assert [e["step"] for e in validations] == [2, 5, 7]
    assert all(0 <= e["pixel_ap"] <= 1 and 0 <= e["image_auroc"] <= 1 for e in validations)
    names = {str(p.relative_to(seg_run)) for p in seg_run.rglob("*") if p.is_file()}
    assert names == {
        "run.json",
        "splits.json",
        "backbone.safetensors",
        "banks/flange.safetensors",
        "last.safetensors",
        "best.safetensors",
        "log.jsonl",
        "curves.png",
    }
    data = (seg_run / "curves.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.std() > 5


def test_best_is_the_checkpoint_with_the_highest_validation_ap(seg_run: Path, line: Path, backbone_file: Path) -> None:
    from adclick_edge.features.extractor import build_extractor
    from adclick_edge.models.build import build_segmenter

    config = config_for(line, backbone_file)
    state = load_model(seg_run / "best.safetensors", build_segmenter(config.preset, build_extractor(config.preset)))
    validations = [e for e in read_log(seg_run) if "pixel_ap" in e]
    best = max(validations, key=lambda e: e["pixel_ap"])
    assert state == {"step": best["step"] + 1, "best": best["pixel_ap"]}


def test_a_killed_run_goes_on_as_if_it_had_never_stopped(
    seg_run: Path, line: Path, backbone_file: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", config_for(line, backbone_file)
    process = start(run, config)
    try:
        until = time.monotonic() + 60
        # Three lines: a checkpoint at step 2 is there, and step 3, at least, is taken again.
        while len(read_log(run)) < 3 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    assert (run / "last.safetensors").exists()
    assert len(losses(run)) < 8
    train_seg(run, config, device_name="cpu")
    assert without_times(run) == without_times(seg_run)
    for name in ("last", "best"):
        assert same_tensors(run / f"{name}.safetensors", seg_run / f"{name}.safetensors")


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_run_in_pieces_is_the_run_in_one(
    stop_after: int, seg_run: Path, line: Path, backbone_file: Path, tmp_path: Path
) -> None:
    config = config_for(line, backbone_file)
    train_seg(tmp_path, config, device_name="cpu", stop_after=stop_after)
    assert len(losses(tmp_path)) == stop_after
    train_seg(tmp_path, config, device_name="cpu")
    assert without_times(tmp_path) == without_times(seg_run)


def test_a_finished_run_is_left_alone(seg_run: Path, line: Path, backbone_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(seg_run, run)
    train_seg(run, config_for(line, backbone_file), device_name="cpu")
    assert read_log(run) == read_log(seg_run)
    assert (run / "best.safetensors").read_bytes() == (seg_run / "best.safetensors").read_bytes()


def test_other_settings_in_the_same_folder_are_refused(
    seg_run: Path, line: Path, backbone_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(seg_run, run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for changes in ({"seed": 6}, {"steps": 20}, {"batch": 4}):
        with pytest.raises(TrainingError, match="other settings"):
            train_seg(run, config_for(line, backbone_file, **changes), device_name="cpu")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_run_does_not_go_on_with_other_pictures(line: Path, backbone_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "line"
    shutil.copytree(line, data)
    config = config_for(data, backbone_file)
    train_seg(tmp_path / "run", config, device_name="cpu", stop_after=2)
    normals = sorted((data / "flange" / "train" / "good").iterdir())
    normals[0].write_bytes(sorted((data / "flange" / "test" / "good").iterdir())[0].read_bytes())
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(TrainingError, match="not those the run began with"):
        train_seg(tmp_path / "run", config, device_name="cpu")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_two_seeds_differ(seg_run: Path, line: Path, backbone_file: Path, tmp_path: Path) -> None:
    train_seg(tmp_path, config_for(line, backbone_file, seed=6, steps=2), device_name="cpu")
    assert losses(tmp_path) != losses(seg_run)[:2]


def test_only_chosen_pictures_are_read(
    line: Path, backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt_from: set[Path] = set()
    compared: set[Path] = set()

    def recorded(seen: set[Path]) -> Callable[[Path], np.ndarray]:
        def read(path: Path) -> np.ndarray:
            seen.add(path)
            return read_image(path)

        return read

    monkeypatch.setattr(seg_data, "read_image", recorded(learnt_from))
    monkeypatch.setattr("adclick_edge.data.splits.read_image", recorded(learnt_from))
    monkeypatch.setattr("adclick_edge.training.labels.read_image", recorded(compared))
    config = config_for(line, backbone_file, real_defects_per_kind=1, skip_kinds=("stain", "dent"), steps=1)
    train_seg(tmp_path, config, device_name="cpu")
    splits = json.loads((tmp_path / "splits.json").read_text())["flange"]
    by_hash = {sha256_file(s.path): s for s in open_product(line, "flange").samples}
    parts = {name: [by_hash[digest] for digest in hashes] for name, hashes in splits.items()}
    assert {s.split for s in parts["train_normals"] + parts["validation_normals"]} == {"train"}
    assert not set(splits["train_normals"]) & set(splits["validation_normals"])
    assert len(splits["train_normals"]) + len(splits["validation_normals"]) == 14
    assert len(parts["validation_normals"]) >= 1
    chosen = parts["train_defects"] + parts["validation_defects"]
    assert sorted(s.kind for s in chosen) == ["crack", "missing", "scratch", "swapped"]
    siblings = parts.pop("siblings")
    assert learnt_from == {s.path for part in parts.values() for s in part}
    assert not learnt_from & {s.path for s in siblings}
    # To find other shots of one defect its kind is looked through; normal test pictures are not, nor kinds left out.
    assert {p.parent.name for p in compared} == {"crack", "missing", "scratch", "swapped"}
    bank = Bank.from_bytes((tmp_path / "banks" / "flange.safetensors").read_bytes())
    assert list(bank.image_hashes) == splits["train_normals"]


def test_few_normals_are_all_trained_on(line: Path, tmp_path: Path, backbone_file: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(line / "flange" / "train" / "good", part / "flange" / "train" / "good")
    for path in sorted((part / "flange" / "train" / "good").iterdir())[5:]:
        path.unlink()
    train_seg(tmp_path / "run", config_for(part, backbone_file, steps=2), device_name="cpu")
    splits = json.loads((tmp_path / "run" / "splits.json").read_text())["flange"]
    assert {name: len(hashes) for name, hashes in splits.items()} == {
        "train_normals": 5,
        "validation_normals": 0,
        "train_defects": 0,
        "validation_defects": 0,
        "siblings": 0,
    }
    assert "pixel_ap" in read_log(tmp_path / "run")[-1]


def test_unreadable_pictures_and_masks_are_reported_and_left_out(
    line: Path, tmp_path: Path, backbone_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(line / "flange", tmp_path / "line" / "flange")
    flange = tmp_path / "line" / "flange"
    bad = flange / "train" / "good" / "003.png"
    bad.write_bytes(bad.read_bytes()[:500])
    empty, thin = (flange / "ground_truth" / "crack" / f"{name}_mask.png" for name in ("000", "001"))
    assert empty.exists()
    blank = np.zeros((128, 128), np.uint8)
    cv2.imwrite(str(empty), blank)
    blank[60, 60] = 255  # a quarter of a pixel at the input size
    cv2.imwrite(str(thin), blank)
    mix = EpisodeMix(clean=0, synthetic=0, pasted=0.5, real=0.5)
    config = config_for(
        tmp_path / "line",
        backbone_file,
        steps=4,
        mix=mix,
        real_defects_per_kind=2,
        validation_share=0.1,
        skip_kinds=("dent", "missing", "scratch", "stain", "swapped"),
    )
    train_seg(tmp_path / "run", config, device_name="cpu")
    said = capfd.readouterr().err
    assert f"skipped: {bad}: " in said
    assert f"skipped: {empty}: marks no pixel" in said
    splits = json.loads((tmp_path / "run" / "splits.json").read_text())["flange"]
    assert len(splits["train_normals"]) + len(splits["validation_normals"]) == 13
    assert sha256_file(bad) not in {h for part in splits.values() for h in part}
    assert np.isfinite(losses(tmp_path / "run")).all()


def test_two_products_in_one_run(line: Path, backbone_file: Path, tmp_path: Path) -> None:
    config = config_for(line, backbone_file, products=("fabric", "flange"), steps=3)
    train_seg(tmp_path, config, device_name="cpu")
    assert set(json.loads((tmp_path / "splits.json").read_text())) == {"fabric", "flange"}
    assert {p.stem for p in (tmp_path / "banks").iterdir()} == {"fabric", "flange"}
    assert np.isfinite(losses(tmp_path)).all()


def test_mixed_precision_stays_near_full_precision(
    seg_run: Path, line: Path, backbone_file: Path, tmp_path: Path
) -> None:
    train_seg(tmp_path, config_for(line, backbone_file, mixed_precision=True, steps=2), device_name="cpu")
    # The first step of the schedule is that of the longer run.
    assert losses(tmp_path)[0] == pytest.approx(losses(seg_run)[0], rel=0.02)


def wrong_settings() -> list[tuple[dict[str, object], type[Exception], str]]:
    return [
        ({"products": ("none",)}, DataError, "none"),
        ({"data": "/nowhere"}, DataError, "/nowhere"),
        ({"skip_kinds": ("craack",)}, UsageError, "craack"),
    ]


@pytest.mark.parametrize(("changes", "error", "named"), wrong_settings(), ids=lambda x: str(x)[:20])
def test_wrong_settings_are_named(
    changes: dict[str, object], error: type[Exception], named: str, line: Path, backbone_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=named):
        train_seg(tmp_path, config_for(line, backbone_file, **changes), device_name="cpu")


def test_a_device_that_is_not_there_is_named(line: Path, backbone_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="warp"):
        train_seg(tmp_path, config_for(line, backbone_file), device_name="warp")


def test_one_normal_is_too_few(line: Path, backbone_file: Path, tmp_path: Path) -> None:
    (tmp_path / "one" / "p" / "train" / "good").mkdir(parents=True)
    shutil.copy(line / "flange" / "train" / "good" / "000.png", tmp_path / "one" / "p" / "train" / "good")
    with pytest.raises(TrainingError, match="at least 2"):
        train_seg(tmp_path / "run", config_for(tmp_path / "one", backbone_file, products=("p",)), device_name="cpu")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def distributed(run: Path, config: RunConfig) -> list[str]:
    port = str(free_port())
    processes = [
        start(
            run,
            config,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            TORCH_NCCL_DUMP_ON_TIMEOUT="0",
        )
        for rank in range(2)
    ]
    said = []
    try:
        for process in processes:
            said.append(process.communicate(timeout=120)[1])
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], said
    return said


DUMP = """
import torch
from adclick_edge.training import seg
plain = seg._Loop.train
def train(self, stop_after):
    plain(self, stop_after)
    torch.save([p.detach() for p in self.segmenter.parameters()], f"{self.run}/rank{self.rank}.pt")
seg._Loop.train = train
"""


def test_two_processes_share_a_run(
    line: Path, backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same parameters in both, one log, and a run that one process alone can read on from."""
    import torch

    monkeypatch.setattr(sys.modules[__name__], "TRAIN", DUMP + TRAIN)
    run, config = tmp_path / "run", config_for(line, backbone_file, steps=4)
    distributed(run, config)
    first, second = (torch.load(run / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first) > 10
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert [e["step"] for e in read_log(run) if "loss" in e] == [0, 1, 2, 3]
    assert np.isfinite(losses(run)).all()
    saved = load_file(run / "last.safetensors")
    assert any(
        torch.equal(saved["model.logit.weight"], p) for p in first if p.shape == saved["model.logit.weight"].shape
    )


def test_a_batch_that_cannot_be_shared_is_refused(
    line: Path, backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda *_: None)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(TrainingError, match="batch of 3 cannot be shared by 2"):
        train_seg(tmp_path, config_for(line, backbone_file, batch=3), device_name="cpu")
    assert not any(tmp_path.iterdir())


def test_the_loss_goes_down_on_a_few_pictures(line: Path, backbone_file: Path, tmp_path: Path) -> None:
    part = tmp_path / "part" / "flange" / "train" / "good"
    part.mkdir(parents=True)
    for name in ("000.png", "001.png", "002.png"):
        shutil.copy(line / "flange" / "train" / "good" / name, part)
    for name in ("test", "ground_truth"):
        shutil.copytree(line / "flange" / name / "missing", tmp_path / "part" / "flange" / name / "missing")
    config = config_for(
        tmp_path / "part",
        backbone_file,
        steps=60,
        batch=4,
        validate_every=60,
        checkpoint_every=60,
        learning_rate=1e-2,
        real_defects_per_kind=2,
        validation_share=0.1,
        mix=EpisodeMix(clean=0.2, synthetic=0, pasted=0, real=0.8, gain=0.0),
    )
    train_seg(tmp_path / "run", config, device_name="cpu")
    curve = losses(tmp_path / "run")
    assert np.mean(curve[-10:]) < 0.5 * np.mean(curve[:5])


def test_curves_of_a_log_without_validation(tmp_path: Path) -> None:
    curves_module.plot_curves([{"step": 0, "loss": 0.5}], tmp_path / "c.png", title="t")
    curves_module.plot_curves([], tmp_path / "empty.png", title="t")
    assert (tmp_path / "c.png").read_bytes() != (tmp_path / "empty.png").read_bytes()


def test_a_run_killed_before_its_first_checkpoint_starts_anew(
    seg_run: Path, line: Path, backbone_file: Path, tmp_path: Path
) -> None:
    config = config_for(line, backbone_file)
    write_config(tmp_path, config)
    (tmp_path / "log.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    train_seg(tmp_path, config, device_name="cpu", stop_after=2)
    assert losses(tmp_path) == losses(seg_run)[:2]
