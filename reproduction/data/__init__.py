"""Data of the study: BCCD in detectron2, and tests on altered images in OpenMMLab."""
