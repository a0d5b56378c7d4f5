import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from adclick_edge.errors import TrainingError, UsageError
from adclick_edge.features.backbones import create_backbone
from adclick_edge.features.weights import load_weights
from adclick_edge.training import pretrain as module
from adclick_edge.training.pretrain import PRESETS, pretrain, source_sha256
from adclick_edge.training.pretrain_curves import read_log, thin_log, write_curves
from adclick_edge.training.pretrain_data import DEFECT, IGNORED, NORMAL, BatchShape, draw_batch, draw_batches
from adclick_edge.training.pretrain_losses import cell_features, episode_loss, nearest_distances
from adclick_edge.training.pretrain_validation import average_precision, draw_held_out, validate

SMOKE = PRESETS["smoke"]
TINY = BatchShape(worlds=2, references=1, queries=2, side_px=64)


def log_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def same(a: Path, b: Path) -> bool:
    ta, tb = load_file(a), load_file(b)
    return list(ta) == list(tb) and all(torch.equal(ta[k], tb[k]) for k in ta)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    pretrain(SMOKE, out)
    return out


def test_a_run_leaves_weights_checkpoint_and_log(unbroken: Path) -> None:
    lines = log_of(unbroken)
    assert [x["step"] for x in lines] == [1, 2, 3, 4]
    assert [x["step"] for x in lines if "validation_ap" in x] == [2, 4]
    assert all(np.isfinite(list(x.values())).all() for x in lines)
    assert lines[-1]["lr"] < lines[1]["lr"]
    backbone = create_backbone("edge_backbone")
    info = load_weights(backbone, unbroken / "edge_backbone.safetensors")
    assert info.metadata["steps"] == "4"
    assert info.metadata["source_sha256"] == source_sha256()
    assert 0 < float(info.metadata["validation_ap"]) <= 1
    with safe_open(info.path, framework="pt") as f:
        assert all(f.get_slice(k).get_dtype() == "F16" for k in f.keys())  # noqa: SIM118


def test_one_seed_gives_one_result_and_another_another(unbroken: Path, tmp_path: Path) -> None:
    again = pretrain(SMOKE, tmp_path / "again")
    other = pretrain(replace(SMOKE, seed=2), tmp_path / "other")
    assert same(again, unbroken / "edge_backbone.safetensors")
    assert not same(other, unbroken / "edge_backbone.safetensors")


