"""Train DALL·E 2 on MNIST: CLIP, then the prior, then the decoder. Writes to output/clip, output/prior, output/decoder.

A stage that is finished is skipped; --stage trains one, whether it is finished or not.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from clip import CLIP, CLIP_PRESETS
from diffusion_decoder import DECODER_PRESETS, Decoder, DecoderConfig, decode_image_embed, to_x_0
from diffusion_prior import PRIOR_PRESETS, DiffusionPrior, PriorConfig, draw_image_embed
from lesson_08.bpe import PAD_ID, CaptionTable, Tokenizer
from lesson_08.muon import Muon
from pipeline import FrozenCLIP, add_end, nearest_digit, tokenize
from torch import Tensor, nn
from utils.checkpoints import load_checkpoint, newest_checkpoint
from utils.cli import ROOT, TrainingParser, UserError, start
from utils.data import NUM_CLASSES, load_digits
from utils.machine import Threads, get_device, say
from utils.plots import save_grid, save_matrix
from utils.prompts import PROMPTS, draw_prompt_ids, prompt_ids
from utils.run import Run
from utils.training import TrainingConfig, build_model, with_sizes

TRAINING = {
    "clip": {
        "cpu": TrainingConfig(num_training_steps=1200, batch_size=128, learning_rate=4e-3, weight_decay=0.1, sample_every=300),
        "gpu": TrainingConfig(num_training_steps=5000, batch_size=256, learning_rate=1e-3, weight_decay=0.1, save_every=1000, sample_every=500),
        "paper": TrainingConfig(num_training_steps=600_000, batch_size=32_768, learning_rate=3e-4, warmup_steps=2000, weight_decay=0.2, save_every=10_000, sample_every=10_000),
    },
    "prior": {
        "cpu": TrainingConfig(num_training_steps=600, batch_size=256, learning_rate=2e-3, ema_decay=0.99, sample_every=150),
        "gpu": TrainingConfig(num_training_steps=30_000, batch_size=256, learning_rate=1e-3, ema_decay=0.999, save_every=5000, sample_every=2500),
        "paper": TrainingConfig(num_training_steps=600_000, batch_size=4096, learning_rate=1.1e-4, weight_decay=6e-2, ema_decay=0.9999, save_every=10_000, sample_every=10_000),
    },
    "decoder": {
        "cpu": TrainingConfig(num_training_steps=2500, batch_size=64, learning_rate=3e-3, ema_decay=0.99, sample_every=625),
        "gpu": TrainingConfig(num_training_steps=10_000, batch_size=128, learning_rate=1e-3, ema_decay=0.999, save_every=2500, sample_every=1000),
        "paper": TrainingConfig(num_training_steps=800_000, batch_size=2048, learning_rate=1.2e-4, ema_decay=0.9999, save_every=10_000, sample_every=10_000),
    },
}  # fmt: skip
STAGES = {
    "clip": (CLIP_PRESETS, TRAINING["clip"]),
    "prior": (PRIOR_PRESETS, TRAINING["prior"]),
    "decoder": (DECODER_PRESETS, TRAINING["decoder"]),
}
FROM_DATA = {"image_size", "text_vocab_size", "pad_id", "extra_channels"}
FROM_CLIP = {"clip_embed_dim", "clip_text_width", "clip_text_seq_len"}
NUM_HELD_OUT = 1000  # test images that each sample step measures
NUM_DRAWN = 20  # embeddings of each prompt that the prior draws then


def main() -> None:
    args, stages = parse_args()
    if "clip" in stages and not is_finished("clip", stages["clip"][1], args):
        train_clip(args, *stages["clip"])
    if stages.keys() == {"clip"}:
        return
    Threads(args.num_threads or 0)  # chosen now, as embedding all images is work too
    clip = FrozenCLIP.load(args.clip_model, args.clip_checkpoint, get_device(), args.output_dir / "clip")
    if "prior" in stages and not is_finished("prior", stages["prior"][1], args, clip):
        train_prior(args, *stages["prior"], clip)
    if "decoder" in stages and not is_finished("decoder", stages["decoder"][1], args, clip):
        train_decoder(args, *stages["decoder"], clip)


def parse_args():
    """The arguments, and {stage: (model config, TrainingConfig)} of the stages that they ask for."""
    parser = TrainingParser(__doc__, STAGES, ROOT / "output", FROM_DATA | FROM_CLIP)
    parser.add_argument("--stage", choices=list(STAGES), help="train this one only")
    parser.add_argument("--clip_model", metavar="NAME", help="take a CLIP that transformers loads, and train none")
    parser.add_argument("--clip_checkpoint", help="take this CLIP (default: the newest in the output folder)")
    args = parser.parse_args()
    given = args.clip_model or args.clip_checkpoint
    if args.clip_model and args.clip_checkpoint or given and args.stage == "clip":
        raise UserError("--clip_model or --clip_checkpoint takes the place of training a CLIP; give one of the three.")
    stages = [args.stage] if args.stage else [stage for stage in STAGES if stage != "clip" or not given]
    return args, parser.configs(args, *stages)


def is_finished(stage: str, training: TrainingConfig, args, clip: FrozenCLIP | None = None) -> bool:
    """Whether a stage that was not asked for by name is trained already, on this CLIP."""
    file = newest_checkpoint(args.output_dir / stage, stage)
    if args.stage or file is None or file.stem != f"{stage}-{training.num_training_steps}":
        return False
    if clip is None or load_checkpoint(file, stage)["sources"]["clip"]["fingerprint"] == clip.source["fingerprint"]:
        say(f"The {stage} is trained already, {file}; --stage {stage} trains it anew.")
        return True
    say(f"{file} learned another CLIP's embeddings, so the {stage} is trained anew.")
    return False


def make_optimizers(model: nn.Module, blocks: list[nn.Module], training: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of transformer blocks, which needs fewer steps (lesson_08/muon.py), and AdamW, the paper's, for all
    else: convolutions, embeddings, heads, gains and biases."""
    matrices = [p for block in blocks for p in block.parameters() if p.ndim == 2]
    by_muon = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in by_muon]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0},
    ]
    dtype = torch.bfloat16 if training.mixed_precision == "bf16" else torch.float32
    muon = [Muon(matrices, training.learning_rate, training.weight_decay, dtype=dtype)] if matrices else []
    return [*muon, torch.optim.AdamW(groups, training.learning_rate, betas=(0.9, 0.96))]


