"""The formats of a cache."""

from wan_vae.cli.cache import CacheFormat
from wan_vae.dataset.outputs import CACHE_OUTPUTS
from wan_vae.dataset.plan import CACHE_FORMATS


def test_every_format_has_an_output_and_a_choice_of_the_command() -> None:
    assert tuple(CACHE_OUTPUTS) == CACHE_FORMATS
    assert tuple(choice.value for choice in CacheFormat) == CACHE_FORMATS
