# SPDX-License-Identifier: GPL-3.0-or-later
"""What the public servers send, and to whom the internal ones talk."""

from __future__ import annotations

import gzip

import pytest
from static_tier import CSS, FIRST, FONT, Tier

HOSTS = ("static1", "static2")
YEAR = "public, max-age=31536000, immutable"
SHORT = "public, max-age=300"
HASHED = "/static/css/site.0123456789ab.css"


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("path", "kind", "cache"),
    [
        (HASHED, "text/css; charset=utf-8", YEAR),
        ("/static/css/site.css", "text/css; charset=utf-8", SHORT),
        ("/static/robots.txt", "text/plain; charset=utf-8", SHORT),
        ("/static/img/mark.svg", "image/svg+xml; charset=utf-8", SHORT),
        ("/static/font.0123456789ab.woff2", "font/woff2", YEAR),
        ("/static/js/app.0123456789ab.mjs", "text/javascript; charset=utf-8", YEAR),
        ("/static/app.webmanifest", "application/manifest+json; charset=utf-8", SHORT),
    ],
)
def test_kinds_of_files(tier: Tier, host: str, path: str, kind: str, cache: str) -> None:
    answer = tier.get(host, path)
    assert answer.status == 200
    assert answer.body == FIRST.files[path.removeprefix("/static/")]
    assert (answer.headers["Content-Type"], answer.headers.get_all("Cache-Control")) == (kind, [cache])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Server"] == "nginx"


@pytest.mark.parametrize(
    ("accepted", "encoding", "body"),
    [
        ("gzip, deflate, br", "br", FIRST.files["css/site.0123456789ab.css.br"]),
        ("gzip, deflate", "gzip", FIRST.files["css/site.0123456789ab.css.gz"]),
        ("br;q=0, gzip;q=0", None, CSS),
        ("", None, CSS),
    ],
)
def test_compressed_siblings(tier: Tier, accepted: str, encoding: str | None, body: bytes) -> None:
    answer = tier.get("static1", HASHED, Accept_Encoding=accepted)
    assert (answer.headers["Content-Encoding"], answer.body) == (encoding, body)
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert answer.headers["Cache-Control"] == YEAR
    assert answer.headers["Content-Type"] == "text/css; charset=utf-8"
    if encoding == "gzip":
        assert gzip.decompress(answer.body) == CSS


def test_only_fonts_may_be_used_from_elsewhere(tier: Tier) -> None:
    font = tier.get("static1", "/static/font.0123456789ab.woff2", Origin="https://elsewhere.example")
    assert (font.body, font.headers["Access-Control-Allow-Origin"]) == (FONT, "*")
    assert tier.get("static1", HASHED).headers["Access-Control-Allow-Origin"] is None


def test_asking_again_costs_no_body_and_both_servers_agree(tier: Tier) -> None:
    first, second = (tier.get(host, HASHED) for host in HOSTS)
    assert first.headers["ETag"] == second.headers["ETag"]
    assert first.headers["Last-Modified"] == second.headers["Last-Modified"]
    again = tier.get("static2", HASHED, If_None_Match=first.headers["ETag"])
    assert (again.status, again.body, again.headers["Cache-Control"]) == (304, b"", YEAR)
    part = tier.get("static1", HASHED, Range="bytes=0-3")
    assert (part.status, part.body, part.headers["Cache-Control"]) == (206, CSS[:4], YEAR)


@pytest.mark.parametrize(
    "path",
    [
        "/static/nothing.0123456789ab.css",
        "/static/",
        "/static/css/",
        "/static/.secret",
        "/static/../releases/r1-static.tar.gz",
        "/static../manifests/r1.json",
        "/static/%2e%2e/manifests/r1.json",
        "/",
        "/health",
        "/releases/r1-static.tar.gz",
        "/etc/passwd",
    ],
)
def test_everything_else_is_missing(tier: Tier, path: str) -> None:
    answer = tier.get("static1", path)
    assert answer.status in (400, 404)
    assert len(answer.body) < 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_redirect_names_no_host(tier: Tier) -> None:
    assert tier.get("static1", "/static/css").headers["Location"] == "/static/css/"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PROPFIND"])
