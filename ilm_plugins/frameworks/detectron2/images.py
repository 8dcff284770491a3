"""What test images of detectron2 have by their annotations, and by a model."""

from detectron2.data.detection_utils import annotations_to_instances, read_image

from ..images import Content


def annotation(entry: dict, size: tuple[int, int]) -> Content | None:
    """Return the annotation of a dataset's entry, if it has one."""
    if "annotations" in entry:
        objects = annotations_to_instances(entry["annotations"], size, mask_format="bitmask")
        masks = objects.gt_masks.tensor.numpy() if objects.has("gt_masks") else None
        return Content(
            boxes=objects.gt_boxes.tensor.numpy(), labels=objects.gt_classes.numpy(), masks=masks
        )
    if "sem_seg_file_name" in entry:
        return Content(classes=read_image(entry["sem_seg_file_name"]))
    return None


def content(output: dict) -> Content | None:
    """Return the objects or the classes in a model's output for an image; None without both."""
    if "instances" in output:
        objects = output["instances"].to("cpu")
        return Content(
            boxes=objects.pred_boxes.tensor.numpy(),
            labels=objects.pred_classes.numpy(),
            scores=objects.scores.numpy(),
            masks=objects.pred_masks.numpy() if objects.has("pred_masks") else None,
        )
    if "sem_seg" in output:
        return Content(classes=output["sem_seg"].argmax(0).cpu().numpy())
    return None
