# Compare norms in a segmenter on your own images and masks; put your folders and classes, in the
# order of the masks' numbers, in place of the generated ones:
#
#   python -m ilm_plugins make-shapes --root datasets
#   python -m ilm_plugins compare examples/compare_mmseg.py BN EN --seeds 0 1 2 3 4
#
# For a segmenter of your own give its config as _base_. With several GPUs: SyncBN "EN(sync=True)".
_base_ = "ilm_plugins::mmseg/shapes/fcn_r18-d8_shapes_bn.py"
classes = ("background", "circle", "square", "triangle", "star")
palette = [(0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167)]
dataset = dict(
    type="BaseSegDataset",
    data_root="datasets/shapes",
    metainfo=dict(classes=classes, palette=palette),
    img_suffix=".jpg",
    seg_map_suffix=".png",
)
training = dict(img_path="images/training", seg_map_path="annotations/training")
validation = dict(img_path="images/validation", seg_map_path="annotations/validation")
train_dataloader = dict(dataset=dict(**dataset, data_prefix=training))
val_dataloader = dict(dataset=dict(**dataset, data_prefix=validation))
test_dataloader = val_dataloader
model = dict(
    decode_head=dict(num_classes=len(classes)), auxiliary_head=dict(num_classes=len(classes))
)
