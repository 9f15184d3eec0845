"""A tiny random CLIP of transformers, to compare ours with and to stand in for a pretrained one."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

END_ID = 0
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]


def their_model() -> CLIPModel:
    torch.manual_seed(0)
    sizes = {"intermediate_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    text = {**sizes, "hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 30}
    text.update(max_position_embeddings=16, eos_token_id=END_ID, bos_token_id=1, pad_token_id=END_ID)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    for parameter in model.parameters():  # larger than at the start of training, so that mistakes show
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save_pretrained(folder) -> None:
    their_model().save_pretrained(folder)
    CLIPImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"[END]": END_ID, "[UNK]": 1, "seven": 2, "7": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[END]", "eos_token": "[END]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
