"""detectron2: names of norms (`norms`), RetinaNet's levels (`retinanet`), training (`train`)."""
