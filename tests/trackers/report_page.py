"""Reading the report's page: with a parser of HTML, and with a browser."""

import html.parser
import json
import subprocess


class _Parser(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.texts, self.title = [], [], {}, ""
        self._open = None

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)
        self._open = dict(attrs).get("id", tag)

    def handle_data(self, data):
        self.texts[self._open] = self.texts.get(self._open, "") + data

    def handle_endtag(self, tag):
        self._open = None


def parse(path):
    """The parsed page: `tags`, `attributes`, and `texts` by id or tag."""
    parser = _Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def page_data(path):
    """The data of a page, strict JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(parse(path).texts["data"], parse_constant=refuse)


def open_in_browser(path, profile, width=1200, dark=False):
    """The page after its scripts have run, as HTML, and what the browser's console said."""
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={profile}", f"--window-size={width},900",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=2000", "--dump-dom", path.resolve().as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
