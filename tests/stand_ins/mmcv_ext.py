"""Stand-in for mmcv's compiled operators: the ones of Mask R-CNN, by torchvision."""

import torch
from torchvision.ops import nms as torchvision_nms
from torchvision.ops import roi_align


def nms(boxes, scores, iou_threshold, offset):
    """Return the indices of the boxes (N, 4) to keep; ``offset`` 1 counts both border pixels."""
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], 1)
    return torchvision_nms(boxes, scores, iou_threshold)


def roi_align_forward(input, rois, output, argmax_y, argmax_x, **options):
    """Write the pooled regions (K, C, height, width) into ``output``."""
    output.copy_(roi_align(input, rois, *_roi_options(**options)))


def roi_align_backward(grad_output, rois, argmax_y, argmax_x, grad_input, **options):
    """Write the gradient by the input (N, C, H, W) into ``grad_input``."""
    size, scale, *more = _roi_options(**options)
    shape, backward = grad_input.shape, torch.ops.torchvision._roi_align_backward
    grad_input.copy_(backward(grad_output, rois, scale, *size, *shape, *more))


def _roi_options(aligned_height, aligned_width, spatial_scale, sampling_ratio, pool_mode, aligned):
    if pool_mode != 1:
        raise NotImplementedError("roi_align by the maximum needs mmcv's compiled operators")
    return (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_, **__):
        raise NotImplementedError(f"{name} needs mmcv's compiled operators")

    return missing
