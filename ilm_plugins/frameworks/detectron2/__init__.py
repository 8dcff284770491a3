"""detectron2: its norms, heads, configs, datasets, checkpoints, training, tests and pictures."""
