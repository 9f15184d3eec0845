"""Stage 1 of train_mnist.py, CLIP: images and captions to neighbors in one space. Writes to output/clip."""

import torch
from clip import CLIP, CLIPConfig
from frozen_clip import add_end, tokenize, zero_shot_accuracy
from lesson_08.bpe import PAD_ID, CaptionTable, Tokenizer
from optimizers import make_optimizers
from torch import Tensor
from utils.data import CaptionedImages, data_source, load_images
from utils.machine import get_device, say
from utils.plots import save_matrix
from utils.prompts import data_entry
from utils.run import Run
from utils.training import TrainingConfig, build_model, with_sizes

TRAINING = {
    "cpu": TrainingConfig(
        num_training_steps=1200, batch_size=128, learning_rate=4e-3, weight_decay=0.1, sample_every=300
    ),
    "gpu": TrainingConfig(
        num_training_steps=5000,
        batch_size=256,
        learning_rate=1e-3,
        weight_decay=0.1,
        save_every=1000,
        sample_every=500,
    ),
    "paper": TrainingConfig(
        num_training_steps=390_625,
        batch_size=32_768,
        learning_rate=3e-4,
        warmup_steps=2000,
        weight_decay=0.2,
        save_every=10_000,
        sample_every=10_000,
    ),
}
NUM_HELD_OUT = 1000  # test images that each sample step measures
NUM_SHOWN = 10  # and shows, beside at most twice as many captions


def train(args, config: CLIPConfig, training: TrainingConfig) -> None:
    device, folder = get_device(), args.output_dir / "clip"
    train_set, test_set, source = load_images(data_source(args), args.data_dir, device)
    held_out, shown = test_set.subset(slice(NUM_HELD_OUT)), test_set.of_different_captions(NUM_SHOWN)
    shown_captions = shown.captions[: 2 * NUM_SHOWN]
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
                    zero_shot = evaluate(averaged, held_out, held_out_tokens)
                    cosines = averaged.encode_image(shown.images()) @ averaged.encode_text(shown_tokens)[0].T
                if run.is_main:
                    title = f"step {run.step}: cosine of images and captions; zero-shot accuracy {zero_shot:.1%}"
                    save_matrix(cosines, folder / f"sample-{run.step}.png", shown.images(), shown_captions, title)
                run.log_held_out({"zero_shot_accuracy": zero_shot})
            if run.is_due(training.save_every):
                run.save()


def evaluate(clip: CLIP, images: CaptionedImages, text_tokens: Tensor) -> float:
    """The fraction of images whose nearest caption, of those with text_tokens (M, T), may be said of them."""
    text_embed = torch.cat([clip.encode_text(part)[0] for part in text_tokens.split(500)])
    return zero_shot_accuracy(images.map(clip.encode_image), text_embed, images)
