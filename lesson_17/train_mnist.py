"""Train DALL·E 2 on MNIST: CLIP, then the prior, then the decoder. Writes to output/clip, output/prior, output/decoder.

A stage that is finished is skipped; --stage trains one, whether it is finished or not.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import PartialState
from clip import CLIP, CLIP_PRESETS
from diffusion_decoder import DECODER_PRESETS, Decoder, decode_image_embed, to_x_0
from diffusion_prior import PRIOR_PRESETS, DiffusionPrior, draw_image_embed
from pipeline import FrozenCLIP, add_end, nearest_digit, tokenize
from torch import Tensor
from utils.checkpoints import load_checkpoint
from utils.cli import ROOT, ArgumentParser, TrainingConfig, UserError, parse_training_flags, peek, run, with_sizes
from utils.data import NUM_CLASSES, load_digits
from utils.plots import save_grid, save_matrix
from utils.prompts import PROMPTS, PromptSampler, PromptTokenizer
from utils.training import block_matrices, build_model, train

PRESETS = {"clip": CLIP_PRESETS, "prior": PRIOR_PRESETS, "decoder": DECODER_PRESETS}
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
BPE_DROPOUT = 0.1
NUM_HELD_OUT = 1000  # test images that each sample step measures


def main() -> None:
    args, stages = parse_args()
    clip_checkpoint = args.clip_checkpoint
    if "clip" in stages:
        clip_checkpoint = run_stage("clip", train_clip, args, *stages.pop("clip"))
    if stages:
        clip = FrozenCLIP.load(args.clip_model, clip_checkpoint, PartialState().device, args.output_dir / "clip")
    if "prior" in stages:
        run_stage("prior", train_prior, args, *stages["prior"], clip)
    if "decoder" in stages:
        run_stage("decoder", train_decoder, args, *stages["decoder"], clip)


def parse_args():
    """The arguments, and the config and TrainingConfig of each stage that they ask for."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--stage", choices=list(PRESETS), help="train this one only")
    parser.add_argument(
        "--clip_model", metavar="NAME", help="take a CLIP that transformers loads, instead of training one"
    )
    parser.add_argument("--clip_checkpoint", help="take this CLIP (default: the newest in the output folder)")
    known = peek(parser)
    if known.stage:
        chosen = [known.stage]
    else:
        chosen = [stage for stage in PRESETS if stage != "clip" or not (known.clip_model or known.clip_checkpoint)]
    args, stages = parse_training_flags(
        parser, {stage: (PRESETS[stage], TRAINING[stage]) for stage in chosen}, ROOT / "output"
    )
    if args.clip_model and (args.clip_checkpoint or args.stage == "clip"):
        raise UserError("--clip_model takes the place of a CLIP of ours; leave out --clip_checkpoint and --stage clip.")
    return args, stages


def run_stage(stage: str, train_stage, args, config, training: TrainingConfig, clip: FrozenCLIP | None = None) -> Path:
    """Train a stage in its own folder, unless it is finished and was not asked for by name; returns its checkpoint."""
    stage_args = argparse.Namespace(**{**vars(args), "output_dir": args.output_dir / stage})
    file = stage_args.output_dir / f"{stage}-{training.num_training_steps}.pt"
    if args.stage is None and file.exists():
        if clip is None or load_checkpoint(file, stage)["clip"]["fingerprint"] == clip.source["fingerprint"]:
            print(f"The {stage} is trained already, {file}; --stage {stage} trains it anew.", flush=True)
            return file
        print(f"{file} learned another CLIP's embeddings, so the {stage} is trained anew.", flush=True)
        stage_args.resume = False
    if clip is None:
        return train_stage(stage_args, config, training)
    return train_stage(stage_args, replace(config, **clip.sizes), training, clip)


def train_clip(args, config, training: TrainingConfig) -> Path:
    device = PartialState().device
    train_set, test_set = load_digits(args.dataset, args.data_dir, config.image_channels, device)
    tokenizer = PromptTokenizer.train()
    config = with_sizes(config, image_size=train_set.pixels.shape[-1], text_vocab_size=tokenizer.vocab_size)
    captions = PromptSampler(tokenizer, config.text_seq_len - 1, BPE_DROPOUT, device)
    model = build_model(CLIP, config, args.seed)
    prompt_tokens = tokenize(tokenizer, PROMPTS, config.text_seq_len).to(device)

    def loss_of_batch(model, index, step):
        images, labels = train_set[index]
        return model(images, add_end(captions(labels)), meanings=labels)

    def sample(model, step):
        images, labels = test_set[:NUM_HELD_OUT]
        text_embed, _ = model.encode_text(prompt_tokens)
        image_embed = model.encode_image(images)
        zero_shot = (nearest_digit(image_embed, text_embed) == labels).float().mean().item()
        one_of_each, _ = test_set.of_each(1)[:]
        save_matrix(
            model.encode_image(one_of_each) @ text_embed.T,
            args.output_dir / f"sample-{step}.png",
            one_of_each,
            PROMPTS,
            f"step {step}: cosine of images and captions; zero-shot accuracy {zero_shot:.1%}",
        )
        return {"zero_shot_accuracy": zero_shot}

    return train(
        "clip",
        model,
        training,
        args,
        len(train_set),
        loss_of_batch,
        sample,
        block_matrices(model),
        tokenizer=tokenizer.to_json(),
    )


