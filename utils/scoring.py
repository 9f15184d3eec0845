"""The judge of generated digits: a small classifier trained on real MNIST, apart from every model it judges."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.data import NUM_CLASSES, Images
from utils.prompts import DIGIT_OF_PROMPT, PROMPTS


def train_classifier(train_set: Images, num_steps: int = 1500, batch_size: int = 128, seed: int = 0) -> nn.Module:
    """A convolutional digit classifier, images (B, C, H, W) in [0, 1] to logits (B, 10), in about a minute on a CPU."""
    torch.manual_seed(seed)
    channels = train_set.pixels.shape[1]
    classifier = nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.LazyLinear(NUM_CLASSES),
    )
    device = train_set.pixels.device
    classifier = classifier.to(device)
    classifier(train_set[:1][0])  # gives the lazy layer its size
    optimizer = torch.optim.AdamW(classifier.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=num_steps)
    for _ in range(num_steps):
        images, labels = train_set[torch.randint(len(train_set), (batch_size,), device=device)]
        loss = F.cross_entropy(classifier(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval().requires_grad_(False)


def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images (B, C, H, W) in [0, 1] that the classifier takes for their label (B,)."""
    predictions = torch.cat([classifier(part).argmax(dim=1) for part in images.split(500)])
    return (predictions == labels).float().mean().item()


def prompt_accuracy(classifier: nn.Module, draw, images_a_prompt: int = 50) -> float:
    """Share of the images that show the prompted digit: 100 a digit by default, half of them prompted by words and
    half by numerals. draw(prompts, seeds) -> images (B, C, H, W) in [0, 1]."""
    prompts = [prompt for prompt in PROMPTS for _ in range(images_a_prompt)]
    images = draw(prompts, list(range(len(prompts))))
    digits = torch.tensor([DIGIT_OF_PROMPT[prompt] for prompt in prompts], device=images.device)
    return accuracy(classifier, images, digits)
