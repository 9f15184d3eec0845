"""What the papers do not say: data, prompts, the training loop, checkpoints, plots and command lines."""

import logging

# While it is imported, matplotlib warns of a home that it cannot write to; it does well without.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
