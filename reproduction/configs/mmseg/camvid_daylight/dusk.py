# Tested on the sequence 0001TP, filmed at dusk.
_base_ = "fcn_r18-d8.py"
dusk = [
    dict(
        type="BaseSegDataset",
        metainfo=dict(classes=_base_.classes),
        data_root=_base_.data_root,
        data_prefix=dict(img_path=f"images/{folder}", seg_map_path=f"annotations/{folder}"),
        indices=list(range(62)),
        pipeline=_base_.test_pipeline,
    )
    for folder in ("train", "test")
]
test_dataloader = dict(dataset=dict(_delete_=True, type="ConcatDataset", datasets=dusk))
