"""mmcv and MMEngine, and mmdet, mmseg, mmpretrain on them: the norms' keys
(`norms`), and the generated data set (`mmseg_shapes`, `mmdet_shapes`)."""
