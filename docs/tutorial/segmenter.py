_base_ = "ilm_plugins::mmseg/camvid/fcn_r18-d8.py"
classes = _base_.classes  # of the values 0, 1, ... in masks; 255 is ignored
palette = [[128, 128, 255], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222]]
palette += [
    [0, 128, 0],
    [192, 128, 128],
    [64, 64, 128],
    [160, 0, 160],
    [220, 20, 60],
    [0, 128, 192],
]
iterations = 300
randomness = dict(seed=0)
head = dict(num_classes=len(classes))
model = dict(decode_head=head, auxiliary_head=head)
data = dict(data_root="data/camvid/", metainfo=dict(classes=classes, palette=palette))
test = dict(data_prefix=dict(img_path="images/test", seg_map_path="annotations/test"))
train_dataloader = dict(batch_size=4, dataset=data)
val_dataloader = dict(batch_size=1, dataset=dict(**data, **test))
test_dataloader = val_dataloader
param_scheduler = dict(end=iterations)
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=iterations),
    visualization=dict(draw=True, interval=iterations),
)
