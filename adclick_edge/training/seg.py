"""Training ADClick-Seg (method section 3): the frozen extractor and the bank feed a small network that learns masks."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from adclick_edge.console import progress_console
from adclick_edge.data.dataset import open_product, with_split
from adclick_edge.errors import TrainingError, UsageError
from adclick_edge.evaluation.inspection import InspectionMetrics
from adclick_edge.features.backbones.fold import fold_batch_norms_in_place
from adclick_edge.features.extractor import Extractor, build_extractor
from adclick_edge.features.residual_torch import TorchBank, nearest_residual
from adclick_edge.features.weights import load_weights
from adclick_edge.files import write_bytes, write_text
from adclick_edge.models.build import build_segmenter, run_segmenter
from adclick_edge.models.distance import relative_distance
from adclick_edge.training.checkpoint import load_checkpoint, save_checkpoint
from adclick_edge.training.curves import plot_curves
from adclick_edge.training.episodes import Batch, Episodes
from adclick_edge.training.loss import mask_loss
from adclick_edge.training.run_folder import RunConfig, append_log, read_config, read_log, truncate_log, write_config
from adclick_edge.training.schedule import warm_cosine
from adclick_edge.training.seg_data import TrainingProduct, choose_split, load_product

__all__ = ["choose_device", "train_seg"]


def train_seg(run: Path, config: RunConfig, *, device_name: str = "auto", stop_after: int | None = None) -> Path:
    """Train, or go on with a run that was stopped, and return the run's folder.

    A run that goes on takes the same steps with the same pictures as one that was never stopped. Under ``torchrun`` the
    batch is shared between processes; process 0 writes. ``stop_after`` ends after so many steps in this call.

    Raises TrainingError when ``run`` holds a run with another configuration.
    """
    device = choose_device(device_name)
    with _processes(device) as (rank, world):
        if config.batch % world:
            raise TrainingError(f"a batch of {config.batch} cannot be shared by {world} processes; take a multiple")
        if (run / "run.json").exists():
            if read_config(run) != config:
                raise TrainingError(f"{run} holds a run with other settings; give another --out, or the same settings")
        elif rank == 0:
            write_config(run, config)
        torch.manual_seed(config.seed)
        extractor = build_extractor(config.preset)
        load_weights(extractor.backbone, Path(config.backbone_file))
        fold_batch_norms_in_place(extractor)
        extractor.to(device)
        products = _load_products(config, extractor, device)
        if rank == 0:
            _write_inputs(run, config, products)
        loop = _Loop(run, config, extractor, products, device, rank, world)
        loop.train(stop_after)
    return run


def choose_device(name: str) -> torch.device:
    """The device called ``name`` or the best there is; under ``torchrun`` each process takes a GPU of its own."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name!r}; take auto, cpu or cuda") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"the device {name!r} was asked for, but PyTorch finds no GPU; take cpu or auto")
        if name in ("auto", "cuda") and "LOCAL_RANK" in os.environ:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    return device


@contextmanager
def _processes(device: torch.device) -> Iterator[tuple[int, int]]:
    """Rank and number of processes; joins the process group that ``torchrun`` announces in the environment."""
    if "WORLD_SIZE" not in os.environ:
        yield 0, 1
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield torch.distributed.get_rank(), torch.distributed.get_world_size()
    finally:
        torch.distributed.destroy_process_group()


def _load_products(config: RunConfig, extractor: Extractor, device: torch.device) -> list[TrainingProduct]:
    opened = [open_product(Path(config.data), name) for name in config.products]
    kinds = {kind for product in opened for kind in product.kinds()}
    if unknown := sorted(set(config.skip_kinds) - kinds):
        raise UsageError(
            f"{config.data}: no defects of the kind {unknown[0]!r} to skip; it has {', '.join(sorted(kinds))}"
        )
    loaded = []
    for product in opened:
        if config.split_normals is not None:
            product = with_split(product, config.split_normals)
        split = choose_split(
            product,
            real_defects_per_kind=config.real_defects_per_kind,
            skip_kinds=config.skip_kinds,
            validation_share=config.validation_share,
            seed=config.seed,
            labels=None if config.labels is None else Path(config.labels),
        )
        loaded.append(
            load_product(
                product,
                split,
                extractor,
                config.preset.bank,
                input_size=config.preset.input_size,
                seed=config.seed,
                device=device,
            )
        )
    return loaded


def _write_inputs(run: Path, config: RunConfig, products: Sequence[TrainingProduct]) -> None:
    """Write what the run was made from; a run that goes on must find the very pictures it began with."""
    hashes = {p.pictures.name: p.split_hashes for p in products}
    splits = json.dumps(hashes, indent=1) + "\n"
    if (run / "splits.json").exists():
        if (run / "splits.json").read_text() != splits:
            raise TrainingError(
                f"{run}: the pictures in {config.data} are not those the run began with; put them back, or train anew "
                "with another --out"
            )
        return
    for product in products:
        write_bytes(run / "banks" / f"{product.pictures.name}.safetensors", product.bank.to_bytes())
    backbone = Path(config.backbone_file)
    write_bytes(run / f"backbone{backbone.suffix}", backbone.read_bytes())
    write_text(run / "splits.json", splits)  # last: where it is, the others are


