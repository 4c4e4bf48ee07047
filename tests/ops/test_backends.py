import logging

import pytest

from mmseg_m2f.ops import backends
from mmseg_m2f.ops.backends import Backend, BackendTable


def always(*_):
    return None


def not_odd(number):
    return 'the number is odd' if number % 2 else None


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(backends, '_LOGGED', set())
    table = BackendTable('double', Backend('reference', lambda x: x + x, always))
    table.register(Backend('fast', lambda x: 2 * x, not_odd))
    return table


def test_auto_takes_the_latest_registered_that_can_run_and_the_reference_last(table):
    assert table.names == ['fast', 'reference']
    assert table.choose('auto', 4).name == 'fast'
    assert table.choose('auto', 3).name == 'reference'
    table.register(Backend('faster', lambda x: x << 1, always))
    assert table.choose('auto', 4).name == 'faster'


def test_auto_leaves_out_what_is_to_be_named(table):
    table.register(Backend('untimed', lambda x: x << 1, always, automatic=False))
    assert table.choose('auto', 4).name == 'fast'
    assert table.choose('untimed', 4).name == 'untimed'


def test_a_name_is_obeyed_or_refused_with_the_reason(table):
    assert table.choose('reference', 4).name == 'reference'
    with pytest.raises(ValueError, match="double: back end 'fast' cannot run: the number is odd"):
        table.choose('fast', 3)
    with pytest.raises(
        ValueError, match="double: unknown back end 'slow'; known: 'auto', 'fast', 'reference'"
    ):
        table.choose('slow', 4)


def test_registering_a_name_again_replaces_it(table):
    table.register(Backend('fast', lambda _: 0, always))
    assert table.names == ['fast', 'reference']
    assert table.choose('auto', 3).function(3) == 0


def test_auto_logs_each_choice_once_and_a_name_never(table, caplog):
    caplog.set_level(logging.INFO, logger='mmseg_m2f')
    table.choose('fast', 2)
    assert caplog.messages == []
    for number in (2, 4, 3, 5, 6):
        table.choose('auto', number)
    assert caplog.messages == [
        "double runs on back end 'fast'",
        'double runs on its slow reference, as no other back end can run: '
        "'fast': the number is odd",
    ]
    assert [record.levelname for record in caplog.records] == ['INFO', 'WARNING']
