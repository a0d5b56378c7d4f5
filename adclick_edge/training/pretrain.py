"""Pretraining of the edge backbone on procedural pictures alone: no photograph is ever read.

``python -m adclick_edge.training.pretrain --out runs/edge --minutes 35``. A run that was killed goes on when started
again with the same settings. With ``--steps`` the result depends on the seed alone (same machine, same thread count);
with ``--minutes`` the learning rate follows the clock.
"""

import hashlib
import json
import math
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import save
from torch import nn

from adclick_edge.errors import AdclickError, TrainingError, UsageError
from adclick_edge.features.backbones import TrainableEdge
from adclick_edge.files import write_bytes
from adclick_edge.training.pretrain_checkpoint import Progress as RunProgress
from adclick_edge.training.pretrain_checkpoint import load_checkpoint, save_checkpoint
from adclick_edge.training.pretrain_curves import read_log, thin_log, write_curves
from adclick_edge.training.pretrain_data import Batch, BatchShape, draw_batches
from adclick_edge.training.pretrain_losses import Heads, LossWeights, Targets, objectives
from adclick_edge.training.pretrain_validation import HeldOut, as_input, draw_held_out, validate

__all__ = ["PRESETS", "PretrainSettings", "pretrain", "source_sha256"]

_WARM_UP_STEPS = 100
_COARSE_PX = 16


@dataclass(frozen=True)
class PretrainSettings:
    """``steps`` or ``minutes`` bounds the run: the first reached ends it, and the learning rate falls towards it."""

    shape: BatchShape = field(default_factory=lambda: BatchShape(worlds=6, references=2, queries=2, side_px=160))
    steps: int | None = None
    minutes: float | None = 35.0
    seed: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    losses: LossWeights = field(default_factory=LossWeights)
    workers: int = 1
    threads: int = 1
    device: str = "cpu"
    bfloat16: bool = True
    validation_worlds: int = 24
    validate_every: int = 500
    save_every: int = 200


PRESETS = {
    "full": PretrainSettings(),
    "smoke": PretrainSettings(
        shape=BatchShape(worlds=2, references=1, queries=1, side_px=64),
        steps=4,
        minutes=None,
        workers=0,
        validation_worlds=2,
        validate_every=2,
        save_every=2,
    ),
}


def pretrain(settings: PretrainSettings, out: Path, show_progress: bool = False) -> Path:
    """Train, and return ``out / "edge_backbone.safetensors"``: the form for use, float16, its origin in the metadata.

    ``out`` also receives checkpoint.safetensors and log.jsonl. Raises UsageError for a budget that is none or not
    positive, TrainingError when the loss stops being finite or a checkpoint in ``out`` is of another run.
    """
    _check(settings)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    device, source = torch.device(settings.device), source_sha256()
    networks = nn.ModuleDict({"backbone": TrainableEdge()})
    backbone = networks["backbone"]
    assert isinstance(backbone, TrainableEdge)
    heads = Heads(backbone.channels)
    networks["heads"] = heads
    networks.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(_groups(networks, settings.weight_decay), lr=settings.learning_rate)
    progress = RunProgress(0, 0.0, _identity(settings))
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        progress = load_checkpoint(checkpoint, networks, optimiser, progress.settings)
    held_out = draw_held_out(settings.validation_worlds, side_px=192 if settings.shape.side_px > 96 else 64)
    out.mkdir(parents=True, exist_ok=True)
    began, spent = time.monotonic(), progress.elapsed_s
    with (
        closing(_truncated_log(out / "log.jsonl", progress.step)) as log,
        closing(_batches(settings, progress.step)) as batches,
        _bar(show_progress) as bar,
    ):
        task = bar.add_task("pretrain", total=1.0)
        networks.train()
        while (share := _share(settings, progress)) < 1.0:
            rate = _learning_rate(settings, share, progress.step)
            for group in optimiser.param_groups:
                group["lr"] = rate
            parts = _step(backbone, heads, optimiser, next(batches), settings, progress.step, device)
            progress.step += 1
            progress.elapsed_s = spent + time.monotonic() - began
            line = {"step": progress.step, "elapsed_s": round(progress.elapsed_s, 2), "lr": rate, **parts}
            if progress.step % settings.validate_every == 0:
                line["validation_ap"] = _validated(backbone, held_out)
            print(json.dumps(line), file=log, flush=True)
            bar.update(task, completed=share, description=f"step {progress.step}, loss {parts['loss']:.3f}")
            if progress.step % settings.save_every == 0:
                save_checkpoint(checkpoint, networks, optimiser, progress)
        save_checkpoint(checkpoint, networks, optimiser, progress)
    return _export(backbone, held_out, settings, progress, source, out)


