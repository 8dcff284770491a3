"""mmcv and MMEngine, and mmdet, mmseg, mmpretrain on them: the norms' keys (`norms`), training (`train`)."""
