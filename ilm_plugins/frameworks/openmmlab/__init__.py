"""OpenMMLab: mmcv and MMEngine, and mmdet, mmseg and mmpretrain, which are built on them.

Registered in their registries: norms (`openmmlab_norms`), a hook that sets SSN's radius
(`openmmlab_radius`). This package's configs are bases (`openmmlab_shipped_configs`).
`openmmlab_config` reads configs, `openmmlab_training` runs them.
"""
