"""The generated dataset `shapes`, for detectron2, mmdet and mmseg."""
