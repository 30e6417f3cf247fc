"""Load Dataset: files from object stores, through the real clients and from real servers."""

import gzip
import hashlib
import io

import object_stores
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from load_dataset_sources import lines, load, refused

from llm_finetune.components.data.sources.source import Source
from llm_finetune.components.shared.errors import UserError


@pytest.fixture(scope="module", params=[object_stores.s3_store, object_stores.gcs_store], ids=["s3", "gs"])
def store(request, tmp_path_factory):
    with request.param(tmp_path_factory.mktemp("store")) as running:
        yield running


def test_object_stores(tmp_path, store):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(9, 12)]}), buffer)
    store.put("in/b.jsonl.gz", gzip.compress(lines(5, 4)))
    store.put("in/a.jsonl", lines(0, 5))
    store.put("in/c.parquet", buffer.getvalue())
    store.put("in/_SUCCESS", b"")
    facts, rows = load(tmp_path, store.url("in/*"))
    assert [row["text"] for row in rows] == [f"row {i}" for i in range(12)]
    assert facts.source == f"{store.url('in/a.jsonl')} and 2 more" and facts.revision.startswith("sha256:")
    assert len(load(tmp_path, store.url("in/a.jsonl") + "," + store.url("in/c.parquet"), max_samples=6)[1]) == 6
    checksum = hashlib.sha256(lines(0, 5)).hexdigest()
    assert load(tmp_path, store.url("in/a.jsonl"), sha256=checksum)[0].revision == f"sha256:{checksum}"
    assert "has sha256" in refused(tmp_path, store.url("in/a.jsonl"), sha256="0" * 64)
    assert "matches no file" in refused(tmp_path, store.url("out/*.jsonl"))
    assert "does not exist" in refused(tmp_path, store.url("in/none.jsonl"))
    assert "does not exist" in refused(tmp_path, f"{store.scheme}://nobucket/a.jsonl")


def test_another_etag_tells_that_a_file_has_changed(tmp_path, store):
    address = store.put("etag.jsonl", lines(0, 2))
    first = Source(address).etag()
    assert first and first == Source(address).etag() == load(tmp_path, address)[0].revision
    store.put("etag.jsonl", lines(0, 3))
    assert Source(address).etag() not in ("", first)
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        Source(store.url("none.jsonl")).etag()


def test_wrong_credentials(tmp_path, store):
    if store.scheme != "s3":
        pytest.skip("fake-gcs-server knows no credentials")
    store.put("private.jsonl", lines(0, 1))
    with object_stores.set_environment({"AWS_SECRET_ACCESS_KEY": "wrong"}):
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        message = refused(tmp_path, store.url("private.jsonl"))
    s3fs.S3FileSystem.clear_instance_cache()
    assert "Check the path and the credentials" in message or "could not be read" in message
    assert "wrong" not in message
