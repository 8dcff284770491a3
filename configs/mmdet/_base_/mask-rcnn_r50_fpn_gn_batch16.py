# Mask R-CNN R-50-FPN with GN, for Table 5 of the ILM Norm paper, with two images on each of eight
# GPUs; see ../../detectron2/Base-Mask-RCNN-R50-FPN-GN.yaml for what the paper gives and what is
# assumed. The rest is as in mmdet. The variants in the folder above choose a batch size and the box
# head's norm. The paper evaluates on COCO's test set, this on val2017.
_base_ = "mmdet::gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py"
custom_imports = dict(imports=["ilm_plugins"], allow_failed_imports=False)
train_dataloader = dict(batch_size=2, sampler=dict(type="InfiniteSampler"))
# No weight decay of the norms, as in Detectron.
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=1 / 3, by_epoch=False, begin=0, end=500),
    dict(
        type="MultiStepLR", by_epoch=False, begin=0, end=90000, milestones=[60000, 80000], gamma=0.1
    ),
]
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=90000, val_interval=10000)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=10000, max_keep_ckpts=3),
)
log_processor = dict(by_epoch=False)

# For ../*_test-dev_*.py: predictions on COCO's test-dev as the benchmark's server takes them.
server_file = "annotations/image_info_test-dev2017.json"
server_dataset = dict(ann_file=server_file, data_prefix=dict(img="test2017/"))
server_metric = dict(ann_file=_base_.data_root + server_file, format_only=True)
