"""Damage and forgery below the contents: every message names the part."""

import hashlib
import json
import pickle
import zipfile

import numpy as np
import pytest
from helpers.evidence_fakes import locks, refused, written
from safetensors.numpy import save

from lightning_paf.evaluation.evidence.write import read_receipt


@pytest.fixture
def path(tmp_path):
    written(tmp_path / "r.safetensors", *locks())
    return tmp_path / "r.safetensors"


def test_a_flipped_byte_is_named_wherever_it_is(path):
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    owner = {
        at: name
        for name, entry in header.items()
        if name != "__metadata__"
        for at in range(*(begin + offset for offset in entry["data_offsets"]))
    }
    rng = np.random.default_rng(0)
    with path.open("r+b", buffering=0) as file:
        for at in range(len(data)):
            for byte in (data[at] ^ int(rng.integers(1, 256)), data[at]):
                if byte == data[at]:
                    where = f"tensor '{owner[at]}'" if at >= begin else "(header|manifest)"
                    refused(path, f"is refused. {where}: ")
                file.seek(at)
                file.write(bytes([byte]))
    assert path.read_bytes() == data


def test_a_changed_length_is_named(path):
    data = path.read_bytes()
    for damaged in (b"", data[:7], data[:8], data[:100], data[:-1], data + b"\0", data[1:], b"\0" * 8 + data):
        path.write_bytes(damaged)
        refused(path, "header: ")


def test_other_files_are_refused(path, tmp_path):
    path.write_bytes(pickle.dumps({"ids": [1]}))
    refused(path, "no safetensors file")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil", "text")
    refused(path, "no safetensors file")
    path.write_bytes(save({"weight": np.zeros(3, np.float32)}))
    refused(path, "metadata")
    path.write_text("no receipt at all, but longer than eight bytes")
    refused(path, "no safetensors file")
    with pytest.raises(ValueError, match="There is no receipt"):
        read_receipt(tmp_path)


# --- forged headers: `edit` changes the header of an intact receipt


def forge_header(path, edit):
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    raw = edit(data[8:begin])
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[begin:])


def edited(change):
    def edit(raw):
        header = json.loads(raw)
        change(header)
        return json.dumps(header).encode()

    return edit


def entry(name, **values):
    return edited(lambda header: header[name].update(values))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda raw: b"\xff" + raw[1:], "header: no valid JSON"),
        (lambda raw: b"[1, 2]", "header: no JSON object"),
        (lambda raw: b"[" * 100_000, "header: no valid JSON"),
        (lambda raw: b'{"a": ' + b"9" * 5000 + b"}", "header: no valid JSON"),
        (lambda raw: b'{"a": 1, ' + raw.strip()[1:-1] + b', "a": 2}', "a key occurs twice"),
        (lambda raw: raw.replace(b'"shape":[6]', b'"shape":[NaN]', 1), "NaN is no number"),
        (lambda raw: raw.replace(b'"shape":[6]', b'"shape":[6e0]', 1), "no valid shape"),
        (lambda raw: raw.replace(b'"shape":[6]', b'"shape":[ 6]', 1), "its bytes are not those"),
        (lambda raw: raw.strip() + b" " * 16, "its bytes are not those"),
        (edited(lambda h: h.update({"../../etc/passwd": h["ids"]})), r"'../../etc/passwd' does not belong here"),
        (edited(lambda h: h.update({"/root/x": h.pop("ids")})), "'/root/x' does not belong|'ids' is missing"),
        (edited(lambda h: h.pop("signs")), "tensor 'signs' is missing"),
        (edited(lambda h: h.update(ids=[])), "must have dtype, shape and data_offsets"),
        (edited(lambda h: h["ids"].update(more=1)), "must have dtype, shape and data_offsets"),
        (edited(lambda h: h["__metadata__"].update(more="x")), "the metadata must be one text"),
        (edited(lambda h: h.update(__metadata__={"manifest": 5})), "the metadata must be one text"),
        (entry("ids", dtype="F64"), "must be I64, but is F64"),
        (entry("ids", dtype=["I64"]), "must be I64"),
        (entry("ids", shape=[2**40]), "a shape that does not fill"),
        (entry("ids", shape=[2**64]), "no valid shape"),
        (entry("ids", shape=[-6]), "no valid shape"),
        (entry("ids", shape=[True]), "no valid shape"),
        (entry("ids", shape=[1] * 5 + [6]), "no valid shape"),
        (entry("ids", data_offsets=[0, 2**50]), "reaches beyond the end"),
        (entry("ids", data_offsets=[48, 0]), "no valid offsets"),
        (entry("ids", data_offsets=[-48, 0]), "no valid offsets"),
        (entry("ids", data_offsets=[0]), "no valid offsets"),
        (entry("ids", data_offsets=[0, 48]), "overlaps with another"),
        (entry("signs", shape=[0, 2, 1], data_offsets=[1, 1]), "overlaps with another|begins after a gap|bytes follow"),
    ],
)
def test_a_forged_header_is_refused(path, edit, said):
    forge_header(path, edit)
    refused(path, said)


def test_declared_sizes_cost_no_memory(path):
    path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])
    refused(path, "no safetensors file")
    with path.open("wb") as file:
        file.truncate(2**34)  # sparse: takes no room on the disk
    refused(path, "more than the .* that are read")


def forge_manifest(path, edit):
    """Replace the text of the manifest in an otherwise intact file."""
    forge_header(path, edited(lambda header: header["__metadata__"].update(edit(header["__metadata__"]["manifest"]))))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda text: text.replace('"seed":7', '"seed":8'), "its SHA-256 is not that of its content"),
        (lambda text: text.replace('"seed":7', '"seed": 7'), "not written in the canonical form"),
        (lambda text: text.replace('"seed":7', '"seed":1e999'), "not finite"),
        (lambda text: text.replace('"seed":7', '"seed":Infinity'), "Infinity is no number"),
        (lambda text: text.replace('"seed":7', '"seed":7,"seed":7'), "a key occurs twice"),
        (lambda text: "{}", "its SHA-256"),
        (lambda text: "\ud83d", "no valid JSON"),
        (lambda text: '{"a":' * 5000 + "1" + "}" * 5000, "no valid JSON|nested"),
    ],
)
def test_a_forged_manifest_is_refused(path, edit, said):
    forge_manifest(path, lambda text: {"manifest": edit(text)})
    refused(path, f"manifest: .*({said})")


@pytest.mark.parametrize("change", [{"shape": [True] * 6}, {"sha256": 5}, {"sha256": "0" * 64}, {"more": 1}])
def test_a_manifest_that_disagrees_with_the_header_is_refused(path, change):
    def edit(text):
        content = json.loads(text)
        del content["sha256"]
        content["tensors"]["ids"].update(change)
        unsigned = json.dumps(content, sort_keys=True, separators=(",", ":"))
        content["sha256"] = hashlib.sha256(unsigned.encode()).hexdigest()
        return {"manifest": json.dumps(content, sort_keys=True, separators=(",", ":"))}

    forge_manifest(path, edit)
    refused(path, "tensor 'ids'|its bytes are not those")
