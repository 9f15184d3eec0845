"""DALL·E: one transformer over text tokens, then image tokens (arXiv 2102.12092, section 2.2, appendix B).

A caption and an image become one sequence, and the model learns to predict each token from those before it. To draw an
image, the model is given the caption and continues it:

    position   0       1 ... T       T+1 ... T+N
    token      start   the caption   the image's tokens, row by row

Ours departs from the paper in three ways. Some captions are dropped in training, so that sampling can be guided
(classifier-free guidance, arXiv 2207.12598). Some image tokens that the model reads in training are wrong, though never
those it predicts, so that an unlucky token does not derail the rest of a drawing. And the paper has a second start
token before the image, whose first token ours predicts from the last text position.

B batch, T text tokens, N image tokens in a W x W grid, S = T + N positions that predict a token, V text vocabulary,
K image vocabulary, D width.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass
class DallEConfig:
    """Sizes of the transformer; the defaults are the `small` preset. Raises ValueError for sizes that do not work."""

    text_vocab_size: int = 1024  # V, with the pad id; at most, for a training; 16,384 in the paper
    pad_id: int = 0  # the tokenizer's; fills a caption up to T
    text_seq_len: int = 6  # T; 256 in the paper
    image_vocab_size: int = 256  # K, the dVAE's codebook; 8,192 in the paper
    grid_size: int = 7  # W, the dVAE's grid
    dim: int = 128  # D
    num_layers: int = 4
    num_heads: int = 2
    conv_kernel_size: int = 5  # of the last layer's attention mask; 11 in the paper, for a grid of 32
    dropout: float = 0.0
    caption_dropout: float = 0.1  # fraction of captions replaced by the null caption in training
    token_corruption: float = 0.15  # fraction of image tokens in the context replaced in training; 0 in the paper
    text_loss_weight: float = 1 / 8  # the image's is 7/8

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            least = 0 if f.name == "pad_id" else 1
            if type(f.default) is int and not least <= value < 10**9:
                raise ValueError(f"{f.name} {value} is not a whole number from {least} up.")
            if type(f.default) is float and not 0 <= value <= 1:
                raise ValueError(f"{f.name} {value} is not in [0, 1].")
        if self.num_layers > 1000 or self.pad_id >= self.text_vocab_size:
            raise ValueError("num_layers is 1,000 or less, and pad_id less than text_vocab_size.")
        if self.dim % self.num_heads or self.conv_kernel_size % 2 == 0:
            raise ValueError(f"num_heads does not divide dim {self.dim}, or conv_kernel_size is not odd.")

    @property
    def image_seq_len(self) -> int:
        """Image tokens, N."""
        return self.grid_size**2


DALL_E_PRESETS = {
    "small": DallEConfig(),
    "large": DallEConfig(text_vocab_size=4096, dim=256, num_layers=8, num_heads=4, dropout=0.1),
    "paper": DallEConfig(
        text_vocab_size=16384, text_seq_len=256, image_vocab_size=8192, grid_size=32, dim=62 * 64, num_layers=64,
        num_heads=62, conv_kernel_size=11, caption_dropout=0.0, token_corruption=0.0,
    ),
}  # fmt: skip


def attention_masks(num_text: int, grid_size: int, conv_kernel_size: int) -> dict[str, Tensor]:
    """The three sparse causal masks of appendix B.1, figure 11: which keys (columns) a query (row) attends to.

    Every position attends to the first `num_text` positions, up to itself. An image position also attends to itself and
    row: the W image positions before it, back to the one right above it; column: the image positions above it; conv:
    the earlier ones of a square kernel around it, which wraps around the grid's edges.
    Returns {name: (num_text + W^2, num_text + W^2) bool}.
    """
    position = torch.arange(num_text + grid_size**2)
    query, key = position[:, None], position[None, :]
    distance = query - key  # in raster order
    causal = distance >= 0
    radius = conv_kernel_size // 2
    in_kernel = torch.zeros_like(causal)
    for up in range(radius + 1):
        in_kernel |= (distance - up * grid_size).abs() <= radius
    seen = {"row": distance <= grid_size, "column": distance % grid_size == 0, "conv": in_kernel}
    return {name: causal & ((key < num_text) | in_image) for name, in_image in seen.items()}


def attention_types(num_layers: int) -> list[str]:
    """The mask of each layer: row, column, row, row, repeated, and conv in the last (appendix B.1)."""
    return ["column" if layer % 4 == 1 else "row" for layer in range(num_layers - 1)] + ["conv"]


class KeyValueCache:
    """Keys and values that a layer has computed, so that a new token costs one position's work."""

    def __init__(self):
        self.keys = self.values = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, heads, new, D / heads); returns all of them."""
        if self.keys is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer with GPT-2's first weights, and a bias of zeros."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def embedding(num_embeddings: int, dim: int) -> nn.Embedding:
    """An embedding with the same first weights."""
    return nn.Embedding.from_pretrained(0.02 * torch.randn(num_embeddings, dim), freeze=False)


class Attention(nn.Module):
    """Multi-head attention under a mask. Written out, as PyTorch's fused one is slower on a CPU at these lengths."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = linear(dim, 3 * dim, bias=False)
        self.to_out = linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        q, k, v = rearrange(self.to_qkv(x), "b s (three h d) -> three b h s d", three=3, h=self.num_heads)
        if cache is not None:
            k, v = cache.extend(k, v)
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        out = weights.to(v.dtype) @ v
        return self.to_out(rearrange(out, "b h s d -> b s (h d)"))


