"""R50 on your own images with label maps (PNG, pixel value = class index, 255 = ignored); 1 GPU.

1. Set `data_root`, the folders and `classes`. An image and its label map have the same name
   without the suffix.
2. The schedule of the base config is for a large data set: 160,000 iterations of 16 images. For a
   small one, shorten it together with the decay of the learning rate, here to 5,000 iterations:
   --cfg-options train_cfg.max_iters=5000 param_scheduler.0.end=5001
3. On one GPU an iteration has 2 images, and the log warns: the learning rate is for 16. Lower it,
   for example with optim_wrapper.optimizer.lr=1.25e-5.
"""

_base_ = '../mask2former_r50_ade20k.py'

data_root = 'data/tiny/facade'
classes = [
    'window',
    'balcony-fence',
    'car',
    'shop',
    'traffic-infrastructure',
    'facade',
    'street',
    'vegetation',
    'fence',
    'non-building-infrastructure',
    'background',
]

train_dataloader = dict(
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        metainfo=dict(classes=classes),
        data_prefix=dict(img_path='img/train', seg_map_path='labelmap/train'),
    )
)
val_dataloader = dict(
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        metainfo=dict(classes=classes),
        data_prefix=dict(img_path='img/val', seg_map_path='labelmap/val'),
    )
)
test_dataloader = val_dataloader

model = dict(decode_head=dict(num_classes=len(classes)))
