"""What `help(kvision.visualize)` tells."""

import inspect
import re

from kvision import visualize


def test_the_help_of_the_package_names_all_there_is():
    named = set(re.findall(r"`(\w+)`", visualize.__doc__))
    public = {
        name
        for name, value in vars(visualize).items()
        if not name.startswith("_") and (not inspect.ismodule(value) or name == "adversarial")
    }
    assert public <= named
    assert named - public == {"help"}
