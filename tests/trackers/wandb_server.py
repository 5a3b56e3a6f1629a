"""A W&B server for tests, on this machine, that can be told to fail."""

import contextlib
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers what a run asks for, as long as `answer` is 200.

    Args:
        answer: A status code for every request, or `"hang"`: an answer of which a byte comes now and then, without
            end, so that a time limit between two bytes never strikes.
        answer_with_key: The same for requests that carry a key, or None for `answer`.
    """

    daemon_threads = True

    def __init__(self, answer=200, answer_with_key=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.answer_with_key = answer_with_key
        self.requests = []  # (path, whether a key came with it, body)
        self.closing = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def history(self):
        """The rows of the run's history that arrived."""
        bodies = [json.loads(body) for path, _, body in self.requests if path.endswith("/file_stream")]
        chunks = [body.get("files", {}).get("wandb-history.jsonl", {}) for body in bodies]
        return [json.loads(line) for chunk in chunks for line in chunk.get("content", [])]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with_key = "Authorization" in self.headers
        self.server.requests.append((self.path, with_key, body))
        answer = self.server.answer
        if with_key and self.server.answer_with_key is not None:
            answer = self.server.answer_with_key
        if answer == "hang":
            with contextlib.suppress(OSError):  # the other side gave up
                while not self.server.closing.wait(1):
                    self.wfile.write(b"H")
            return
        content = json.dumps({"data": self._data(body)} if self.path == "/graphql" else {}).encode()
        self.send_response(answer)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST

    def log_message(self, *arguments):
        pass

    def _data(self, body):
        request = json.loads(body)
        operation, variables = request.get("operationName"), request.get("variables") or {}
        if operation == "Viewer":
            return {"viewer": {"id": "1", "username": "user", "entity": "team", "flags": "{}", "teams": {"edges": []}}}
        if operation == "UpsertBucket":
            project = {"id": "1", "name": "digits", "entity": {"id": "1", "name": "team"}}
            bucket = {"id": "1", "name": variables["name"], "displayName": "run", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.server.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        return {}


@contextlib.contextmanager
def serve(*answers):
    """A `Server(*answers)` that runs until the block ends."""
    server = Server(*answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
