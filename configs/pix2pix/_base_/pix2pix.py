"""pix2pix on Facades, label map to photo: ILM Norm paper, Section 4.4, with pix2pix's own recipe.

The dataset is a folder of pairs side by side, photo left and label map right. The first 200 of the
folder facades train, the next 200 test; which 200 of the 400 the paper takes, it does not say.
"""

custom_imports = dict(
    imports=[
        "ilm_plugins.pix2pix.translation_networks",
        "ilm_plugins.pix2pix.training",
    ],
    allow_failed_imports=False,
)
default_scope = "mmengine"

data_root = "data/facades"
size = 256
first, second = dict(facades=(0, 200)), dict(facades=(200, 400))
pair = dict(
    type="PairedImages",
    data_root=data_root,
    data_prefix=dict(pair_path=""),
    direction="right-to-left",
    size=size,
)
train_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,  # otherwise each epoch has the same crops in the same order
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(**pair, images=first, load_size=286, flip=0.5),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**pair, images=second),
)
# A test also scores the mean training image.
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**pair, images=second, mean_of=dict(images=first)),
)

# At batch size 1 pix2pix's batch norm is instance norm with scale and shift.
norm_cfg = dict(type="IN", affine=True)
model = dict(
    type="Pix2Pix",
    # In the paper dropout is the generator's only noise, at test time as well.
    generator=dict(type="UNetGenerator", size=size, norm_cfg=norm_cfg, dropout=0.5),
    discriminator=dict(type="PatchDiscriminator", norm_cfg=norm_cfg),
    lambda_l1=100.0,
)
model_wrapper_cfg = dict(type="MMSeparateDistributedDataParallel")

# Fused, Adam's step takes a fraction of the time; results differ by rounding.
optimizer = dict(
    type="OptimWrapper",
    optimizer=dict(type="Adam", lr=2e-4, betas=(0.5, 0.999), fused=True),
    clip_grad=None,
)
optim_wrapper = dict(constructor="OptimizerEach", generator=optimizer, discriminator=optimizer)
# Constant for half of the epochs, then linear to 0.
param_scheduler = dict(type="LinearLR", start_factor=1, end_factor=0, begin=100, end=201)
auto_scale_lr = dict(base_batch_size=1)

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=200, val_interval=10)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
val_evaluator = dict(type="ImageTransfer", lpips_weights=None)
test_evaluator = val_evaluator

default_hooks = dict(
    logger=dict(type="LoggerHook", interval=50),
    checkpoint=dict(type="CheckpointHook", by_epoch=True, interval=10, max_keep_ckpts=2),
)
# dict(type="EMAHook", momentum=0.001) beside it for an exponential moving average.
custom_hooks = [dict(type="TranslatedImages", number=8)]
visualizer = dict(
    type="Visualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
randomness = dict(seed=0)
