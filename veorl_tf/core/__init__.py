"""What every other room stands on: errors, configuration, seeds, files, checkpoints, metrics."""
