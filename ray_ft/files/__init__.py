"""Files: arrays, JSON and memory."""
