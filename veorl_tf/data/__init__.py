"""Episodes on disk, the frame store made from them, and the windows drawn from the store."""
