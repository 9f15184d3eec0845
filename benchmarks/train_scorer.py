"""Train the classifier that reads digits off samples (utils/scoring.py), on MNIST, and write utils/scorer.safetensors, in
half precision. A minute on a CPU.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from utils.cli import ArgumentParser, start
from utils.data import CaptionedImages, DataSource
from utils.datasets import load_images
from utils.machine import get_device
from utils.scoring import SCORER_FILE, Scorer, digits_of


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", help="where MNIST is downloaded")
    args = parser.parse_args()
    train_set, test_set, _ = load_images(DataSource("mnist"), args.data_dir, get_device())
    scorer = train_scorer(train_set)
    right = test_set.map(scorer).argmax(dim=1) == digits_of(test_set)
    save_file({name: tensor.half() for name, tensor in scorer.state_dict().items()}, SCORER_FILE)
    print(f"{SCORER_FILE}: {right.float().mean():.1%} of the test images are read right.")


def train_scorer(train_set: CaptionedImages, num_steps: int = 2000, batch_size: int = 128) -> Scorer:
    """A scorer of 99% and more on MNIST's test images."""
    torch.manual_seed(0)
    labels, device = digits_of(train_set), train_set.device
    scorer = Scorer().to(device)
    optimizer = torch.optim.AdamW(scorer.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=num_steps)
    for _ in range(num_steps):
        index = torch.randint(len(train_set), (batch_size,), device=device)
        loss = F.cross_entropy(scorer(train_set.images(index)), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return scorer.eval().requires_grad_(False)


if __name__ == "__main__":
    start(main)
