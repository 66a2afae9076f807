from benchmarks import search_memory
from fliqs_jax import models
from hwcost import workload

LAYERS = workload.trace(models.create("resnet18", classes=1000), (224, 224, 3), train=False)


def test_resnet18_is_that_of_table_6():
    """Layer by layer from the published architecture: channels, sides, and what each layer's kernel has."""
    convolutions = [(7 * 7 * 3, 64, 112)]
    before = 64
    for channels, side in ((64, 56), (128, 28), (256, 14), (512, 7)):
        convolutions += [(9 * before, channels, side), *[(9 * channels, channels, side)] * 3, (before, channels, side)]
        before = channels
    weights = sum(kernel * channels for kernel, channels, _ in convolutions) + 512 * 1000
    outputs = sum(channels * side * side for _, channels, side in convolutions) + 1000
    found = search_memory.one_shot(LAYERS, batch_size=32, formats=3)
    assert found == (4 * weights, 2 * weights, 2 * 32 * outputs, 3 * 22)
    # What the paper prints, in MB.
    assert abs(found.gradient / 1e6 / 46.8 - 1) < 0.003
    assert abs(found.weight / 1e6 / 23.4 - 1) < 0.003
    reading = search_memory.paper_reading()
    assert reading["search_parameters"] == 51
    assert abs(reading["activation"] / 1e6 / 73.6 - 1) < 0.005


def test_branches_cost_what_they_are_many():
    one, three = (search_memory.branched(LAYERS, batch_size=8, formats=count) for count in (1, 3))
    assert one == search_memory.one_shot(LAYERS, batch_size=8, formats=1)
    assert three[:3] == tuple(3 * size for size in one[:3])
    # A search that takes one format at a time needs the same memory for any number of them.
    many = search_memory.one_shot(LAYERS, batch_size=8, formats=16)
    assert many[:3] == one[:3]
    assert many.search_parameters == 16 * len(LAYERS)