class _Loop:
    def __init__(
        self,
        run: Path,
        config: RunConfig,
        extractor: Extractor,
        products: list[TrainingProduct],
        device: torch.device,
        rank: int,
        world: int,
    ) -> None:
        self.run, self.config, self.extractor, self.products = run, config, extractor, products
        self.device, self.rank, self.world = device, rank, world
        self.banks = [TorchBank.of(p.bank, device) for p in products]
        self.episodes = Episodes([p.pictures for p in products], config.mix, seed=config.seed)
        self.segmenter = build_segmenter(config.preset, extractor).to(device)
        self.network: nn.Module = self.segmenter
        if world > 1:
            self.network = nn.parallel.DistributedDataParallel(self.segmenter)
        self.optimiser = torch.optim.AdamW(
            self.segmenter.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def train(self, stop_after: int | None) -> None:
        config = self.config
        start, best = 0, -1.0
        if (self.run / "last.safetensors").exists():
            state = load_checkpoint(self.run / "last.safetensors", self.segmenter, self.optimiser)
            start, best = int(state["step"]), float(state["best"])
        if self.rank == 0:
            truncate_log(self.run, start)
        end = config.steps if stop_after is None else min(config.steps, start + stop_after)
        share = config.batch // self.world
        places = range(self.rank * share, (self.rank + 1) * share)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with (
            ThreadPoolExecutor(1, "episodes") as pool,
            Progress(*columns, console=progress_console(), disable=self.rank > 0) as progress,
        ):
            task = progress.add_task("training", total=config.steps, completed=start)
            coming: list[Future[Batch]] = [
                pool.submit(self.episodes.batch, s, places) for s in range(start, min(start + 3, end))
            ]
            for step in range(start, end):
                batch = coming.pop(0).result()
                if step + 3 < end:
                    coming.append(pool.submit(self.episodes.batch, step + 3, places))
                loss, seconds = self._step(step, batch)
                done = step + 1
                if self.rank == 0:
                    append_log(self.run, {"step": step, "loss": loss, "seconds": round(seconds, 4)})
                    if done % config.validate_every == 0 or done == config.steps:
                        best = self._validate(step, best)
                    if done % config.checkpoint_every == 0 or done == end:
                        self._save("last.safetensors", done, best)
                progress.update(task, advance=1, description=f"training  loss {loss:.4f}  best AP {max(best, 0):.3f}")
        if self.rank == 0:
            plot_curves(read_log(self.run), self.run / "curves.png", title=f"ADClick-Seg, {', '.join(config.products)}")

    def _step(self, step: int, batch: Batch) -> tuple[float, float]:
        began = time.perf_counter()
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * warm_cosine(step, self.config.steps, self.config.warm_up_steps)
        self.network.train()
        frames = torch.from_numpy(batch.frames).to(self.device)
        masks = torch.from_numpy(batch.masks).to(self.device, torch.float32)
        inputs = self._features(frames, batch.products, batch.exclude_images)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.mixed_precision):
            logits = run_segmenter(self.network, self.segmenter.inputs, inputs).float()
        loss = mask_loss(logits, masks)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.segmenter.parameters(), 1.0)
        self.optimiser.step()
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingError(f"the loss became {value} at step {step}; lower the learning rate")
        return value, time.perf_counter() - began

    @torch.no_grad()
    def _features(self, frames: Tensor, products: Sequence[int], exclude: Sequence[int]) -> dict[str, Tensor]:
        """What the segmenter takes, for a batch that mixes products: each frame against its own product's bank."""
        features: dict[str, Tensor] = self.extractor(frames)
        embedding = features["embedding"]
        residual, relative = torch.empty_like(embedding), torch.empty_like(embedding)
        distance = torch.empty_like(embedding[:, :1])
        for number, bank in enumerate(self.banks):
            mine = [i for i, p in enumerate(products) if p == number]
            if mine:
                own = [exclude[i] for i in mine]
                _, _, residual[mine] = nearest_residual(embedding[mine], bank, exclude_images=own)
                relative[mine] = residual[mine] / bank.residual_scale.reshape(1, -1, 1, 1)
                distance[mine] = relative_distance(residual[mine], bank.residual_scale)
        return {**features, "residual": residual, "relative": relative, "relative_distance": distance}

    @torch.no_grad()
    def _validate(self, step: int, best: float) -> float:
        """Score the validation pictures of all products; keep the network if its mean pixel AP is the best so far."""
        self.segmenter.eval()
        results = []
        for number, product in enumerate(self.products):
            metrics = InspectionMetrics()
            for start in range(0, len(product.validation), self.config.batch):
                pictures = product.validation[start : start + self.config.batch]
                frames = torch.from_numpy(np.stack([p.frame for p in pictures])).to(self.device)
                inputs = self._features(frames, [number] * len(pictures), [p.exclude_image for p in pictures])
                logits = run_segmenter(self.segmenter, self.segmenter.inputs, inputs).float()
                size = pictures[0].mask.shape
                full = (
                    F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].cpu().numpy()
                )
                for picture, anomaly_map, score in zip(pictures, full, logits.amax(dim=(1, 2)).tolist(), strict=True):
                    metrics.add(anomaly_map, picture.mask, score)
            results.append(metrics.compute())
        mean_ap = float(np.mean([r.pixel_ap for r in results if r.pixel_ap is not None]))
        mean_auroc = float(np.mean([r.image_auroc for r in results if r.image_auroc is not None]))
        append_log(self.run, {"step": step, "pixel_ap": mean_ap, "image_auroc": mean_auroc})
        if mean_ap > best:
            best = mean_ap
            self._save("best.safetensors", step + 1, best)
        return best

    def _save(self, name: str, step: int, best: float) -> None:
        save_checkpoint(self.run / name, self.segmenter, self.optimiser, {"step": step, "best": best})
