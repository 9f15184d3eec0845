"""Draw the transformer's attention masks, as figure 11 of the paper does, to lesson_08/figures/masks.png."""

from pathlib import Path

from dall_e import attention_masks
from matplotlib.figure import Figure

NUM_TEXT, GRID_SIZE, CONV_KERNEL_SIZE = 6, 4, 3  # the figure's


def main() -> None:
    masks = attention_masks(NUM_TEXT, GRID_SIZE, CONV_KERNEL_SIZE)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (name, mask) in zip(figure.subplots(1, len(masks)), masks.items()):
        axes.imshow(mask, cmap="Blues", vmax=1.4)
        axes.axhline(NUM_TEXT - 0.5, color="C3")
        axes.axvline(NUM_TEXT - 0.5, color="C3")
        axes.set(title=name, xlabel="attends to (text | image)", ylabel="position")
    path = Path(__file__).parent / "figures" / "masks.png"
    figure.savefig(path, dpi=80)
    print(path)


if __name__ == "__main__":
    main()
