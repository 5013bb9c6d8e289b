"""The main job in a few minutes: train a small M2-BERT on this machine's own Python sources and search them with it."""
