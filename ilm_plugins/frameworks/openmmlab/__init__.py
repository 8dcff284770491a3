"""OpenMMLab: mmcv and MMEngine, and mmdet, mmseg and mmpretrain, which are built on them.

Registered in their registries: norms (`norms`), a hook that sets SSN's radius (`radius`).
This package's configs are bases (`shipped_configs`). `config` reads configs, `train` runs them.
"""