def train_clip(args, config, training: TrainingConfig) -> None:
    """Stage 1: images and captions to neighbors in one space."""
    device, folder = get_device(), args.output_dir / "clip"
    train_set, test_set = load_digits(args.dataset, args.data_dir, config.image_channels, device)
    held_out, one_of_each = test_set.subset(slice(NUM_HELD_OUT)), test_set.of_each(1)
    tokenizer = Tokenizer.train(PROMPTS)
    config = with_sizes(config, image_size=train_set.image_size, text_vocab_size=tokenizer.vocab_size, pad_id=PAD_ID)
    try:
        captions = CaptionTable(tokenizer, PROMPTS, config.text_seq_len - 1, device)
        prompt_tokens = tokenize(tokenizer, PROMPTS, config.text_seq_len).to(device)
    except ValueError as error:
        raise UserError(str(error)) from error

    clip = build_model(CLIP, config, training)
    optimizers = make_optimizers(clip, [clip.image_encoder.blocks, clip.text_encoder.blocks], training)
    with Run("clip", clip, optimizers, training, folder, args.resume, tokenizer=tokenizer.to_json()) as run:
        for _, index in run.steps(len(train_set)):
            images, labels = train_set[index]  # (B, C, H, H) in [0, 1] and (B,)
            text_tokens = add_end(captions.draw(draw_prompt_ids(labels)))  # (B, T), word or numeral
            loss, metrics = run.model(images, text_tokens, meanings=labels)
            run.update(loss, **metrics)
            clip.clip_logit_scale()

            if run.is_due(training.sample_every):
                with run.evaluation() as averaged:
                    text_embed, _ = averaged.encode_text(prompt_tokens)
                    image_embed, shown_embed = map(averaged.encode_image, (held_out[:][0], one_of_each[:][0]))
                zero_shot = (nearest_digit(image_embed, text_embed) == held_out.labels).float().mean().item()
                run.log_held_out({"zero_shot_accuracy": zero_shot})
                if run.is_main:
                    title = f"step {run.step}: cosine of images and captions; zero-shot accuracy {zero_shot:.1%}"
                    cosines = shown_embed @ text_embed.T
                    save_matrix(cosines, folder / f"sample-{run.step}.png", one_of_each[:][0], PROMPTS, title)
            if run.is_due(training.save_every):
                run.save()


