"""What the papers do not say: data, prompts, the training loop, checkpoints, plots and command lines."""
