"""Models on corrupted images, and BatchNorm with the test images' statistics: runs of the plans."""
