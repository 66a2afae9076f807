import pytest

from configs import common


@pytest.fixture(scope="session")
def data_config():
    """`config.data` of the common settings, with those that are given."""

    def make(**settings):
        config = common.get_config().data
        config.update(settings)
        return config

    return make
