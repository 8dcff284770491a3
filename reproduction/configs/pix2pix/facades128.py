# Not in the papers: the paper's recipe with half the side of images, half the channels and half the
# epochs, IN in both networks. Other norms are arguments, such as
# compare reproduction/configs/pix2pix/facades128.py as-is "ILMIN(key_group_size=1)"
#     --at model.generator.norm_cfg.
_base_ = "ilm_plugins::pix2pix/_base_/pix2pix.py"
smaller = dict(num_workers=0, dataset=dict(size=128))
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(size=128, load_size=143)
)
val_dataloader = smaller
test_dataloader = smaller
model = dict(generator=dict(size=128, width=32), discriminator=dict(width=32))
param_scheduler = dict(begin=50, end=101)
train_cfg = dict(max_epochs=100, val_interval=100)
