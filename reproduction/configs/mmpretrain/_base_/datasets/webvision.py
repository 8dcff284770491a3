# WebVision 1.0, whose classes are ImageNet's, with ImageNet's pipelines. Its training list:
# cat info/train_filelist_google.txt info/train_filelist_flickr.txt > info/train_filelist.txt
# The EN paper follows CurriculumNet in data augmentation and "data balance" (Section 4.2), without
# details: here the augmentation is ImageNet's, and the images of a class with a share f of all are
# repeated sqrt(.016 / f) times, rounded up, 4 times at the average: the nearest that MMEngine has.
_base_ = "imagenet.py"
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="ClassBalancedDataset",
        oversample_thr=1.6e-2,
        dataset=dict(
            type="ImageNet",
            data_root="data/webvision",
            ann_file="info/train_filelist.txt",
            pipeline=_base_.train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root="data/webvision",
        split="",
        data_prefix="val_images_256",
        ann_file="info/val_filelist.txt",
    ),
)
test_dataloader = val_dataloader
