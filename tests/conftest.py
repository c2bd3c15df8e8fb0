"""Which tests run: everything except `slow` and `network` ones, unless a file, a test or `-m` asks for them."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = config.option.markexpr or config.option.keyword
    asked = asked or any(".py" in argument for argument in config.invocation_params.args if isinstance(argument, str))
    if not asked:
        left_out = [item for item in items if item.get_closest_marker("slow") or item.get_closest_marker("network")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    # Minutes each: whoever shares the rest among processes must begin with them.
    items.sort(key=lambda item: item.path.name != "test_demo.py")
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="no CUDA device"))
