"""Fetching from a server that does all that servers do: nothing half-written is ever used."""

import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from openmvit import UserError, weights
from openmvit.weights.download import check_file, download

CONTENT = os.urandom(3 << 20)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Answers by the first word of the path; keeps a list of what was asked."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, str | None]]
    content: bytes
    tag: str
    breaks: int

    def log_message(self, *args):
        pass

    def do_GET(self):
        kind, wanted = self.path.split("/")[1], self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        content, length = self.server.content, None
        if kind == "gone":
            self.send_error(404)
            return
        if kind == "busy" and len(self.server.asked) < 3:
            self.send_error(503)
            return
        if kind == "page":
            content = b"<!DOCTYPE html><html>Please log in</html>"
        elif kind == "wrong":
            content = content[::-1]
        elif kind == "empty":
            content = b""
        elif kind == "long":
            length = len(content) - 100
        elif kind == "short":
            length = len(content) + 100
        start = 0
        same = self.headers.get("If-Range") in (None, self.server.tag)
        if wanted and same and kind not in ("noresume",):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        whole = len(content) if length is None else length
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        if kind != "notag":
            self.send_header("ETag", self.server.tag)
        if kind != "nolength":
            self.send_header("Content-Length", str(whole - start))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        body = content[start:]
        if kind in ("breaks", "noresume", "notag") and self.server.breaks:
            self.server.breaks -= 1
            body = body[: 1 << 20]
        step = 1 << 16 if kind == "slow" else len(body) or 1
        for at in range(0, len(body), step):
            self.wfile.write(body[at : at + step])
            if kind == "slow":
                time.sleep(0.01)


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.asked, running.content, running.tag, running.breaks = [], CONTENT, '"one"', 2
        running.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


def left(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("kind", ["plain", "slow", "nolength", "busy"])
def test_a_whole_file_comes(server, tmp_path, kind):
    download(f"{server.url}/{kind}/w.pyth", tmp_path / "w.pyth", sha256=DIGEST[:8])
    assert (tmp_path / "w.pyth").read_bytes() == CONTENT
    assert left(tmp_path) == ["w.pyth"]


def test_a_broken_transfer_is_continued(server, tmp_path):
    download(f"{server.url}/breaks/w.pyth", tmp_path / "w.pyth", sha256=DIGEST)
    assert (tmp_path / "w.pyth").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1048576-", "bytes=2097152-"]


@pytest.mark.parametrize("kind", ["noresume", "notag"])
def test_a_server_that_cannot_continue_begins_again(server, tmp_path, kind):
    download(f"{server.url}/{kind}/w.pyth", tmp_path / "w.pyth", sha256=DIGEST)
    assert (tmp_path / "w.pyth").read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_a_later_call_continues_and_another_file_is_not_mixed_in(server, tmp_path):
    server.breaks = 100
    server.content = CONTENT[: 1 << 20] + b"x"  # one byte never comes
    url, path = f"{server.url}/short/w.pyth", tmp_path / "w.pyth"
    with pytest.raises(UserError, match="1048577 bytes are kept and will be continued"):
        download(url, path, sha256=DIGEST)
    assert left(tmp_path) == ["w.pyth.part", "w.pyth.part.json"]
    assert not path.exists()
    # The server has a new file now: what is here is thrown away.
    server.asked, server.content, server.tag = [], CONTENT[: (1 << 20) + 101], '"two"'
    server.breaks = 0
    other = f"{server.url}/plain/w.pyth"
    download(other, path)
    assert server.asked[0][1] is None  # another address is another file
    assert path.read_bytes() == server.content


def test_a_changed_file_at_the_same_address_is_fetched_whole(server, tmp_path):
    url, path = f"{server.url}/breaks/w.pyth", tmp_path / "w.pyth"
    server.breaks = 1

    def change(*_):
        server.content, server.tag = CONTENT[::-1], '"two"'
        return 0

    part = tmp_path / "w.pyth.part"
    part.write_bytes(CONTENT[:1000])
    (tmp_path / "w.pyth.part.json").write_text(
        f'{{"url": "{url}", "mark": "\\"one\\"", "size": {len(CONTENT)}}}', encoding="utf-8"
    )
    change()
    download(url, path)
    assert server.asked[0][1] == "bytes=1000-"
    assert path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gone", "answers 404"),
        ("page", "a web page instead of weights"),
        ("empty", "nothing instead of weights"),
        ("wrong", r"another file than was published \(SHA-256"),
        ("short", "the connection broke|incomplete"),
    ],
)
def test_what_is_not_the_file_is_refused(server, tmp_path, kind, words):
    with pytest.raises(UserError, match=words):
        download(f"{server.url}/{kind}/w.pyth", tmp_path / "w.pyth", sha256=DIGEST[:8])
    assert not (tmp_path / "w.pyth").exists()
    if kind not in ("short",):
        assert left(tmp_path) == []


