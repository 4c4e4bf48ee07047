"""R50 on your own images with PNG label maps (value = class index, 255 = ignore); 1 GPU.

Set ``data_root``, ``classes`` and, where yours have other names, the folders. Names of images
and label maps differ in the suffix only. The schedule is the row's: 160k iterations of 16 images
(the log warns if yours are fewer). For a small set shorten it, together with the learning rate's
decay: ``train_cfg.max_iters=N param_scheduler.0.end=N``.
"""

_base_ = '../mask2former_r50_ade20k.py'

classes = ('window', 'balcony-fence', 'car', 'shop', 'traffic-infrastructure', 'facade', 'street')
classes += ('vegetation', 'fence', 'non-building-infrastructure', 'background')
data = dict(type='BaseSegDataset', data_root='data/tiny/facade', metainfo=dict(classes=classes))
train_dirs = dict(img_path='img/train', seg_map_path='labelmap/train')
val_dirs = dict(img_path='img/val', seg_map_path='labelmap/val')
train_dataloader = dict(dataset=dict(data_prefix=train_dirs, **data))
val_dataloader = dict(dataset=dict(data_prefix=val_dirs, **data))
test_dataloader = val_dataloader
model = dict(decode_head=dict(num_classes=len(classes)))
