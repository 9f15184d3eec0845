"""Train DALL·E 2: CLIP, then the prior, then the decoder. Writes to output/clip, output/prior, output/decoder.

A stage that is finished is skipped; --stage trains one, whether it is finished or not.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from clip import CLIP, CLIP_PRESETS, which_hold
from diffusion_decoder import DECODER_PRESETS, Decoder, DecoderConfig, decode_image_embed, to_x_0
from diffusion_prior import PRIOR_PRESETS, DiffusionPrior, PriorConfig, draw_image_embed
from frozen_clip import EncodedCaptions, FrozenCLIP, add_end, tokenize, zero_shot_accuracy
from lesson_08.bpe import MOST_TOKENS, PAD_ID, CaptionTable, Tokenizer
from lesson_08.muon import Muon
from torch import Tensor, nn
from utils.checkpoints import load_checkpoint, newest_checkpoint
from utils.cli import ROOT, TrainingParser, UserError, bounded, start
from utils.data import CaptionedImages, add_data_flags, data_source, load_images
from utils.machine import Threads, get_device, say
from utils.plots import save_grid, save_matrix
from utils.prompts import data_entry
from utils.run import Run
from utils.samples import sample_captions
from utils.training import TrainingConfig, build_model, with_sizes

TRAINING = {
    "clip": {
        "cpu": TrainingConfig(num_training_steps=1200, batch_size=128, learning_rate=4e-3, weight_decay=0.1, sample_every=300),
        "gpu": TrainingConfig(num_training_steps=5000, batch_size=256, learning_rate=1e-3, weight_decay=0.1, save_every=1000, sample_every=500),
        "paper": TrainingConfig(num_training_steps=390_625, batch_size=32_768, learning_rate=3e-4, warmup_steps=2000, weight_decay=0.2, save_every=10_000, sample_every=10_000),
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
FROM_DATA = {"image_size", "image_channels", "text_seq_len", "pad_id", "extra_channels"}
FROM_CLIP = {"clip_embed_dim", "clip_text_width", "clip_text_seq_len"}
NUM_HELD_OUT = 1000  # test images that each sample step measures
NUM_SHOWN = 20  # captions that the prior draws embeddings for then
NUM_DRAWN = 20  # embeddings of each
TEXT_SEQ_LEN = f"tokens of a caption that CLIP reads (default: what the captions need, at most {MOST_TOKENS})"


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
    parser.add_argument("--text_seq_len", type=bounded(int, 1, 1024), help=TEXT_SEQ_LEN)
    add_data_flags(parser)
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
    train_set, test_set, source = load_images(data_source(args), args.data_dir, device)
    held_out, shown = test_set.subset(slice(NUM_HELD_OUT)), test_set.of_different_captions(10)
    shown_captions = shown.captions[:NUM_SHOWN]
    tokenizer = Tokenizer.train(train_set.captions, config.text_vocab_size)
    captions = CaptionTable(tokenizer, train_set.captions, args.text_seq_len, device)
    if captions.num_cut:
        say(f"{captions.num_cut} captions lose what is behind their {captions.text_seq_len} tokens (--text_seq_len).")
    text_seq_len = captions.text_seq_len + 1  # with the end of the text
    held_out_tokens, shown_tokens = (
        tokenize(tokenizer, texts, text_seq_len).to(device) for texts in (held_out.captions, shown_captions)
    )
    config = with_sizes(
        config,
        image_size=source.image_size,
        image_channels=source.image_channels,
        text_vocab_size=tokenizer.vocab_size,
        text_seq_len=text_seq_len,
        pad_id=PAD_ID,
    )

    clip = build_model(CLIP, config, training)
    optimizers = make_optimizers(clip, [clip.image_encoder.blocks, clip.text_encoder.blocks], training)
    extra = {"data": data_entry(train_set, source), "tokenizer": tokenizer.to_json()}
    with Run("clip", clip, optimizers, training, folder, args.resume, **extra) as run:
        for _, index in run.steps(len(train_set)):
            images = train_set.images(index)  # (B, C, H, H) in [0, 1]
            caption = train_set.draw_captions(index)  # (B,), one of what may be said of each
            text_tokens = add_end(captions.draw(caption))  # (B, T)
            loss, metrics = run.model(images, text_tokens, caption, train_set.caption_ids[index])
            run.update(loss, **metrics)
            clip.clip_logit_scale()

            if run.is_due(training.sample_every):
                with run.evaluation() as averaged:
                    text_embed = torch.cat([averaged.encode_text(part)[0] for part in held_out_tokens.split(500)])
                    image_embed = held_out.map(averaged.encode_image)
                    cosines = averaged.encode_image(shown.images()) @ averaged.encode_text(shown_tokens)[0].T
                zero_shot = zero_shot_accuracy(image_embed, text_embed, held_out)
                run.log_held_out({"zero_shot_accuracy": zero_shot})
                if run.is_main:
                    title = f"step {run.step}: cosine of images and captions; zero-shot accuracy {zero_shot:.1%}"
                    save_matrix(cosines, folder / f"sample-{run.step}.png", shown.images(), shown_captions, title)
            if run.is_due(training.save_every):
                run.save()


def train_prior(args, config: PriorConfig, training: TrainingConfig, clip: FrozenCLIP) -> None:
    """Stage 2: captions to CLIP image embeddings."""
    device, folder = get_device(), args.output_dir / "prior"
    train_set, test_set, source = load_images(data_source(args, clip.data), args.data_dir, device)
    held_out = test_set.subset(slice(NUM_HELD_OUT))
    say("Embedding the images ...")
    image_embed, held_out_embed = clip.encode_images(train_set), clip.encode_images(held_out)
    captions, held_out_captions = (EncodedCaptions(clip, images.captions, device) for images in (train_set, held_out))
    shown = sample_captions(held_out, NUM_SHOWN)
    shown_ids = torch.tensor([held_out.captions.index(caption) for caption in shown], device=device)

    prior = build_model(DiffusionPrior, replace(config, **clip.sizes), training)
    prior.fit_scale(image_embed)
    scaled, diffusion = prior.scale(image_embed), prior.diffusion
    optimizers = make_optimizers(prior, [prior.blocks], training)
    extra = {"data": data_entry(train_set, source), "sources": {"clip": clip.source}}
    with Run("prior", prior, optimizers, training, folder, args.resume, **extra) as run:
        for _, index in run.steps(len(train_set)):
            text_embed, text_encodings = captions[train_set.draw_captions(index)]  # (B, E), (B, T, D)
            # DDPM, algorithm 1
            x_0 = scaled[index]  # (B, E)
            t = torch.randint(1, diffusion.num_timesteps + 1, (len(x_0),), device=device)
            eps = torch.randn_like(x_0)
            x_t = diffusion.q_sample(x_0, t, eps)
            predicted = run.model(x_t, t, text_embed, text_encodings)  # of x_0
            loss = F.mse_loss(predicted.float(), diffusion.target(x_0, t, eps))
            run.update(loss)

            if run.is_due(training.sample_every):
                with run.evaluation() as averaged:
                    cosines, measured = evaluate_prior(averaged, shown_ids, held_out, held_out_captions, held_out_embed)
                run.log_held_out(measured)
                if run.is_main:
                    title = (
                        f"step {run.step}: mean cosine of the embeddings drawn for a caption (rows) to those of real "
                    )
                    title += f"images; {measured['own_caption_nearest']:.1%} nearest to what may be said of the same"
                    columns = [f"images: {caption}" for caption in shown]
                    save_matrix(cosines, folder / f"sample-{run.step}.png", shown, columns, title)
            if run.is_due(training.save_every):
                run.save()


def evaluate_prior(
    prior: DiffusionPrior, shown: Tensor, images: CaptionedImages, captions: EncodedCaptions, image_embed: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Where embeddings lie that are drawn for the captions `shown` (S,) of `images`, whose embeddings are (N, E), NUM_DRAWN
    for each: their mean cosines with the mean embedding of the images of each of these captions, (S, S), and how near they
    are to their own."""
    every_caption = torch.arange(len(images.captions), device=shown.device)
    holds = which_hold(every_caption, images.caption_ids).float()  # (N, M)
    means = holds[:, shown].T @ image_embed / holds[:, shown].sum(dim=0)[:, None]  # (S, E)
    same = holds.T @ holds[:, shown] > 0  # (M, S): both may be said of some image
    place = torch.arange(len(shown), device=shown.device).repeat_interleave(NUM_DRAWN)
    text_embed, _ = captions[every_caption]
    drawn = draw_image_embed(prior, *captions[shown[place]])
    measured = {
        "own_caption_nearest": same[(drawn @ text_embed.T).argmax(dim=1), place].float().mean(),
        "cosine_to_caption": (drawn * text_embed[shown[place]]).sum(dim=1).mean(),
        "cosine_to_images": (drawn * means[place]).sum(dim=1).mean(),
    }
    cosines = (drawn @ means.T).view(len(shown), NUM_DRAWN, -1).mean(dim=1)
    return cosines, {name: value.item() for name, value in measured.items()}


