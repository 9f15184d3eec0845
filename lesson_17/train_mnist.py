"""Train DALL·E 2: CLIP, then the prior, then the decoder. Writes to output/clip, output/prior, output/decoder.

With --decoder_image_size the decoder draws smaller images than the data's, and up-samplers are trained after it, which double
them until they are as large; they go to output/upsampler_28, the size that they draw. A stage that is finished is skipped;
--stage trains one, whether it is finished or not.
"""

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train_clip
import train_decoder
import train_prior
import train_upsampler
from clip import CLIP_PRESETS
from diffusion_decoder import DECODER_PRESETS
from diffusion_prior import PRIOR_PRESETS
from diffusion_upsampler import UPSAMPLER_PRESETS, UpsamplerConfig
from frozen_clip import FrozenCLIP
from lesson_08.bpe import MOST_TOKENS
from pipeline import doublings
from utils.checkpoints import load_checkpoint, newest_checkpoint
from utils.cli import ROOT, TrainingParser, UserError, bounded, start
from utils.data import DataSource, add_data_flags, data_source, load_images
from utils.machine import Threads, get_device, say
from utils.training import TrainingConfig, with_sizes

# What the stages train, and in which steps; their loops are in the files train_STAGE.py.
STAGES = {
    "clip": (CLIP_PRESETS, train_clip.TRAINING),
    "prior": (PRIOR_PRESETS, train_prior.TRAINING),
    "decoder": (DECODER_PRESETS, train_decoder.TRAINING),
    "upsampler": (UPSAMPLER_PRESETS, train_upsampler.TRAINING),
}
FROM_DATA = {"image_size", "image_channels", "text_seq_len", "pad_id", "small_size"}
FROM_CLIP = {"clip_embed_dim", "clip_text_width", "clip_text_seq_len"}
DECODER_IMAGE_SIZE = (
    "size of the images that the decoder draws; up-samplers double it until it is the data's (default: the data's, without "
    "up-samplers; for --stage upsampler half of the data's)"
)
TEXT_SEQ_LEN = f"tokens of a caption that CLIP reads (default: what the captions need, at most {MOST_TOKENS})"


def main() -> None:
    args, stages = parse_args()
    clip = None
    asked = data_source(args)
    if "clip" in stages and not is_finished("clip", stages["clip"][1], args, asked):
        train_clip.train(args, *stages["clip"])
    if stages.keys() & {"prior", "decoder"}:
        Threads(args.num_threads or 0)  # chosen now, as embedding all images is work too
        clip = FrozenCLIP.load(args.clip_model, args.clip_checkpoint, get_device(), args.output_dir)
    if "prior" in stages and not is_finished("prior", stages["prior"][1], args, asked, clip):
        train_prior.train(args, *stages["prior"], clip)
    if "decoder" in stages and not is_finished("decoder", stages["decoder"][1], args, asked, clip):
        train_decoder.train(args, *stages["decoder"], clip)
    if "upsampler" in stages:
        train_upsamplers(args, *stages["upsampler"], clip)


def train_upsamplers(args, config: UpsamplerConfig, training: TrainingConfig, clip: FrozenCLIP | None) -> None:
    """One after another, from the size of the decoder's images to that of the data's, which are CLIP's if there is one."""
    train_set, test_set, source = load_images(data_source(args, clip and clip.data), args.data_dir, get_device())
    for small_size, image_size in doublings(args.decoder_image_size or source.image_size // 2, source.image_size):
        sizes = {"small_size": small_size, "image_size": image_size, "image_channels": source.image_channels}
        if not is_finished("upsampler", training, args, source, name=f"upsampler_{image_size}"):
            train_upsampler.train(args, with_sizes(config, **sizes), training, train_set, test_set, source)


def parse_args():
    """The arguments, and {stage: (model config, TrainingConfig)} of the stages that they ask for."""
    parser = TrainingParser(__doc__, STAGES, ROOT / "output", FROM_DATA | FROM_CLIP)
    parser.add_argument("--stage", choices=list(STAGES), help="train this one only")
    parser.add_argument("--clip_model", metavar="NAME", help="take a CLIP that transformers loads, and train none")
    parser.add_argument("--clip_checkpoint", help="take this CLIP (default: the newest in the output folder)")
    parser.add_argument("--text_seq_len", type=bounded(int, 1, 1024), help=TEXT_SEQ_LEN)
    parser.add_argument("--decoder_image_size", type=bounded(int, 1, 4096), help=DECODER_IMAGE_SIZE)
    add_data_flags(parser)
    args = parser.parse_args()
    given = args.clip_model or args.clip_checkpoint
    if args.clip_model and args.clip_checkpoint or given and args.stage == "clip":
        raise UserError("--clip_model or --clip_checkpoint takes the place of training a CLIP; give one of the three.")
    if args.decoder_image_size and (args.image_size or newest_checkpoint(args.output_dir / "clip", "clip") is None):
        doublings(args.decoder_image_size, args.image_size or 28)  # an error now, and not after two stages
    without = {"clip": given, "upsampler": args.decoder_image_size is None}
    stages = [args.stage] if args.stage else [stage for stage in STAGES if not without.get(stage)]
    return args, parser.configs(args, *stages)


def is_finished(
    stage: str,
    training: TrainingConfig,
    args,
    asked: DataSource,
    clip: FrozenCLIP | None = None,
    name: str | None = None,
) -> bool:
    """Whether a stage that was not asked for by name is trained already, on this CLIP, from the data that are asked for (None
    is any), for images of the size that is asked for. name: of its checkpoints, if that is not the stage's."""
    name = name or stage
    file = newest_checkpoint(args.output_dir / name, name)
    if args.stage or file is None or file.stem != f"{name}-{training.num_training_steps}":
        return False
    checkpoint, reason = load_checkpoint(file, name), None
    if clip is not None and checkpoint["sources"]["clip"]["fingerprint"] != clip.source["fingerprint"]:
        reason = "learned another CLIP's embeddings"
    elif any(value not in (None, checkpoint["data"][key]) for key, value in asdict(asked).items()):
        reason = "learned from other images"
    elif stage == "decoder":
        drawn, wanted = checkpoint["config"]["image_size"], args.decoder_image_size or checkpoint["data"]["image_size"]
        reason = f"draws {drawn}x{drawn} pixels and not {wanted}x{wanted}" if drawn != wanted else None
    if reason:
        say(f"{file} {reason}, so the {stage} is trained anew.")
    else:
        say(f"The {stage} is trained already, {file}; --stage {stage} trains it anew.")
    return reason is None


if __name__ == "__main__":
    start(main)
