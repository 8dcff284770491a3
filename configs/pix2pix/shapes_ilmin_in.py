# Masks of the generated shapes to images, on the CPU; no paper has figures for it.
_base_ = "./facades_ilmin_in.py"
data_root = "datasets/shapes"
train_pairs = dict(data_prefix=dict(pair_path="pairs/training"))
pair = dict(data_root=data_root, size=64)
train = dict(**pair, **train_pairs, load_size=72)
test = dict(**pair, data_prefix=dict(pair_path="pairs/validation"))
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=train)
val_dataloader = dict(num_workers=0, dataset=test)
test_dataloader = dict(num_workers=0, dataset=dict(**test, mean_of=train_pairs))
model = dict(generator=dict(width=16, size=64), discriminator=dict(width=16, layers=2))
train_cfg = dict(max_epochs=10, val_interval=2)
param_scheduler = dict(begin=5, end=11)
default_hooks = dict(checkpoint=dict(interval=2))
