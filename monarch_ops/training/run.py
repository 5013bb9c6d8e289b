"""What every training has: options, a folder, checkpoints to go on from."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import PartialState
from rich.progress import Progress
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..retrieval import InputError

Arguments = TypeVar("Arguments", bound=TrainingArguments)
MANIFEST = "training.json"
_STATE = "trainer_state.json"  # of a checkpoint
# they change what a run costs or shows, not what comes out
_NOT_COMPARED = ("save_every", "log_every")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a trainer trains; the learning rate falls linearly to 0 after the warm-up.

    Args:
        learning_rate: the largest.
        batch_size: rows per optimizer step, on all devices together.
        at_once: rows on a device at a time; gradients are accumulated over the others.
        warmup: share of the steps, or, from 1 on, steps.
        max_steps: optimizer steps.
        precision: of autocast.
        save_every, log_every: steps.
        more: further arguments of transformers' ``TrainingArguments``, by name.
    """

    learning_rate: float
    batch_size: int = 32
    at_once: int = 8
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-8
    max_steps: int | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0
    save_every: int = 500
    log_every: int = 10
    more: Mapping[str, Any] = field(default_factory=dict)

    def arguments(
        self,
        kind: type[Arguments],
        folder: Path,
        device: str | None,
        *,
        rows: int | None = None,
        whole_batch: bool = False,
        **own: Any,
    ) -> Arguments:
        """What the trainer takes, with `own` besides.

        Args:
            rows: that it gets at a time on a device; None: `at_once`.
            whole_batch: it gets all rows of a step, and its loss takes `at_once` of them at a time.

        Raises:
            InputError: the batch is no multiple of what is on the devices at once, or `more` has an unknown name.
        """
        values: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "adam_beta1": self.adam_betas[0],
            "adam_beta2": self.adam_betas[1],
            "adam_epsilon": self.adam_epsilon,
            "max_steps": self.max_steps or -1,
            "bf16": self.precision == "bfloat16",
            "fp16": self.precision == "float16",
            "seed": self.seed,
            "save_strategy": "steps",
            "save_steps": self.save_every,
            "save_total_limit": 2,  # one that is whole while the next is written
            "logging_steps": self.log_every,
            "report_to": "none",
            "use_cpu": device == "cpu",
            "dataloader_pin_memory": device != "cpu" and torch.cuda.is_available(),
        }
        try:
            made = kind(output_dir=str(folder), **(values | own | dict(self.more)))
        except TypeError as error:
            raise InputError(f"'more' must name arguments of TrainingArguments: {error}") from error
        devices = max(1, made.n_gpu) * made.world_size
        rows = max(1, self.batch_size // devices) if whole_batch else rows or self.at_once
        if self.batch_size % (rows * devices):
            raise InputError(
                f"the batch must be a multiple of the rows on all devices at once, {rows * devices}, "
                f"got {self.batch_size}"
            )
        made.per_device_train_batch_size = rows
        made.gradient_accumulation_steps = self.batch_size // (rows * devices)
        return made


class _Steps(TrainerCallback):
    """The steps of a training as a bar of `progress`."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress, self._bar = progress, progress.add_task(label, total=None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.update(self._bar, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.update(self._bar, completed=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.remove_task(self._bar)


def show_steps(trainer: Trainer, progress: Progress | None, label: str) -> None:
    """In a bar of `progress`, if there is one, instead of the trainer's own bar and its lines of losses."""
    if progress is not None:
        for theirs in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(theirs)
        trainer.add_callback(_Steps(progress, label))


class Clock(TrainerCallback, ExportableState):
    """Seconds that a training took from here on, and before the `checkpoint` it goes on from."""

    def __init__(self, checkpoint: str | None) -> None:
        self._start, self._before = time.perf_counter(), 0.0
        if checkpoint is not None:
            kept = json.loads((Path(checkpoint) / _STATE).read_text())["stateful_callbacks"]
            self._before = kept.get(type(self).__name__, {}).get("attributes", {}).get("seconds", 0.0)

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._start

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"seconds": self.seconds()}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())  # a checkpoint need not have it


class Run:
    """The folder of a training: at the end a model and ``training.json``, until then checkpoints.

    Raises:
        InputError: the folder is in use and neither `resume` nor `overwrite` is true, or both are.
    """

    def __init__(self, output: str | Path, resume: bool = False, overwrite: bool = False) -> None:
        self.output = Path(output)
        self.checkpoints = self.output / "checkpoints"
        self.start = self.checkpoints / "start"  # for a new model, see new_encoder
        if resume and overwrite:
            raise InputError("one of --resume and --overwrite must be chosen, got both")
        if self.output.exists() and not self.output.is_dir():
            raise InputError(f"the output must be a folder, got the file {output}")
        if self.output.is_dir() and any(self.output.iterdir()) and not (resume or overwrite):
            raise InputError(f"the output {output} is not empty: --resume goes on with it, --overwrite starts anew")
        self.process.wait_for_everyone()
        if overwrite and self.process.is_main_process:
            shutil.rmtree(self.output, ignore_errors=True)
        self.process.wait_for_everyone()

    @property
    def process(self) -> PartialState:
        """Of this process among those that train together; TrainingArguments makes it anew."""
        return PartialState()

    def finished(self) -> dict[str, Any] | None:
        """The manifest, if the training is done."""
        file = self.output / MANIFEST
        return json.loads(file.read_text()) if file.is_file() else None

    def begin(self, description: Mapping[str, Any]) -> str | None:
        """The checkpoint to go on from, if there is one.

        Raises:
            InputError: what is in the folder was begun with another `description`.
        """
        wanted = json.loads(json.dumps(description, default=str))
        begun = self.finished() or self._begun()
        if begun is not None:
            changed = [f"{name}={wanted[name]!r}, not {begun.get(name)!r}" for name in wanted
                       if name not in _NOT_COMPARED and wanted[name] != begun.get(name)]  # fmt: skip
            if changed:
                raise InputError(
                    "a training to resume must have the model, data and options it began with, got "
                    f"{'; '.join(changed)}. --overwrite starts anew"
                )
        self.process.wait_for_everyone()
        if begun is None and self.process.is_main_process:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            (self.checkpoints / MANIFEST).write_text(json.dumps(wanted, indent=1))
        return self._last()

    def _begun(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.checkpoints / MANIFEST).read_text())
        except (FileNotFoundError, json.JSONDecodeError):  # killed while it was written
            return None

    def _last(self) -> str | None:
        """The newest whole one: its state is written after everything else."""
        for folder in sorted(self.checkpoints.glob("checkpoint-*"), key=lambda f: -int(f.name.split("-")[1])):
            try:
                json.loads((folder / _STATE).read_text())
                return str(folder)
            except (FileNotFoundError, json.JSONDecodeError):
                continue
        return None

    def finish(self, save: Callable[[Path], None], manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Save the model, write the manifest, remove the checkpoints; gives the manifest as it is read."""
        if self.process.is_main_process:
            save(self.output)
            (self.output / MANIFEST).write_text(json.dumps(manifest, indent=1, default=str))
            shutil.rmtree(self.checkpoints)
        self.process.wait_for_everyone()
        return json.loads((self.output / MANIFEST).read_text())
