"""Train DALL·E 2: CLIP, then the prior, then the decoder. Writes to output/clip, output/prior, output/decoder.

A stage that is finished is skipped; --stage trains one, whether it is finished or not.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train_clip
import train_decoder
import train_prior
from clip import CLIP_PRESETS
from diffusion_decoder import DECODER_PRESETS
from diffusion_prior import PRIOR_PRESETS
from frozen_clip import FrozenCLIP
from lesson_08.bpe import MOST_TOKENS
from utils.checkpoints import load_checkpoint, newest_checkpoint
from utils.cli import ROOT, TrainingParser, UserError, bounded, start
from utils.data import add_data_flags
from utils.machine import Threads, get_device, say
from utils.training import TrainingConfig

# What the stages train, and in which steps; their loops are in the files train_STAGE.py.
STAGES = {
    "clip": (CLIP_PRESETS, train_clip.TRAINING),
    "prior": (PRIOR_PRESETS, train_prior.TRAINING),
    "decoder": (DECODER_PRESETS, train_decoder.TRAINING),
}
FROM_DATA = {"image_size", "image_channels", "text_seq_len", "pad_id"}
FROM_CLIP = {"clip_embed_dim", "clip_text_width", "clip_text_seq_len"}
TEXT_SEQ_LEN = f"tokens of a caption that CLIP reads (default: what the captions need, at most {MOST_TOKENS})"


def main() -> None:
    args, stages = parse_args()
    if "clip" in stages and not is_finished("clip", stages["clip"][1], args):
        train_clip.train(args, *stages["clip"])
    if stages.keys() == {"clip"}:
        return
    Threads(args.num_threads or 0)  # chosen now, as embedding all images is work too
    clip = FrozenCLIP.load(args.clip_model, args.clip_checkpoint, get_device(), args.output_dir / "clip")
    if "prior" in stages and not is_finished("prior", stages["prior"][1], args, clip):
        train_prior.train(args, *stages["prior"], clip)
    if "decoder" in stages and not is_finished("decoder", stages["decoder"][1], args, clip):
        train_decoder.train(args, *stages["decoder"], clip)


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


if __name__ == "__main__":
    start(main)
