"""mmcv and MMEngine, mmdet, mmseg and mmpretrain: norms' keys (`norms`), training (`train`)."""