def train_prior(args, config: PriorConfig, training: TrainingConfig, clip: FrozenCLIP) -> None:
    """Stage 2: captions to CLIP image embeddings."""
    device, folder = get_device(), args.output_dir / "prior"
    train_set, test_set = load_digits(args.dataset, args.data_dir, clip.image_channels, device)
    held_out = test_set.subset(slice(NUM_HELD_OUT))
    say("Embedding the images ...")
    image_embed, test_embed = clip.encode_images(train_set), clip.encode_images(held_out)
    text_embed, text_encodings = clip.encode_prompts(PROMPTS, device)

    prior = build_model(DiffusionPrior, replace(config, **clip.sizes), training)
    prior.fit_scale(image_embed)
    scaled, diffusion = prior.scale(image_embed), prior.diffusion
    drawn_for = torch.arange(len(PROMPTS), device=device).repeat_interleave(NUM_DRAWN)
    optimizers = make_optimizers(prior, [prior.blocks], training)
    with Run("prior", prior, optimizers, training, folder, args.resume, sources={"clip": clip.source}) as run:
        for _, index in run.steps(len(train_set)):
            prompt = draw_prompt_ids(train_set.labels[index])
            # DDPM, algorithm 1
            x_0 = scaled[index]  # (B, E)
            t = torch.randint(1, diffusion.num_timesteps + 1, (len(x_0),), device=device)
            eps = torch.randn_like(x_0)
            x_t = diffusion.q_sample(x_0, t, eps)
            predicted = run.model(x_t, t, text_embed[prompt], text_encodings[prompt])  # of x_0
            loss = F.mse_loss(predicted.float(), diffusion.target(x_0, t, eps))
            run.update(loss)

            if run.is_due(training.sample_every):
                with run.evaluation() as averaged:
                    drawn = draw_image_embed(averaged, text_embed[drawn_for], text_encodings[drawn_for])
                cosines, measured = evaluate_prior(drawn, text_embed, test_embed, held_out.labels)
                run.log_held_out(measured)
                if run.is_main:
                    columns = [f"images of {digit}" for digit in range(NUM_CLASSES)] + PROMPTS
                    title = (
                        f"step {run.step}: mean cosine of drawn embeddings (rows) to real images' and to captions'; "
                    )
                    title += f"{measured['own_caption_nearest']:.1%} nearest to their digit's caption"
                    save_matrix(cosines, folder / f"sample-{run.step}.png", PROMPTS, columns, title)
            if run.is_due(training.save_every):
                run.save()


