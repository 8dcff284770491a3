"""Stand-in for mmcv's compiled operators: what Mask R-CNN needs, by torchvision's.

``tests/integrations/openmmlab/test_mmcv_ext.py`` compares it with the compiled operators.
"""

import torch
from torchvision.ops import nms as torchvision_nms
from torchvision.ops import roi_align


def nms(boxes, scores, iou_threshold, offset):
    """Return the indices of the boxes (N, 4) to keep; ``offset`` 1 counts both border pixels."""
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], 1)
    return torchvision_nms(boxes, scores, iou_threshold)


def roi_align_forward(
    input,
    rois,
    output,
    argmax_y,
    argmax_x,
    aligned_height,
    aligned_width,
    spatial_scale,
    sampling_ratio,
    pool_mode,
    aligned,
):
    """Write the pooled regions (K, C, height, width) into ``output``."""
    _check_average(pool_mode)
    size = aligned_height, aligned_width
    output.copy_(roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output,
    rois,
    argmax_y,
    argmax_x,
    grad_input,
    aligned_height,
    aligned_width,
    spatial_scale,
    sampling_ratio,
    pool_mode,
    aligned,
):
    """Write the gradient by the input (N, C, H, W) into ``grad_input``."""
    _check_average(pool_mode)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output,
            rois,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _check_average(pool_mode):
    if pool_mode != 1:
        raise NotImplementedError("roi_align by the maximum needs mmcv's compiled operators")


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_, **__):
        raise NotImplementedError(f"{name} needs mmcv's compiled operators")

    return missing
