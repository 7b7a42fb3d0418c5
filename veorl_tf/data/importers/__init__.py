"""Foreign data: one reader per format, all found by name in `registry`."""
