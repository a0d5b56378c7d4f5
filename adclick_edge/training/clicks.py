"""Training ADClick: prepared views, a robot that clicks, and the network that answers (method section 2)."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from adclick_edge.console import progress_console
from adclick_edge.data.clicks import Click
from adclick_edge.data.dataset import open_product
from adclick_edge.errors import TrainingError
from adclick_edge.evaluation.click_metrics import intersection_over_union
from adclick_edge.evaluation.click_robot import next_click
from adclick_edge.features.backbones.fold import fold_batch_norms_in_place
from adclick_edge.features.extractor import build_extractor
from adclick_edge.features.weights import load_weights
from adclick_edge.files import write_bytes
from adclick_edge.models.build import build_click_network
from adclick_edge.training.checkpoint import load_checkpoint, load_model, save_checkpoint
from adclick_edge.training.click_episodes import ClickBatch, ClickEpisodes, view_inputs
from adclick_edge.training.click_offsets import ClickedView, fit_offsets
from adclick_edge.training.click_pictures import DiskPictures, WorldPictures
from adclick_edge.training.click_run import ClickConfig, read_click_config, write_click_config
from adclick_edge.training.click_sampling import CORRECTIVE_CLICKS, click_array, corrective_click
from adclick_edge.training.click_store import ClickStore, prepare_all
from adclick_edge.training.curves import plot_curves
from adclick_edge.training.loss import mask_loss
from adclick_edge.training.run_folder import append_log, read_log, truncate_log
from adclick_edge.training.schedule import warm_cosine
from adclick_edge.training.seg import choose_device
from adclick_edge.words import shipped_prompts

__all__ = ["train_clicks"]

F32 = npt.NDArray[np.float32]

FIRST_WORLD, FIRST_VALIDATION_WORLD = 10_000, 30_000
VALIDATION_CLICKS = 5
VALIDATION_VIEWS = 48


def train_clicks(
    run: Path, config: ClickConfig, *, samples: Path, device_name: str = "auto", stop_after: int | None = None
) -> Path:
    """Train, or go on with a run that was stopped, and return the run's folder.

    ``samples`` keeps prepared pictures; several runs may share it. ``stop_after`` ends after so many steps in this call.
    TrainingError when ``run`` holds a run with another configuration.
    """
    device = choose_device(device_name)
    if (run / "run.json").exists():
        if read_click_config(run) != config:
            raise TrainingError(f"{run} holds a run with other settings; give another --out, or the same settings")
    else:
        write_click_config(run, config)
    torch.manual_seed(config.seed)
    extractor = build_extractor(config.preset)
    backbone = Path(config.backbone_file)
    load_weights(extractor.backbone, backbone)
    write_bytes(run / f"backbone{backbone.suffix}", backbone.read_bytes())
    network = build_click_network(config.preset, extractor)
    fold_batch_norms_in_place(extractor)
    if config.start_from is not None:
        load_model(Path(config.start_from) / "best.safetensors", network)
        if isinstance(offsets := getattr(getattr(network, "decoder", None), "offsets", None), Tensor):
            offsets.zero_()  # they are fitted to what this run will have learnt
    of_world = config.pictures_per_world
    worlds = [WorldPictures(FIRST_WORLD + i, of_world) for i in range(config.worlds)]
    held_out = [WorldPictures(FIRST_VALIDATION_WORLD + i, of_world) for i in range(config.validation_worlds)]
    products = _products(config)
    prepared = list(
        prepare_all(
            [*worlds, *held_out, *products],
            extractor,
            config.bank,
            samples,
            size=config.size,
            backbone_sha256=config.backbone_sha256,
            seed=0,
        )
    )
    stores = (
        prepared[: len(worlds)],
        prepared[len(worlds) : -len(products) or None],
        prepared[len(worlds) + len(held_out) :],
    )
    _Loop(run, config, network, stores, device).train(stop_after)
    return run


def _products(config: ClickConfig) -> list[DiskPictures]:
    kinds = {(data, name): open_product(Path(data), name).kinds() for data, name in config.products}
    return [
        DiskPictures(
            Path(data),
            name,
            config.synthetic_per_product,
            tuple(kind for kind in config.skip_kinds if kind in own),
            config.seed,
        )
        for (data, name), own in kinds.items()
    ]


class _Loop:
    def __init__(
        self,
        run: Path,
        config: ClickConfig,
        network: nn.Module,
        stores: tuple[Sequence[ClickStore], Sequence[ClickStore], Sequence[ClickStore]],
        device: torch.device,
    ) -> None:
        worlds, self.validation, products = stores
        self.run, self.config, self.device = run, config, device
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.episodes = ClickEpisodes(
            worlds,
            products,
            shipped_prompts(),
            product_share=config.product_share,
            words_share=0.0 if "words" in config.without else config.words_share,
            batch_pixels=config.batch_pixels,
            seed=config.seed,
        )
        self.optimiser = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def train(self, stop_after: int | None) -> None:
        config = self.config
        start, best = 0, -1.0
        if (self.run / "last.safetensors").exists():
            state = load_checkpoint(self.run / "last.safetensors", self.network, self.optimiser)
            start, best = int(state["step"]), float(state["best"])
        truncate_log(self.run, start)
        end = config.steps if stop_after is None else min(config.steps, start + stop_after)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with (
            ThreadPoolExecutor(1, "episodes") as pool,
            Progress(*columns, console=progress_console()) as progress,
        ):
            task = progress.add_task("training", total=config.steps, completed=start)
            coming: list[Future[ClickBatch]] = [
                pool.submit(self.episodes.batch, s) for s in range(start, min(start + 2, end))
            ]
            for step in range(start, end):
                batch = coming.pop(0).result()
                if step + 2 < end:
                    coming.append(pool.submit(self.episodes.batch, step + 2))
                began = time.perf_counter()
                loss = self._step(step, batch)
                seconds = round(time.perf_counter() - began, 4)
                append_log(self.run, {"step": step, "loss": loss, "seconds": seconds})
                done = step + 1
                if done % config.validate_every == 0 or done == config.steps:
                    best = self._validate(step, best)
                if done % config.checkpoint_every == 0 or done == end:
                    self._save("last.safetensors", done, best)
                progress.update(task, advance=1, description=f"training  loss {loss:.3f}  best IoU {max(best, 0):.3f}")
        if end == config.steps:
            self.finish()
        plot_curves(
            read_log(self.run),
            self.run / "curves.png",
            title="ADClick",
            scores=("iou_1", "iou_3", f"iou_{VALIDATION_CLICKS}"),
        )

    def _step(self, step: int, batch: ClickBatch) -> float:
        rate = self.config.learning_rate * warm_cosine(step, self.config.steps, self.config.warm_up_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        inputs = {
            name: torch.from_numpy(np.ascontiguousarray(value)).to(self.device) for name, value in batch.inputs.items()
        }
        dropped = torch.from_numpy(batch.rng.random(len(batch.masks)) < self.config.residual_dropout).to(self.device)
        if "residual" in self.config.without:
            dropped[:] = True
        for name in ("relative", "relative_distance"):
            inputs[name][dropped] = 0
        masks = torch.from_numpy(batch.masks).to(self.device, torch.float32)
        prompts = torch.from_numpy(batch.prompts).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.mixed_precision):
            embedding = self.network.encode(**inputs)
            previous = self._answer(embedding, batch, prompts, rounds=int(batch.rng.integers(CORRECTIVE_CLICKS + 1)))
            self.network.train()
            logits = self.network.decode(embedding, self._clicks(batch.clicks), previous, prompts).float()
        loss = mask_loss(logits, masks, dice_weight=1.0)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingError(f"the loss became {value} at step {step}; lower the learning rate")
        return value

    @torch.no_grad()
    def _answer(self, embedding: dict[str, Tensor], batch: ClickBatch, prompts: Tensor, *, rounds: int) -> Tensor:
        """Let the robot correct the network's answers so often; the last answer, [N, 1, H/4, W/4].

        The clicks are added to ``batch.clicks``. The decoder answers as it will on the line, in evaluation mode.
        """
        self.network.eval()
        count, size = len(batch.masks), batch.masks.shape[1:]
        previous = torch.zeros(count, 1, size[0] // 4, size[1] // 4, device=self.device)
        detached = {name: value.detach() for name, value in embedding.items()}
        for _ in range(rounds):
            logits = self.network.decode(detached, self._clicks(batch.clicks), previous, prompts).float()
            full = _probability(logits, size)
            for n, found in enumerate(full.cpu().numpy()):
                click = corrective_click(found, batch.masks[n], batch.clicks[n], batch.rng)
                if click is not None:
                    batch.clicks[n].append(click)
            previous = self._previous(logits)
        return previous

    def _previous(self, logits: Tensor) -> Tensor:
        """The answer as the next decode takes it."""
        if "previous" in self.config.without:
            return torch.zeros_like(logits[:, None, ::2, ::2])
        return F.avg_pool2d(torch.sigmoid(logits)[:, None], 2)

    def _clicks(self, clicks: Sequence[Sequence[Click]]) -> Tensor:
        return torch.from_numpy(np.stack([click_array(c) for c in clicks])).to(self.device)

    @torch.no_grad()
    def _validate(self, step: int, best: float) -> float:
        """Mean IoU on whole views of worlds never trained on, clicked by the evaluation robot, with no words."""
        ious: dict[int, list[float]] = {k: [] for k in range(1, VALIDATION_CLICKS + 1)}
        for view in self._views():
            clicks: list[Click] = []
            found = np.zeros(view.mask.shape, np.float32)
            for count in ious:
                click = next_click(found, view.mask, clicks)
                if click is not None:
                    clicks.append(click)
                    found = view.answer(clicks)
                ious[count].append(intersection_over_union(found, view.mask))
        if not ious[1]:
            raise TrainingError("no validation view shows a defect; take more validation worlds")
        scores = {f"iou_{k}": float(np.mean(v)) for k, v in ious.items()}
        append_log(self.run, {"step": step, **scores})
        last = scores[f"iou_{VALIDATION_CLICKS}"]
        if last > best:
            best = last
            self._save("best.safetensors", step + 1, best)
        return best

    def finish(self) -> None:
        """Fit the offsets of the best network, once its training is over."""
        state = load_model(self.run / "best.safetensors", self.network)
        if isinstance(offsets := getattr(getattr(self.network, "decoder", None), "offsets", None), Tensor):
            fitted = fit_offsets(offsets, list(self._views()))
            append_log(self.run, {"step": self.config.steps, "offsets": fitted})
            save_checkpoint(self.run / "best.safetensors", self.network, self.optimiser, state)

    @torch.no_grad()
    def _views(self) -> Iterator[ClickedView]:
        """The validation views, embedded by the network as it is."""
        self.network.eval()
        side = self.config.size[0]
        places = [(store, v) for store in self.validation for v in range(0, len(store), 2)][:VALIDATION_VIEWS]
        for store, view in places:
            mask = np.asarray(store.arrays["masks"][view] > 0)
            if not mask.any():
                continue
            whole = view_inputs(store, view, 0, 0, side)
            inputs = {name: torch.from_numpy(np.array(value))[None].to(self.device) for name, value in whole.items()}
            if "residual" in self.config.without:
                inputs["relative"].zero_()
                inputs["relative_distance"].zero_()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.mixed_precision):
                embedding = self.network.encode(**inputs)
            yield ClickedView(mask, _Answers(self, embedding, mask.shape))

    def _save(self, name: str, step: int, best: float) -> None:
        save_checkpoint(self.run / name, self.network, self.optimiser, {"step": step, "best": best})


class _Answers:
    """The network's answers to clicks on one view, each from the one before."""

    def __init__(self, loop: _Loop, embedding: dict[str, Tensor], size: tuple[int, ...]) -> None:
        self.loop, self.embedding, self.size = loop, embedding, size
        self.previous = [torch.zeros(1, 1, size[0] // 4, size[1] // 4, device=loop.device)]
        self.prompt = torch.zeros(1, loop.episodes.words.dims, device=loop.device)

    @torch.no_grad()
    def __call__(self, clicks: Sequence[Click]) -> F32:
        loop = self.loop
        with torch.autocast(loop.device.type, torch.bfloat16, enabled=loop.config.mixed_precision):
            before = self.previous[len(clicks) - 1]
            logits = loop.network.decode(self.embedding, loop._clicks([clicks]), before, self.prompt).float()
        self.previous[len(clicks) :] = [loop._previous(logits)]
        found: F32 = _probability(logits, self.size)[0].cpu().numpy()
        return found


def _probability(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """float32 [N, H, W] of logits [N, H/2, W/2]."""
    return torch.sigmoid(F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False))[:, 0]
