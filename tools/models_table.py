"""Writes docs/models.md from `kvision.applications.list_models()`: python tools/models_table.py [path]"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from kvision.applications import list_models

HEAD = """# Networks

Made by `python tools/models_table.py` from `kvision.applications.list_models()`.

| builder | task | parameters | published weights | proved against | paper |
| --- | --- | ---: | --- | --- | --- |
"""


def main():
    path = (
        pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent / "docs" / "models.md"
    )
    rows = [
        f"| `{row.name}` | {row.task} | {row.parameters:,} | {', '.join(row.weights)} | {row.proof} | {row.paper} |"
        for row in list_models()
    ]
    path.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