def test_the_public_server_only_reads(tier: Tier, method: str) -> None:
    assert tier.get("static1", "/static/robots.txt", method).status in (403, 405)
    assert tier.get("static1", "/static/robots.txt").body == b"first\n"


def test_health(tier: Tier) -> None:
    answer = tier.get("static1", "/-/health")
    assert (answer.status, answer.body, answer.headers["Cache-Control"]) == (200, b"ok\n", "no-store")


@pytest.mark.parametrize("host", HOSTS)
def test_listens_nowhere_else(tier: Tier, host: str) -> None:
    lines = [line for line in tier.lab.ssh(host, "ss -Hltnp").splitlines() if "nginx" in line]
    assert sorted({line.split()[3] for line in lines}) == [f"{tier.address[host]}:{port}" for port in (8080, 8081)]


@pytest.mark.parametrize(
    ("source", "method", "path", "status"),
    [
        ("static1", "GET", "/releases/r1-static.tar.gz", 200),
        ("static2", "GET", "/releases/r1-static.tar.gz", 200),
        ("static2", "HEAD", "/releases/r1-static.tar.gz", 200),
        ("static2", "GET", "/releases/", 200),
        ("static2", "GET", "/releases/r9-static.tar.gz", 404),
        ("static2", "PUT", "/releases/forged.tar.gz", 403),
        ("static2", "DELETE", "/releases/r1-static.tar.gz", 403),
        ("static1", "DELETE", "/releases/r1-static.tar.gz", 405),
        ("static1", "MKCOL", "/releases/directory/", 404),
        ("static1", "PUT", "/releases/.hidden", 404),
        ("static1", "PUT", "/releases/", 403),
        ("static1", "PUT", "/releases/deep/er.tar.gz", 404),
        ("static1", "PUT", "/releases/..%2ffiles%2fevil", 404),
        ("static1", "PUT", "/files/evil", 404),
        ("static1", "GET", "/manifests/r1.json", 404),
    ],
)
def test_who_may_do_what_with_packs(tier: Tier, source: str, method: str, path: str, status: int) -> None:
    assert tier.internal(source, "static1", method, path, b"x" if method == "PUT" else b"") == status
    assert tier.lab.ssh("static1", "ls -A /srv/static/releases").split() == ["r1-static.tar.gz"]


def test_a_stranger_may_not_even_read_packs(tier: Tier) -> None:
    for path in ("/releases/r1-static.tar.gz", "/releases/"):
        assert tier.get("static1", path, port=8081).status == 403
        assert tier.get("static1", path, port=8081, X_Forwarded_For=tier.address["static2"]).status == 403


def test_a_pack_comes_whole_or_not_at_all(tier: Tier) -> None:
    assert tier.internal("static1", "static2", "PUT", "/releases/half.tar.gz", b"x" * 5000, length=50000) == 0
    assert tier.put("static2", "large.tar.gz", b"x" * (5 << 20)) == 413
    assert tier.lab.ssh("static2", "ls -A /srv/static/releases").split() == ["r1-static.tar.gz"]


@pytest.mark.parametrize("host", HOSTS)
def test_nginx_cannot_write_what_it_serves(tier: Tier, host: str) -> None:
    writable = tier.lab.ssh(host, "find /srv/static -writable -not -path '*/proc/*' -print | sort", check=True)
    assert "/srv/static/files" in writable  # as root
    command = "runuser -u www-data -- find /srv/static -writable -not -type l | sort"
    assert tier.lab.ssh(host, command, check=False).split() == [
        "/srv/static/incoming",
        "/srv/static/releases",
        "/srv/static/releases/r1-static.tar.gz",
    ]


def test_without_brotli(tier: Tier) -> None:
    recap = tier.play("converge", "-e", '{"nginx_static_brotli": false}')
    assert recap.returncode == 0, recap.output
    try:
        assert tier.get("static1", HASHED, Accept_Encoding="gzip, br").headers["Content-Encoding"] == "gzip"
    finally:
        tier.play("converge")
    assert tier.get("static1", HASHED, Accept_Encoding="gzip, br").headers["Content-Encoding"] == "br"