def test_no_more_is_taken_than_was_promised(server, tmp_path):
    with pytest.raises(UserError, match="another file"):
        download(f"{server.url}/long/w.pyth", tmp_path / "w.pyth", sha256=DIGEST)
    assert left(tmp_path) == []


def test_nobody_there(tmp_path):
    with pytest.raises(UserError, match=r"cannot be had .*refused"):
        download("http://127.0.0.1:9/w.pyth", tmp_path / "w.pyth", timeout=2)
    assert left(tmp_path) == []


def test_a_full_disk_is_named_before_anything_is_fetched(server, tmp_path, monkeypatch):
    import shutil

    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=66 << 20))
    with pytest.raises(UserError, match="needs 3 MiB more and the disk"):
        download(f"{server.url}/plain/w.pyth", tmp_path / "w.pyth")
    assert left(tmp_path) == []


FETCH = """
import sys
from pathlib import Path
from openmvit.weights.download import download
download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3])
print(len(Path(sys.argv[2]).read_bytes()))
"""


def test_two_processes_fetch_a_file_once(server, tmp_path):
    arguments = [sys.executable, "-c", FETCH, f"{server.url}/slow/w.pyth", str(tmp_path / "w.pyth"), DIGEST]
    both = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in both] == [str(len(CONTENT))] * 2
    assert len(server.asked) == 1
    assert (tmp_path / "w.pyth").read_bytes() == CONTENT


