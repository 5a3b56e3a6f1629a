"""Reads a `.wandb` file back: 7 bytes of header, then LevelDB's log blocks, each record one protobuf message."""

import binascii
import json
import struct
import time

BLOCK = 32 * 1024
HEADER = 7  # of the file, and of each piece of a record


def read_run(directory, name="*run-*"):
    """The one run of that `name` that W&B wrote below `directory`, once W&B's own process is done with it.

    Returns:
        A dict: `history` (the rows that were logged), `config`, `summary`, `metrics` (`{name or pattern: step
        metric}`), `files` (the names kept for upload), and `path`, the directory of the run.
    """
    (path,) = directory.glob(f"wandb/{name}/run-*.wandb")
    deadline = time.monotonic() + 20
    while not any(record.HasField("exit") for record in _records(path.read_bytes())):
        assert time.monotonic() < deadline, f"{path} was not finished"
        time.sleep(0.02)
    run = {"history": [], "config": {}, "summary": {}, "metrics": {}, "files": [], "path": path.parent}
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            run["history"].append(_items(record.history.item))
        elif kind == "run":
            run["config"].update(_items(record.run.config.update))
        elif kind == "config":
            run["config"].update(_items(record.config.update))
        elif kind == "summary":
            run["summary"].update(_items(record.summary.update))
        elif kind == "metric":
            run["metrics"][record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "files":
            run["files"] += [file.path for file in record.files.files]
    return run


def column(run, name):
    """What was logged under `name`, in order, with the step it belongs to."""
    return [(row["trainer/step"], row[name]) for row in run["history"] if name in row]


def _items(items):
    values = {}
    for item in items:
        *path, name = item.nested_key or [item.key]
        place = values
        for key in path:
            place = place.setdefault(key, {})
        place[name] = json.loads(item.value_json)
    return values


def _records(data):
    from wandb.proto.wandb_internal_pb2 import Record

    assert data[:4] == b":W&B"
    place, pieces = HEADER, []
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # the rest of a block too short for a piece is padding
            place += BLOCK - place % BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        piece = data[place + HEADER : place + HEADER + length]
        if len(piece) < length:
            return
        assert binascii.crc32(bytes([kind]) + piece) == checksum
        place += HEADER + length
        pieces.append(piece)
        if kind in (1, 4):  # a whole record, or its last piece
            record = Record()
            record.ParseFromString(b"".join(pieces))
            pieces = []
            yield record
