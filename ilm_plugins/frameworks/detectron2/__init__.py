"""detectron2: names of norms (`norms`), the shapes data set (`datasets`), training (`train`)."""
