"""detectron2: the norms' keys (`norms`), the shapes data set (`datasets`), training (`train`)."""
