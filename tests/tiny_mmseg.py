"""A small network of mmsegmentation, as a config."""

CONFIG = """
preprocess = dict(type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53],
                  std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
                  pad_val=0, seg_pad_val=255, size=(32, 32))
model = dict(
    type='EncoderDecoder', data_preprocessor=preprocess, pretrained='http://127.0.0.1:9/never.pth',
    backbone=dict(type='MixVisionTransformer', in_channels=3, embed_dims=8, num_stages=4,
                  num_layers=[1, 1, 1, 1],
                  num_heads=[1, 1, 1, 1], patch_sizes=[7, 3, 3, 3], sr_ratios=[8, 4, 2, 1],
                  out_indices=(0, 1, 2, 3),
                  mlp_ratio=2,
                  init_cfg=dict(type='Pretrained', checkpoint='http://127.0.0.1:9/never.pth')),
    decode_head=dict(type='SegformerHead', in_channels=[8, 8, 8, 8], in_index=[0, 1, 2, 3],
                     channels=8,
                     num_classes=5,
                     norm_cfg=dict(type='SyncBN', requires_grad=True), align_corners=False,
                     loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
"""