def train_decoder(args, config: DecoderConfig, training: TrainingConfig, clip: FrozenCLIP) -> None:
    """Stage 3: CLIP image embeddings to images."""
    device, folder = get_device(), args.output_dir / "decoder"
    train_set, test_set, source = load_images(data_source(args, clip.data), args.data_dir, device)
    held_out, shown = test_set.subset(slice(NUM_HELD_OUT)), test_set.of_different_captions(10)
    say("Embedding the images ...")
    image_embed, held_out_embed, shown_embed = (clip.encode_images(images) for images in (train_set, held_out, shown))
    captions = EncodedCaptions(clip, train_set.captions, device)
    _, held_out_encodings = EncodedCaptions(clip, held_out.captions, device)[held_out.caption_ids[:, 0]]
    shown_captions = [shown.captions[i] for i in shown.caption_ids[:, 0]]
    _, shown_encodings = clip.encode_prompts(shown_captions, device)

    sizes = {"image_size": source.image_size, "image_channels": source.image_channels}
    config = with_sizes(config, **clip.sizes, **sizes)
    decoder = build_model(Decoder, config, training)
    diffusion, optimizers = decoder.diffusion, make_optimizers(decoder, [], training)
    extra = {"data": data_entry(train_set, source), "sources": {"clip": clip.source}}
    with Run("decoder", decoder, optimizers, training, folder, args.resume, **extra) as run:
        for _, index in run.steps(len(train_set)):
            _, text_encodings = captions[train_set.draw_captions(index)]  # (B, T, D)
            # DDPM, algorithm 1
            x_0 = to_x_0(train_set.images(index))  # (B, C, H, H) in [-1, 1]
            t = torch.randint(1, diffusion.num_timesteps + 1, (len(x_0),), device=device)
            eps = torch.randn_like(x_0)
            x_t = diffusion.q_sample(x_0, t, eps)
            predicted = run.model(x_t, t, image_embed[index], text_encodings)  # of v
            loss = F.mse_loss(predicted.float(), diffusion.target(x_0, t, eps))
            run.update(loss)

            if run.is_due(training.sample_every):
                with run.evaluation() as averaged:
                    loss = diffusion_loss(averaged, held_out.images(), held_out_embed, held_out_encodings)
                    x_T = torch.randn_like(shown.images())
                    drawn = decode_image_embed(averaged, shown_embed, shown_encodings, x_T)
                run.log_held_out({"held_out_loss": loss.item()})
                if run.is_main:
                    title = f"step {run.step}: test images above what their embeddings are decoded to"
                    rows, path = torch.cat([shown.images(), drawn]), folder / f"sample-{run.step}.png"
                    save_grid(rows, path, len(shown), 2 * shown_captions, title)
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
