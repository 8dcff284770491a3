"""Image translation by pix2pix, on MMEngine: networks, pairs of images, metrics, training."""
