"""Networks that the papers train and no framework ships.

``backbones`` stands on mmcv 2, ``pix2pix`` on MMEngine alone; ilm_plugins imports either only after
the package that it stands on.
"""
