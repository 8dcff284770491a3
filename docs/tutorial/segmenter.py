_base_ = "ilm_plugins::mmseg/shapes/fcn_r18-d8_shapes_bn.py"
classes = ("background", "circle", "square", "triangle", "star")  # of the values 0, 1, ... in masks
palette = [[0, 0, 0], [230, 159, 0], [86, 180, 233], [0, 158, 115], [204, 121, 167]]
iterations = 200
head = dict(num_classes=len(classes))
model = dict(decode_head=head, auxiliary_head=head)
resize = dict(type="Resize", scale=(128, 128), keep_ratio=True)
load, annotations, flip, pack = _base_.train_pipeline
meta = dict(classes=classes, palette=palette)
data = dict(type="BaseSegDataset", data_root="mine/", metainfo=meta)
train = dict(data_prefix=dict(img_path="train/images", seg_map_path="train/masks"))
val = dict(data_prefix=dict(img_path="val/images", seg_map_path="val/masks"))
train_pipeline = [load, annotations, resize, flip, pack]
test_pipeline = [load, resize, annotations, pack]
train_dataloader = dict(dataset=dict(**data, **train, pipeline=train_pipeline))
val_dataloader = dict(batch_size=1, dataset=dict(**data, **val, pipeline=test_pipeline))
test_dataloader = val_dataloader
param_scheduler = dict(end=iterations)
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=iterations),
    visualization=dict(draw=True, interval=iterations),
)
