from __future__ import annotations

import pickle

import pytest

from ssl_ray.errors import ConfigError, DamagedError, SslRayError, StorageError
from ssl_ray.redaction import carries_secrets, redact

SECRETS = {
    "user and password of a URL": ("cannot read s3://me:Pa55word@bucket/x", "Pa55word"),
    "a secret with slashes": ("s3://AKIA1:ab/Pa55word/x@bucket/x: no", "Pa55word"),
    "a secret without an @": ("s3://me:Pa55word/bucket", "Pa55word"),
    "a token as a user": ("https://Pa55word@host/x", "Pa55word"),
    "a signed query": ("https://h/x?X-Amz-Date=1&X-Amz-Signature=Pa55word", "Pa55word"),
    "a key in a query": ("s3://b/x?access_key=Pa55word&secret_key=Pa55word", "Pa55word"),
    "any option of a URL": ("s3://b/x?k=Pa55word", "Pa55word"),
    "a variable": ("AWS_SECRET_ACCESS_KEY=Pa55word python job.py", "Pa55word"),
    "a word with blanks": ("password = Pa55word", "Pa55word"),
    "JSON": ('{"aws_session_token": "Pa55word"}', "Pa55word"),
    "a dict of Python": ("{'secretKey': 'Pa55word'}", "Pa55word"),
    "a header": ("Authorization: Bearer Pa55word.abc", "Pa55word"),
    "the id of a key": ("denied for AKIAIOSFODNN7EXAMPLE", "IOSFODNN"),
    "in a source of two paths": ("coco:s3://me:Pa55word@b/a.json@s3://b/images", "Pa55word"),
}
PLAIN = [
    "s3://bucket/prefix/x.parquet", "coco:s3://bucket/a.json@s3://bucket/images/", "voc:s3://bucket/VOC/@train", "wds:s3://b/x-{0..9}.tar",
    "s3://bucket: the S3 server refuses access; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they are allowed to do",
    "http://127.0.0.1:9000/x", "http://[::1]:9000/x", "the server (http://host:9) does not answer", "data/year=20?0/*.parquet", "me@host.org",
    "config.optim.lr: 0.1 -> 0.2", "s3://bucket/a@b/x", "timm:vit_base_patch16_224.augreg_in21k",
]  # fmt: skip


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_credentials_are_masked(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "***" in redact(text)
    assert carries_secrets(text)


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text
    assert not carries_secrets(text)


def test_secrets_of_the_environment_are_masked_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCY")
    assert redact("the server said wJalrXUtnFEMI/K7MDENG/bPxRfiCY") == "the server said ***"


@pytest.mark.parametrize("kind", [SslRayError, ConfigError, StorageError, DamagedError])
def test_no_error_of_ours_holds_credentials(kind: type[SslRayError]) -> None:
    error = pickle.loads(pickle.dumps(kind("cannot read s3://me:Pa55word@bucket/x")))
    assert str(error) == "cannot read s3://***@bucket/x"
