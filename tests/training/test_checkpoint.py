import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from adclick_edge.errors import TrainingError
from adclick_edge.training.checkpoint import load_checkpoint, load_model, save_checkpoint


def network(width: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 1, 1))


def optimiser(model: nn.Module, lr: float = 1e-2) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)


def steps(model: nn.Module, adam: torch.optim.Optimizer, first: int, count: int) -> list[float]:
    losses = []
    for step in range(first, first + count):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        loss = model(x).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    return losses


def saved(path: Path) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    adam = optimiser(model)
    steps(model, adam, 0, 3)
    save_checkpoint(path, model, adam, {"step": 3, "best": 0.25})
    return model, adam


def test_training_goes_on_from_a_checkpoint_bit_by_bit(tmp_path: Path) -> None:
    model, adam = saved(tmp_path / "c.safetensors")
    unbroken = steps(model, adam, 3, 4)
    other = network(seed=9)
    its_adam = optimiser(other, lr=0.5)
    assert load_checkpoint(tmp_path / "c.safetensors", other, its_adam) == {"step": 3, "best": 0.25}
    assert its_adam.param_groups[0]["lr"] == 1e-2
    assert steps(other, its_adam, 3, 4) == unbroken
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(adam.state_dict()["state"].values(), its_adam.state_dict()["state"].values(), strict=True):
        assert {k: v.tolist() for k, v in a.items()} == {k: v.tolist() for k, v in b.items()}


def test_a_checkpoint_before_the_first_step(tmp_path: Path) -> None:
    model = network()
    save_checkpoint(tmp_path / "c.safetensors", model, optimiser(model), {"step": 0})
    other = network(seed=1)
    assert load_checkpoint(tmp_path / "c.safetensors", other, optimiser(other)) == {"step": 0}


def test_the_model_alone(tmp_path: Path) -> None:
    model, _ = saved(tmp_path / "c.safetensors")
    other = network(seed=9)
    assert load_model(tmp_path / "c.safetensors", other)["step"] == 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_another_network_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "c.safetensors")
    other = network(width=5)
    with pytest.raises(TrainingError, match=r"c\.safetensors.*another network"):
        load_checkpoint(tmp_path / "c.safetensors", other, optimiser(other))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "c.safetensors"
    saved(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    model = network()
    with pytest.raises(TrainingError, match=r"c\.safetensors: not a readable checkpoint"):
        load_checkpoint(path, model, optimiser(model))


def test_other_files_are_refused(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        load_model(tmp_path / "missing.safetensors", model)
    save_file({f"model.{k}": v for k, v in model.state_dict().items()}, tmp_path / "weights.safetensors")
    with pytest.raises(TrainingError, match="no checkpoint of a run"):
        load_model(tmp_path / "weights.safetensors", model)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    model, adam = saved(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    steps(model, adam, 3, 1)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, model, adam, {"step": 4})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
