"""What lies in the page cache, and what was read from the disk, is counted."""

import os

import psutil
import pytest

from mistral_lab.measure import Paging, cached_bytes, evict, read_through

SIZE = 3 * 2**20 + 5  # no whole number of pages
PAGES = -(-SIZE // os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PAGE_SIZE")

pytestmark = pytest.mark.skipif(not psutil.LINUX, reason="only Linux says what lies in the page cache")


@pytest.fixture
def file(tmp_path):
    """A file on a disk that can forget it."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    evict([path])
    if cached_bytes([path]):
        pytest.skip("this file system keeps its files in memory")
    return path


def test_what_is_read_lies_in_the_page_cache_until_it_is_evicted(file, tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    assert read_through([empty, file]) > 0
    assert cached_bytes([file, empty]) == PAGES
    evict([file])
    assert cached_bytes([file]) == 0


def test_bytes_from_the_disk_are_counted_once(file):
    before = Paging.now()
    read_through([file])
    first = Paging.now().since(before)
    assert first.disk_bytes >= SIZE
    between = Paging.now()
    read_through([file])
    assert Paging.now().since(between).disk_bytes == 0


def test_reading_stops_with_the_file_that_reaches_the_most(file, tmp_path):
    others = [tmp_path / "b", tmp_path / "c"]
    for path in others:
        path.write_bytes(os.urandom(SIZE))
    evict(others)
    read_through([file, *others], most=SIZE + 1)
    assert [cached_bytes([path]) for path in (file, *others)] == [PAGES, PAGES, 0]
