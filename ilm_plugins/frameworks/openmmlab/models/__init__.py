"""Networks that the papers train and no framework ships.

``backbones`` needs mmcv 2, and ilm_plugins imports it only after mmcv.
"""