def evaluate_prior(
    drawn: Tensor, text_embed: Tensor, image_embed: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Where embeddings lie that were drawn for PROMPTS, NUM_DRAWN of each (20 * NUM_DRAWN, E): their mean cosines with the
    mean real embedding of each digit and with all captions, (20, 10 + 20); and how near they are to their own.

    text_embed (20, E) is CLIP's of PROMPTS; image_embed (N, E) and labels (N,) are those of real images.
    """
    prompt = torch.arange(len(PROMPTS), device=labels.device).repeat_interleave(NUM_DRAWN)
    digits = torch.arange(NUM_CLASSES, device=labels.device).repeat_interleave(len(prompt) // NUM_CLASSES)
    means = torch.stack([image_embed[labels == digit].mean(dim=0) for digit in range(NUM_CLASSES)])
    cosines = drawn @ torch.cat([means, text_embed]).T
    measured = {
        "own_caption_nearest": (nearest_digit(drawn, text_embed) == digits).float().mean(),
        "cosine_to_caption": (drawn * text_embed[prompt]).sum(dim=1).mean(),
        "cosine_to_images": (drawn * means[digits]).sum(dim=1).mean(),
    }
    cosines = cosines.view(len(PROMPTS), -1, cosines.shape[1]).mean(dim=1)
    return cosines, {name: value.item() for name, value in measured.items()}


def train_decoder(args, config: DecoderConfig, training: TrainingConfig, clip: FrozenCLIP) -> None:
    """Stage 3: CLIP image embeddings to images."""
    device, folder = get_device(), args.output_dir / "decoder"
    if clip.tokenizer is not None and clip.image_channels != config.image_channels:
        raise UserError(f"The CLIP sees {clip.image_channels} channels; pass --image_channels {clip.image_channels}.")
    train_set, test_set = load_digits(args.dataset, args.data_dir, config.image_channels, device)
    held_out = test_set.subset(slice(NUM_HELD_OUT))
    shown = test_set.of_each(2)
    shown = shown.subset(torch.arange(len(shown)).view(NUM_CLASSES, 2).T.flatten())  # one of each, then another
    shown_prompts = prompt_ids(shown.labels, torch.arange(len(shown), device=device) // NUM_CLASSES)  # words, numerals
    say("Embedding the images ...")
    image_embed, held_out_embed, shown_embed = (clip.encode_images(images) for images in (train_set, held_out, shown))
    _, text_encodings = clip.encode_prompts(PROMPTS, device)

    config = with_sizes(replace(config, **clip.sizes), image_size=train_set.image_size)
    decoder = build_model(Decoder, config, training)
    diffusion, optimizers = decoder.diffusion, make_optimizers(decoder, [], training)
    with Run("decoder", decoder, optimizers, training, folder, args.resume, sources={"clip": clip.source}) as run:
        for _, index in run.steps(len(train_set)):
            images, labels = train_set[index]
            prompt = draw_prompt_ids(labels)
            # DDPM, algorithm 1
            x_0 = to_x_0(images)  # (B, C, H, H) in [-1, 1]
            t = torch.randint(1, diffusion.num_timesteps + 1, (len(x_0),), device=device)
            eps = torch.randn_like(x_0)
            x_t = diffusion.q_sample(x_0, t, eps)
            predicted = run.model(x_t, t, image_embed[index], text_encodings[prompt])  # of v
            loss = F.mse_loss(predicted.float(), diffusion.target(x_0, t, eps))
            run.update(loss)

            if run.is_due(training.sample_every):
                with run.evaluation() as averaged:
                    encodings = text_encodings[prompt_ids(held_out.labels, spelling=0)]
                    held_out_loss = diffusion_loss(averaged, held_out[:][0], held_out_embed, encodings)
                    x_T = torch.randn_like(shown[:][0])
                    drawn = decode_image_embed(averaged, shown_embed, text_encodings[shown_prompts], x_T)
                run.log_held_out({"held_out_loss": held_out_loss.item()})
                if run.is_main:
                    rows = [row for pair in zip(shown[:][0].split(10), drawn.split(10)) for row in pair]
                    captions = [PROMPTS[i] for i in shown_prompts]
                    captions = captions[:10] * 2 + captions[10:] * 2
                    title = f"step {run.step}: test images above what their embeddings are decoded to"
                    save_grid(torch.cat(rows), folder / f"sample-{run.step}.png", NUM_CLASSES, captions, title)
            if run.is_due(training.save_every):
                run.save()


def diffusion_loss(decoder: Decoder, images: Tensor, image_embed: Tensor, text_encodings: Tensor) -> Tensor:
    """The loss of images (B, C, H, H) in [0, 1] at random timesteps, as in training."""
    diffusion, x_0 = decoder.diffusion, to_x_0(images)
    t = torch.randint(1, diffusion.num_timesteps + 1, (len(x_0),), device=x_0.device)
    eps = torch.randn_like(x_0)
    predicted = decoder(diffusion.q_sample(x_0, t, eps), t, image_embed, text_encodings)
    return F.mse_loss(predicted.float(), diffusion.target(x_0, t, eps))


if __name__ == "__main__":
    start(main)
