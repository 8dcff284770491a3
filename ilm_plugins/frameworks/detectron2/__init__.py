"""detectron2: names of norms (`norms`), RetinaNet's head, configs, training."""
