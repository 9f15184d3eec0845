"""Stage 2 of train_mnist.py, the prior: captions to CLIP image embeddings. Writes to output/prior."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from clip import which_hold
from diffusion_prior import DiffusionPrior, PriorConfig, draw_image_embed
from frozen_clip import EncodedCaptions, FrozenCLIP
from optimizers import make_optimizers
from torch import Tensor
from utils.data import CaptionedImages, data_source, load_images
from utils.machine import get_device, say
from utils.plots import save_matrix
from utils.prompts import data_entry
from utils.run import Run
from utils.samples import sample_captions
from utils.training import TrainingConfig, build_model

TRAINING = {
    "cpu": TrainingConfig(
        num_training_steps=2400, batch_size=256, learning_rate=2e-3, ema_decay=0.99, sample_every=600
    ),
    "gpu": TrainingConfig(
        num_training_steps=30_000,
        batch_size=256,
        learning_rate=1e-3,
        ema_decay=0.999,
        save_every=5000,
        sample_every=2500,
    ),
    "paper": TrainingConfig(
        num_training_steps=600_000,
        batch_size=4096,
        learning_rate=1.1e-4,
        weight_decay=6e-2,
        ema_decay=0.9999,
        save_every=10_000,
        sample_every=10_000,
    ),
}
NUM_HELD_OUT = 1000  # test images whose embeddings each sample step measures with
NUM_SHOWN = 20  # captions that embeddings are drawn for then
NUM_DRAWN = 20  # embeddings of each


def train(args, config: PriorConfig, training: TrainingConfig, clip: FrozenCLIP) -> None:
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
                    cosines, measured = evaluate(averaged, shown_ids, held_out, held_out_captions, held_out_embed)
                if run.is_main:
                    title = (
                        f"step {run.step}: mean cosine of the embeddings drawn for a caption (rows) to those of real "
                    )
                    title += f"images; {measured['own_caption_nearest']:.1%} nearest to what may be said of the same"
                    columns = [f"images: {caption}" for caption in shown]
                    save_matrix(cosines, folder / f"sample-{run.step}.png", shown, columns, title)
                run.log_held_out(measured)
            if run.is_due(training.save_every):
                run.save()


def evaluate(
    prior: DiffusionPrior, shown: Tensor, images: CaptionedImages, captions: EncodedCaptions, image_embed: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Where embeddings lie that are drawn for the captions `shown` (S,) of `images`, whose embeddings are (N, E), NUM_DRAWN
    for each: their mean cosines with the images of each of these captions, (S, S); how near they are to their own; and, to
    compare, the mean cosine of these images with each other."""
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
        "cosine_of_images": means.square().sum(dim=1).mean(),  # the mean of all products is that of the means
    }
    cosines = (drawn @ means.T).view(len(shown), NUM_DRAWN, -1).mean(dim=1)
    return cosines, {name: value.item() for name, value in measured.items()}
