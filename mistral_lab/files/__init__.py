"""Files and folders that are whole or not there, shards and their index, and a disk that is too full, noticed early."""

from .cache import lab_cache, one_process_at_a_time
from .disk import Need, check_disk, decimal_size, full_disk_explained, still_needed
from .shards import (
    check_safetensors,
    check_weights,
    has_weights,
    read_header,
    weight_files,
    write_aligned,
    write_index,
    write_shards,
)
from .whole import (
    folder_written_whole,
    private_place,
    read_json_if_whole,
    trainer_checkpoints,
    write_json,
    write_whole,
    written_whole,
)

__all__ = [
    "Need",
    "check_disk",
    "check_safetensors",
    "check_weights",
    "decimal_size",
    "folder_written_whole",
    "full_disk_explained",
    "has_weights",
    "lab_cache",
    "one_process_at_a_time",
    "private_place",
    "read_header",
    "read_json_if_whole",
    "still_needed",
    "trainer_checkpoints",
    "weight_files",
    "write_aligned",
    "write_index",
    "write_json",
    "write_shards",
    "write_whole",
    "written_whole",
]
