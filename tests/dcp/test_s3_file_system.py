from __future__ import annotations

from aiockpt.dcp import file_system, s3_file_system, storage_reader, storage_writer


def test_it_is_only_a_place_for_names() -> None:
    assert s3_file_system.S3FileSystem is file_system.S3FileSystem
    assert s3_file_system.S3StorageReader is storage_reader.S3StorageReader
    assert s3_file_system.S3StorageWriter is storage_writer.S3StorageWriter
