"""detectron2: names of norms (`norms`), the dataset shapes (`datasets`), training (`train`)."""
