_base_ = "ilm_plugins::mmdet/shapes/mask-rcnn_r18_fpn_gn_shapes_gn.py"
classes = ("RBC", "WBC", "Platelets")  # the names in the annotations
iterations = 400
randomness = dict(seed=0)
heads = dict(bbox_head=dict(num_classes=len(classes)), mask_head=None, mask_roi_extractor=None)
model = dict(roi_head=heads)
load, _, flip, pack = _base_.train_pipeline
resize = dict(type="Resize", scale=(213, 160), keep_ratio=True)
boxes = dict(type="LoadAnnotations", with_bbox=True)
data_root = "data/bccd/"
data = dict(type="CocoDataset", data_root=data_root, metainfo=dict(classes=classes))
train = dict(ann_file="annotations/train.json", data_prefix=dict(img="images/"))
test = dict(ann_file="annotations/test.json", data_prefix=dict(img="images/"))
train_pipeline = [load, boxes, resize, flip, pack]
test_pipeline = [load, resize, boxes, _base_.test_pipeline[-1]]
train_dataloader = dict(dataset=dict(**data, **train, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**data, **test, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/test.json", metric="bbox")
test_evaluator = val_evaluator
warm_up, decay = _base_.param_scheduler
param_scheduler = [warm_up, dict(decay, end=iterations)]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=iterations),
    visualization=dict(draw=True, score_thr=0.5),
)