def _check(settings: PretrainSettings) -> None:
    budgets = [b for b in (settings.steps, settings.minutes) if b is not None]
    if not budgets or min(budgets) <= 0:
        raise UsageError(f"a budget is needed: steps={settings.steps}, minutes={settings.minutes}; give one above 0")
    if settings.shape.side_px % (2 * _COARSE_PX) or settings.shape.references < 1 or settings.shape.queries < 1:
        raise UsageError(f"{settings.shape}: side_px must be a multiple of 32, references and queries at least 1")


def _identity(settings: PretrainSettings) -> dict[str, str]:
    """The settings that a resumed run must share with its beginning."""
    names = ("shape", "seed", "learning_rate", "weight_decay", "losses", "steps", "minutes", "bfloat16")
    return {name: str(getattr(settings, name)) for name in names}


def _groups(networks: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    kernels = [p for p in networks.parameters() if p.ndim > 1]
    vectors = [p for p in networks.parameters() if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _share(settings: PretrainSettings, progress: RunProgress) -> float:
    """How much of the budget is used, 0..1."""
    by_steps = 0.0 if settings.steps is None else progress.step / settings.steps
    by_clock = 0.0 if settings.minutes is None else progress.elapsed_s / (60 * settings.minutes)
    return min(1.0, max(by_steps, by_clock))


def _learning_rate(settings: PretrainSettings, share: float, step: int) -> float:
    warm_up = min(1.0, (step + 1) / _WARM_UP_STEPS)
    return settings.learning_rate * warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def _batches(settings: PretrainSettings, first_step: int) -> Generator[Batch, None, None]:
    return draw_batches(settings.shape, settings.seed, first_step, settings.workers)


def _step(
    backbone: TrainableEdge,
    heads: Heads,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    settings: PretrainSettings,
    step: int,
    device: torch.device,
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    pictures = torch.from_numpy(batch.images).to(device)
    shift = tuple(int(v) for v in torch.randint(-2, 3, (2,), generator=generator))
    images = torch.cat([pictures.flatten(0, 1), _views(pictures[:, 0], (shift[0], shift[1]), generator)])
    targets = Targets(
        cells=torch.from_numpy(batch.cells).to(device),
        materials=(torch.from_numpy(batch.regions).to(device), torch.from_numpy(batch.families).to(device)),
        relief=torch.from_numpy(batch.relief).to(device),
        references=settings.shape.references,
        shift_cells=(shift[0], shift[1]),
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.bfloat16):
        maps = backbone(as_input(images))
        said = heads(maps)
    loss, parts = objectives(maps, said, targets, settings.losses, generator)
    if not bool(torch.isfinite(loss)):
        raise TrainingError(f"step {step}: the loss is not finite ({parts}); lower the learning rate")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_([*backbone.parameters(), *heads.parameters()], 5.0)
    optimiser.step()
    return {"loss": round(float(loss.detach()), 5), **{name: round(value, 5) for name, value in parts.items()}}


def _views(images: torch.Tensor, shift: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """``images`` uint8 [W, S, S, 3], rolled by ``shift`` coarse cells, with other gain, lift, colour and grain."""
    rolled = torch.roll(images, (shift[0] * _COARSE_PX, shift[1] * _COARSE_PX), (1, 2)).float()
    worlds = images.shape[0]
    gain = torch.empty(worlds, 1, 1, 3).uniform_(-0.1, 0.1, generator=generator)
    gain = gain + torch.empty(worlds, 1, 1, 1).uniform_(0.7, 1.3, generator=generator)
    lift = torch.empty(worlds, 1, 1, 1).uniform_(-25, 25, generator=generator)
    sigma = torch.empty(worlds, 1, 1, 1).uniform_(0, 8, generator=generator)
    noise = sigma * torch.randn(images.shape, generator=generator)
    gain, lift, noise = (t.to(images.device) for t in (gain, lift, noise))
    return ((rolled - 128) * gain + 128 + lift + noise).clamp(0, 255).to(torch.uint8)


def _validated(backbone: TrainableEdge, held_out: HeldOut) -> float:
    backbone.eval()
    score = validate(backbone.reparameterise().cpu(), held_out)
    backbone.train()
    return round(score, 5)


def _truncated_log(path: Path, step: int) -> IO[str]:
    """The log, open for appending, without the lines after ``step`` that a killed run left behind."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
    return open(path, "a")


def _bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown)


def _export(
    backbone: TrainableEdge,
    held_out: HeldOut,
    settings: PretrainSettings,
    progress: RunProgress,
    source: str,
    out: Path,
) -> Path:
    backbone.eval()
    plain = backbone.reparameterise().cpu()
    tensors = {name: t.half().contiguous() for name, t in plain.state_dict().items()}
    plain.load_state_dict({name: t.float() for name, t in tensors.items()})
    metadata = progress.settings | {
        "network": "edge_backbone",
        "origin": "pretrained from scratch on procedural pictures only",
        "command": _command(settings),
        "steps": str(progress.step),
        "pictures": str(progress.step * settings.shape.worlds * (settings.shape.references + settings.shape.queries)),
        "elapsed_s": str(round(progress.elapsed_s)),
        "validation_ap": str(round(validate(plain, held_out), 5)),
        "source_sha256": source,
    }
    path = out / "edge_backbone.safetensors"
    write_bytes(path, save(tensors, metadata))
    return path


def _command(settings: PretrainSettings) -> str:
    budget = f"--minutes {settings.minutes}" if settings.minutes is not None else f"--steps {settings.steps}"
    return f"python -m adclick_edge.training.pretrain {budget} --seed {settings.seed} --threads {settings.threads}"


def source_sha256() -> str:
    """One hash over the files that decide what the weights become, so that weights name the code they came from."""
    package = Path(__file__).resolve().parent.parent
    files = [*package.glob("data/procedural/*.py"), *package.glob("training/pretrain*.py")]
    digest = hashlib.sha256()
    for file in sorted([*files, package / "features/backbones/edge.py"]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def main(
    out: Annotated[Path, typer.Option(help="Folder for weights, checkpoint, log and curves.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "full",
    minutes: Annotated[float | None, typer.Option(help="Time budget; the learning rate follows the clock.")] = None,
    steps: Annotated[int | None, typer.Option(help="Step budget; the result depends on the seed alone.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that draw pictures; 0 draws in this one.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch on the CPU.")] = None,
) -> None:
    """Pretrain the edge backbone on procedural pictures."""
    try:
        if preset not in PRESETS:
            raise UsageError(f"no preset is called {preset!r}; choose one of {', '.join(PRESETS)}")
        settings = PRESETS[preset]
        if minutes is not None or steps is not None:
            settings = replace(settings, minutes=minutes, steps=steps)
        settings = replace(
            settings,
            seed=settings.seed if seed is None else seed,
            device=settings.device if device is None else device,
            workers=settings.workers if workers is None else workers,
            threads=settings.threads if threads is None else threads,
        )
        path = pretrain(settings, out, show_progress=True)
    except AdclickError as error:
        Console(stderr=True).print(f"error: {error}", markup=False)
        raise typer.Exit(error.exit_code) from error
    lines = read_log(out / "log.jsonl")
    thin_log(lines, out / "log_thin.jsonl")
    write_curves(lines, out / "curves.png")
    print(path)


if __name__ == "__main__":
    typer.run(main)