class Block(nn.Module):
    """Attention and a feed-forward network, each normalized first and added to the residual stream."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.norm_1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.norm_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(linear(dim, 4 * dim), nn.GELU(), linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x), mask, cache))
        return x + self.dropout(self.mlp(self.norm_2(x)))


class DallE(nn.Module):
    """The transformer over a joint vocabulary: V text ids, a pad id for each of T text positions, K image ids."""

    def __init__(self, config: DallEConfig):
        super().__init__()
        self.config = config
        c = config
        self.num_text_ids = c.text_vocab_size + c.text_seq_len
        self.start = nn.Parameter(0.02 * torch.randn(c.dim))  # not zeros: the gradient of a LayerNorm of zeros is huge
        self.embed_token = embedding(self.num_text_ids + c.image_vocab_size, c.dim)
        self.embed_text_position = embedding(c.text_seq_len, c.dim)
        self.embed_row = embedding(c.grid_size, c.dim)
        self.embed_column = embedding(c.grid_size, c.dim)
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c.dim, c.num_heads, c.dropout) for _ in range(c.num_layers))
        self.norm = nn.LayerNorm(c.dim)
        # One softmax for each kind of token, as a joint one could draw an image token in the text, or the reverse.
        self.to_text_logits = linear(c.dim, self.num_text_ids)
        self.to_image_logits = linear(c.dim, c.image_vocab_size)
        # The start position counts as text. The last image token is predicted, never read, so it has no position.
        for name, mask in attention_masks(1 + c.text_seq_len, c.grid_size, c.conv_kernel_size).items():
            self.register_buffer(f"{name}_mask", mask[:-1, :-1], persistent=False)

    def forward(self, text_tokens: Tensor, image_tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of captions (B, T) and their images (B, N): 1/8 text and 7/8 image cross-entropy (section 2.2).

        Returns the loss and both parts, in nats a token. In training mode a fraction `caption_dropout` of the captions
        becomes the null caption, and a fraction `token_corruption` of the image tokens that it reads are another
        image's.
        """
        context = image_tokens
        if self.training:
            dropped = torch.rand(len(text_tokens), 1, device=text_tokens.device) < self.config.caption_dropout
            text_tokens = torch.where(dropped, self.null_caption, text_tokens)
            corrupted = torch.rand(image_tokens.shape, device=image_tokens.device) < self.config.token_corruption
            context = torch.where(corrupted, image_tokens.roll(1, dims=0), image_tokens)
        text_logits, image_logits = self.logits(text_tokens, context)
        text_loss = F.cross_entropy(text_logits.transpose(1, 2), self.text_ids(text_tokens))
        image_loss = F.cross_entropy(image_logits.transpose(1, 2), image_tokens)
        weight = self.config.text_loss_weight
        return weight * text_loss + (1 - weight) * image_loss, {"text_loss": text_loss, "image_loss": image_loss}

    @property
    def null_caption(self) -> Tensor:
        """T pads: what stands for "no caption" in training, and what guidance steers away from."""
        return torch.full((self.config.text_seq_len,), self.config.pad_id, device=self.start.device)

    def text_ids(self, text_tokens: Tensor) -> Tensor:
        """Text tokens (B, T) with each pad replaced by the pad id of its position."""
        pad_ids = self.config.text_vocab_size + torch.arange(self.config.text_seq_len, device=text_tokens.device)
        return torch.where(text_tokens == self.config.pad_id, pad_ids, text_tokens)

    def embed_text(self, text_tokens: Tensor) -> Tensor:
        """The start and a caption (B, T) as inputs (B, 1 + T, D)."""
        x = self.embed_token(self.text_ids(text_tokens)) + self.embed_text_position.weight
        return torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)

    def embed_image(self, image_tokens: Tensor, place: int = 0) -> Tensor:
        """Image tokens (B, n) as inputs (B, n, D), the first of them at the index `place` of the grid."""
        index = torch.arange(place, place + image_tokens.shape[1], device=image_tokens.device)
        row, column = index // self.config.grid_size, index % self.config.grid_size
        return self.embed_token(self.num_text_ids + image_tokens) + self.embed_row(row) + self.embed_column(column)

    def transformer(self, x: Tensor, caches: list[KeyValueCache] | None = None, first: int = 0) -> Tensor:
        """Inputs (B, s, D) at the positions `first` ... `first` + s - 1 of the sequence to features of the same shape."""
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):  # the residual stream too: a tenth faster there
            x = x.to(torch.get_autocast_dtype("cpu"))
        x = self.dropout(x)
        end = first + x.shape[1]
        for layer, (block, mask_name) in enumerate(zip(self.blocks, attention_types(len(self.blocks)))):
            mask = self.get_buffer(f"{mask_name}_mask")[first:end, :end]
            x = block(x, mask, None if caches is None else caches[layer])
        return self.norm(x)

    def logits(self, text_tokens: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of each text token (B, T, V + T) and each image token (B, N, K), given all tokens before it."""
        x = torch.cat([self.embed_text(text_tokens), self.embed_image(image_tokens[:, :-1])], dim=1)  # (B, S, D)
        text, image = self.transformer(x).split([self.config.text_seq_len, self.config.image_seq_len], dim=1)
        return self.to_text_logits(text).float(), self.to_image_logits(image).float()

    @torch.no_grad()
    def generate(
        self, text_tokens: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
        guidance_scale: float = 1.0, prefix: Tensor | None = None, u: Tensor | None = None,
        num_tokens: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Draw the image tokens (B, N) of captions (B, T), or the first num_tokens of them.

        temperature: divides the logits; 0 takes the likeliest token. top_k: keep the k likeliest tokens, 0 all. top_p:
        keep the likeliest tokens that together reach this probability. guidance_scale: 0 ignores the caption, 1 is the
        model as trained, more exaggerates the caption. prefix (B, n): the first image tokens, which are continued, as
        in the paper's image completion (figure 2d). u (B, N): uniform numbers in [0, 1) that decide every draw.
        """
        num_images, num_tokens = len(text_tokens), num_tokens or self.config.image_seq_len
        u = torch.rand(num_images, num_tokens, device=text_tokens.device) if u is None else u
        image_tokens = text_tokens.new_empty(num_images, 0) if prefix is None else prefix
        guided = guidance_scale != 1
        if guided:
            text_tokens = torch.cat([text_tokens, self.null_caption.expand_as(text_tokens)])
        caches, first = [KeyValueCache() for _ in self.blocks], 0
        x = torch.cat([self.embed_text(text_tokens), self.embed_image(image_tokens.repeat(1 + guided, 1))], dim=1)
        for index in range(image_tokens.shape[1], num_tokens):
            logits = self.to_image_logits(self.transformer(x, caches, first)[:, -1]).float()  # (B or 2B, K)
            if guided:
                conditional, unconditional = logits.chunk(2)
                logits = unconditional + guidance_scale * (conditional - unconditional)
            token = sample_token(logits, temperature, top_k, top_p, u[:, index])[:, None]
            first += x.shape[1]
            x = self.embed_image(token.repeat(1 + guided, 1), place=index)
            image_tokens = torch.cat([image_tokens, token], dim=1)
        return image_tokens


def sample_token(logits: Tensor, temperature: float, top_k: int, top_p: float, u: Tensor) -> Tensor:
    """Draw a token (B,) from logits (B, K): filtered, then by inversion of the cumulative distribution at u (B,)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probs, tokens = filtered_probs(logits, temperature, top_k, top_p)
    cumulative = probs.cumsum(dim=-1)
    index = torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True)
    index = index.clamp(max=(probs > 0).sum(dim=-1, keepdim=True) - 1)  # rounding may carry u past the last token kept
    return tokens.gather(1, index).squeeze(1)


def filtered_probs(logits: Tensor, temperature: float, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The probabilities of logits (B, K), the likeliest first, and their tokens, (B, K) each. Those of the tokens that
    are filtered out are 0; the others are not rescaled. The temperature is above 0."""
    probs, tokens = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    if top_k:
        probs[:, top_k:] = 0
    before = probs.cumsum(dim=-1) - probs  # probability of the likelier tokens
    return probs.masked_fill(before >= top_p * probs.sum(dim=-1, keepdim=True), 0), tokens