def train_prior(args, config, training: TrainingConfig, clip: FrozenCLIP) -> Path:
    device = PartialState().device
    train_set, test_set = load_digits(args.dataset, args.data_dir, clip.image_channels, device)
    text_embed, text_encodings = clip.encode_prompts(PROMPTS, device)
    PartialState().print("Embedding the images ...", flush=True)
    image_embed = train_set.map_once(clip.model.encode_image)
    held_out = test_set.subset(slice(NUM_HELD_OUT))
    test_embed, test_labels = clip.encode_images(held_out), held_out.labels
    model = prior = build_model(DiffusionPrior, config, args.seed).to(device)
    prior.fit_scale(image_embed)
    scaled = prior.scale(image_embed)

    def loss_of_batch(model, index, step):
        prompt = draw_prompts(train_set.labels[index])
        return prior.diffusion.loss(
            lambda x_t, t: model(x_t, t, text_embed[prompt], text_encodings[prompt]), scaled[index]
        ), {}

    def sample(prior, step):
        torch.manual_seed(args.seed)
        prompt = torch.arange(len(PROMPTS), device=device).repeat_interleave(NUM_HELD_OUT // len(PROMPTS))
        drawn = draw_image_embed(prior, text_embed[prompt], text_encodings[prompt])
        digits = prompt // 2  # PROMPTS has two spellings of each
        own = (nearest_digit(drawn, text_embed) == digits).float().mean().item()
        means = torch.stack([test_embed[test_labels == digit].mean(dim=0) for digit in range(NUM_CLASSES)])
        to_images = (drawn @ means.T).view(len(PROMPTS), -1, NUM_CLASSES).mean(dim=1)
        to_captions = (drawn @ text_embed.T).view(len(PROMPTS), -1, len(PROMPTS)).mean(dim=1)
        save_matrix(
            torch.cat([to_images, to_captions], dim=1),
            args.output_dir / f"sample-{step}.png",
            PROMPTS,
            [f"images of {digit}" for digit in range(NUM_CLASSES)] + PROMPTS,
            f"step {step}: mean cosine of drawn embeddings (rows) to real images' and to captions'; "
            f"{own:.1%} nearest to their digit's caption",
        )
        return {
            "own_caption_nearest": own,
            "cosine_to_caption": (drawn * text_embed[prompt]).sum(dim=1).mean().item(),
            "cosine_to_images": (drawn * means[digits]).sum(dim=1).mean().item(),
        }

    return train(
        *("prior", model, training, args, len(train_set), loss_of_batch, sample, block_matrices(model)),
        clip=clip.source,
    )


def train_decoder(args, config, training: TrainingConfig, clip: FrozenCLIP) -> Path:
    device = PartialState().device
    if clip.tokenizer is not None and clip.image_channels != config.image_channels:
        raise UserError(f"The CLIP sees {clip.image_channels} channels; pass --image_channels {clip.image_channels}.")
    train_set, test_set = load_digits(args.dataset, args.data_dir, config.image_channels, device)
    config = with_sizes(config, image_size=train_set.pixels.shape[-1])
    _, text_encodings = clip.encode_prompts(PROMPTS, device)
    PartialState().print("Embedding the images ...", flush=True)
    image_embed = train_set.map_once(clip.model.encode_image)
    decoder = build_model(Decoder, config, args.seed).to(memory_format=torch.channels_last)

    shown = test_set.of_each(2)
    shown = shown.subset(torch.arange(len(shown)).view(NUM_CLASSES, 2).T.flatten())  # one of each, then another
    shown_images, _ = shown[:]
    shown_embed = clip.encode_images(shown)
    shown_prompts = torch.arange(2 * NUM_CLASSES).view(NUM_CLASSES, 2).T.flatten()  # the words, then the numerals
    held_out = test_set.subset(slice(NUM_HELD_OUT))
    held_out_images, held_out_labels = held_out[:]
    held_out_embed = clip.encode_images(held_out)

    def loss_of_batch(model, index, step):
        images, labels = train_set[index]
        prompt = draw_prompts(labels)
        return decoder.diffusion.loss(
            lambda x_t, t: model(x_t, t, image_embed[index], text_encodings[prompt]), to_x_0(images)
        ), {}

    def sample(decoder, step):
        torch.manual_seed(args.seed)  # the same noise at each step, so that grids compare
        held_out_loss = decoder.diffusion.loss(
            lambda x_t, t: decoder(x_t, t, held_out_embed, text_encodings[2 * held_out_labels]),
            to_x_0(held_out_images),
        )
        x_T = torch.randn_like(shown_images)
        drawn = decode_image_embed(decoder, shown_embed, text_encodings[shown_prompts], x_T)
        rows = [row for pair in zip(shown_images.split(NUM_CLASSES), drawn.split(NUM_CLASSES)) for row in pair]
        captions = [PROMPTS[prompt] for prompt in shown_prompts]
        save_grid(
            torch.cat(rows),
            args.output_dir / f"sample-{step}.png",
            NUM_CLASSES,
            [caption for row in (captions[:NUM_CLASSES], captions[NUM_CLASSES:]) for caption in row + row],
            f"step {step}: test images above what their embeddings are decoded to",
        )
        return {"held_out_loss": held_out_loss.item()}

    return train("decoder", decoder, training, args, len(train_set), loss_of_batch, sample, clip=clip.source)


def draw_prompts(labels: Tensor) -> Tensor:
    """A place in PROMPTS for each label (B,): its word or its numeral."""
    return 2 * labels + torch.randint(2, labels.shape, device=labels.device)


if __name__ == "__main__":
    run(main)
