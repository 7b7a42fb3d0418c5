"""Learning algorithms: shared parts, and one file per algorithm that reads like its paper."""
