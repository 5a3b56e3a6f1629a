"""A page in one file: a template, styles, scripts, and the data that they show."""

import functools
import html
import importlib.resources
import json
import re


def page_of(template, title, scripts, data):
    """The text of a page that loads nothing.

    Args:
        template: File in `report_page/`.
        title: Of the browser's window.
        scripts: Names of the scripts in `report_page/`, in order.
        data: What they find as `data`; JSON without NaN.
    """
    parts = {
        "title": html.escape(title),
        "style": _resource("page.css"),
        "script": "\n".join(_resource(f"{name}.js") for name in scripts),
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], _resource(template))


@functools.cache
def _resource(name):
    return (importlib.resources.files("kvision.trackers") / "report_page" / name).read_text(encoding="utf-8")