def test_a_killed_process_leaves_a_beginning_that_the_next_continues(server, tmp_path):
    path = tmp_path / "w.pyth"
    arguments = [sys.executable, "-c", FETCH, f"{server.url}/slow/w.pyth", str(path), DIGEST]
    process = subprocess.Popen(arguments)
    part = tmp_path / "w.pyth.part"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (part.is_file() and part.stat().st_size > 1 << 19):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not path.exists()
    have = part.stat().st_size
    assert have > 1 << 19
    download(f"{server.url}/slow/w.pyth", path, sha256=DIGEST)
    assert server.asked[-1][1] == f"bytes={have}-"
    assert path.read_bytes() == CONTENT


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    for name in ("OPENMVIT_MIRROR", "OPENMVIT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "checkpoints"


def test_a_card_is_fetched_from_the_mirror_into_the_cache_of_torch_hub(server, cache, monkeypatch):
    card = weights.find_card("mvitv2_small")
    monkeypatch.setenv("OPENMVIT_MIRROR", f"{server.url}/plain/")
    assert weights.fetch(card) == cache / "MViTv2_S_in1k.pyth"
    assert server.asked[0][0] == "/plain/dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_S_in1k.pyth"
    monkeypatch.setenv("OPENMVIT_MIRROR", f"{server.url}/gone/")
    assert weights.fetch(card).read_bytes() == CONTENT


def test_the_published_hash_is_checked(server, cache, monkeypatch):
    monkeypatch.setenv("OPENMVIT_MIRROR", f"{server.url}/plain")
    with pytest.raises(UserError, match=r"mvitv2_small_16x4\.tv_k400 cannot be had.*instead of ae3be167"):
        weights.fetch(weights.find_card("mvitv2_small_16x4", "tv_k400"))
    assert left(cache) == []


def test_a_mirror_may_be_a_folder(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMVIT_MIRROR", str(tmp_path / "mirror"))
    card = weights.find_card("mvitv2_small")
    with pytest.raises(UserError, match="not in OPENMVIT_MIRROR"):
        weights.fetch(card)
    file = tmp_path / "mirror/dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_S_in1k.pyth"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    assert weights.fetch(card) == file
    with pytest.raises(UserError, match="another file than was published"):
        check_file(file, "00000000")


def test_an_address_has_a_place_of_its_own(server, cache):
    first = weights.fetch_url(f"{server.url}/plain/a/w.pyth")
    server.content = CONTENT[::-1]
    second = weights.fetch_url(f"{server.url}/plain/b/w.pyth?download=true")
    assert first != second
    assert first.name == second.name == "w.pyth"
    assert first.is_relative_to(cache) and second.is_relative_to(cache)
    assert first.read_bytes() == CONTENT
    assert weights.locate(f"{server.url}/plain/a/w.pyth") == first


@pytest.mark.parametrize("name", ["OPENMVIT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_is_said(cache, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match=rf"mvitv2_small\.fb_in1k are not on this machine and {name} is set.*Store"):
        weights.fetch(weights.find_card("mvitv2_small"))
    with pytest.raises(UserError, match=f"{name} is set"):
        weights.fetch(weights.find_card("mvitv2_small", "timm_in1k"))
    cache.mkdir(parents=True)
    (cache / "MViTv2_S_in1k.pyth").write_bytes(CONTENT)
    assert weights.fetch(weights.find_card("mvitv2_small")).is_file()


def test_pages_and_networks_that_are_not_here_are_not_fetched(cache):
    with pytest.raises(UserError, match=r"Download by hand, then openmvit convert FILE \(or store it as .*drive-194g"):
        weights.fetch(weights.find_card("mvitv1_base_16x4", "fb_k400"))
    with pytest.raises(UserError, match="is listed only"):
        weights.fetch(weights.find_card("memvit_16l_16x4"))


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/a/../../w.pth", "https://example.org/..%2f..%2fw.pth", "https://example.org/",
        "https://example.org/%2e%2e", "https://example.org/.bashrc", "https://example.org/a%00.pth",
        "file:///etc/passwd", "ftp://example.org/w.pth", "hf:../../etc", "hf:owner/../name", "hf:owner",
        "hub:/etc/passwd", "hf:owner/name@../x", "https://example.org/a%5C..%5Cw.pth",
    ],
)  # fmt: skip
def test_no_address_leads_out_of_the_cache(cache, tmp_path, address):
    with pytest.raises(UserError, match=r"is no (address|repository)"):
        weights.locate(address)
    assert not list(tmp_path.rglob("*"))


HUB = """
import os, sys
from openmvit import UserError, weights
try:
    print(weights.fetch_hub(sys.argv[1]))
except UserError as error:
    print("refused", error)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its library needs: one repository that holds pytorch_model.bin alone."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        self.answer(CONTENT)

    def answer(self, body):
        found = self.path == "/owner/net/resolve/main/pytorch_model.bin"
        self.send_response(200 if found else 404)
        if not found:
            known = self.path.startswith("/owner/net/")
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            body = b""
        else:
            self.send_header("Content-Length", str(len(CONTENT)))
            self.send_header("ETag", f'"{DIGEST}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        self.wfile.write(body)


def test_hub_ids_go_through_the_cache_of_the_hub_library(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{running.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip

        def ask(address, **changes):
            done = subprocess.run(
                [sys.executable, "-c", HUB, address], env=environment | changes, capture_output=True, text=True,
                timeout=120,
            )  # fmt: skip
            return done.stdout.strip()

        path = ask("hf:owner/net")
        assert path.startswith(str(tmp_path)) and path.endswith("pytorch_model.bin")
        assert Path(path).read_bytes() == CONTENT
        assert ask("hub:owner/none").startswith("refused The weights hub:owner/none cannot be had")
        running.shutdown()
    assert ask("hf:owner/net", HF_HUB_OFFLINE="1") == path
    assert "HF_HUB_OFFLINE is set" in ask("hf:owner/other", HF_HUB_OFFLINE="1")
