"""Networks from the papers that no framework includes.

``backbones`` needs mmcv 2, and ilm_plugins imports it only after mmcv.
"""
