import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from adclick_edge.errors import WeightsError
from adclick_edge.features.backbones import create_backbone, fold_batch_norms
from adclick_edge.features.weights import load_weights, shipped_weights

SUFFIXES = [".safetensors", ".npz", ".pth", ".pt"]


def small() -> nn.Sequential:
    """Two convolutions with batch norms, in eval mode."""
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)]
    return nn.Sequential(*layers).eval()


@pytest.fixture
def trained() -> nn.Sequential:
    torch.manual_seed(5)
    module = small().train()
    for _ in range(3):
        module(torch.randn(4, 3, 8, 8) * 2 + 1)
    return module.eval()


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file({k: t.contiguous() for k, t in tensors.items()}, path, {"origin": "a test"})
    elif path.suffix == ".npz":
        np.savez(path, **{k: t.numpy() for k, t in tensors.items()})
    else:
        torch.save(tensors, path)
    return path


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: t.clone() for k, t in module.state_dict().items()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_format_gives_back_what_was_saved(tmp_path: Path, trained: nn.Module, suffix: str) -> None:
    path = write(tmp_path / f"w{suffix}", state(trained))
    module = small()
    info = load_weights(module, path)
    x = torch.randn(1, 3, 9, 9)
    assert torch.equal(module(x), trained(x))
    assert info.path == path
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert info.tensors == 11
    assert info.format == {".safetensors": "safetensors", ".npz": "npz"}.get(suffix, "torch")
    assert info.metadata == ({"origin": "a test"} if suffix == ".safetensors" else {})


def test_half_precision_is_widened_and_what_is_not_needed_ignored(tmp_path: Path, trained: nn.Module) -> None:
    halves = {k: t.half() if t.is_floating_point() else t for k, t in state(trained).items()}
    halves = {k: t for k, t in halves.items() if "num_batches" not in k} | {"fc.weight": torch.zeros(10, 2)}
    module = small()
    load_weights(module, write(tmp_path / "w.npz", halves))
    assert module[0].weight.dtype == torch.float32
    assert torch.equal(module[0].weight, trained[0].weight.half().float())


def test_a_state_dict_inside_a_checkpoint_is_found(tmp_path: Path, trained: nn.Module) -> None:
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3, "state_dict": state(trained)}, path)
    module = small()
    load_weights(module, path)
    assert torch.equal(module[0].weight, trained[0].weight)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folded_file_fits_a_module_with_batch_norms(tmp_path: Path, trained: nn.Module, suffix: str) -> None:
    folded = fold_batch_norms(trained)
    module = small()
    info = load_weights(module, write(tmp_path / f"w{suffix}", state(folded)))
    x = torch.randn(1, 3, 9, 9)
    assert info.tensors == 4
    assert torch.equal(module(x), folded(x))
    torch.testing.assert_close(module(x), trained(x), rtol=1e-5, atol=1e-5)


def test_mobilenet_takes_both_forms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = create_backbone("mobilenet_v2")
    x = torch.randn(1, 3, 32, 32)
    for name, network in (("norms", source), ("folded", fold_batch_norms(source))):
        target = create_backbone("mobilenet_v2")
        load_weights(target, write(tmp_path / f"{name}.safetensors", state(network)))
        with torch.no_grad():
            torch.testing.assert_close(target(x), network(x), rtol=0, atol=0)


def _without(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: t for k, t in tensors.items() if k != "3.weight"}


def _reshaped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"3.weight": torch.zeros(2, 5, 1, 1)}


def _poisoned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"3.weight": torch.full((2, 4, 1, 1), float("nan"))}


def _infinite(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"3.weight": torch.full((2, 4, 1, 1), float("inf"))}


def _integer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"3.weight": torch.ones(2, 4, 1, 1, dtype=torch.int64)}


def _negative(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"4.running_var": -torch.ones(2)}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_without, r"1 of 11 tensors are missing: 3\.weight \(2, 4, 1, 1\)"),
        (_reshaped, r"3\.weight is \(2, 5, 1, 1\), expected \(2, 4, 1, 1\)"),
        (_poisoned, r"3\.weight has values that are not finite"),
        (_infinite, r"3\.weight has values that are not finite"),
        (_integer, r"3\.weight is torch\.int64, expected floating point"),
        (_negative, r"4\.running_var is a variance below zero"),
        (lambda _: {"other": torch.zeros(1)}, r"are missing.*the file holds other"),
        (lambda _: {"0.bias": torch.zeros(4)}, r"are missing.*the file holds 0\.bias"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(
    tmp_path: Path, trained: nn.Module, spoil: object, says: str, suffix: str
) -> None:
    assert callable(spoil)
    path = write(tmp_path / f"w{suffix}", spoil(state(trained)))
    module = small()
    before = state(module)
    with pytest.raises(WeightsError, match=says) as error:
        load_weights(module, path)
    assert str(path) in str(error.value)
    after = module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_only_the_first_few_names_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "w.npz", {"a": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"and \d\d+ more") as error:
        load_weights(create_backbone("mobilenet_v2"), path)
    assert len(str(error.value)) < 600


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".npz"])
def test_code_inside_a_file_is_never_run(tmp_path: Path, suffix: str) -> None:
    target, path = tmp_path / "boom", tmp_path / f"w{suffix}"
    if suffix == ".npz":
        np.savez(path, weight=np.array([Bomb(target)], dtype=object))
    else:
        torch.save({"0.weight": Bomb(target)}, path)
    with pytest.raises(WeightsError, match="cannot be read as"):
        load_weights(small(), path)
    assert not target.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("keep", [0, 10, 300])
def test_a_cut_off_file_is_refused(tmp_path: Path, trained: nn.Module, suffix: str, keep: int) -> None:
    path = write(tmp_path / f"w{suffix}", state(trained))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="cannot be read as"):
        load_weights(small(), path)


def test_flipped_bytes_in_a_zip_are_noticed(tmp_path: Path, trained: nn.Module) -> None:
    path = write(tmp_path / "w.npz", state(trained))
    with zipfile.ZipFile(path) as z:
        at = z.getinfo("0.weight.npy").header_offset + 300
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="cannot be read as"):
        load_weights(small(), path)


def test_other_suffixes_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"\.safetensors, \.npz, \.pth, \.pt, not '\.bin'"):
        load_weights(small(), tmp_path / "w.bin")
    with pytest.raises(WeightsError, match="no such weights file"):
        load_weights(small(), tmp_path / "w.npz")


def test_a_tensor_alone_is_no_state_dict(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="holds a Tensor"):
        load_weights(small(), tmp_path / "w.pt")


def test_the_shipped_edge_weights_load_and_are_small() -> None:
    path = shipped_weights("edge_backbone")
    assert path.stat().st_size <= 3 * 2**20
    backbone = create_backbone("edge_backbone")
    info = load_weights(backbone, path)
    assert info.tensors == 18
    assert {"command", "seed", "steps", "source_sha256"} <= set(info.metadata)
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    for m in maps.values():
        assert torch.isfinite(m).all()
        assert (m.amax((0, 2, 3)) > 0).float().mean() > 0.5  # most channels are alive


def test_backbones_without_shipped_weights_say_so() -> None:
    with pytest.raises(WeightsError, match=r"'resnet18'.*give a weights file"):
        shipped_weights("resnet18")
