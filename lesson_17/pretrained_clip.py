"""Take a CLIP that OpenAI trained in the place of ours: it is the very architecture of clip.py, so its weights become one of our
checkpoints, which train_prior.py, train_decoder.py and choose_mnist.py take with --clip_checkpoint. Writes to output/clip_pretrained.

C channels, D width, T text tokens.
"""

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lesson_17.clip import CLIP, CLIPConfig
from torch import Tensor
from utils.checkpoints import CONTENTS, save_checkpoint
from utils.cli import ROOT, ArgumentParser, UserError, bounded, new_folder, start
from utils.machine import say


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "name", help="of a CLIP on the Hugging Face hub, such as openai/clip-vit-base-patch32, or a folder"
    )
    parser.add_argument("--text_seq_len", type=bounded(int, 2, 1024), help="tokens that are read (default: all, 77)")
    parser.add_argument(
        "--output_dir", type=new_folder, default=ROOT / "output/clip_pretrained", help="where the checkpoint goes"
    )
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    file = args.output_dir / "clip-0.pt"
    save_checkpoint(file, convert(args.name, args.text_seq_len))
    print(f"{file} is written; name it with --clip_checkpoint.")


def convert(name: str, text_seq_len: int | None = None) -> dict:
    """A CLIP that transformers loads, and its tokenizer, as a checkpoint of ours, which reads text_seq_len tokens, all
    for None. Raises UserError if there is none, or its layers are others than OpenAI's."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, logging  # here, as it takes seconds

    logging.disable_progress_bar()
    say(f"Loading the pretrained CLIP {name} ...")
    try:
        theirs = CLIPModel.from_pretrained(name, dtype=torch.float32).eval()
        tokenizer, processor = AutoTokenizer.from_pretrained(name), CLIPImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"transformers finds no CLIP named {name}; give the name of one on its hub, or a folder."
        ) from error
    vision, text = theirs.config.vision_config, theirs.config.text_config
    if {vision.hidden_act, text.hidden_act} != {"quick_gelu"}:
        raise UserError(f"{name} has other layers than OpenAI's CLIPs, {vision.hidden_act} in the place of quick_gelu.")
    config = CLIPConfig(
        image_size=vision.image_size,
        image_channels=3,
        patch_size=vision.patch_size,
        image_width=vision.hidden_size,
        image_layers=vision.num_hidden_layers,
        image_heads=vision.num_attention_heads,
        text_vocab_size=text.vocab_size,
        pad_id=tokenizer.eos_token_id,
        text_seq_len=text_seq_len or text.max_position_embeddings,
        text_width=text.hidden_size,
        text_layers=text.num_hidden_layers,
        text_heads=text.num_attention_heads,
        embed_dim=theirs.config.projection_dim,
    )
    ours = CLIP(config)
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    copy_weights(theirs.state_dict(), ours, mean, std)
    checkpoint = {"name": "clip", "config": asdict(config), "step": 0, "model": ours.state_dict()}
    checkpoint |= {"tokenizer": tokenizer.backend_tokenizer.to_str(), "data": {}, "sources": {}}
    return dict.fromkeys(CONTENTS) | checkpoint


@torch.no_grad()
def copy_weights(theirs: dict[str, Tensor], ours: CLIP, mean: Tensor, std: Tensor) -> None:
    """The state dict of a CLIP of transformers into ours. It was trained on pixels of which `mean` (C,) was taken and which were
    divided by `std` (C,); ours sees 2 * pixels - 1, and the first layers make up for the difference."""
    patches = theirs["vision_model.embeddings.patch_embedding.weight"]  # (D, C, P, P)
    positions = theirs["vision_model.embeddings.position_embedding.weight"].clone()  # (1 + N, D)
    positions[1:] += torch.einsum("dcij,c->d", patches, (0.5 - mean) / std)
    image_encoder = {
        "embed_patches.weight": patches / (2 * std[:, None, None]),
        "class_token": theirs["vision_model.embeddings.class_embedding"],
        "positions": positions,
        **with_bias("norm_before", theirs, "vision_model.pre_layrnorm"),
        **with_bias("norm_after", theirs, "vision_model.post_layernorm"),
        "projection.weight": theirs["visual_projection.weight"],
        **blocks(theirs, "vision_model", len(ours.image_encoder.blocks)),
    }
    text_encoder = {
        "embed_token.weight": theirs["text_model.embeddings.token_embedding.weight"],
        "positions": theirs["text_model.embeddings.position_embedding.weight"][: ours.config.text_seq_len],
        **with_bias("norm", theirs, "text_model.final_layer_norm"),
        "projection.weight": theirs["text_projection.weight"],
        **blocks(theirs, "text_model", len(ours.text_encoder.blocks)),
    }
    ours.image_encoder.load_state_dict(image_encoder)
    ours.text_encoder.load_state_dict(text_encoder)
    ours.logit_scale.copy_(theirs["logit_scale"].view(1))


def with_bias(name: str, theirs: dict[str, Tensor], their_name: str) -> dict[str, Tensor]:
    """Weight and bias of a layer under our name."""
    return {f"{name}.{kind}": theirs[f"{their_name}.{kind}"] for kind in ("weight", "bias")}


def blocks(theirs: dict[str, Tensor], encoder: str, number: int) -> dict[str, Tensor]:
    """The weights of the transformer blocks of an encoder under our names."""
    names = {"norm_1": "layer_norm1", "norm_2": "layer_norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    names["attention.to_out"] = "self_attn.out_proj"
    found = {}
    for i in range(number):
        layer = f"{encoder}.encoder.layers.{i}"
        for ours, name in names.items():
            found |= with_bias(f"blocks.{i}.{ours}", theirs, f"{layer}.{name}")
        for kind in ("weight", "bias"):
            qkv = [theirs[f"{layer}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
            found[f"blocks.{i}.attention.to_qkv.{kind}"] = torch.cat(qkv)
    return found


if __name__ == "__main__":
    start(main)