def test_a_killed_run_goes_on_to_the_same_result(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    real, calls = module._step, itertools.count(1)

    def dies_in_the_last_step(*args: object) -> dict[str, float]:
        if next(calls) == 4:
            raise KilledError
        return real(*args)

    monkeypatch.setattr(module, "_step", dies_in_the_last_step)
    with pytest.raises(KilledError):
        pretrain(SMOKE, tmp_path)
    assert len(log_of(tmp_path)) == 3
    monkeypatch.setattr(module, "_step", real)
    path = pretrain(SMOKE, tmp_path)
    assert same(path, unbroken / "edge_backbone.safetensors")
    assert [x["step"] for x in log_of(tmp_path)] == [1, 2, 3, 4]
    losses = [[x["loss"] for x in log_of(out)] for out in (tmp_path, unbroken)]
    assert losses[0] == losses[1]


def test_a_checkpoint_of_another_run_or_of_nothing_is_refused(unbroken: Path, tmp_path: Path) -> None:
    checkpoint = (unbroken / "checkpoint.safetensors").read_bytes()
    (tmp_path / "checkpoint.safetensors").write_bytes(checkpoint)
    with pytest.raises(TrainingError, match=r"seed: 1 then, 3 now.*another output folder"):
        pretrain(replace(SMOKE, seed=3), tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(checkpoint[:1000])
    with pytest.raises(TrainingError, match="no checkpoint of this program"):
        pretrain(SMOKE, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": None, "minutes": None},
        {"steps": 0},
        {"minutes": -1.0},
        {"shape": replace(TINY, side_px=72)},
        {"shape": replace(TINY, queries=0)},
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        pretrain(replace(SMOKE, **change), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite.*learning rate"):
        pretrain(replace(SMOKE, learning_rate=float("inf"), steps=8), tmp_path)


def test_a_clock_budget_ends_a_run(tmp_path: Path) -> None:
    path = pretrain(replace(SMOKE, steps=None, minutes=0.5 / 60, validation_worlds=1), tmp_path)
    metadata = load_weights(create_backbone("edge_backbone"), path).metadata
    assert metadata["steps"] == str(log_of(tmp_path)[-1]["step"])  # those done, not the budget
    assert 0.5 <= log_of(tmp_path)[-1]["elapsed_s"] < 5


def test_batches_are_a_function_of_seed_and_step_whatever_the_workers() -> None:
    inline = draw_batches(TINY, 5, 7, workers=0)
    pooled = draw_batches(TINY, 5, 7, workers=1)
    for step in (7, 8):
        a, b, c = next(inline), next(pooled), draw_batch(TINY, 5, step)
        for name in vars(a):
            assert np.array_equal(getattr(a, name), getattr(b, name))
            assert np.array_equal(getattr(a, name), getattr(c, name))
    pooled.close()
    assert not np.array_equal(draw_batch(TINY, 5, 7).images, draw_batch(TINY, 5, 7, validation=True).images)


def test_the_labels_of_a_batch_agree() -> None:
    batches = [draw_batch(TINY, 1, step) for step in range(6)]
    for batch in batches:
        assert batch.images.shape == (2, 3, 64, 64, 3)
        assert batch.relief.shape == (2, 3, 16, 16)
        assert not batch.masks[:, 0].any()
        assert (batch.cells[:, 0] == NORMAL).all()
        blocks = batch.masks.reshape(2, 3, 8, 8, 8, 8).mean((3, 5))
        assert np.array_equal(batch.cells == DEFECT, blocks >= 0.125)
        assert (blocks[batch.cells == NORMAL] == 0).all()
        assert np.array_equal(batch.regions == IGNORED, batch.families == IGNORED)
        assert (batch.regions[batch.cells != NORMAL] == IGNORED).all()
        first, second = (set(np.unique(batch.regions[w])) - {IGNORED} for w in (0, 1))
        assert not first & second
    assert sum((b.cells == DEFECT).sum() for b in batches) > 20


def test_nearest_distances_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    queries, bank = (torch.from_numpy(rng.normal(50, 1, (n, 9)).astype(np.float32)) for n in (20, 30))
    expected = torch.cdist(queries.double(), bank.double()).min(1).values.square()
    torch.testing.assert_close(nearest_distances(queries, bank).double(), expected, rtol=1e-5, atol=1e-6)


def test_cell_features_average_and_align() -> None:
    maps = {8: torch.zeros(1, 1, 6, 6), 16: torch.ones(1, 2, 3, 3)}
    maps[8][0, 0, 2, 2] = 9
    features = cell_features(maps)
    assert features.shape == (1, 3, 6, 6)
    assert torch.equal(features[0, 0, 1:4, 1:4], torch.ones(3, 3))
    assert float(features[0, 0].sum()) == 9
    assert torch.equal(features[0, 1:], torch.ones(2, 6, 6))


def test_the_episode_loss_falls_as_defects_move_away() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 2, 8, 6, 6, generator=generator)
    cells = torch.zeros(1, 2, 6, 6, dtype=torch.uint8)
    cells[0, 1, 2, 2] = DEFECT
    losses = []
    for push in (0.0, 3.0, 30.0):
        moved = features.clone().requires_grad_()
        loss = episode_loss(moved + push * (cells == DEFECT)[:, :, None], cells, references=1)
        loss.backward()
        assert moved.grad is not None
        assert torch.isfinite(moved.grad).all()
        losses.append(float(loss.detach()))
    assert losses[0] > losses[1] > losses[2]
    none = episode_loss(features, torch.zeros_like(cells), references=1)
    assert float(none) == 0


def test_average_precision_is_the_usual_one() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=500).astype(np.float32)
    truth = rng.random(500) < 1 / (1 + np.exp(-2 * scores))
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_validation_is_repeatable_and_ranks_a_blind_network_last() -> None:
    held_out = draw_held_out(3, side_px=96, references=2, queries=2)
    torch.manual_seed(0)
    backbone = create_backbone("edge_backbone")
    score = validate(backbone, held_out)
    assert score == validate(backbone, held_out)
    for parameter in backbone.parameters():
        parameter.data.zero_()
    assert validate(backbone, held_out) < score <= 1


def test_the_command_writes_curves_and_a_thin_log(tmp_path: Path) -> None:
    runner, app = CliRunner(), typer.Typer()
    app.command()(module.main)
    result = runner.invoke(app, ["--out", str(tmp_path), "--preset", "smoke", "--steps", "2"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "edge_backbone.safetensors").exists()
    assert runner.invoke(app, ["--out", str(tmp_path), "--preset", "nope"]).exit_code == 2
    assert runner.invoke(app, ["--out", str(tmp_path), "--preset", "smoke", "--steps", "3"]).exit_code == 1


def test_a_thin_log_keeps_scores_and_the_end(tmp_path: Path) -> None:
    parts = dict.fromkeys(("loss", "episode", "instance", "region", "dense"), 1.0)
    lines = [{"step": float(n), **parts, **({"validation_ap": 0.5} if n == 7 else {})} for n in range(1, 102)]
    thin_log(lines, tmp_path / "thin.jsonl", most_lines=10)
    kept = [x["step"] for x in read_log(tmp_path / "thin.jsonl")]
    assert kept == [7, 11, 22, 33, 44, 55, 66, 77, 88, 99, 101]
    write_curves(lines, tmp_path / "deeper" / "curves.png")
    assert (tmp_path / "deeper" / "curves.png").stat().st_size > 5000
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(TrainingError, match="empty"):
        read_log(tmp_path / "empty.jsonl")
