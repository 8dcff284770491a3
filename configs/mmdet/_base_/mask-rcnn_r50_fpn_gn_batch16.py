# Mask R-CNN R-50-FPN with GN, as in Table 5 of the ILM Norm paper: GN-pretrained backbone, FPN,
# 4conv1fc box head and mask head with GN, 90,000 iterations of Detectron's 1x schedule, two images
# on each of eight GPUs; the rest as in mmdet. The variants in the folder above choose a batch size
# and the box head's norm. The paper evaluates on COCO's test set, this on val2017.
_base_ = "mmdet::gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py"
custom_imports = dict(imports=["ilm_plugins"], allow_failed_imports=False)
train_dataloader = dict(batch_size=2, sampler=dict(type="InfiniteSampler"))
# No weight decay of the norms, as in Detectron.
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type="MultiStepLR", by_epoch=False, begin=0, end=90000, milestones=[60000, 80000], gamma=0.1
    ),
]
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=90000, val_interval=10000)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=10000, max_keep_ckpts=3))
log_processor = dict(by_epoch=False)
