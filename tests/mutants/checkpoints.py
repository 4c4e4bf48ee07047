"""Mutants of the names and tensors of other implementations."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        name='split_projections_are_joined_backwards',
        breaks='Query, key and value of a split projection are joined in this order.',
        file='mmseg_m2f/checkpoints/keymap.py',
        old='ordered = [parts[i] for i in range(len(rule.theirs))]',
        new='ordered = [parts[i] for i in reversed(range(len(rule.theirs)))]',
        tests=('tests/checkpoints/test_layout_names.py',),
    ),
    Mutant(
        name='unknown_keys_are_dropped',
        breaks='A key that belongs to no layout is refused, never dropped.',
        file='mmseg_m2f/checkpoints/keymap.py',
        old='    if unknown:\n        raise',
        new='    if len(unknown) > 1:\n        raise',
        tests=('tests/checkpoints/test_layout_names.py',),
    ),
    Mutant(
        name='mixed_layouts_count_as_the_first',
        breaks='A checkpoint with the names of two layouts is refused.',
        file='mmseg_m2f/checkpoints/layouts.py',
        old='if len(models) > 1:',
        new='if len(models) > 2:',
        tests=('tests/checkpoints/test_layout_names.py',),
    ),
    Mutant(
        name='patch_merging_keeps_its_order',
        breaks='Input channels of patch merging change from whole pixels to channel by channel.',
        file='mmseg_m2f/checkpoints/swin.py',
        old='[0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)',
        new='[0, 1, 2, 3], :].transpose(-1, -2).flatten(-2)',
        tests=('tests/checkpoints/test_backbone_names.py',),
    ),
    Mutant(
        name='relative_positions_count_backwards',
        breaks='The relative position index of Swin is that of query minus key.',
        file='mmseg_m2f/checkpoints/swin.py',
        old='position[:, None] - position +',
        new='position - position[:, None] +',
        tests=('tests/checkpoints/test_backbone_names.py',),
    ),
    Mutant(
        name='caffe_networks_load',
        breaks='A ResNet trained the way of Caffe is refused.',
        file='mmseg_m2f/checkpoints/backbones.py',
        old='bool((std == 1).all())',
        new='bool((std == 0).all())',
        tests=('tests/checkpoints/test_detectron2_names.py',),
    ),
    Mutant(
        name='reordered_classes_move_no_object',
        breaks='No-object stays the last row when classes are reordered.',
        file='mmseg_m2f/checkpoints/resizing.py',
        old='torch.tensor([*order, num_classes], device=rows.device)',
        new='torch.tensor([num_classes, *order], device=rows.device)',
        tests=('tests/checkpoints/test_resizing.py',),
    ),
    Mutant(
        name='new_queries_are_equal_to_old_ones',
        breaks='Copies of queries get noise; equal queries would stay equal.',
        file='mmseg_m2f/checkpoints/resizing.py',
        old='scale = noise * rows.std(correction=0)',
        new='scale = 0 * rows.std(correction=0)',
        tests=('tests/checkpoints/test_resizing.py',),
    ),
    Mutant(
        name='hugging_face_counts_one_layer_less',
        breaks='decoder_layers of Hugging Face counts the prediction before the first layer.',
        file='mmseg_m2f/checkpoints/huggingface_config.py',
        old="shapes.count(f'{_DECODER}decoder.layers.') + 1",
        new="shapes.count(f'{_DECODER}decoder.layers.')",
        tests=('tests/parity/test_huggingface_files.py',),
    ),
    Mutant(
        name='cross_attention_of_hugging_face_takes_the_wrong_norm',
        breaks='The norm after cross-attention comes from the norm after cross-attention.',
        file='mmseg_m2f/checkpoints/huggingface.py',
        old="'decoder.layers.{i}.cross_attn_layer_norm.*'),\n"
        "    ('layers.{i}.self_attn.out_proj.*', 'decoder.layers.{i}.self_attn.out_proj.*'),\n"
        "    ('layers.{i}.self_norm.*', 'decoder.layers.{i}.self_attn_layer_norm.*'),",
        new="'decoder.layers.{i}.self_attn_layer_norm.*'),\n"
        "    ('layers.{i}.self_attn.out_proj.*', 'decoder.layers.{i}.self_attn.out_proj.*'),\n"
        "    ('layers.{i}.self_norm.*', 'decoder.layers.{i}.cross_attn_layer_norm.*'),",
        tests=('tests/parity/test_layouts.py',),
    ),
    Mutant(
        name='detectron2_exchanges_its_norms',
        breaks='The two norms of an encoder layer keep their places.',
        file='mmseg_m2f/checkpoints/detectron2.py',
        old="encoder.layers.{i}.norm1.*'),\n"
        "    ('layers.{i}.ffn.linear1.*', 'transformer.encoder.layers.{i}.linear1.*'),\n"
        "    ('layers.{i}.ffn.linear2.*', 'transformer.encoder.layers.{i}.linear2.*'),\n"
        "    ('layers.{i}.norm2.*', 'transformer.encoder.layers.{i}.norm2.*'),",
        new="encoder.layers.{i}.norm2.*'),\n"
        "    ('layers.{i}.ffn.linear1.*', 'transformer.encoder.layers.{i}.linear1.*'),\n"
        "    ('layers.{i}.ffn.linear2.*', 'transformer.encoder.layers.{i}.linear2.*'),\n"
        "    ('layers.{i}.norm2.*', 'transformer.encoder.layers.{i}.norm1.*'),",
        tests=('tests/parity/test_layouts.py',),
    ),
    Mutant(
        name='mmdet_norms_of_the_decoder_are_exchanged',
        breaks='Norm 0 of an mmdet decoder layer follows the cross-attention, norm 1 comes second.',
        file='mmseg_m2f/checkpoints/openmmlab.py',
        old="layers.{i}.norms.0.*'),\n"
        "    ('layers.{i}.self_attn.*', 'transformer_decoder.layers.{i}.self_attn.attn.*'),\n"
        "    ('layers.{i}.self_norm.*', 'transformer_decoder.layers.{i}.norms.1.*'),",
        new="layers.{i}.norms.1.*'),\n"
        "    ('layers.{i}.self_attn.*', 'transformer_decoder.layers.{i}.self_attn.attn.*'),\n"
        "    ('layers.{i}.self_norm.*', 'transformer_decoder.layers.{i}.norms.0.*'),",
        tests=('tests/parity/test_layouts.py',),
    ),
    Mutant(
        name='later_timm_swins_merge_at_the_end',
        breaks='A Swin of a later timm merges patches at the start of a stage.',
        file='mmseg_m2f/checkpoints/backbones.py',
        old='_classifier_of_swin(0), _classifier_of_swin(1)',
        new='_classifier_of_swin(0), _classifier_of_swin(0)',
        tests=('tests/checkpoints/test_backbone_names.py',),
    ),
)
