# A Mask R-CNN small enough to learn the generated `shapes` in minutes on two CPU cores. They are
# written to data_root if they are not there.
_base_ = "mask-rcnn_r50_fpn_gn_batch2.py"
custom_imports = dict(imports=["ilm_plugins.shapes.mmdet"])
model = dict(
    data_preprocessor=dict(mean=[90.0, 90.0, 90.0], std=[64.0, 64.0, 64.0]),
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4, 5.66], ratios=[1.0], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, featmap_strides=[4]),
        bbox_head=dict(in_channels=64, conv_out_channels=64, fc_out_channels=128, num_classes=4),
        mask_roi_extractor=dict(out_channels=64, featmap_strides=[4]),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=4),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=24, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=50)),
)
dataset_type = "ShapesDataset"
data_root = "datasets/shapes/"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    num_workers=1,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file="annotations/instances_training.json",
        data_prefix=dict(img="images/training/"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file="annotations/instances_validation.json",
        data_prefix=dict(img="images/validation/"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_validation.json")
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=780),
]
train_cfg = dict(max_iters=780, val_interval=780)
default_hooks = dict(logger=dict(log_metric_by_epoch=False), checkpoint=dict(interval=780))
