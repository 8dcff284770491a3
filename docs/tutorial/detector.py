_base_ = "ilm_plugins::mmdet/shapes/mask-rcnn_r18_fpn_gn_shapes_gn.py"
classes = ("circle", "square", "triangle", "star")  # the names in annotations.json
iterations = 300
heads = dict(num_classes=len(classes))
model = dict(roi_head=dict(bbox_head=heads, mask_head=heads))
resize = dict(type="Resize", scale=(128, 128), keep_ratio=True)
load, annotations, flip, pack = _base_.train_pipeline
data = dict(type="CocoDataset", data_root="mine/", metainfo=dict(classes=classes))
train = dict(ann_file="train/annotations.json", data_prefix=dict(img="train/images/"))
val = dict(ann_file="val/annotations.json", data_prefix=dict(img="val/images/"))
train_pipeline = [load, annotations, resize, flip, pack]
test_pipeline = [load, resize, annotations, _base_.test_pipeline[-1]]
train_dataloader = dict(dataset=dict(**data, **train, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**data, **val, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="mine/val/annotations.json")
test_evaluator = val_evaluator
warm_up, decay = _base_.param_scheduler
param_scheduler = [warm_up, dict(decay, end=iterations)]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=iterations),
    visualization=dict(draw=True, score_thr=0.5),
)
