"""Stage 3 of train_mnist.py, the decoder: CLIP image embeddings to images. Writes to output/decoder."""

import torch
import torch.nn.functional as F
from diffusion_decoder import Decoder, DecoderConfig, decode_image_embed, to_x_0
from diffusion_upsampler import shrink
from frozen_clip import EncodedCaptions, FrozenCLIP
from optimizers import make_optimizers
from pipeline import doublings
from torch import Tensor
from utils.data import data_source, load_images
from utils.machine import get_device, say
from utils.plots import save_grid
from utils.prompts import data_entry
from utils.run import Run
from utils.training import TrainingConfig, build_model, with_sizes

TRAINING = {
    "cpu": TrainingConfig(num_training_steps=2500, batch_size=64, learning_rate=3e-3, ema_decay=0.99, sample_every=625),
    "gpu": TrainingConfig(
        num_training_steps=10_000,
        batch_size=128,
        learning_rate=1e-3,
        ema_decay=0.999,
        save_every=2500,
        sample_every=1000,
    ),
    "paper": TrainingConfig(
        num_training_steps=800_000,
        batch_size=2048,
        learning_rate=1.2e-4,
        ema_decay=0.9999,
        save_every=10_000,
        sample_every=10_000,
    ),
}
NUM_HELD_OUT = 1000  # test images that each sample step measures
NUM_SHOWN = 10  # and shows


def train(args, config: DecoderConfig, training: TrainingConfig, clip: FrozenCLIP) -> None:
    device, folder = get_device(), args.output_dir / "decoder"
    train_set, test_set, source = load_images(data_source(args, clip.data), args.data_dir, device)
    held_out, shown = test_set.subset(slice(NUM_HELD_OUT)), test_set.of_different_captions(NUM_SHOWN)
    say("Embedding the images ...")
    image_embed, held_out_embed, shown_embed = (clip.encode_images(images) for images in (train_set, held_out, shown))
    captions = EncodedCaptions(clip, train_set.captions, device)
    _, held_out_encodings = EncodedCaptions(clip, held_out.captions, device)[held_out.caption_ids[:, 0]]
    shown_captions = [shown.captions[i] for i in shown.caption_ids[:, 0]]
    _, shown_encodings = clip.encode_prompts(shown_captions, device)

    image_size = args.decoder_image_size or source.image_size
    doublings(image_size, source.image_size)  # refuses a size from which no up-samplers lead to the data's
    config = with_sizes(config, **clip.sizes, image_size=image_size, image_channels=source.image_channels)
    decoder = build_model(Decoder, config, training)
    diffusion, optimizers = decoder.diffusion, make_optimizers(decoder, [], training)
    extra = {"data": data_entry(train_set, source), "sources": {"clip": clip.source}}
    with Run("decoder", decoder, optimizers, training, folder, args.resume, **extra) as run:
        for _, index in run.steps(len(train_set)):
            _, text_encodings = captions[train_set.draw_captions(index)]  # (B, T, D)
            # DDPM, algorithm 1
            x_0 = to_x_0(shrink(train_set.images(index), image_size))  # (B, C, H, H) in [-1, 1]
            t = torch.randint(1, diffusion.num_timesteps + 1, (len(x_0),), device=device)
            eps = torch.randn_like(x_0)
            x_t = diffusion.q_sample(x_0, t, eps)
            predicted = run.model(x_t, t, image_embed[index], text_encodings)  # of v
            loss = F.mse_loss(predicted.float(), diffusion.target(x_0, t, eps))
            run.update(loss)

            if run.is_due(training.sample_every):
                images, shown_images = (shrink(images.images(), image_size) for images in (held_out, shown))
                with run.evaluation() as averaged:
                    measured = evaluate(averaged, images, held_out_embed, held_out_encodings)
                    x_T = torch.randn_like(shown_images)
                    drawn = decode_image_embed(averaged, shown_embed, shown_encodings, x_T)
                if run.is_main:
                    title = f"step {run.step}: test images above what their embeddings are decoded to"
                    rows, path = torch.cat([shown_images, drawn]), folder / f"sample-{run.step}.png"
                    save_grid(rows, path, len(shown), 2 * shown_captions, title)
                run.log_held_out(measured)
            if run.is_due(training.save_every):
                run.save()


def evaluate(decoder: Decoder, images: Tensor, image_embed: Tensor, text_encodings: Tensor) -> dict[str, float]:
    """The loss of images (B, C, H, H) in [0, 1] at random timesteps, as in training."""
    diffusion, x_0 = decoder.diffusion, to_x_0(images)
    t = torch.randint(1, diffusion.num_timesteps + 1, (len(x_0),), device=x_0.device)
    eps = torch.randn_like(x_0)
    predicted = decoder(diffusion.q_sample(x_0, t, eps), t, image_embed, text_encodings)
    return {"held_out_loss": F.mse_loss(predicted.float(), diffusion.target(x_0, t, eps)).item()}
