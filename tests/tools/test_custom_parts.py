"""The example of a user's own parts in the documentation trains from a config."""

import json

from tests.tools.conftest import ROOT, TOOLS

CONFIG = """
_base_ = './row.py'
custom_imports = dict(imports=['mmseg_m2f.adapters', 'custom_parts'])
model = dict(
    decode_head=dict(
        pixel_decoder=dict(_delete_=True, type='TopDownPixelDecoder'),
        matcher=dict(costs=dict(mask=dict(type='L1MaskCost'))),
        losses=dict(mask=dict(type='L1MaskLoss', _delete_=True)),
    )
)
"""


def test_own_loss_cost_and_pixel_decoder_train_through_custom_imports(
    row, call_runner, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(ROOT / 'docs/examples'))
    config = row.with_name('own_parts.py')
    config.write_text(CONFIG)
    output = call_runner(TOOLS / 'train.py', config, '--work-dir', tmp_path)
    assert (tmp_path / 'iter_2.pth').is_file()
    assert 'L1MaskCost does not declare row_wise' in output
    used = json.loads((tmp_path / 'head_config.json').read_text())
    assert used['pixel_decoder']['type'] == 'TopDownPixelDecoder'
    assert used['matcher']['costs']['mask'] == {'type': 'L1MaskCost'}
    assert used['losses']['mask']['type'] == 'L1MaskLoss'
