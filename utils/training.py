"""The one training loop: device, precision, processes, schedule, averaging, metrics, checkpoints, resuming."""

import contextlib
import functools
import math
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from utils.checkpoints import load_checkpoint, newest_checkpoint
from utils.cli import TrainingConfig, UserError
from utils.processes import shared_noise
from utils.runs import RunFolder, StopSignals

METRICS_EVERY = 50  # steps between looks at the metrics: each look waits for the device


def train(
    kind: str,
    model: nn.Module,
    training: TrainingConfig,
    args,
    num_images: int,
    loss_of_batch,
    sample,
    matrices=(),
    **extra,
) -> Path:
    """Train `model` and return the path of its last checkpoint, OUTPUT_DIR/KIND-STEP.pt.

    loss_of_batch(model, index, step) -> (loss, {name: scalar tensor}), for the images at `index` (B,) of the
    training set; it must call `model` itself, not a method of it, so that several processes stay in step.
    sample(model, step) -> {name: number}, writes a sample grid of that step and gives held-out metrics.
    `matrices` are the parameters that Muon trains; AdamW trains the rest. `extra` goes into the checkpoint.

    Everything random in a step follows from (seed, step): a run that was stopped and resumed sees the same images,
    captions and noise as one that was not.

    SIGINT and SIGTERM end the run after its step, with a checkpoint and exit code 128 + their number. Raises UserError if
    the batch is larger than the training set or does not divide among the processes, if a resumed run has another model
    or is finished, and for what RunFolder refuses.
    """
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    if training.batch_size > num_images:
        raise UserError(f"--batch_size {training.batch_size} is more than the {num_images} images to train on.")
    if training.batch_size % accelerator.num_processes:
        raise UserError(
            f"--batch_size {training.batch_size} does not divide among {accelerator.num_processes} processes."
        )
    model = model.to(accelerator.device)
    optimizers = make_optimizers(model, training, matrices)
    ema = None
    if training.ema_decay:
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(training.ema_decay), use_buffers=True)

    with RunFolder(args.output_dir, kind, accelerator.is_main_process) as folder, StopSignals() as stop:
        accelerator.wait_for_everyone()  # for the main process, which makes the folder
        step = resume(kind, model, ema, optimizers, args, extra) if args.resume else 0
        if step >= training.num_training_steps:
            raise UserError(f"{args.output_dir} is at step {step} already; ask for more with --num_training_steps.")
        if args.compile:
            accelerator.print("Compiling the model; the first step takes half a minute ...", flush=True)
        trained, *optimizers = accelerator.prepare(torch.compile(model) if args.compile else model, *optimizers)
        describe(kind, model, training, args, accelerator)
        folder.open_logs(step)
        pending, held_out = [], {}
        bar = {"initial": step, "desc": kind, "disable": not accelerator.is_main_process}
        with tqdm(total=training.num_training_steps, **bar) as progress:
            while step < training.num_training_steps:
                index = batch_index(step, num_images, training.batch_size, args.seed, accelerator)
                seed_step(args, step, accelerator)
                learning_rate = schedule(step, training)
                with contextlib.nullcontext() if args.compile else shared_noise(training.batch_size, accelerator):
                    loss, metrics = loss_of_batch(trained, index, step)
                grad_norm = update(model, loss, optimizers, learning_rate, training.max_grad_norm, accelerator)
                if ema is not None:
                    ema.update_parameters(model)

                step += 1
                progress.update()
                metrics = {"loss": loss, "grad_norm": grad_norm, **metrics}
                pending.append(
                    (step, learning_rate, torch.stack([value.detach().float() for value in metrics.values()]))
                )
                stopped_by = stop.received_by_any(accelerator, step)
                last = step == training.num_training_steps
                saves = last or stopped_by or step % training.save_every == 0
                samples = last or step % training.sample_every == 0
                if saves or samples or step % METRICS_EVERY == 0:
                    rows = fetch_metrics(pending, list(metrics), accelerator)
                    pending = []
                    folder.write_metrics(rows)
                    progress.set_postfix({name: f"{rows[-1][name]:.4g}" for name in metrics})
                if samples and accelerator.is_main_process:
                    held_out = held_out_metrics(sample, model, ema, step, accelerator)
                    folder.write_held_out({"step": step, **held_out})
                    progress.write(
                        f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in held_out.items())
                    )
                if saves:
                    measured = {**rows[-1], **held_out}
                    checkpoint = contents(kind, step, model, ema, optimizers, training, args.seed, measured) | extra
                    folder.save(checkpoint, training.keep_newest, training.milestone_every)
                accelerator.wait_for_everyone()
                if stopped_by:
                    accelerator.print(
                        f"Stopped at step {step}, and saved; the same command with --resume goes on.", flush=True
                    )
                    sys.exit(128 + stopped_by)
    return folder.checkpoint_at(step)


def update(
    model: nn.Module,
    loss: Tensor,
    optimizers: list,
    learning_rate: float,
    max_grad_norm: float,
    accelerator: Accelerator,
) -> Tensor:
    """Take a step of the optimizers down the gradient, clipped, and return the norm that it had before."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
    accelerator.backward(loss)
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return grad_norm


def held_out_metrics(sample, model: nn.Module, ema: nn.Module | None, step: int, accelerator: Accelerator) -> dict:
    """What sample(model, step) gives for the averaged weights, where there are any, in evaluation mode."""
    sampled = (model if ema is None else ema.module).eval()
    with torch.no_grad(), accelerator.autocast():
        metrics = sample(sampled, step)
    model.train()
    return metrics


def contents(
    kind: str,
    step: int,
    model: nn.Module,
    ema: nn.Module | None,
    optimizers: list,
    training: TrainingConfig,
    seed: int,
    metrics: dict,
) -> dict:
    """What a checkpoint of any kind holds."""
    return {
        "kind": kind,
        "config": asdict(model.config),
        "step": step,
        "model": model.state_dict(),
        "ema": None if ema is None else ema.module.state_dict(),
        "optimizer": [optimizer.state_dict() for optimizer in optimizers],
        "training": asdict(training),
        "rng": {"seed": seed},
        "metrics": metrics,
    }


def build_model(model_class, config, seed: int) -> nn.Module:
    """The model of a config, its first weights drawn by `seed`.

    Raises UserError if training it needs more memory than the device has.
    """
    with torch.device("meta"):
        check_memory(model_class(config), PartialState().device)
    torch.manual_seed(seed)
    return model_class(config)


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weight matrices of a model's transformer blocks, which Muon is for."""
    return [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks." in name]


def check_memory(model: nn.Module, device: torch.device) -> None:
    """Raises UserError if training `model`, given on the meta device, needs more memory than `device` has: 16 bytes a
    parameter for weights, gradients and the optimizer's two moments, in float32."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    cuda = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else psutil.virtual_memory().total
    if 16 * parameters > memory:
        raise UserError(
            f"Training {parameters / 1e9:.1f} billion parameters takes {16 * parameters / 2**30:.0f} GiB and {device} has "
            f"{memory / 2**30:.0f}; choose a smaller --preset, or smaller sizes."
        )


def make_optimizers(model: nn.Module, training: TrainingConfig, matrices) -> list[torch.optim.Optimizer]:
    """Muon for `matrices`, if any, and AdamW for the other parameters; both take steps of the same size."""
    by_muon = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in by_muon]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizers = [torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.96))]
    if by_muon:
        optimizers.append(
            torch.optim.Muon(
                list(matrices),
                lr=training.learning_rate,
                weight_decay=training.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def schedule(step: int, training: TrainingConfig) -> float:
    """The learning rate of a step: a linear warm-up, then half a cosine down to 0."""
    warm = min(1.0, (step + 1) / (training.warmup_steps + 1))
    return training.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * step / training.num_training_steps))


def batch_index(step: int, num_images: int, batch_size: int, seed: int, accelerator: Accelerator) -> Tensor:
    """Which images this process sees at a step: its share of a global batch that runs through one shuffled
    epoch after another."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num_images
    orders = {epoch: shuffled(num_images, seed, epoch) for epoch in epochs.unique().tolist()}
    index = torch.stack(
        [orders[epoch][position % num_images] for epoch, position in zip(epochs.tolist(), positions.tolist())]
    )
    share = batch_size // accelerator.num_processes
    return index[accelerator.process_index * share :][:share].to(accelerator.device)


def seed_step(args, step: int, accelerator: Accelerator) -> None:
    """Seed what is drawn in a step: alike in all processes, which share the noise of the batch; but a compiled model's
    noise cannot be shared, so its processes draw their own."""
    process = accelerator.process_index if args.compile else 0
    torch.manual_seed(hash((args.seed, step, process)) % 2**32)  # a generator takes 32 bits


@functools.lru_cache(maxsize=2)
def shuffled(num_images: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(hash((seed, epoch)) % 2**32)
    return torch.randperm(num_images, generator=generator)


def resume(kind: str, model: nn.Module, ema: nn.Module | None, optimizers: list, args, extra: dict) -> int:
    """Load the newest checkpoint of the output folder, if there is one, and return its step."""
    path = newest_checkpoint(args.output_dir, kind)
    if path is None:
        print(f"{args.output_dir} has no {kind} checkpoint to resume from, so training starts at step 0.", flush=True)
        return 0
    checkpoint = load_checkpoint(path, kind)
    if checkpoint["config"] != asdict(model.config):
        raise UserError(
            f"{path} holds a model of other sizes than the flags ask for; resume with the flags it was begun with."
        )
    if (checkpoint["ema"] is None) != (ema is None) or len(checkpoint["optimizer"]) != len(optimizers):
        raise UserError(f"{path} was trained with other settings; resume with the flags it was begun with.")
    for name in ("dvae", "clip"):
        if name in extra and checkpoint[name]["fingerprint"] != extra[name]["fingerprint"]:
            raise UserError(f"{path} learned from another {name} than this; train it anew, without --resume.")
    model.load_state_dict(checkpoint["model"])
    if ema is not None:
        ema.module.load_state_dict(checkpoint["ema"])
        ema.n_averaged.fill_(checkpoint["step"])
    for optimizer, state in zip(optimizers, checkpoint["optimizer"]):
        optimizer.load_state_dict(state)
    args.seed = checkpoint["rng"]["seed"]
    print(f"Resuming from {path}", flush=True)
    return checkpoint["step"]


def describe(kind: str, model: nn.Module, training: TrainingConfig, args, accelerator: Accelerator) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    accelerator.print(
        f"Training {kind}, preset {args.preset}: {parameters:,} parameters, {training.num_training_steps} steps of "
        f"{training.batch_size} images on {accelerator.num_processes} x {accelerator.device}, "
        f"mixed precision {args.mixed_precision}, into {args.output_dir}",
        flush=True,
    )


def fetch_metrics(pending: list[tuple], names: list[str], accelerator: Accelerator) -> list[dict]:
    """The metrics of some steps as rows, {step, learning_rate, loss, ...}, averaged over the processes."""
    values = accelerator.reduce(torch.stack([values for _, _, values in pending]), reduction="mean").tolist()
    return [
        {"step": step, "learning_rate": learning_rate, **dict(zip(names, row))}
        for (step, learning_rate, _), row in zip(pending, values)
    ]
